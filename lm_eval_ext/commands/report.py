"""`lm-eval-ext report`: a folder of result files as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.commands import options

_PAGE = "Page"


def report(
    results: options.Results,
    baseline: options.Baseline,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    x: options.X = None,
    y: options.Y = None,
    metric: options.Metric = None,
    x_metric: options.XMetric = None,
    y_metric: options.YMetric = None,
    axes: options.AxisFile = None,
    run: options.Runs = None,
    languages: options.Languages = "",
    level: options.Level = 0.95,
    resamples: Annotated[
        int | None,
        typer.Option(
            min=100,
            max=1_000_000,
            help="Bootstrap resamples; 10,000 for up to 40 runs, 1,000 for more by default.",
            rich_help_panel=options.INTERVALS,
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = 0,
    title: Annotated[str, typer.Option(help="Title of the page.", rich_help_panel=_PAGE)] = "",
    items: Annotated[
        int, typer.Option(min=0, help="Most items in the browser of changed items.", rich_help_panel=_PAGE)
    ] = 5_000,
    figures: options.Figures = None,
) -> None:
    """Report what a folder of results shows, and what it does not, as one self-contained page.

    It opens with one sentence and one picture for each question that a reader
    has: did either axis change, did the English bias, in which languages, on
    which items? Then a table with one run per row, findings with intervals, all
    figures and tables, a browser of the items whose answer changed, which
    compares any two runs, what was run, and the commands that do it again. The
    page needs no network and runs only the scripts that it was written with.

    The runs must have been evaluated with --log_samples.

    Examples:

      lm-eval-ext report results/demo --baseline unsteered -o report.html

      lm-eval-ext report results --baseline google/gemma-3-12b-pt \\
        --x gmmlu --y blend_decon --figures figures/
    """
    from lm_eval_ext.console import notes, output
    from lm_eval_ext.report.build import report as make_report
    from lm_eval_ext.viz.chart import write_charts

    built = make_report(
        results,
        baseline,
        title=title,
        max_items=items,
        resamples=resamples,
        x=x,
        y=y,
        x_metric=x_metric or metric,
        y_metric=y_metric or metric,
        runs=run or [],
        languages=[code.strip() for code in languages.split(",") if code.strip()],
        level=level,
        seed=seed,
    )
    written = [built.write(out), *(write_charts(built.charts, figures) if figures else [])]

    warnings = notes()
    for note in built.plane.notes:
        warnings.print(f"note: {note}", style="yellow", soft_wrap=not warnings.is_terminal)
    console = output()
    for sentence in built.in_short:
        console.print(f"• {sentence}", soft_wrap=not console.is_terminal)
    more = f" and {len(written) - 1} figure files in {figures}" if figures else ""
    console.print(f"\nwrote {out}{more}", soft_wrap=True)
