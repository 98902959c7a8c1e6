"""The items whose answer changed: question, options, who chose what before and after."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.languages import AVERAGE, normalise
from lm_eval_ext.plane.figures.panels import ranked_runs
from lm_eval_ext.results import answers
from lm_eval_ext.results.samples import read_documents, read_samples

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.results.axes import Axis
    from lm_eval_ext.results.run import Run

#: Runs in the browser; of more, those with the largest sum of both average changes.
MAX_RUNS = 24

_MAX_TEXT = 1_200  # characters of a question; an option has a third
_TOPICS = ("topic", "subject", "category")


@dataclass(frozen=True)
class Browser:
    """What the browser of changed items shows.

    Attributes:
        data: for the page's script: names of the runs, and the items (short keys: see `_item`).
        note: what was left out, in words; "" if nothing.
    """

    data: dict[str, Any]
    note: str


def changed_items(plane: Plane, max_items: int) -> Browser:
    """The items on which any run differs from the baseline, in score or in the wrong answer that it chose.

    Where the documents are more than `max_items`, a sample of them: those whose hash falls below a threshold, the same for
    every run.
    """
    runs = ranked_runs(plane, MAX_RUNS)
    total = _n_documents(plane)
    share = min(1.0, max_items / total) if total else 1.0
    items = [
        item
        for number, axis in enumerate((plane.x, plane.y))
        for task in axis.tasks
        for item in _changed(plane, axis, number, task, runs, share)
    ]
    # Cultural questions first: they are what is looked for here.
    order = {language: place for place, language in enumerate(plane.languages)}
    items.sort(key=lambda item: (-item["a"], order.get(item["l"], len(order))))
    notes = []
    if share < 1:
        notes.append(
            f"A random {share:.1%} of the {total:,} documents was searched, the same for every run (--items raises it)."
        )
    if len(runs) < len(plane.runs):
        notes.append(f"Of {len(plane.runs)} runs, the {len(runs)} with the largest sum of both average changes.")
    data = {
        "baseline": plane.baseline.name,
        "runs": [run.name for run in runs],
        "axes": [axis.title for axis in (plane.x, plane.y)],
        "items": items,
    }
    return Browser(data, " ".join(notes))


def _n_documents(plane: Plane) -> int:
    rows = plane.shifts[(plane.shifts["run"] == plane.baseline.name)]
    rows = rows[rows["language"] != AVERAGE] if plane.languages else rows
    return int(rows[["x_n", "y_n"]].sum().sum())


def _changed(
    plane: Plane, axis: Axis, number: int, task: str, runs: list[Run], share: float
) -> Iterator[dict[str, Any]]:
    """The changed items of one task."""
    if task not in plane.baseline.tasks:
        return
    hashes = read_samples(plane.baseline, task, ["doc_hash"])["doc_hash"].unique()
    wanted = {doc_hash for doc_hash in hashes if zlib.crc32(doc_hash.encode()) < share * 2**32}
    before = {sample["doc_hash"]: sample for sample in _samples(plane.baseline, axis, task, wanted)}
    items: dict[str, dict[str, Any]] = {}
    answered: list[set[str]] = []
    for place, run in enumerate(runs):
        answered.append(set())
        for after in _samples(run, axis, task, wanted) if task in run.tasks else ():
            doc_hash = after["doc_hash"]
            if doc_hash not in before:
                continue
            answered[place].add(doc_hash)
            old, new = (_answer(sample, axis) for sample in (before[doc_hash], after))
            if old[:2] != new[:2]:
                if doc_hash not in items:
                    items[doc_hash] = _item(plane, before[doc_hash], axis, number, task)
                items[doc_hash]["r"][place] = new
    for doc_hash, item in items.items():
        item["r"] |= {place: None for place, known in enumerate(answered) if doc_hash not in known}
    languages = {*plane.languages, ""}
    yield from (item for item in items.values() if item["l"] in languages or not plane.languages)


def _samples(run: Run, axis: Axis, task: str, wanted: Container[str]) -> Iterator[dict[str, Any]]:
    return (
        sample
        for sample in read_documents(run, task, wanted)
        if sample.get("filter") == axis.filter and sample.get(axis.metric) is not None
    )


def _item(plane: Plane, sample: dict[str, Any], axis: Axis, number: int, task: str) -> dict[str, Any]:
    """One item: a axis, l language, t topic, q question, o options, c their countries, g gold, b the baseline's answer.

    An answer is [chosen option or generated text, whether it is right, the margin of the chosen option over the second];
    `r` holds those of the runs by their place where they differ from the baseline's, None where a run lacks the item.
    """
    document = _document(sample)
    options = answers.options(sample)
    countries = document.get("countries")
    language = document.get("language") or plane.baseline.tasks[task].language or ""
    return {
        "a": number,
        "l": normalise(str(language)) if language else "",
        "t": _shorten(next((str(document[name]) for name in _TOPICS if document.get(name)), ""), 80),
        "q": _shorten(answers.question(sample), _MAX_TEXT),
        "o": [_shorten(option, _MAX_TEXT // 3) for option in options],
        "c": [_countries(entry) for entry in countries] if isinstance(countries, list) else [],
        "g": answers.gold(sample),
        "b": _answer(sample, axis),
        "r": {},
    }


def _document(sample: dict[str, Any]) -> dict[str, Any]:
    return sample["doc"] if isinstance(sample.get("doc"), dict) else {}


def _countries(entry: Any) -> list[str]:
    return (
        [str(name).replace("_", " ") for name in entry] if isinstance(entry, list) else [str(entry).replace("_", " ")]
    )


def _answer(sample: dict[str, Any], axis: Axis) -> list[Any]:
    """[chosen option, or the generated text, whether it is right, and of options the margin over the second]."""
    score = sample[axis.metric]
    right = int(score == 1) if isinstance(score, (int, float)) else 0
    text = answers.generated(sample)
    if text is not None:
        return [_shorten(text, _MAX_TEXT // 3), right]
    given = answers.option_scores(sample, axis.metric)
    if not given:
        return [None, right]
    second, best = sorted(given)[-2:]
    return [given.index(best), right, round(best - second, 3)]


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
