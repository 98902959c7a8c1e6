"""`lm-eval-ext plane`: from a folder of result files to the figure, the table and the CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.errors import ResultsError

_AXES, _RUNS, _BOOTSTRAP = "Axes", "Runs", "Intervals"


def plane(
    results: Annotated[Path, typer.Argument(help="Folder of result files, as lm_eval --output_path wrote it.")],
    baseline: Annotated[
        str,
        typer.Option(
            help="The run at the origin: its folder, model, label or plan ('' is unsteered).", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("plane.html"),
    csv: Annotated[Path | None, typer.Option(help="The CSV to write; beside the page if not given.")] = None,
    x: Annotated[
        str | None,
        typer.Option(
            "--x", help="Task, group or family across; the only transfer family if not given.", rich_help_panel=_AXES
        ),
    ] = None,
    y: Annotated[
        str | None,
        typer.Option("--y", help="The same upwards; the only localization family if not given.", rich_help_panel=_AXES),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Score of both axes, as METRIC or METRIC,FILTER.", rich_help_panel=_AXES)
    ] = "acc",
    x_metric: Annotated[str | None, typer.Option(help="Score of the axis across.", rich_help_panel=_AXES)] = None,
    y_metric: Annotated[str | None, typer.Option(help="Score of the axis upwards.", rich_help_panel=_AXES)] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="Draw only this run (may be repeated).", rich_help_panel=_RUNS)
    ] = None,
    languages: Annotated[str, typer.Option(help="Only these languages, such as es,ko.", rich_help_panel=_RUNS)] = "",
    level: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.", rich_help_panel=_BOOTSTRAP)
    ] = 0.95,
    resamples: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="Bootstrap resamples.", rich_help_panel=_BOOTSTRAP)
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.", rich_help_panel=_BOOTSTRAP)] = 0,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for every figure as CSV, SVG and PNG (needs lm_eval_ext[figures]).")
    ] = None,
) -> None:
    """Draw the transfer-localization plane of a folder of results.

    Pairs the documents of every run with those of the baseline and shows how
    both scores changed, per language and as the macro average over all
    languages but English, with paired bootstrap intervals in which a question
    asked in several languages counts as one. Writes a page that needs no
    network, and a CSV; prints a table and what the intervals allow to conclude.

    The runs must have been evaluated with --log_samples. A run is called after
    its folder; where one was evaluated several times the newest results count,
    and a note says so.

    Examples:

      lm-eval-ext plane results/demo --baseline unsteered --out plane.html

      lm-eval-ext plane results --baseline google/gemma-3-12b-pt \\
        --x gmmlu --y blend_decon --csv plane.csv

      lm-eval-ext plane results/demo --baseline unsteered \\
        --metric acc_norm --run surgical --run random

      lm-eval-ext plane results --baseline base --x arc_easy \\
        --y gsm8k --y-metric exact_match,strict-match
    """
    from rich.console import Console

    from lm_eval_ext.plane.figures import charts, write_charts
    from lm_eval_ext.plane.figures.chart import write_whole
    from lm_eval_ext.plane.page import page
    from lm_eval_ext.plane.runs import read_tree
    from lm_eval_ext.plane.shifts import measure
    from lm_eval_ext.plane.table import terminal_table, to_csv
    from lm_eval_ext.plane.wording import conclusions

    csv = csv or out.with_suffix(".csv")
    if csv == out:
        raise ResultsError(f"the page and the CSV would both be written to {out}; give --out a name that ends in .html")
    measured = measure(
        read_tree(results),
        baseline,
        x=x,
        y=y,
        x_metric=x_metric or metric,
        y_metric=y_metric or metric,
        runs=run or [],
        languages=[code.strip() for code in languages.split(",") if code.strip()],
        level=level,
        resamples=resamples,
        seed=seed,
    )
    write_whole(out, page(measured).encode())
    write_whole(csv, to_csv(measured).encode())
    written = write_charts(charts(measured), figures) if figures else []

    warnings = Console(stderr=True, markup=False, highlight=False)
    for note in measured.notes:
        warnings.print(f"note: {note}", style="yellow")
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a log should not fold the table
    console.print(terminal_table(measured))
    for sentence in conclusions(measured):
        console.print(f"• {sentence}", soft_wrap=not console.is_terminal)
    more = f", and {len(written)} figure files in {figures}" if figures else ""
    console.print(f"\nwrote {out} and {csv}{more}", soft_wrap=True)
