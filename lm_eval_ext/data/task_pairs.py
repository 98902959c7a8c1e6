"""Pairs of prompts of two harness tasks, as the harness renders them: `task:blend_ctx_dev/blend_decon_dev`.

The first task asks with what a vector should represent (the country named), the second without. Their documents are paired
by id within each language. A text ends where the plan adds: at the last token before the answer, such as the line break
after a chat template's header. Spaces at its end, and the task's target delimiter, are one token with the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import axes
from lm_eval_ext.data.request_language import request_language
from lm_eval_ext.data.task_metadata import split_of_name
from lm_eval_ext.data.task_questions import (
    Rendering,
    document_metrics,
    load_tasks,
    option_count,
    requests_by_document,
)
from lm_eval_ext.errors import DataError, LanguageError, UserError
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval.api.instance import Instance

    from lm_eval_ext.data.pairs import Pair
    from lm_eval_ext.data.task_metadata import TaskMetadata

PREFIX = "task:"

#: Columns by which the documents of two tasks are paired: the first that both have, with no value twice in a language.
PAIRED_BY = ("id", "sample_id", "qid", "question_id", "cluster")


@dataclass(frozen=True)
class Asked:
    """A prompt of a pair as a task asks it.

    Attributes:
        task, doc_id: whose.
        document: the document.
        options: what may follow the text, in the task's order, the leading white space included.
        requests: of the document, as the harness built them.
    """

    task: Any
    doc_id: int
    document: dict[str, Any]
    options: tuple[str, ...]
    requests: tuple[Instance, ...] = field(repr=False)

    @property
    def task_name(self) -> str:
        """The task's name."""
        return str(self.task.config.task)

    @property
    def doc_hash(self) -> str:
        """The document's hash, as the harness saves it in samples."""
        from lm_eval.utils import handle_non_serializable, hash_string

        text = json.dumps(self.document, indent=2, default=handle_non_serializable, ensure_ascii=False)
        return str(hash_string(text))

    def metrics(self, log_likelihoods: Sequence[float]) -> dict[str, Any]:
        """The task's metrics of the document, from the log-likelihoods of its options after the prompt."""
        return document_metrics(self.task, self.requests, log_likelihoods)


@dataclass(frozen=True)
class _Prompt:
    text: str
    answer: str
    language: str
    asked: Asked


def task_pairs(
    source: str, languages: Sequence[str], rendering: Rendering, include_path: Path | None = None
) -> tuple[dict[str, list[Pair]], dict[str, Any]]:
    """The pairs of each language, and what vectors made of them must record.

    Args:
        source: `task:POSITIVE/NEGATIVE`, each a task or a group.
        languages: only these; where they are our seven, every other language too.
        rendering: how the questions are asked.
        include_path: folder with task files of the user's own.

    Raises:
        UserError: an unknown task, or one that is not multiple choice.
        DataError: documents that cannot be paired.
        LanguageError: a document whose language nothing names.
    """
    from lm_eval_ext.data.pairs import Pair

    names = source.removeprefix(PREFIX).split("/")
    if len(names) != 2 or not all(names):
        raise UserError(
            f"pairs {source!r}: write {PREFIX}POSITIVE/NEGATIVE, two tasks or groups that ask the same questions, such as "
            f"{PREFIX}blend_ctx_dev/blend_decon_dev"
        )
    tasks = [load_tasks([name], rendering.num_fewshot, include_path, asking="pairs are made of") for name in names]
    sides = [_prompts(of_side, rendering) for of_side in tasks]
    others = set(languages) == set(LANGUAGES)
    codes = [
        code
        for code in dict.fromkeys(prompt.language for prompt in sides[0])
        if (code in languages or (others and code not in LANGUAGES))
        and any(prompt.language == code for prompt in sides[1])
    ]
    if not codes:
        have = ["/".join(sorted({prompt.language for prompt in side})) or "none" for side in sides]
        raise DataError(
            f"pairs {source}: no language in common with {', '.join(languages)}; {names[0]} has {have[0]}, "
            f"{names[1]} {have[1]}"
        )
    pairs: dict[str, list[Pair]] = {}
    for code in codes:
        positives, negatives = ([prompt for prompt in side if prompt.language == code] for side in sides)
        pairs[code] = [
            Pair(positive.text, negative.text, code, negative.answer, asked=(positive.asked, negative.asked))
            for positive, negative in _paired(positives, negatives, f"pairs {source}, language {code}")
        ]
    return pairs, _record(tasks, rendering)


def _prompts(tasks: dict[str, Any], rendering: Rendering) -> list[_Prompt]:
    prompts = []
    for name, task in tasks.items():
        for doc_id, instances in requests_by_document(task, None, rendering).items():
            language = request_language(instances[0])
            if language is None:
                raise LanguageError(
                    f"task {name}: the language of document {doc_id} is unknown; name it in a column 'language' or in the "
                    "task's metadata (language: ko)"
                )
            prompts.append(_prompt(task, doc_id, instances, language))
    return prompts


def _prompt(task: Any, doc_id: int, instances: list[Instance], language: str) -> _Prompt:
    document = instances[0].doc
    of_options = [instance.args for instance in instances[: option_count(task, instances)]]
    context = of_options[0][0]
    if any(other != context for other, _ in of_options):
        raise DataError(f"task {task.config.task}: its options stand in the prompt; pairs need one prompt per document")
    text = context.rstrip(" ")
    options = tuple(context[len(text) :] + option for _, option in of_options)
    gold = task.doc_to_target(document)
    if isinstance(gold, str) and gold in (choices := task.doc_to_choice(document)):
        gold = choices.index(gold)
    answer = options[gold] if isinstance(gold, int) and 0 <= gold < len(options) else ""
    return _Prompt(text, answer, language, Asked(task, doc_id, document, options, tuple(instances)))


def _paired(positives: list[_Prompt], negatives: list[_Prompt], where: str) -> list[tuple[_Prompt, _Prompt]]:
    tried = []
    for column in PAIRED_BY:
        by_id = [
            {
                str(prompt.asked.document[column]): prompt
                for prompt in side
                if prompt.asked.document.get(column) is not None
            }
            for side in (positives, negatives)
        ]
        if [len(ids) for ids in by_id] != [len(positives), len(negatives)]:
            continue
        tried.append(column)
        if common := [(prompt, by_id[1][key]) for key, prompt in by_id[0].items() if key in by_id[1]]:
            return common
    raise DataError(
        f"{where}: no document of one task has the id of one of the other"
        + (f" (compared: {', '.join(tried)})" if tried else "")
        + f"; both need a column {' or '.join(PAIRED_BY)} with a different value in every document"
    )


def _record(tasks: Sequence[dict[str, Any]], rendering: Rendering) -> dict[str, Any]:
    metadata = [axes.metadata(name, task.config.metadata) for of_side in tasks for name, task in of_side.items()]
    return {
        "tasks": [of_task.task for of_task in metadata],
        "families": sorted({family for of_task in metadata for family in base_families(of_task)}),
        "splits": sorted({of_task.split or split_of_name(of_task.task) for of_task in metadata}),
        "rendering": rendering.record(),
    }


@cache
def base_family(name: str) -> str:
    """The name of a task or family without language and form: `blend_decon_dev` of `blend_decon_dev_ko_cloze`."""
    return "_".join(token for token in name.removesuffix("_cloze").split("_") if token not in LANGUAGES)


def base_families(metadata: TaskMetadata) -> set[str]:
    """The families whose questions a task asks, in whatever form: its own and the one that it is a variant of."""
    names = [metadata.family or metadata.task, metadata.variant_of]
    return {base_family(name) for name in names if name}
