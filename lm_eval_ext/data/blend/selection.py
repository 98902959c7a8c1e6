"""Which of the valid sets of distractors a question gets: a good set whose form does not tell gold from the others.

Two costs are added, for each set of three distractors:

- its penalty, the lower the better the options: no answer of another country of the language, no country twice, no
  option broader than another, none so general that it may be right anywhere, none of a region, of many countries or
  of few votes;
- how likely gold is the one picked by somebody who sees the four options and no question. The likelihood is learned from
  the sets of all other clusters of the language: naive Bayes on character n-grams (script, capitals, endings, articles,
  middle dots and the spelling of loan words are all n-grams), how often a text is gold elsewhere, and how often gold is
  the longest or the shortest option.

Since each choice changes what the others are learned from, all questions are gone through several times, in the order of
their hashes. All is counted in whole numbers, so that the choice is the same on every machine. `shortcuts` measures what is
left, with another classifier on folds. The weights are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend import duplicates, forms
from lm_eval_ext.data.blend.options import NO_OTHERS, Candidate, Fallen, Option, Pool, digest
from lm_eval_ext.data.blend.source import COUNTRIES
from lm_eval_ext.data.blend.tables import generality

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Most sets of distractors of one question.
MAX_SETS = 3
#: Most questions of a language with the same gold: an answer that is often right is found without the question.
MAX_SAME_GOLD = 2
#: Largest share of items in which gold is the longest or the shortest option, and in which it is picked by its form.
MOST_BY_LENGTH, MOST_BY_FORM = 0.26, 0.28
REPEATED_GOLD = "the same gold as two other questions"
GIVEN_AWAY = "the form gives gold away in every set of options"
# A concept that contains this many others ("food", "meat") is likely to be right in the local country too.
_GENERAL = 3
_PASSES = 4
# Of fewer items no share is known.
_ENOUGH = 50
_FORM_WEIGHT = 100
_LENGTH_WEIGHT = 6
# Naive Bayes is too sure of itself, since n-grams depend on each other: its log-odds are divided by this.
_TEMPERATURE = 4
_MICRO = 1_000_000


@dataclass(frozen=True)
class _Set:
    penalty: int
    options: tuple[Option, ...]


def choose(pools: Mapping[str, Pool]) -> tuple[dict[str, list[tuple[Option, ...]]], dict[str, Fallen]]:
    """Up to three sets of distractors for every question of one language.

    Args:
        pools: question id -> its pool.

    Returns:
        Question id -> sets of four options, gold first, that share gold and no distractor; and question id -> why it has
        none.
    """
    fallen: dict[str, Fallen] = {}
    sets: dict[str, list[_Set]] = {}
    for question_id, pool in pools.items():
        if valid := _valid_sets(pool):
            sets[question_id] = valid
        else:
            detail = f"{len(pool.others)} left, not enough that differ from each other"
            fallen[question_id] = Fallen(NO_OTHERS, detail)
    for question_id in _repeated(pools, sets):
        fallen[question_id] = Fallen(REPEATED_GOLD, pools[question_id].gold.text)
        del sets[question_id]
    golds = {question_id: pools[question_id].gold for question_id in sets}
    chosen, given_away = _chosen(golds, sets)
    return chosen, fallen | {question_id: Fallen(GIVEN_AWAY) for question_id in given_away}


def _repeated(pools: Mapping[str, Pool], questions: Iterable[str]) -> list[str]:
    """The questions whose gold is that of two others; those with more votes, then those by hash, are kept."""
    kept: Counter[str] = Counter()
    repeated = []
    for question_id in sorted(questions, key=lambda i: (-pools[i].gold.votes, digest("gold", i))):
        key = forms.key(pools[question_id].gold.text)
        if kept[key] < MAX_SAME_GOLD:
            kept[key] += 1
        else:
            repeated.append(question_id)
    return repeated


def _chosen(
    golds: Mapping[str, Option], sets: Mapping[str, Sequence[_Set]]
) -> tuple[dict[str, list[tuple[Option, ...]]], list[str]]:
    """The sets of every question, and the questions that are left out because their form gives gold away."""
    clusters: dict[str, list[str]] = {}
    for question_id in sets:
        clusters.setdefault(duplicates.cluster(question_id), []).append(question_id)
    order = sorted(clusters, key=lambda cluster: digest("cluster", cluster))
    chosen = {question_id: min(of_question, key=lambda s: s.penalty) for question_id, of_question in sets.items()}
    counts = _Counts()
    for question_id, first in chosen.items():
        counts.add(golds[question_id], first, 1)
    for cluster in order * _PASSES:
        for question_id in clusters[cluster]:
            counts.add(golds[question_id], chosen[question_id], -1)
        for question_id in clusters[cluster]:
            gold = golds[question_id]
            chosen[question_id] = min(sets[question_id], key=lambda s, gold=gold: counts.cost(gold, s))  # type: ignore[misc]
        for question_id in clusters[cluster]:
            counts.add(golds[question_id], chosen[question_id], 1)
    given_away = _given_away(golds, chosen, counts)
    result = {}
    for question_id in chosen:
        gold, best = golds[question_id], chosen[question_id]
        result[question_id] = [(gold, *best.options)]
        left = list(sets[question_id])
        while len(result[question_id]) < MAX_SETS:
            left = [other for other in left if not set(other.options) & set(best.options)]
            if not left:
                break
            best = min(left, key=lambda s, gold=gold: counts.cost(gold, s))  # type: ignore[misc]
            result[question_id].append((gold, *best.options))
    return result, given_away


def _given_away(golds: Mapping[str, Option], chosen: dict[str, _Set], counts: _Counts) -> list[str]:
    """Takes out the questions that give gold away most, until few enough do; returns their ids."""
    left_out: list[str] = []
    while len(chosen) >= _ENOUGH:
        shares = {question_id: counts.given_away(golds[question_id], chosen[question_id]) for question_id in chosen}
        limits = (MOST_BY_LENGTH, MOST_BY_LENGTH, MOST_BY_FORM)
        means = [sum(share[rule] for share in shares.values()) / max(1, len(shares)) for rule in range(3)]
        over = [rule for rule in range(3) if means[rule] > limits[rule]]
        if not over:
            break
        worst = max(shares, key=lambda i: (sum(shares[i][rule] for rule in over), digest("given away", i)))
        counts.add(golds[worst], chosen.pop(worst), -1)
        left_out.append(worst)
    return left_out


class _Counts:
    """What is known of gold and distractors from the sets chosen so far."""

    def __init__(self) -> None:
        self.grams = (Counter[str](), Counter[str]())  # of gold, of distractors
        self.totals = [0, 0]
        self.golds: Counter[str] = Counter()
        self.longest = self.shortest = self.sets = 0
        self.scores: dict[str, int] = {}

    def add(self, gold: Option, chosen: _Set, sign: int) -> None:
        """Count a set, or with sign -1 take it out."""
        self.scores.clear()
        self.golds[gold.text] += sign
        for is_distractor, text in ((0, gold.text), *((1, option.text) for option in chosen.options)):
            grams = _grams(text)
            self.totals[is_distractor] += sign * len(grams)
            counter = self.grams[is_distractor]
            for gram in grams:
                counter[gram] += sign
        longest, shortest = _length_rank(gold.text, chosen)
        self.longest += sign * longest
        self.shortest += sign * shortest
        self.sets += sign

    def cost(self, gold: Option, valid: _Set) -> tuple[int, str]:
        """The cost of a set in millionths, and its texts, which decide between equal ones."""
        scores = [self._score(text) for text in (gold.text, *(option.text for option in valid.options))]
        highest = max(scores)
        likelihoods = [math.exp((score - highest) / _MICRO) for score in scores]
        picked = round(_MICRO * likelihoods[0] / sum(likelihoods))
        longest, shortest = _length_rank(gold.text, valid)
        # Shares of gold that is the longest or shortest, in twelfths of an item, above a quarter.
        items = 12 * max(1, self.sets)
        too_long, too_short = (_MICRO * share // items - _MICRO // 4 for share in (self.longest, self.shortest))
        length = _LENGTH_WEIGHT * (longest * too_long + shortest * too_short) // 12
        cost = valid.penalty * _MICRO + _FORM_WEIGHT * (picked + length)
        return cost, "\x1f".join(option.text for option in valid.options)

    def given_away(self, gold: Option, chosen: _Set) -> tuple[float, float, float]:
        """Whether a counted set's gold is the longest, the shortest, and the one picked by its form; ties in parts."""
        self.add(gold, chosen, -1)
        scores = [self._odds(text) for text in (gold.text, *(option.text for option in chosen.options))]
        self.add(gold, chosen, 1)
        longest, shortest = _length_rank(gold.text, chosen)
        picked = 1 / scores.count(scores[0]) if scores[0] == max(scores) else 0.0
        return longest / 12, shortest / 12, picked

    def _score(self, text: str) -> int:
        """What counts for an option being gold: tempered log-odds of its form, and how often it is gold elsewhere."""
        if text not in self.scores:
            self.scores[text] = self._odds(text) // _TEMPERATURE + _log(self.golds[text] * 3 + 1)
        return self.scores[text]

    def _odds(self, text: str) -> int:
        """Log-odds that an option is gold by its n-grams, in millionths of a nat."""
        gold, distractors = self.grams
        size = len(gold) + len(distractors)
        base = _log(self.totals[1] + size) - _log(self.totals[0] + size)
        return sum(_log(gold[gram] + 1) - _log(distractors[gram] + 1) + base for gram in _grams(text))


