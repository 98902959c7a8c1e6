"""Pairs of tasks filtered by what the model answers (`extract --where answered`).

A pair counts where the model answers the positive prompt (country named) as the task wants it, and the negative one (not
named) otherwise: there, and only there, the state holds what the vector is for. In *paired* sets both hold for one question;
in *unpaired* sets the positive prompts of the one kind and the negative prompts of the other need not be of the same
questions (as in the published recipe); of the larger set as many are drawn as the smaller one has.

The options are scored in the forward that yields the hidden states: prompt and options are one token tree, and options come
after the prompt, so that they change none of its states.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.backends.encoding import encode_pairs
from lm_eval_ext.errors import DataError, ResultsError
from lm_eval_ext.scoring.requests import Request
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.scoring.token_trees import Packed, Tree
from lm_eval_ext.scoring.tree_attention import TreeModel
from lm_eval_ext.steering import pooling as poolings
from lm_eval_ext.steering.extraction import Capture, KnownStates, check_lengths, default_pooling
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.pooling import PooledText
from lm_eval_ext.steering.table import SteeringTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_eval_ext.backends.encoding import Pair as Tokenised
    from lm_eval_ext.data.pairs import Pair, PairSet
    from lm_eval_ext.data.task_pairs import Asked
    from lm_eval_ext.steering.pooling import Pooling

#: Fewest pairs of a language that are left (our default).
MIN_PAIRS = 10

#: Tokens of one forward.
_MAX_TOKENS = 2048

#: Whether the model answers a prompt as its task wants it, by task and hash of the document.
Answers = dict[tuple[str, str], bool]


@dataclass(frozen=True)
class Counts:
    """What was answered in one language.

    Attributes:
        kind, language: of the pairs.
        asked: pairs, each asked both ways.
        positive: positive prompts answered as the task wants it.
        negative: negative prompts answered otherwise.
        kept: pairs that are left.
    """

    kind: str
    language: str
    asked: int
    positive: int
    negative: int
    kept: int

    def __str__(self) -> str:
        return (
            f"{self.kind}/{self.language}: {self.asked} questions asked both ways, {self.positive} positive prompts "
            f"answered as the task wants, {self.negative} negative ones otherwise, {self.kept} pairs kept"
        )


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair_sets: Sequence[PairSet],
    layers: Sequence[int],
    pooling: Pooling | None = None,
    *,
    metric: str = "acc",
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Answers, KnownStates]:
    """The answers to all prompts of some pairs, and the prompts' hidden states from the same forwards.

    A model that cannot run token trees is asked in forwards of its own; there are no states then. Memory grows with the
    number of prompts: their pooled states at `layers` are kept.

    Args:
        model, tokenizer, layers, pooling: as for `steering.extraction.extract`.
        pair_sets: pairs of tasks.
        metric: of the tasks; 1 is an answer that the task wants.
        progress: called with the number of prompts just finished.

    Raises:
        DataError: pairs of no task, a prompt longer than the model's context, or a metric that the tasks do not have.
    """
    texts: list[tuple[str, Asked, PooledText]] = []
    for pair_set in pair_sets:
        of_pairs = _asked(pair_set)
        # Tokens of answers are not in the trees; those states are computed later.
        own = default_pooling(pair_set) if pooling in (None, "generated") else pooling
        encoded = poolings.encode_pairs(tokenizer, pair_set.pairs, own, pair_set.source)
        for pair, asked, (positives, negatives) in zip(pair_set.pairs, of_pairs, encoded, strict=True):
            texts += [(pair.positive, asked[0], positives[0]), (pair.negative, asked[1], negatives[0])]
        check_lengths(model, pair_set.source, [text for *_, text in texts])
    encoder = SimpleNamespace(
        tokenizer=tokenizer,
        add_bos_token=None,
        prefix_token_id=_first_id(tokenizer.bos_token_id, tokenizer.eos_token_id),
    )
    pairs = [(text, option) for text, asked, _ in texts for option in asked.options]
    of_options = iter(encode_pairs(encoder, pairs).pairs)
    trees = [_tree([next(of_options) for _ in asked.options]) for _, asked, _ in texts]
    answers: Answers = {}
    known: KnownStates = {}
    scorer = Scorer(model, Injector(model, SteeringTable()), max_length=10**9)
    requests = [
        Request(tree.prompt, tuple(token for _, token in path), 0, tree.lead) for tree in trees for path in tree.targets
    ]
    if not scorer.why_no_trees(requests):
        runner = TreeModel(model)
        with Capture(model, layers) as capture:
            for numbers in Packed.divide(trees, _MAX_TOKENS):
                batch = Packed([trees[number] for number in numbers])
                whole = [
                    len(tree.prompt) + tree.lead == len(texts[n][2].ids)
                    for n, tree in zip(numbers, batch.trees, strict=True)
                ]
                # Where an option merges with the prompt, the prompt's last tokens are not all in the tree.
                pooled = [
                    texts[n][2] if is_whole else PooledText([], [0]) for n, is_whole in zip(numbers, whole, strict=True)
                ]
                scores = capture.during(lambda batch=batch: runner.score(batch), _take(batch, pooled))  # type: ignore[misc]
                states, norms = (torch.stack(parts) for parts in zip(*capture.taken, strict=True))
                for place, number in enumerate(numbers):
                    text = pooled[place]
                    if whole[place]:
                        known[tuple(text.ids), tuple(text.indices)] = states[:, place], norms[:, place]
                    values = [sum(value for value, _ in path) for path in scores[place]]
                    _note(answers, texts[number][1], values, metric)
                progress(len(numbers))
        return answers, known
    scored = iter(scorer.score(requests, 8))
    for _, prompt, _ in texts:
        _note(answers, prompt, [next(scored).log_likelihood for _ in prompt.options], metric)
    progress(len(texts))
    return answers, {}


def read_answers(folder: Path, pair_sets: Sequence[PairSet], metric: str = "acc") -> Answers:
    """The answers to all prompts of some pairs from a folder of the harness's results; documents are matched by hash.

    Raises:
        ResultsError: no run, or several, with a task; samples that lack a document or the metric.
    """
    from lm_eval_ext.results.runs import load
    from lm_eval_ext.results.samples import read_samples

    runs = load(folder)
    wanted: dict[str, set[str]] = defaultdict(set)
    for pair_set in pair_sets:
        for asked in _asked(pair_set):
            for prompt in asked:
                wanted[prompt.task_name].add(prompt.doc_hash)
    answers: Answers = {}
    for task, hashes in wanted.items():
        with_task = [run for run in runs if task in run.tasks]
        unsteered = [run for run in with_task if not run.plan] or with_task
        if len(unsteered) != 1:
            names = ", ".join(run.name for run in unsteered) or "none"
            raise ResultsError(
                f"{folder}: the answers to {task} must be of one run, there is {names}; give the folder of the run of the "
                "unsteered model, evaluated with --log_samples"
            )
        frame = read_samples(unsteered[0], task)
        values = frame[frame["metric"] == metric].drop_duplicates("doc_hash").set_index("doc_hash")["value"]
        if lacking := len(hashes - set(values.index)):
            raise ResultsError(
                f"{folder}: the samples of {task} lack {metric!r} of {lacking} of {len(hashes)} documents of the pairs; "
                "evaluate the same version of the task without --limit"
            )
        answers |= {(task, name): bool(values[name] == 1) for name in hashes}
    return answers


def where_answered(
    pair_sets: Sequence[PairSet], answers: Answers, *, paired: bool = True, minimum: int = MIN_PAIRS, seed: int = 0
) -> tuple[list[PairSet], list[Counts]]:
    """The pairs that are left, and the counts of each language.

    Args:
        pair_sets: pairs of tasks.
        answers: to all of their prompts.
        paired: both prompts of a pair are of one question; else see the module.
        minimum: fewest pairs of each language.
        seed: of the draw from the larger set.

    Raises:
        DataError: too few pairs in a language; the message has the counts of every language.
    """
    kept: list[PairSet] = []
    counts: list[Counts] = []
    for pair_set in pair_sets:
        rows: list[tuple[Pair, bool, bool]] = [
            (pair, answers[asked[0].task_name, asked[0].doc_hash], answers[asked[1].task_name, asked[1].doc_hash])
            for pair, asked in zip(pair_set.pairs, _asked(pair_set), strict=True)
        ]
        positives = [pair for pair, named, _ in rows if named]
        negatives = [pair for pair, _, plain in rows if not plain]
        pairs = [pair for pair, named, plain in rows if named and not plain]
        if not paired:
            pairs = _matched(positives, negatives, f"{seed}/{pair_set.kind}/{pair_set.language}")
        sizes = len(rows), len(positives), len(negatives), len(pairs)
        counts.append(Counts(pair_set.kind, pair_set.language, *sizes))
        record = {**pair_set.made_from, "where": "answered" if paired else "answered, unpaired"}
        kept.append(replace(pair_set, pairs=tuple(pairs), made_from=record))
    if few := [count for count in counts if count.kept < minimum]:
        raise DataError(
            f"too few pairs: {minimum} are needed, "
            + ", ".join(f"{count.language} has {count.kept}" for count in few)
            + "".join(f"\n  {count}" for count in counts)
            + "\nAsk more questions, leave these languages out (--languages), "
            + ("do not ask for the same questions (--unpaired), " if paired else "")
            + "or allow fewer (--min-pairs)"
        )
    return kept, counts


def _matched(positives: list[Pair], negatives: list[Pair], seed: str) -> list[Pair]:
    """Positive texts with negative texts of other questions, as many as the smaller set has."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    n = min(len(positives), len(negatives))
    drawn = zip(draw.sample(positives, n), draw.sample(negatives, n), strict=True)
    return [
        replace(negative, positive=positive.positive, asked=(positive.asked[0], negative.asked[1]))
        for positive, negative in drawn
        if positive.asked and negative.asked
    ]


