"""Showing items: as prompts, and as a page for searching, with their source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_ext import languages
from lm_eval_ext.data import blend, sources
from lm_eval_ext.data.blend import source
from lm_eval_ext.data.blend.selection import MAX_SETS
from lm_eval_ext.errors import DataError
from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

_RIGHT_TO_LEFT = frozenset({"ar", "fa", "he"})


def as_seen(task_name: str, n: int) -> Iterator[str]:
    """The first n documents of one of our tasks: prompt and continuations as they go to the model, gold marked.

    Raises:
        DataError: no such task, or its data is missing.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    if task_name not in manager.all_subtasks:
        raise DataError(f"no task {task_name!r} in this package; `lm_eval ls tasks` lists its tasks")
    task = manager.load([task_name])["tasks"][task_name]
    for number, document in enumerate(task.test_docs()):
        if number == n:
            return
        yield _as_seen(task_name, task, document)


def page(language: str) -> str:
    """All items of BLEnD in one language as an HTML page that needs no network.

    Beside each item: the question as BLEnD has it, in the language and in English, and all answers of the language's country
    with their votes.

    Raises:
        LanguageError: not one of the seven.
        DataError: BLEnD is missing, unreachable or changed.
    """
    import jinja2

    known = languages.get(language)
    answers = source.corpus().countries[known.country]
    template = sources.read_text(sources.packaged("browse.html"))
    return (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            language=known,
            direction="rtl" if known.code in _RIGHT_TO_LEFT else "ltr",
            items=[{**row, "source": answers[row["question_id"]]} for row in _rows(known.code)],
            fingerprint=blend.fingerprint(),
        )
    )


def _rows(code: str) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"split": "all", "repeats": MAX_SETS}
    named = {row["id"]: row["question"] for row in blend.documents(code, "ctx", **options)}
    return [{**row, "question_ctx": named[row["id"]]} for row in blend.documents(code, **options)]


def _as_seen(task_name: str, task: Any, document: dict[str, Any]) -> str:
    context = task.fewshot_context(document, 0)
    gold = task.doc_to_target(document)
    options = task.doc_to_choice(document)
    gold = options.index(gold) if gold in options else gold
    lines = [f"── {task_name} · {document['id']} · {document.get('topic') or document.get('subject') or ''}", context]
    for number, option in enumerate(options):
        countries = ", ".join(document["countries"][number]) if "countries" in document else ""
        continuation = repr(task.config.target_delimiter + option)
        lines.append(f"  {'→' if number == gold else ' '} {continuation}  {countries}".rstrip())
    return "\n".join(lines) + "\n"