def _length_rank(gold: str, chosen: _Set) -> tuple[int, int]:
    """Whether gold is the longest and the shortest option, in twelfths: ties count in parts."""
    lengths = [len(gold), *(len(option.text) for option in chosen.options)]
    longest, shortest = max(lengths), min(lengths)
    return (
        12 // lengths.count(longest) if len(gold) == longest else 0,
        12 // lengths.count(shortest) if len(gold) == shortest else 0,
    )


@cache
def _grams(text: str) -> tuple[str, ...]:
    """Its character n-grams of one to four, word boundaries marked."""
    words = [f" {word} " for word in text.split()]
    return tuple(word[i : i + n] for word in words for n in range(1, 5) for i in range(len(word) - n + 1))


@cache
def _log(count: int) -> int:
    """Logarithm in millionths; counts are never below 1."""
    return round(_MICRO * math.log(count))


def _valid_sets(pool: Pool) -> list[_Set]:
    """All sets of one English and two other candidates (English: three others) that differ as answers and as texts."""
    needed = 2 if pool.language != "en" else 3
    candidates = [*pool.english, *pool.others]
    costs = [_penalty(candidate) for candidate in candidates]
    numbers = range(len(candidates))
    pairs = {(i, j): _pair_penalty(candidates[i], candidates[j]) for i, j in combinations(numbers, 2)}
    heads: list[tuple[int, ...]] = [(number,) for number in numbers[: len(pool.english)]] or [()]
    valid = []
    for head, tail in product(heads, combinations(numbers[len(pool.english) :], needed)):
        members = (*head, *tail)
        penalties = [pairs[pair] for pair in combinations(members, 2)]
        if None not in penalties:
            penalty = sum(costs[number] for number in members) + sum(filter(None, penalties))
            valid.append(_Set(penalty, tuple(candidates[number].option for number in members)))
    return valid


def _pair_penalty(a: Candidate, b: Candidate) -> int | None:
    """The penalty of two options in one set; None where they are the same answer."""
    if forms.key(a.option.text) == forms.key(b.option.text) or a.meaning.names & b.meaning.names:
        return None
    return 4 * (a.country == b.country) + 4 * a.meaning.overlaps(b.meaning)


def _penalty(candidate: Candidate) -> int:
    """The penalty of one option."""
    general = generality()[candidate.meaning.primary] >= _GENERAL
    region = candidate.country not in COUNTRIES
    widespread = len(candidate.option.countries) - 1
    unpopular = max(0, 4 - candidate.option.votes)
    return 8 * candidate.same_culture + 4 * general + 2 * region + widespread + unpopular