def _asked(pair_set: PairSet) -> list[tuple[Asked, Asked]]:
    asked = [pair.asked for pair in pair_set.pairs if pair.asked]
    if len(asked) != len(pair_set.pairs):
        raise DataError(
            f"pairs {pair_set.kind}={pair_set.source} are not of tasks, which say what a right answer is: filter by answers "
            "where pairs are task:POSITIVE/NEGATIVE"
        )
    return asked


def _tree(options: Sequence[Tokenised]) -> Tree:
    """The tree of a prompt with its options: the tokens of the prompt's text are its prompt and its lead."""
    lead = min(option.lead for option in options)
    return Tree.grow(options[0].prompt, [option.continuation for option in options], lead)


def _take(batch: Packed, pooled: Sequence[PooledText]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Pools the residual stream [rows, columns, hidden] of a batch: [trees, hidden] states and [trees] norms."""

    def take(stream: Tensor) -> tuple[Tensor, Tensor]:
        states, norms = [], []
        for place, text in zip(batch.places, pooled, strict=True):
            columns = torch.tensor(text.indices, device=stream.device) + place.start
            of_text = stream[place.row, columns].float()
            states.append(of_text.mean(0))
            norms.append(of_text.norm(dim=-1).mean())
        return torch.stack(states).cpu(), torch.stack(norms).cpu()

    return take


def _note(answers: Answers, asked: Asked, values: Sequence[float], metric: str) -> None:
    metrics = asked.metrics(values)
    if metric not in metrics:
        raise DataError(f"task {asked.task_name} has no metric {metric!r}; it has {', '.join(metrics)}")
    answers[asked.task_name, asked.doc_hash] = bool(metrics[metric] == 1)


def _first_id(*ids: Any) -> int:
    return next((int(token) for token in ids if token is not None), 0)
