"""The command `lm-eval-ext sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm_eval_ext.commands import options
from lm_eval_ext.errors import UserError
from lm_eval_ext.languages import normalise
from lm_eval_ext.sweep.settings import GIB, N_RANDOM, PAIR_LAYERS

if TYPE_CHECKING:
    from lm_eval_ext.sweep.result import SweepResult

_GRID, _TASKS, _MODEL, _MACHINE = "Grid", "Questions", "Model", "Machine"


def sweep(
    vectors: Annotated[Path, typer.Option(help="Vector file made by lm-eval-ext extract.")],
    tasks: Annotated[
        str, typer.Option(help="Multiple-choice tasks or groups, joined by commas.", rich_help_panel=_TASKS)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the cells and the results.")],
    kinds: Annotated[str, typer.Option(help="Kinds of vectors, joined by commas.", rich_help_panel=_GRID)] = "en,loc",
    layers: Annotated[
        str, typer.Option(help="'all', or layers as in a plan: 5,8-10,42%.", rich_help_panel=_GRID)
    ] = "all",
    gammas: Annotated[
        str, typer.Option(help="Strengths as in a plan, joined by commas: 0.5,2,5%.", rich_help_panel=_GRID)
    ] = "0.5,1,2,4",
    positions: Annotated[
        str,
        typer.Option(help="As in a plan, joined by commas: prompt,last,last3,generated,all.", rich_help_panel=_GRID),
    ] = "prompt",
    pairs: Annotated[
        str,
        typer.Option(help="'surgical' combines the best layers of en and loc; 'none' does not.", rich_help_panel=_GRID),
    ] = "surgical",
    pair_layers: Annotated[
        int, typer.Option(min=1, help="Layers of each kind that are combined.", rich_help_panel=_GRID)
    ] = PAIR_LAYERS,
    random: Annotated[
        int, typer.Option(min=0, help="Random directions of the same norm for each plan.", rich_help_panel=_GRID)
    ] = N_RANDOM,
    controls: Annotated[
        bool,
        typer.Option(help="Another language's vector and the negated vector for each plan.", rich_help_panel=_GRID),
    ] = True,
    control_gammas: Annotated[
        str,
        typer.Option(
            help="Only plans of these strengths get controls, and the best plans; all if empty.", rich_help_panel=_GRID
        ),
    ] = "",
    include_path: options.IncludePath = None,
    axes: options.AxisFile = None,
    languages: Annotated[
        str, typer.Option(help="Only questions in these languages, such as es,ko.", rich_help_panel=_TASKS)
    ] = "",
    limit: options.Limit = None,
    num_fewshot: options.NumFewshot = None,
    apply_chat_template: options.ApplyChatTemplate = False,
    system_instruction: options.SystemInstruction = "",
    metric: Annotated[str, typer.Option(help="The score that is compared.", rich_help_panel=_TASKS)] = "acc",
    prior: Annotated[
        bool,
        typer.Option(
            help="Score the options without a question too, under the same steering (mutual information). Doubles the "
            "work of option texts.",
            rich_help_panel=_TASKS,
        ),
    ] = True,
    lang: options.Lang = "",
    model: options.Model = "",
    model_args: Annotated[
        str,
        typer.Option(help="More of lm_eval's --model_args: dtype=float32,peft=DIR, ...", rich_help_panel=_MODEL),
    ] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="hf (transformers), or vllm: one running engine, condition by condition.", rich_help_panel=_MACHINE
        ),
    ] = "hf",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, ...; a GPU if there is one by default.", rich_help_panel=_MACHINE)
    ] = "",
    memory: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="GiB for what is kept of unsteered forwards, which conditions share.",
            rich_help_panel=_MACHINE,
        ),
    ] = 2.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one forward; 2048 on a CPU if not given.", rich_help_panel=_MACHINE),
    ] = None,
    likelihoods: Annotated[
        bool,
        typer.Option(
            help="Normalise over the vocabulary even where only differences between options matter (letters).",
            rich_help_panel=_MACHINE,
        ),
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of each interval.")] = 2_000,
    restart: Annotated[bool, typer.Option(help="Discard the results of earlier runs.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check the grid and print its size; load no model.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a whole grid of steering plans on the same questions, in one process.

    Every kind at every layer with every strength, the unsteered model, and
    controls: random directions of the same norm, another language's vector, the
    negated vector. Then the best
    layers of en and loc together. Each cell equals a run of lm_eval --model
    steered-hf with that plan; what conditions share is computed once.

    Writes to --out: items.parquet (a row per condition and question),
    summary.csv (changes with paired intervals and their place among the
    controls), sweep.html, figures/, and plan.yaml (the chosen plan; only where
    the tasks are development splits). A second run resumes where the first
    one was interrupted.

    Examples:

      lm-eval-ext sweep --vectors v.safetensors --out sweep/ \\
        --tasks blend_decon_dev_cloze,bmlama_dev --languages es,id,el,ko,zh,ar

      lm-eval-ext sweep --vectors v.safetensors --out letters/ \\
        --tasks blend_decon_dev --positions last --layers 40%-70% --random 20

      accelerate launch -m lm_eval_ext sweep --model google/gemma-3-12b-pt \\
        --vectors v.safetensors --out sweep/ --tasks blend_decon_dev
    """
    from lm_eval_ext.console import print_json
    from lm_eval_ext.sweep.run import Sweep
    from lm_eval_ext.sweep.settings import Settings

    if pairs not in ("surgical", "none"):
        raise UserError(f"--pairs {pairs!r} is unknown, valid: surgical, none")
    run = Sweep(
        Settings(
            vectors=vectors,
            tasks=tuple(_split(tasks, "--tasks")),
            out=out,
            kinds=tuple(_split(kinds, "--kinds")),
            layers=layers,
            gammas=tuple(_split(gammas, "--gammas")),
            positions=tuple(_split(positions, "--positions")),
            pair_layers=pair_layers if pairs == "surgical" else 0,
            n_random=random,
            controls=controls,
            control_gammas=tuple(control_gammas.split(",")) if control_gammas else (),
            include_path=include_path,
            languages=tuple(normalise(code) for code in languages.split(",") if code),
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction or None,
            metric=metric,
            prior=prior,
            lang=normalise(lang) if lang else None,
            model=model,
            model_args=model_args,
            engine=engine,
            device=device,
            memory=int(memory * GIB),
            max_tokens=max_tokens,
            likelihoods=likelihoods,
            resamples=resamples,
            restart=restart,
        )
    )
    result = run.run(dry_run=dry_run)
    if as_json and (dry_run or result is not None):
        why = None if result is None or result.plan else result.why_no_plan()
        print_json(run.size() if result is None else {"out": out, "plan": result.plan, "why_no_plan": why})
    elif result is not None:
        _print(result)


def _print(result: SweepResult) -> None:
    """Print the largest effects, findings, and the paths of the files."""
    from rich.table import Table

    from lm_eval_ext.console import notes, output
    from lm_eval_ext.sweep import page

    if result.plan is None:
        notes().print(f"note: {result.why_no_plan()}", style="yellow")
    table = Table(title="Largest effects (average over all languages but English)")
    for number, column in enumerate(page.HEADER):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in page.top_rows(result.summary):
        table.add_row(*row)
    console = output(160)
    console.print(table)
    for sentence in page.findings(result.summary):
        console.print(f"• {sentence}", soft_wrap=True)
    files = f"items.parquet, summary.csv, sweep.html, figures/{' and plan.yaml' if result.plan else ''}"
    console.print(f"\nwrote {files} to {result.settings.out}", soft_wrap=True)


def _split(text: str, option: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"{option} {text!r} is empty")
    return words
