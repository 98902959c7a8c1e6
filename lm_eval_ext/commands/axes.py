"""The command `lm-eval-ext axes`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.commands import options
from lm_eval_ext.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Columns of the table; the keys of an entry.
_COLUMNS = ("axis", "family", "language", "metric", "form", "split")


def axes(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks, to be told what is known of each.")] = None,
    axes: options.AxisFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List which axis of the plane tasks of the harness are, and in which language they ask.

    Without arguments: every entry of the axis files, those of your own first, then the one in the package. With names of
    tasks: what is known of these, by their own metadata or by an axis file; status 1 where nothing is known of one.

    An axis file is YAML:

      tasks:
        - match: my_{language}_*       # * is anything, {language} a code such as ko or kor_Hang
          axis: localization           # or transfer
          family: my                   # what the tasks of all languages are called
          # optional: language: ko (instead of {language}), languages: {korean: ko}, metric: exact_match,strict-match,
          # split: dev, form: letters or texts, question_id: COLUMN, about: TEXT

    It is given to plane, report, leaderboard, gate, breakdown and sweep with --axes FILE, to the model steered-hf with
    --model_args axes=FILE, or to all of them with LM_EVAL_EXT_AXES=FILE.

    Examples:

      lm-eval-ext axes

      lm-eval-ext axes belebele_kor_Hang include_base_44_turkish_stem gmmlu_tr

      lm-eval-ext axes --axes my.yaml --json
    """
    rows = list(_of_tasks(tasks) if tasks else _entries())
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        _print(rows, "task" if tasks else "tasks", "said by" if tasks else "about")
    if any(row["axis"] is None for row in rows):
        raise typer.Exit(1)


def _entries() -> Iterator[dict[str, Any]]:
    from lm_eval_ext.data import axes

    for file in axes.files():
        for entry in axes.read(file):
            said = entry.model_dump(exclude={"match", "languages"})
            spoken = entry.language or (f"{len(entry.languages)}, by the name" if entry.languages else "by the name")
            yield {"tasks": list(entry.match), **said, "language": spoken, "file": _called(file)}


def _of_tasks(names: list[str]) -> Iterator[dict[str, Any]]:
    from lm_eval_ext.data import axes, tasks_tree

    for name in names:
        known = axes.find(name)
        own = tasks_tree.metadata_of_task(name)
        said = axes.metadata(name, own)
        yield {
            "task": name,
            **{key: getattr(said, key) for key in _COLUMNS},
            "said by": "its own metadata" if own else _called(known.file) if known else "nothing",
        }


def _called(file: Path) -> str:
    from lm_eval_ext.data import axes

    return "the package" if file == axes.SHIPPED else str(file)


def _print(rows: list[dict[str, Any]], first: str, last: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lm_eval_ext.console import output

    if not rows:
        raise DataError("the axis files have no entries")
    table = Table(box=box.SIMPLE)
    for title in (first, *_COLUMNS, last):
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        cells = ("\n".join(row[first]) if isinstance(row[first], list) else row[first], *(row[key] for key in _COLUMNS))
        table.add_row(*(Text(str(cell or "")) for cell in (*cells, row[last])))
    output(160).print(table)
