"""Metrics of tasks whose options belong to countries: their `process_results` functions.

Every value is 0 or 1 per document and is averaged. The chosen option is the first of highest score, as in the harness
(`lm_eval/api/task.py`). With `countries` the countries of each option (the one whose answer it is first) and `gold` the
option of the language's own country:

- `acc`: the chosen option is `gold` (the local rate);
- `english_bias`: the chosen option belongs to the US or the UK; an answer that the local culture shares with them is
  the local one and does not count;
- `english_bias_unshared`: the same without the documents whose option of the US or UK is an answer of three or more other
  countries (column `us_uk_shared`; those documents have no such score);
- `other_rate`: the chosen option is neither.

In the six other languages `acc`, `english_bias` and `other_rate` sum to 1. In English the local option is that of the US
itself, so `english_bias` says nothing there and no group averages it over English.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_ext.languages import ENGLISH_COUNTRIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    Results = Sequence[tuple[float, bool]]


def letters(doc: dict[str, Any], results: Results) -> dict[str, float]:
    """`acc`, `english_bias` and `other_rate` of the letter of highest log-likelihood.

    Args:
        doc: with `gold` and `countries`, and `us_uk_shared` where it is known.
        results: (log-likelihood, greedy) of each letter.
    """
    chosen = int(np.argmax([log_likelihood for log_likelihood, _ in results]))
    return _rates(doc, chosen)


def cloze(doc: dict[str, Any], results: Results) -> dict[str, float]:
    """Scores of the option texts under several rules, for models that do not follow lettered options.

    `acc`, `english_bias` and `other_rate` choose by the sum of log-likelihoods; `acc_norm` and `english_bias_norm` by
    that sum divided by the number of characters, `acc_bytes` by the number of UTF-8 bytes; `acc_mutual_info` by
    log P(option | question) - log P(option). `acc_prior` chooses by log P(option), without a question: the control
    that measures what the options alone reveal.

    Args:
        doc: with `gold`, `countries` and `options`.
        results: (log-likelihood, greedy) of each option after the question, then of each option without it (the
            harness requests the latter when `acc_mutual_info` is among the task's metrics).
    """
    options: list[str] = doc["options"]
    log_likelihoods = np.array([log_likelihood for log_likelihood, _ in results])
    conditional, prior = log_likelihoods[: len(options)], log_likelihoods[len(options) :]
    norm = int(np.argmax(conditional / np.array([float(len(option)) for option in options])))
    choices = {
        "acc_norm": norm,
        "acc_bytes": np.argmax(conditional / np.array([float(len(option.encode())) for option in options])),
        "acc_mutual_info": np.argmax(conditional - prior),
        "acc_prior": np.argmax(prior),
    }
    return {
        **_rates(doc, int(np.argmax(conditional))),
        **{name: float(chosen == doc["gold"]) for name, chosen in choices.items()},
        "english_bias_norm": _english(doc, norm),
    }


def _rates(doc: dict[str, Any], chosen: int) -> dict[str, float]:
    local, english = float(chosen == doc["gold"]), _english(doc, chosen)
    unshared = {} if doc.get("us_uk_shared", True) else {"english_bias_unshared": english}
    return {"acc": local, "english_bias": english, **unshared, "other_rate": float(not local and not english)}


def _english(doc: dict[str, Any], chosen: int) -> float:
    countries = doc["countries"][chosen]
    return float(not ENGLISH_COUNTRIES.isdisjoint(countries[:1] if chosen == doc["gold"] else countries))
