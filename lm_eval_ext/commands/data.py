"""The commands of `lm-eval-ext data`: check, audit, count, show, export and import data sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.commands import options
from lm_eval_ext.commands.data_instruct import instruct
from lm_eval_ext.commands.data_review import review
from lm_eval_ext.errors import DataError
from lm_eval_ext.io import write_file

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="Check, count, show, review, export and import data sets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(instruct)
app.command()(review)

_DataSet = Annotated[str, typer.Argument(help="The data set: blend.", metavar="blend")]
_Language = Annotated[str, typer.Option("--lang", help="Language code, such as el.")]


@app.command()
def check(data: _DataSet = "blend", as_json: options.AsJson = False) -> None:
    """Check that the tables fit the data: ids that apply, drop or fail, and the items that are built.

    Exits with status 1 if an edit fails.
    """
    from lm_eval_ext.console import output, print_json
    from lm_eval_ext.data import blend

    _check_name(data)
    checks, counts = blend.check(), {count.language: count for count in blend.counts()}
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "counts": [asdict(n) for n in counts.values()]})
        raise typer.Exit(int(any(check.failed or check.malformed for check in checks)))
    console = output(120)
    edits = _table("Edits that take the country out of a question", [check.language for check in checks])
    edits.add_row("apply", *(str(check.applied) for check in checks))
    edits.add_row("drop", *(str(len(check.dropped)) for check in checks))
    edits.add_row("fail", *(str(len(check.failed)) for check in checks))
    edits.add_row("malformed in the data", *(str(len(check.malformed)) for check in checks))
    built = _table("Questions that yield an item, and why the others do not", list(counts))
    built.add_row("items", *(str(count.items) for count in counts.values()))
    built.add_row("of them in the core", *(str(count.core) for count in counts.values()), end_section=True)
    for reason in dict.fromkeys(reason for count in counts.values() for reason in count.reasons):
        built.add_row(reason, *(str(count.reasons[reason]) for count in counts.values()))
    console.print(edits)
    console.print(built)
    problems = [
        f"{check.language} {question_id}: {why}" for check in checks for question_id, why in check.failed.items()
    ]
    problems += [f"{check.language} {problem.id}: {problem.message}" for check in checks for problem in check.malformed]
    for problem in problems:
        console.print(problem, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def audit(data: _DataSet = "blend") -> None:
    """Search all items for words that name a country, nationality, currency or national institution.

    Exits with status 1 if there are any that are not on the allow-list.
    """
    from lm_eval_ext.data import blend
    from lm_eval_ext.data.blend import leaks

    _check_name(data)
    findings = blend.audit()
    for finding in findings:
        typer.echo(f"{finding.language} {finding.id}, {finding.where}: {finding.text!r} ({finding.category})")
    typer.echo(f"{len(findings)} findings that are not on the allow-list, which has:")
    for allowed in sorted(leaks.allow_list(), key=lambda entry: (entry.language, entry.id, entry.text)):
        typer.echo(f"  {allowed.language} {allowed.id} {allowed.text!r}: {allowed.reason}")
    if findings:
        raise typer.Exit(1)


@app.command()
def card(
    data: _DataSet = "blend",
    write: Annotated[
        Path | None, typer.Option(help="Data card whose numbers to replace, instead of printing them.")
    ] = None,
) -> None:
    """Print the numbers of the data card, as Markdown."""
    from lm_eval_ext.data import card

    _check_name(data)
    if write is None:
        typer.echo(card.numbers())
    else:
        card.update(write)


@app.command()
def show(
    data: Annotated[
        str, typer.Argument(help="A family of tasks, such as blend_ctx or gmmlu; blend is blend_decon.")
    ] = "blend",
    language: _Language = "en",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of items.")] = 5,
    cloze: Annotated[bool, typer.Option("--cloze", help="In the cloze form, not with letters.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with all items of the language, to search (blend only).")
    ] = None,
) -> None:
    """Print items as prompts of the model.

    Examples:

      lm-eval-ext data show blend --lang el --n 5

      lm-eval-ext data show blend --lang el --html el.html
    """
    import logging

    from lm_eval_ext.data import browse

    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)  # it logs a hint about --metadata for every task
    if html is not None:
        _check_name(data)
        write_file(html, browse.page(language))
        typer.echo(f"wrote {html}")
        return
    family = "blend_decon" if data == "blend" else data
    for text in browse.as_seen(f"{family}_{language}{'_cloze' if cloze else ''}", n):
        typer.echo(text)


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")],
    data: _DataSet = "blend",
    form: Annotated[str, typer.Option("--format", help="parquet, jsonl, or hub: a folder to upload.")] = "parquet",
) -> None:
    """Write the built set as files that `datasets` loads, with a README."""
    from lm_eval_ext.data import blend
    from lm_eval_ext.data.export import export

    _check_name(data)
    written = export(form, out)
    typer.echo(f"wrote {len(written)} files to {out}; SHA-256 of all items: {blend.fingerprint()}")
    if form == "hub":
        typer.echo(f"upload it with: hf upload ORGANISATION/NAME {out} --repo-type dataset")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Questions, one JSON object per line.")],
    name: Annotated[str, typer.Option(help="Name of the tasks.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of task files, for --include_path of the harness.")],
    language: Annotated[str, typer.Option("--lang", help="Language of the lines that name none.")] = "",
    axis: Annotated[
        str, typer.Option(help="transfer or localization. Default: localization with countries, else transfer.")
    ] = "",
    split: Annotated[str, typer.Option(help="test, or dev for questions that choose layers.")] = "test",
    form: Annotated[
        str,
        typer.Option("--format", help="The file is a published set: locqa, or semeval2026 (task 7, multiple choice)."),
    ] = "",
    answers: Annotated[
        Path | None, typer.Option(help="File with the answers, where a published set has them apart.")
    ] = None,
) -> None:
    r"""Make tasks of your own multiple-choice questions: with letters and as cloze.

    Each line has question (text), options (2 to 10 texts) and answer (number from 0, letter, or text of the right option);
    language (code), where --lang does not give it; and may have countries (of each option, one or a list; US and UK are the
    English ones), id (the same in every language) and topic. With countries the tasks report english_bias too.

    With --format a published set is read as its authors give it (lm_eval_ext/data/published.py says how). SemEval-2026 task
    7 is for evaluation only: its questions are kept out of git, and must not be passed on.

    Examples:

      lm-eval-ext data import my.jsonl --name mytask --out tasks/

      lm-eval-ext data import locqa.json --format locqa --name locqa --out tasks/

      lm-eval-ext data import track_2_mcq_input.tsv --format semeval2026 --answers final_2_mcq_reference.tsv --lang en \
        --name semeval7 --out tasks/

      lm_eval --model steered-hf --include_path tasks/ --tasks mytask_cloze
    """
    from lm_eval_ext.data import own, published

    lines = _published(form, file, answers, language, split) if form or answers else None
    # Both published sets ask for what depends on the country.
    axis = axis or ("localization" if form else "")
    private = form in published.EVALUATION_ONLY
    family = own.write(file, name, out, language, axis=axis or None, split=split, lines=lines, private=private)
    typer.echo(f"wrote {', '.join(family.groups)} to {out}; run them with")
    typer.echo(f"  lm_eval --include_path {out} --tasks {','.join(family.groups)} --model ...")


def _published(form: str, file: Path, answers: Path | None, language: str, split: str) -> list[dict[str, Any]]:
    """The questions of a published set; prints how many are kept and left out."""
    from lm_eval_ext.data import published

    if form in published.EVALUATION_ONLY and split != "test":
        raise DataError(f"{form} is for evaluation only: no layers are chosen on it, leave --split {split} out")
    lines, report = published.read(form, file, answers, language)
    typer.echo(report)
    if not lines:
        raise DataError(f"no question of {file} can be asked")
    return lines


def _check_name(data: str) -> None:
    if data != "blend":
        raise DataError(f"unknown data set {data!r}; valid: blend")


def _table(title: str, codes: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("", overflow="fold")
    for code in codes:
        table.add_column(code, justify="right")
    return table
