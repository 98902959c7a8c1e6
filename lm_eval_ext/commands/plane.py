"""`lm-eval-ext plane`: from a folder of result files to the figure, the table and the CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.commands import options
from lm_eval_ext.errors import ResultsError


def plane(
    results: options.Results,
    baseline: options.Baseline,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("plane.html"),
    csv: Annotated[Path | None, typer.Option(help="The CSV to write; by default beside the page.")] = None,
    x: options.X = None,
    y: options.Y = None,
    metric: options.Metric = None,
    x_metric: options.XMetric = None,
    y_metric: options.YMetric = None,
    axes: options.AxisFile = None,
    run: options.Runs = None,
    languages: options.Languages = "",
    where: options.Where = None,
    level: options.Level = 0.95,
    resamples: options.Resamples = 10_000,
    seed: options.Seed = 0,
    figures: options.Figures = None,
    as_json: options.AsJson = False,
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

      lm-eval-ext plane results --baseline base --where universal=false

      lm-eval-ext plane results --baseline base --x arc_easy \\
        --y gsm8k --y-metric exact_match,strict-match
    """
    from lm_eval_ext.console import notes, output, print_json
    from lm_eval_ext.io import write_file
    from lm_eval_ext.plane.figures import charts
    from lm_eval_ext.plane.page import page
    from lm_eval_ext.plane.shifts import measure
    from lm_eval_ext.plane.table import terminal_table, to_csv, to_records
    from lm_eval_ext.plane.wording import conclusions
    from lm_eval_ext.results.runs import load
    from lm_eval_ext.viz.chart import write_charts

    csv = csv or out.with_suffix(".csv")
    if csv == out:
        raise ResultsError(f"the page and the CSV would both be written to {out}; give --out a name that ends in .html")
    measured = measure(
        load(results),
        baseline,
        x=x,
        y=y,
        x_metric=x_metric or metric,
        y_metric=y_metric or metric,
        runs=run or [],
        languages=[code.strip() for code in languages.split(",") if code.strip()],
        where=where or [],
        level=level,
        resamples=resamples,
        seed=seed,
    )
    write_file(out, page(measured))
    write_file(csv, to_csv(measured))
    written = write_charts(charts(measured), figures) if figures else []

    if as_json:
        print_json(to_records(measured) | {"page": out, "csv": csv, "figures": written})
        return
    warnings = notes()
    for note in measured.notes:
        warnings.print(f"note: {note}", style="yellow")
    console = output(120)
    console.print(terminal_table(measured))
    for sentence in conclusions(measured):
        console.print(f"• {sentence}", soft_wrap=not console.is_terminal)
    more = f", and {len(written)} figure files in {figures}" if figures else ""
    console.print(f"\nwrote {out} and {csv}{more}", soft_wrap=True)
