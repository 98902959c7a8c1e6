"""The command `lm-eval-ext gate`; exit status 0 pass, 1 fail, 2 inconclusive, 3 misuse."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lm_eval_ext.commands.gate_github import fetch, post
from lm_eval_ext.commands.options import AxisFile
from lm_eval_ext.console import notes as console_of_notes
from lm_eval_ext.console import output, picture
from lm_eval_ext.errors import UserError
from lm_eval_ext.io import cannot_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
_OUTPUT = "Outputs"
_STANDARD_OUTPUT = Path("-")

#: Exit status where nothing can be judged; those of the verdicts are in `gate.verdicts`.
_MISUSE = 3

_Rules = Annotated[Path, typer.Argument(help="The gate, a YAML file.", metavar="GATE.YAML", show_default=False)]
_CandidateRun = Annotated[str | None, typer.Option(help="Which run, where the candidate's folder holds several.")]


class _Commands(TyperGroup):
    """Runs `check` unless another command is named, and exits with status 3 on errors, as 1 and 2 are verdicts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and (not args or args[0] not in (*self.commands, "--help")):
            args = ["check", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _misuse(str(error))
        except Exception as error:
            if hasattr(error, "format_message"):  # an unknown option or a missing one
                error.exit_code = _MISUSE  # type: ignore[attr-defined]
            raise


gate = typer.Typer(cls=_Commands, add_completion=False)
gate.command()(post)
gate.command()(fetch)


@gate.callback()
def _about() -> None:
    """Hold a candidate against a baseline by the rules of a file, item by item.

    Exit status: 0 pass, 1 fail, 2 inconclusive, 3 misuse.

    Examples:

      lm-eval-ext gate gate.yaml --baseline results/base --candidate results/new

      lm-eval-ext gate check --help

      lm-eval-ext gate renew gate.yaml --baseline results/baselines/mine \\
        --candidate results/new

      lm-eval-ext gate noise gate.yaml results/a results/b --json noise.json

      lm-eval-ext gate gate.yaml --baseline results/base --candidate results/new \\
        --comment comment.md

      lm-eval-ext gate post comment.md
    """


@gate.command()
def check(
    rules: _Rules,
    baseline: Annotated[Path, typer.Option(help="Results of the baseline.")],
    candidate: Annotated[
        list[Path],
        typer.Option(help="Results of the candidate; again for each rerun of it (another seed), averaged by item."),
    ],
    baseline_run: Annotated[
        str | None, typer.Option(help="Which run, where the baseline's folder holds several.")
    ] = None,
    candidate_run: _CandidateRun = None,
    axes: AxisFile = None,
    any_order: Annotated[
        bool, typer.Option("--any-order", help="The baseline may be newer than the candidate.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(help="Write everything as JSON; - is standard output.", rich_help_panel=_OUTPUT),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.", rich_help_panel=_OUTPUT)] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture.", rich_help_panel=_OUTPUT)] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            help="Append Markdown to a file.",
            envvar="GITHUB_STEP_SUMMARY",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    comment: Annotated[
        Path | None,
        typer.Option(help="Write a comment for the pull request, as Markdown.", rich_help_panel=_OUTPUT),
    ] = None,
    comment_name: Annotated[
        str,
        typer.Option(help="Name of the comment: a pull request has one of each name.", rich_help_panel=_OUTPUT),
    ] = "gate",
    annotate: Annotated[
        bool,
        typer.Option(
            "--annotate",
            help="Print GitHub annotations.",
            envvar="GITHUB_ACTIONS",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
) -> None:
    """Judge a candidate: what `lm-eval-ext gate GATE.YAML ...` does.

    Both runs must have been evaluated with --log_samples, on the same items.
    The table shows every rule and language; below it stands one test over all
    items together, which counts where the file says `pooled: {decides: true}`.
    The exit status is 0 if all pass, 1 if one fails, 2 if none fails but some
    are inconclusive, 3 if the runs or the rules cannot be judged.

    With `drift: {frozen: FOLDER, margin: 0.03}` in the file the candidate is
    held against a baseline that is not renewed too.

    Example:

      lm-eval-ext gate gate.yaml --baseline baselines/main --candidate results/new \\
        --json gate.json --junit gate.xml --comment comment.md
    """
    from dataclasses import replace
    from datetime import date

    from lm_eval_ext.gate import judge, outputs, pool, read_gate
    from lm_eval_ext.gate.comment import to_comment
    from lm_eval_ext.gate.drift import pair_drift, read_frozen
    from lm_eval_ext.gate.marker import marker, misuse_comment
    from lm_eval_ext.gate.measuring import Side, dtype_notes, left_out_notes, measure_rules, pair_rules
    from lm_eval_ext.gate.noise import apply_noise, read_noise
    from lm_eval_ext.gate.side_effects import measure_side_effects, read_panel
    from lm_eval_ext.gate.verdicts import STATUS, waive
    from lm_eval_ext.io import write_file

    marker(comment_name)
    with _told_of_misuse(annotate, comment, lambda message: misuse_comment(message, name=comment_name)):
        gate_rules = read_gate(rules)
        first, *others = (Side.read("candidate", folder, candidate_run) for folder in candidate)
        sides = Side.read("baseline", baseline, baseline_run), first.with_reruns(others)
        paired = pair_rules(gate_rules, *sides, any_order=any_order)
        pooled, drift, since = pool(gate_rules, paired, *sides), None, []
        if gate_rules.drift is not None:
            frozen = read_frozen(gate_rules.drift, sides[0], any_order=any_order)
            since = pair_drift(gate_rules, frozen, sides[1], any_order=any_order)
            drift = pool(gate_rules, since, frozen, sides[1])
        measured = measure_rules(gate_rules, [*paired, *since])
        if gate_rules.noise is not None:
            floor = read_noise(gate_rules.noise)
            measured = apply_noise(floor, measured, [*paired, *since], first.run)
            pooled = replace(pooled, noise=floor.pooled.floor(pooled.asked.alpha))
        if gate_rules.panel is not None:
            measured += measure_side_effects(gate_rules, read_panel(gate_rules.panel, first.run))
        judged = judge(measured, pooled, drift)
        result = waive(judged, gate_rules.waivers, date.today())
        files = (
            (json, outputs.to_json(result, *sides)),
            (junit, outputs.to_junit(result)),
            (svg, outputs.to_svg(result)),
        )
        for path, text in files:
            if path == _STANDARD_OUTPUT:
                typer.echo(text)
            elif path is not None:
                write_file(path, text)
        if comment is not None:
            write_file(comment, to_comment(result, *sides, paired, name=comment_name))
        if summary is not None:
            written = summary.stat().st_size if summary.is_file() else 0
            _append(summary, outputs.to_markdown(result, *sides, written=written))
    notes = console_of_notes()
    told = (
        *(note for side in sides for note in side.notes),
        *dtype_notes(*sides),
        *left_out_notes(gate_rules, *sides),
        *result.notes,
    )
    for note in told:
        notes.print(f"note: {note}", style="yellow")
    console = output(160, stderr=json == _STANDARD_OUTPUT)
    console.print(outputs.table(result))
    for line in outputs.pooled_lines(result):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(result.detail, soft_wrap=True)
    if annotate:
        for line in outputs.github_annotations(result):
            typer.echo(line)
    raise typer.Exit(STATUS[result.verdict])


@gate.command()
def renew(
    rules: _Rules,
    baseline: Annotated[Path, typer.Option(help="The committed baseline, written anew.")],
    candidate: Annotated[Path, typer.Option(help="Results that become the baseline.")],
    candidate_run: _CandidateRun = None,
    axes: AxisFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what moves, write nothing.")] = False,
) -> None:
    """Make a candidate the new baseline, on purpose, and show what moved.

    Writes only what the gate needs: ids, hashes and scores of the items its
    rules speak of, no text; margins too where they say `scores: margins`.
    Replaces a folder only if it is such a baseline. Exit status: 0, or 3.

    Example:

      lm-eval-ext gate renew gate.yaml --baseline baselines/main \\
        --candidate results/new --dry-run
    """
    from lm_eval_ext.gate import baseline as committed
    from lm_eval_ext.gate import read_gate
    from lm_eval_ext.gate.drift import check_not_frozen
    from lm_eval_ext.gate.measuring import Side

    gate_rules = read_gate(rules)
    new = Side.read("candidate", candidate, candidate_run)
    if new.run.is_committed:
        raise UserError(f"{candidate} is itself a committed baseline; --candidate takes the results of an evaluation")
    check_not_frozen(gate_rules, baseline)
    old = committed.read_old(baseline, Side)
    moved = committed.moves(gate_rules, old, new)
    console = output(160)
    for line in _describe(moved):
        console.print(line, soft_wrap=True)
    if dry_run:
        console.print(f"{baseline} was not written", soft_wrap=True)
        return
    size = committed.write(gate_rules, new.run, baseline)
    console.print(f"wrote {baseline} ({size / 1000:.0f} kB)", soft_wrap=True)


@gate.command()
def noise(
    rules: _Rules,
    evaluations: Annotated[
        list[Path],
        typer.Argument(help="Results of one model, two or more folders.", metavar="RESULTS...", show_default=False),
    ],
    runs: Annotated[
        int | None, typer.Option(min=2, help="Evaluate so often first, into run1, run2, ... of the one folder given.")
    ] = None,
    arguments: Annotated[
        str, typer.Option("--eval", help="With --runs: arguments of lm-eval-ext eval, in quotes.", show_default=False)
    ] = "",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="With --runs: what the runs take in turn; repeatable. Of batch_size, model (the engine), order (given, "
            "reversed: of the tasks), or a model argument such as dtype.",
            metavar="KEY=VALUE,VALUE",
            show_default=False,
        ),
    ] = None,
    axes: AxisFile = None,
    json: Annotated[Path | None, typer.Option(help="Write what a gate reads.", rich_help_panel=_OUTPUT)] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture.", rich_help_panel=_OUTPUT)] = None,
) -> None:
    """Measure what changes where the same model is evaluated again.

    Reads several evaluations (made with --log_samples; with other batch sizes,
    dtypes or engines), or with --runs makes them, each with another batch size
    unless --vary or --eval says otherwise. Shown per axis and language: how
    many answers flip, by how much the score and the margins (of the best option
    over the second) move. With `noise: noise.json` in the gate a change within
    the noise is inconclusive. Exit status: 0, or 3 where nothing can be
    measured.

    Examples:

      lm-eval-ext gate noise gate.yaml results/a results/b --json noise.json

      lm-eval-ext gate noise gate.yaml noise/ --runs 4 --vary batch_size=1,8 \\
        --vary dtype=float32,bfloat16 --json noise.json \\
        --eval "--model steered-hf --tasks transfer_mini_cloze"
    """
    from lm_eval_ext.gate import outputs, read_gate
    from lm_eval_ext.gate.measuring import EVALUATION, Side
    from lm_eval_ext.gate.noise import measure_noise, run_evaluations
    from lm_eval_ext.io import write_file

    gate_rules = read_gate(rules)
    if vary and runs is None:
        raise UserError("--vary needs --runs: it says what the runs take in turn")
    if (runs is None) == bool(arguments):
        raise UserError("--runs and --eval belong together: how often, and what lm-eval-ext eval is told")
    if runs is not None:
        if len(evaluations) > 1:
            raise UserError(f"--runs writes into one folder, got {len(evaluations)}")
        evaluations = run_evaluations(evaluations[0], runs, arguments, vary or ())
    floor = measure_noise(gate_rules, [Side.read(EVALUATION, folder) for folder in evaluations])
    shown = outputs.noise_table(floor)
    output(160).print(shown)
    if json is not None:
        write_file(json, floor.to_json())
    if svg is not None:
        write_file(svg, picture([shown], "lm-eval-ext gate noise"))


def _describe(moved: list[Any]) -> Iterator[str]:
    """A line for each language whose items moved, then the number of those that did not."""
    unchanged = 0
    for move in moved:
        where = f"{move.axis} {move.metric} {move.language}"
        if move.before != move.before:
            yield f"{where}: {move.after:.1%} ({move.note})"
        elif move.gained or move.lost or move.note:
            items = [
                f"{len(ids)} {word} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})"
                for word, ids in (("gained", move.gained), ("lost", move.lost))
                if ids
            ]
            changes = "; ".join([*items, *([move.note] if move.note else [])])
            yield f"{where}: {move.before:.1%} -> {move.after:.1%}; {changes}"
        else:
            unchanged += 1
    yield f"{unchanged} of {len(moved)} did not move"


@contextmanager
def _told_of_misuse(annotate: bool, comment: Path | None, to_comment: Callable[[str], str]) -> Iterator[None]:
    """Report a misuse as a GitHub annotation too, and in the comment, so that no earlier verdict stays there."""
    try:
        yield
    except UserError as error:
        from lm_eval_ext.io import write_file

        if comment is not None:
            write_file(comment, to_comment(str(error)))
        if annotate:
            from lm_eval_ext.gate.outputs import misuse_annotation

            typer.echo(misuse_annotation(str(error)))
        raise


def _misuse(message: str) -> None:
    output(160, stderr=True).print(f"error: {message}", style="red", soft_wrap=True)
    raise SystemExit(_MISUSE)


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from None
