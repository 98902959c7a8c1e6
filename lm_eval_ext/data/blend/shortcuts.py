"""How often gold is found from the options alone, without the question: what their form gives away.

Five rules, in percent of the items of one language; 25 is chance:

- `longest`, `shortest`: the option with the most or fewest characters; ties count in parts.
- `first`: the first option.
- `most frequent`: the option that is gold most often in the other items (10 folds).
- `n-grams`: naive Bayes on character n-grams of one to four letters, word boundaries marked, trained on the options of
  nine tenths of the clusters to tell gold from distractors and asked for the likeliest of the four in the tenth left out.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_ext.fingerprints import hash_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = Mapping[str, Any]

RULES = ("longest", "shortest", "first", "most frequent", "n-grams")
FOLDS = 10


def rates(rows: Sequence[Row]) -> dict[str, float]:
    """Rule -> percent of items where it picks gold.

    Args:
        rows: documents with `options`, `gold` and `cluster`.
    """
    lengths = [np.array([len(option) for option in row["options"]]) for row in rows]
    scores: dict[str, list[Any]] = {
        "longest": lengths,
        "shortest": [-length for length in lengths],
        "first": [np.arange(len(row["options"]), 0, -1) for row in rows],
        "most frequent": _in_folds(rows, _frequency),
        "n-grams": _in_folds(rows, _naive_bayes),
    }
    return {rule: 100 * float(np.mean(list(map(_hit, scores[rule], rows)))) for rule in RULES}


def _hit(scores: Any, row: Row) -> float:
    """1 where gold alone has the highest score, a part where several have it."""
    best = np.flatnonzero(scores == np.max(scores))
    return float(row["gold"] in best) / len(best)


def _in_folds(rows: Sequence[Row], score: Callable[[Sequence[Row], Sequence[Row]], list[Any]]) -> list[Any]:
    """Scores of the options of every row from the rows of the other folds; the items of a cluster share a fold."""
    folds = [int(hash_text(row["cluster"])[:8], 16) % FOLDS for row in rows]
    scored: list[Any] = [None] * len(rows)
    for fold in set(folds):
        held = [place for place, number in enumerate(folds) if number == fold]
        training = [row for row, number in zip(rows, folds, strict=True) if number != fold]
        for place, scores in zip(held, score(training, [rows[place] for place in held]), strict=True):
            scored[place] = scores
    return scored


def _frequency(training: Sequence[Row], held: Sequence[Row]) -> list[Any]:
    gold = Counter(row["options"][row["gold"]] for row in training)
    return [np.array([gold[option] for option in row["options"]]) for row in held]


def _naive_bayes(training: Sequence[Row], held: Sequence[Row]) -> list[Any]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    if not training:
        return [np.zeros(len(row["options"])) for row in held]
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(1, 4), lowercase=False)
    texts = vectorizer.fit_transform([option for row in training for option in row["options"]])
    is_gold = [number == row["gold"] for row in training for number in range(len(row["options"]))]
    model = MultinomialNB().fit(texts, is_gold)
    return [model.predict_log_proba(vectorizer.transform(row["options"])) @ [-1.0, 1.0] for row in held]
