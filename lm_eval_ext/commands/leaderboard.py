"""`lm-eval-ext leaderboard`: result trees as a static site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.commands import options
from lm_eval_ext.errors import ResultsError

_SCORES, _RECORDS = "Scores", "Records"


def leaderboard(
    results: Annotated[
        list[Path], typer.Argument(help="Folders of result files, as lm_eval --output_path wrote them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the site.")] = Path("site"),
    metric: Annotated[
        str | None,
        typer.Option(
            help="Score of every family, as METRIC or METRIC,FILTER. Default: what its tasks say, else acc.",
            rich_help_panel=_SCORES,
        ),
    ] = None,
    axes: options.AxisFile = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Only this family of tasks (may be repeated).", rich_help_panel=_SCORES)
    ] = None,
    level: options.Level = 0.95,
    resamples: options.Resamples = 1_000,
    seed: options.Seed = 0,
    title: Annotated[str, typer.Option(help="Title of the site.")] = "",
    organization: Annotated[
        str, typer.Option(help="Evaluating organisation, for the records.", rich_help_panel=_RECORDS)
    ] = "unknown",
    relationship: Annotated[
        str,
        typer.Option(
            help="Relation to the makers of the models: first_party, third_party, collaborative or other.",
            rich_help_panel=_RECORDS,
        ),
    ] = "other",
    model_organization: Annotated[
        str,
        typer.Option(
            help="Maker of the models whose names do not say it (local ones), for the records.",
            show_default=False,
            rich_help_panel=_RECORDS,
        ),
    ] = "",
    records: Annotated[
        bool, typer.Option(help="Write Every Eval Ever and .eval_results records.", rich_help_panel=_RECORDS)
    ] = True,
) -> None:
    """Make a static leaderboard of all runs in some folders of results.

    Writes index.html (sortable, filterable, by language, every view has a link
    of its own), leaderboard.csv, leaderboard.md, and under records/ every run
    in the Every Eval Ever schema and, for tasks on a hub data set, as
    .eval_results YAML for the model's repository.

    Only scores of the same questions are compared: runs with other documents,
    prompts or task versions than most are listed and marked, not ranked. The
    runs must have been evaluated with --log_samples.

    Examples:

      lm-eval-ext leaderboard results/demo -o site/

      lm-eval-ext leaderboard results/* -o site/ --family gmmlu \\
        --family blend_decon --organization "Our lab"
    """
    from lm_eval_ext.console import notes, output
    from lm_eval_ext.leaderboard.collect import collect
    from lm_eval_ext.leaderboard.records import RELATIONSHIPS, model_names, write_records
    from lm_eval_ext.leaderboard.site import write_site

    if relationship not in RELATIONSHIPS:
        raise ResultsError(f"unknown relationship {relationship!r}; valid: {', '.join(RELATIONSHIPS)}")
    board = collect(results, metric=metric, families=family or [], level=level, resamples=resamples, seed=seed)
    if records:
        model_names(board, model_organization)  # asked for before anything is written
    written = write_site(board, out, title=title)
    if records:
        written += write_records(
            board,
            out / "records",
            organization=organization,
            relationship=relationship,
            model_organization=model_organization,
        )
    warnings = notes()
    for note in board.notes:
        warnings.print(f"note: {note}", style="yellow", soft_wrap=not warnings.is_terminal)
    console = output()
    console.print(
        f"{board.scores['run'].nunique()} runs, {len(board.axes)} families, {len(board.languages)} languages: "
        f"wrote {out / 'index.html'} and {len(written) - 1} more files",
        soft_wrap=True,
    )
