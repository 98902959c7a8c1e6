"""What a sample of the harness asks and what was answered: question, options, the right one, the one that was chosen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lm_eval_ext.results.samples import log_likelihoods

if TYPE_CHECKING:
    from collections.abc import Callable

_QUESTIONS = ("question", "query", "problem", "prompt", "text")

#: How a metric reads an option's score from its log-likelihood, its text and its log-likelihood after nothing; whether
#: it needs the last.
_RULES: dict[str, tuple[Callable[[float, str, float], float], bool]] = {
    "acc_norm": (lambda given, text, _: given / max(len(text), 1), False),
    "acc_bytes": (lambda given, text, _: given / max(len(text.encode()), 1), False),
    "acc_mutual_info": (lambda given, _, alone: given - alone, True),
    "acc_prior": (lambda _given, _, alone: alone, True),
}


#: Metrics whose score is 1 where the right option's score is above all others.
MARGIN_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


def question(sample: dict[str, Any]) -> str:
    """The question's text, else the prompt; "" where samples hold neither."""
    document = _document(sample)
    for name in _QUESTIONS:
        if isinstance(document.get(name), str):
            return str(document[name])
    first: Any = next(iter(_arguments(sample)), {})
    return str(first.get("arg_0", "")) if isinstance(first, dict) else ""


def options(sample: dict[str, Any]) -> list[str]:
    """The texts to choose from; none where an answer is generated."""
    document = _document(sample)
    for name in ("options", "choices"):
        listed = document.get(name)
        if isinstance(listed, dict):
            listed = listed.get("text")
        if isinstance(listed, list) and len(listed) > 1 and all(isinstance(text, str) for text in listed):
            return listed
    asked = [entry for entry in _arguments(sample) if isinstance(entry, dict)]
    texts = [
        str(entry["arg_1"]).strip() for entry in asked if entry.get("arg_0") and isinstance(entry.get("arg_1"), str)
    ]
    return texts if len(texts) > 1 else []


def option_scores(sample: dict[str, Any], metric: str) -> list[float]:
    """The score of each option by the rule of a metric; none where samples do not say, or an answer is generated."""
    scores = log_likelihoods(sample.get("filtered_resps") or [])
    if scores is None:
        return []
    listed = options(sample)
    given, alone = scores[: len(listed)], scores[len(listed) :]
    rule, needs_alone = _RULES.get(metric, (None, False))
    if len(given) < 2 or len(given) < len(listed) or (needs_alone and len(alone) != len(given)):
        return []
    if rule:
        given = [rule(*parts) for parts in zip(given, listed, alone or given, strict=True)]
    return given


def generated(sample: dict[str, Any]) -> str | None:
    """The generated text; None where options were scored."""
    responses = sample.get("filtered_resps") or []
    return None if log_likelihoods(responses) is not None else str(responses[0])


def chosen(sample: dict[str, Any], metric: str) -> str:
    """The option that a metric takes for the answer, or the generated text; "" where samples do not say."""
    text = generated(sample)
    if text is not None:
        return text
    scores = option_scores(sample, metric)
    return options(sample)[scores.index(max(scores))] if scores else ""


def gold(sample: dict[str, Any]) -> int | None:
    """The index of the right option; None where samples do not say."""
    listed = options(sample)
    for value in (_document(sample).get("gold"), sample.get("target")):
        text = str(value).strip()
        if text.isdigit() and int(text) < len(listed):
            return int(text)
        if len(text) == 1 and 0 <= ord(text) - ord("A") < len(listed):
            return ord(text) - ord("A")
        if text in listed:
            return listed.index(text)
    return None


def margin(sample: dict[str, Any], metric: str) -> float | None:
    """How far the score of the right option is above the best other one, negative where the answer is wrong.

    None where samples do not say, or where it contradicts the metric (several options that are right, for example).
    """
    kept = sample.get("margins")  # of a committed baseline
    if isinstance(kept, dict):
        value = kept.get(metric)
        return float(value) if isinstance(value, (int, float)) else None
    if metric not in MARGIN_METRICS or not sample.get("filtered_resps"):
        return None
    scores, index = option_scores(sample, metric), gold(sample)
    if index is None or index >= len(scores) or not all(map(math.isfinite, scores)):
        return None
    ahead = scores[index] - max(scores[:index] + scores[index + 1 :])
    return None if ahead and (ahead > 0) != (sample.get(metric) == 1) else ahead


def expected(sample: dict[str, Any]) -> str:
    """The right answer; "" where samples do not say."""
    listed, index = options(sample), gold(sample)
    if index is not None:
        return listed[index]
    target = sample.get("target")
    return "" if listed or target is None else str(target).strip()


def _document(sample: dict[str, Any]) -> dict[str, Any]:
    return sample["doc"] if isinstance(sample.get("doc"), dict) else {}


def _arguments(sample: dict[str, Any]) -> list[Any]:
    """What the model was given, a dictionary for each request."""
    given = sample.get("arguments")
    return list(given.values()) if isinstance(given, dict) else []
