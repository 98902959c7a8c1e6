"""The questions of harness tasks, rendered by the harness: its requests, document by document."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lm_eval_ext import harness
from lm_eval_ext.errors import ModelError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lm_eval.api.instance import Instance

    from lm_eval_ext.data.task_metadata import TaskMetadata

#: Metrics that need the options' log-likelihoods without the question.
PRIOR_METRICS = ("acc_mutual_info", "acc_prior")

#: Where a document may keep the id that the same question has in every language.
_QUESTION_ID = ("cluster", "question_id", "id", "sample_id", "qid")


@dataclass(frozen=True)
class Rendering:
    """How the harness asks: its options of the same names.

    Attributes:
        num_fewshot: examples before each question; the task's own number if None.
        apply_chat_template: render with the chat template of `tokenizer`.
        fewshot_as_multiturn: examples as turns of a conversation, where a chat template is applied (the harness's default).
        system_instruction: a text before everything.
        tokenizer: of transformers, for the chat template.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    tokenizer: Any = None

    def record(self) -> dict[str, Any]:
        """What differs from a plain evaluation, as JSON values."""
        record = {
            "num_fewshot": self.num_fewshot,
            "apply_chat_template": self.apply_chat_template,
            "system_instruction": self.system_instruction,
        }
        return {name: value for name, value in record.items() if value not in (None, False)}

    def options(self) -> dict[str, Any]:
        """The arguments of the harness's `build_all_requests`.

        Raises:
            ModelError: a chat template is asked for, and the tokenizer has none.
        """
        options: dict[str, Any] = {"system_instruction": self.system_instruction}
        if not self.apply_chat_template:
            return options
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            name = getattr(self.tokenizer, "name_or_path", "") or "that is given"
            raise ModelError(
                f"apply_chat_template: the tokenizer {name} has no chat template; leave the option out, or use a model that "
                "was trained for chat"
            )
        return {
            **options,
            "apply_chat_template": True,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
            "chat_template": harness.chat_template(self.tokenizer),
            "tokenizer_name": str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__"),
        }


def load_tasks(
    names: Sequence[str], num_fewshot: int | None, include_path: Path | None, *, asking: str
) -> dict[str, Any]:
    """The multiple-choice tasks of some names and groups, by name.

    Args:
        names: tasks or groups.
        num_fewshot: examples before each question; the task's own number if None.
        include_path: folder with the user's own task files.
        asking: who asks, for the message: "a sweep takes".

    Raises:
        UserError: an unknown task, or one that is not multiple choice.
    """
    tasks: dict[str, Any] = harness.task_manager(names, include_path).load(list(names))["tasks"]
    unsupported = [name for name, task in tasks.items() if task.OUTPUT_TYPE != "multiple_choice"]
    if unsupported:
        raise UserError(f"{asking} multiple-choice tasks only, not {', '.join(unsupported)}")
    for task in tasks.values():
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # the harness's
    return tasks


def requests_by_document(
    task: Any, limit: int | None = None, rendering: Rendering | None = None
) -> dict[int, list[Instance]]:
    """The requests of each document of a task, by the document's number, as the harness builds them."""
    options = rendering.options() if rendering else {}
    task.build_all_requests(limit=limit, rank=0, world_size=1, **options)
    by_document: dict[int, list[Instance]] = defaultdict(list)
    for instance in task.instances:
        by_document[instance.doc_id].append(instance)
    return by_document


def document_metrics(task: Any, requests: Sequence[Instance], log_likelihoods: Sequence[float]) -> dict[str, Any]:
    """The task's metrics of one document, as the harness computes them.

    Whether greedy decoding would produce an option is taken for false.

    Args:
        task: of the harness.
        requests: all of the document's, as the task built them: its options after the prompt and, for a task with mutual
            information, its options alone.
        log_likelihoods: of these, in their order, in nats; those of the options alone may be left out, and the metrics
            that are made of them then are, too.
    """
    missing = len(requests) - len(log_likelihoods)
    results = [(value, False) for value in [*log_likelihoods, *[0.0] * missing]]
    metrics = task.process_results(requests[0].doc, results)
    if metrics is None:  # from 0.5 on of a task that has no function of its own
        metrics = _scored(task, requests, results)
    return {name: value for name, value in metrics.items() if not missing or name not in PRIOR_METRICS}


def _scored(task: Any, requests: Sequence[Instance], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The metrics of one document by the scorers of a task."""
    metrics: dict[str, Any] = {}
    for scorer in task.scorers:
        answered = [
            replace(request, resps=[result], filtered_resps={})
            for request, result in zip(requests, results, strict=True)
        ]
        scorer.apply_filter(answered)
        (document,) = scorer.reduce(scorer.score_instances({requests[0].doc_id: answered})).values()
        metrics |= document
    return metrics


def option_count(task: Any, requests: Sequence[Instance]) -> int:
    """The number of options of a document from all of its requests, of which half ask an option without its prompt where
    the task has mutual information.
    """
    by_scorers = getattr(task, "_has_metric", None)  # from 0.5 on
    has_prior = by_scorers("acc_mutual_info") if by_scorers else "acc_mutual_info" in task._metric_fn_list
    return len(requests) // 2 if has_prior else len(requests)


def question_id(document: Mapping[str, Any], metadata: TaskMetadata) -> str | None:
    """The id that a document shares with the same question in other languages, None where no column has one."""
    return next((str(document[name]) for name in id_columns(metadata) if document.get(name) is not None), None)


def id_columns(metadata: TaskMetadata) -> tuple[str, ...]:
    """The columns that may hold that id, the task's own first."""
    return (metadata.question_id, *_QUESTION_ID) if metadata.question_id else _QUESTION_ID
