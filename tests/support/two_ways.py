"""Tiny tasks that ask the same questions with and without the country named: `tiny_named_FORM`, `tiny_plain_FORM`."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING
from unittest import mock

from lm_eval.tasks import TaskManager

from support import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

N = 12  # questions of each language
LANGUAGES = ("ko", "es")

_DOCUMENTS = """
import datasets

TEXTS = {texts!r}
COUNTRIES = {{"ko": "한국", "es": "España"}}


def documents(named=False, first=0, **_):
    rows = []
    for language, country in COUNTRIES.items():
        words = TEXTS[language].split()
        for i in range(first, first + {n}):
            question = " ".join(words[i % 3 : 3 + i % 5]) + f" {{i}}"
            rows.append(
                {{
                    "id": f"q{{i}}",
                    "cluster": f"c{{i // 2}}",
                    "language": language,
                    "question": question + (f" {{country}}?" if named else "?"),
                    "options": [TEXTS[language][k + i % 12 : k + i % 12 + 3 + k] for k in (1, 3, 5, 7)],
                    "gold": i % 4,
                }}
            )
    rows = rows[::-1] if named else rows
    return {{"test": datasets.Dataset.from_list(rows)}}
"""
_FORMS = {
    "letters": 'doc_to_text: "{{question}}\\nA. {{options[0]}}\\nB. {{options[1]}}\\nC. {{options[2]}}\\n'
    'D. {{options[3]}}\\nAnswer:"\ndoc_to_choice: ["A", "B", "C", "D"]\n',
    "cloze": 'doc_to_text: "{{question}} "\ndoc_to_choice: options\n',
}


@cache
def folder() -> Path:
    """The folder of the tasks."""
    path = tiny._root / "two-ways"
    path.mkdir()
    (path / "documents.py").write_text(_DOCUMENTS.format(texts=tiny.TEXTS, n=N), encoding="utf-8")
    for form, lines in _FORMS.items():
        for name, named, first, metadata in (
            (f"tiny_named_dev_{form}", True, 0, f"split: dev, variant_of: tiny_plain_dev_{form}"),
            (f"tiny_plain_dev_{form}", False, 0, "split: dev"),
            (f"tiny_plain_{form}", False, 50, "split: test"),
            (f"tiny_copy_{form}", False, 0, "split: test"),  # the development questions under another name
        ):
            (path / f"{name}.yaml").write_text(
                f"task: {name}\ncustom_dataset: !function documents.documents\ntest_split: test\n"
                f"output_type: multiple_choice\n{lines}doc_to_target: gold\nmetric_list: [{{metric: acc}}]\n"
                f"dataset_kwargs: {{named: {str(named).lower()}, first: {first}}}\n"
                f"fewshot_split: test\nmetadata: {{version: 1.0, family: {name}, {metadata}}}\n",
                encoding="utf-8",
            )
    return path


@cache
def task_manager(**wanted: Any) -> TaskManager:
    """A task manager that knows these tasks only."""
    return TaskManager(include_path=str(folder()), include_defaults=False)


@contextmanager
def tasks() -> Iterator[None]:
    """The harness knows these tasks only."""
    with mock.patch("lm_eval.tasks.TaskManager", task_manager):
        yield
