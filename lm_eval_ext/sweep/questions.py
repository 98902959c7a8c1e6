"""The questions of harness tasks: the token trees to score, and the tasks' metrics from the scores."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import axes
from lm_eval_ext.data.request_language import request_language
from lm_eval_ext.data.task_pairs import PAIRED_BY
from lm_eval_ext.data.task_questions import (
    document_metrics,
    load_tasks,
    option_count,
    question_id,
    requests_by_document,
)
from lm_eval_ext.errors import DataError, LanguageError, ModelError
from lm_eval_ext.results import legacy_names
from lm_eval_ext.scoring.token_trees import Tree, parts
from lm_eval_ext.sweep.store import tree_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval.api.instance import Instance

    from lm_eval_ext.data.task_questions import Rendering
    from lm_eval_ext.scoring.requests import Request


@dataclass(frozen=True)
class Question:
    """One document of one task.

    Attributes:
        task, doc_id, question_id, language: as in result files.
        family: common name of the task and its counterparts in other languages.
        axis: of the plane, `transfer` or `localization`; None where unknown.
        split: `dev` for questions that choose layers, else `test`.
        instances: indices of its requests: its options after the prompt, then, for mutual information, without it.
        n_options: number of options.
        gold: index of the right option, None where the task names none.
        document: the document.
        requests: all of its requests, asked or not.
    """

    task: str
    family: str
    axis: str | None
    split: str
    doc_id: int
    question_id: str
    language: str
    instances: tuple[int, ...]
    n_options: int
    gold: int | None
    document: dict[str, Any] = field(repr=False)
    requests: tuple[Instance, ...] = field(repr=False)


@dataclass(frozen=True)
class ScoredTree:
    """A token tree, the language that steers it, and the requests that its values answer.

    Attributes:
        tree: prompt and continuations.
        language: of its prompt.
        normalised: whether its values are log-likelihoods, or logits, which differ from them by a constant per prompt.
        requests: indices of the requests of each continuation.
        key: identifies the tree in the store across runs.
        tasks: that ask it.
    """

    tree: Tree
    language: str
    normalised: bool
    requests: tuple[tuple[int, ...], ...]
    key: str
    tasks: tuple[str, ...] = ()


class Questions:
    """The questions of some tasks.

    Args:
        names: tasks or groups.
        limit: documents of each task; all if None.
        num_fewshot: examples before each question; the tasks' own number if None.
        languages: keep only these; all if empty.
        default_language: of questions whose document and task name none.
        include_path: folder with the user's own task files.
        rendering: how the harness asks, besides the number of examples.
        with_prior: score the options without the question too, where a task has mutual information.

    Raises:
        UserError: an unknown task, a task that is not multiple choice, or no question.
        LanguageError: a question whose language nothing names.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        limit: int | None = None,
        num_fewshot: int | None = None,
        languages: Sequence[str] = (),
        with_prior: bool = True,
        default_language: str | None = None,
        include_path: Path | None = None,
        rendering: Rendering | None = None,
    ) -> None:
        self._tasks = load_tasks(names, num_fewshot, include_path, asking="a sweep takes")
        self.instances: list[Instance] = []
        self.questions: list[Question] = []
        self.with_prior = with_prior
        self.n_truncated = 0
        for name, task in self._tasks.items():
            for doc_id, instances in requests_by_document(task, limit, rendering).items():
                language = request_language(instances[0], default_language)
                if not languages or language in languages:
                    self._add(name, task, doc_id, instances, language)
        if not self.questions:
            raise DataError(
                f"no questions in {', '.join(names)}" + (f" in {', '.join(languages)}" if languages else "")
            )

    def _add(self, name: str, task: Any, doc_id: int, instances: list[Instance], language: str | None) -> None:
        if language is None:
            raise LanguageError(
                f"task {name}: the language of document {doc_id} is unknown; name it in a column 'language', in the "
                "task's metadata (language: ko), or with --lang"
            )
        document = instances[0].doc
        n_options = option_count(task, instances)
        kept = instances if self.with_prior else instances[:n_options]
        start = len(self.instances)
        self.instances += kept
        metadata = axes.metadata(name, task.config.metadata)
        family = metadata.family or legacy_names.family(name)
        self.questions.append(
            Question(
                task=name,
                family=family,
                axis=metadata.axis or legacy_names.axis(family),
                split=metadata.split or legacy_names.split(family),
                doc_id=doc_id,
                question_id=question_id(document, metadata) or f"{doc_id}",
                language=language,
                instances=tuple(range(start, start + len(kept))),
                n_options=n_options,
                gold=_gold(task, document, n_options),
                document=document,
                requests=tuple(instances),
            )
        )

    def keep(self, limit: int) -> None:
        """Keep the first documents of each task only, as `limit` does."""
        self.questions = [question for question in self.questions if question.doc_id < limit]

    def metadata(self, task: str) -> dict[str, Any]:
        """The metadata of a task's YAML."""
        return dict(self._tasks[task].config.metadata or {})

    def prompts(self, task: str) -> list[str]:
        """The prompts of a task's questions."""
        return [
            str(self.instances[index].args[0])
            for question in self.questions
            if question.task == task
            for index in question.instances[:1]
        ]

    def ids(self) -> list[str]:
        """What tells each question from the others of its language, and is the same where other words ask it.

        Its column `id` (or another of `task_pairs.PAIRED_BY`); the number of its document where it has none. Several
        questions of one cluster have ids of their own.
        """
        return [
            next(
                (str(question.document[name]) for name in PAIRED_BY if question.document.get(name) is not None),
                str(question.doc_id),
            )
            for question in self.questions
        ]

    @property
    def languages(self) -> list[str]:
        """Languages of the questions, in order of appearance."""
        return list(dict.fromkeys(question.language for question in self.questions))

    def score(self, question: Question, values: Sequence[float]) -> dict[str, float]:
        """The numeric metrics of one document, as the task computes them from the options' log-likelihoods."""
        metrics = document_metrics(self._tasks[question.task], question.requests, values)
        # Whether greedy decoding would produce an option is not computed in a sweep.
        return {
            name: float(value) for name, value in metrics.items() if isinstance(value, Real) and name != "exact_match"
        }

    def trees(self, requests: Sequence[Request], max_length: int, *, likelihoods: bool = False) -> list[ScoredTree]:
        """The trees that answer all requests.

        Args:
            requests: of `instances`, in their order.
            max_length: most tokens of a forward; longer prompts are truncated from the left, as in the harness.
            likelihoods: normalise even where every option is one token, so that only differences matter.

        Raises:
            ModelError: a continuation that does not fit.
        """
        normalised = self._normalised(requests, likelihoods)
        by_prompt: dict[tuple[tuple[int, ...], str, bool, tuple[int, ...]], dict[tuple[int, ...], list[int]]] = {}
        for question in self.questions:
            for index in question.instances:
                prompt, continuation, _, n_lead = requests[index]
                if len(continuation) > max_length:
                    raise ModelError(
                        f"task {question.task}, document {question.doc_id}: an option of {len(continuation)} tokens does "
                        f"not fit the model's {max_length}"
                    )
                self.n_truncated += len(prompt) + len(continuation) - 1 > max_length
                truncated = _truncate(prompt, continuation, max_length)
                key = truncated, question.language, normalised[index], continuation[:n_lead]
                by_prompt.setdefault(key, {}).setdefault(continuation, []).append(index)
        task_of = {index: question.task for question in self.questions for index in question.instances}
        return [
            ScoredTree(
                tree=Tree.grow(prompt, part, len(lead)),
                language=language,
                normalised=normal,
                requests=tuple(tuple(continuations[continuation]) for continuation in part),
                key=tree_key(prompt, part, language, normal, len(lead)),
                tasks=tuple({task_of[index]: None for answered in part for index in continuations[answered]}),
            )
            for (prompt, language, normal, lead), continuations in by_prompt.items()
            for part in parts(prompt, list(continuations))
        ]

    def _normalised(self, requests: Sequence[Request], likelihoods: bool) -> dict[int, bool]:
        """By the index of each request: whether its question's metrics would change by a constant added per prompt."""
        needed: dict[tuple[tuple[int, ...], str], bool] = defaultdict(bool)
        prompts: dict[int, tuple[tuple[int, ...], str]] = {}
        for question in self.questions:
            options = self._tasks[question.task].doc_to_choice(question.document)
            same_length = len({(len(option), len(option.encode())) for option in options}) == 1
            several_prompts = len({requests[index].prompt for index in question.instances[: question.n_options]}) > 1
            for index in question.instances:
                prompt = requests[index].prompt, question.language
                needed[prompt] |= (
                    likelihoods or several_prompts or not same_length or len(requests[index].continuation) > 1
                )
                prompts[index] = prompt
        return {index: needed[prompt] for index, prompt in prompts.items()}


def _truncate(prompt: tuple[int, ...], continuation: tuple[int, ...], max_length: int) -> tuple[int, ...]:
    """The end of the prompt that fits before the continuation, whose last token is not an input."""
    room = max_length - (len(continuation) - 1)
    return prompt[-room:]


def _gold(task: Any, document: dict[str, Any], n_options: int) -> int | None:
    # Where each option is a prompt of its own, releases before 0.5 have the answer in the place of the prompt.
    has_prompts = getattr(task, "multiple_input", False)
    gold = task.doc_to_text(document) if has_prompts else task.doc_to_target(document)
    if isinstance(gold, str):
        options = task.doc_to_choice(document)
        gold = options.index(gold) if gold in options else None
    return gold if isinstance(gold, int) and 0 <= gold < n_options else None


def margin(question: Question, values: Sequence[float]) -> float:
    """Log-likelihood of the right option minus that of the best other one, in nats; NaN where no option is right."""
    options = list(values[: question.n_options])
    if question.gold is None or len(options) < 2:
        return math.nan
    return options.pop(question.gold) - max(options)
