"""Options that several commands share, as types of their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_QUESTIONS, _MODEL = "Questions", "Model"  # of the commands that ask
_AXES, _RUNS, INTERVALS = "Axes", "Runs", "Intervals"

Results = Annotated[Path, typer.Argument(help="Folder of result files, as lm_eval --output_path wrote it.")]
Baseline = Annotated[
    str,
    typer.Option(
        help="The run that all are held against: its folder, model, label or plan ('' is unsteered).",
        show_default=False,
    ),
]
X = Annotated[
    str | None,
    typer.Option(
        "--x",
        help="Task, group or family of the horizontal axis; by default the only transfer family.",
        rich_help_panel=_AXES,
    ),
]
Y = Annotated[
    str | None,
    typer.Option(
        "--y",
        help="Task, group or family of the vertical axis; by default the only localization family.",
        rich_help_panel=_AXES,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Score of both axes, as METRIC or METRIC,FILTER. Default: what the tasks say, else acc.",
        rich_help_panel=_AXES,
    ),
]
XMetric = Annotated[str | None, typer.Option(help="Score of the horizontal axis.", rich_help_panel=_AXES)]
YMetric = Annotated[str | None, typer.Option(help="Score of the vertical axis.", rich_help_panel=_AXES)]


def _use(file: Path | None) -> Path | None:
    if file is not None:
        from lm_eval_ext.data import axes

        axes.use(file)
    return file


AxisFile = Annotated[
    Path | None,
    typer.Option(
        "--axes",
        help="File that says which axis tasks of the harness are (lm-eval-ext axes --help); goes before the one in the "
        "package.",
        callback=_use,
        show_default=False,
    ),
]
Runs = Annotated[list[str] | None, typer.Option(help="Only this run (may be repeated).", rich_help_panel=_RUNS)]
Languages = Annotated[str, typer.Option(help="Only these languages, such as es,ko.", rich_help_panel=_RUNS)]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Only documents with these values of a column, as COLUMN=VALUE,VALUE (may be repeated).",
        rich_help_panel=_RUNS,
        metavar="COLUMN=VALUE",
    ),
]
Level = Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.", rich_help_panel=INTERVALS)]
Resamples = Annotated[int, typer.Option(min=100, max=1_000_000, help="Bootstrap resamples.", rich_help_panel=INTERVALS)]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the resamples.", rich_help_panel=INTERVALS)]
Figures = Annotated[
    Path | None, typer.Option(help="Folder for every figure as CSV, SVG and PNG (needs lm_eval_ext\\[figures]).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

# Of the commands that ask a model: sweep and tune.
IncludePath = Annotated[
    Path | None, typer.Option(help="Folder with task files of your own.", rich_help_panel=_QUESTIONS)
]
Limit = Annotated[int | None, typer.Option(min=1, help="Documents of each task.", rich_help_panel=_QUESTIONS)]
NumFewshot = Annotated[
    int | None, typer.Option(min=0, help="Examples before each question.", rich_help_panel=_QUESTIONS)
]
ApplyChatTemplate = Annotated[
    bool,
    typer.Option(
        "--apply_chat_template",
        "--apply-chat-template",
        help="Ask in the model's chat template.",
        rich_help_panel=_QUESTIONS,
    ),
]
SystemInstruction = Annotated[
    str,
    typer.Option(
        "--system_instruction", "--system-instruction", help="A text before every question.", rich_help_panel=_QUESTIONS
    ),
]
Lang = Annotated[str, typer.Option(help="Language of questions that name none.", rich_help_panel=_QUESTIONS)]
Model = Annotated[
    str, typer.Option(help="Model name or folder; the embedded model by default.", rich_help_panel=_MODEL)
]
