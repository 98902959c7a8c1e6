"""Questions that ask nearly the same: one cluster, in one split, and no answer is gold in one and a distractor in another.

`blend_tables/near_duplicates.tsv` lists every pair that `candidates` finds by its wording, and those found by reading, with
a verdict: `same` (the answers of one are right for the other as well), `alike` (the same words about another group or
time, such as men and women), `different` (only the pattern of the sentence is shared).
"""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

from lm_eval_ext.data.blend.tables import rows, stems

if TYPE_CHECKING:
    from collections.abc import Mapping

SAME, ALIKE, DIFFERENT = "same", "alike", "different"
#: Pairs of questions that share this part of their stems are listed in the table.
LISTED_FROM = 0.6
_HINT = re.compile(r"\((provide|e\.g\.).*$", re.IGNORECASE)
_COUNTRY = re.compile(r"((people )?(in|from|of) )?your country('s)?", re.IGNORECASE)


def candidates(questions: Mapping[str, str]) -> list[tuple[str, str, float]]:
    """The pairs of questions whose wordings are alike: (id, id, similarity), the most similar first.

    The similarity is the Jaccard index of the stems of their words, without the country and the hint on the answer's form.

    Args:
        questions: id -> question in English.
    """
    words = {question_id: stems(_COUNTRY.sub("", _HINT.sub("", text))) for question_id, text in questions.items()}
    pairs = ((a, b, len(words[a] & words[b]) / len(words[a] | words[b])) for a, b in combinations(words, 2))
    return sorted((pair for pair in pairs if pair[2] >= LISTED_FROM), key=lambda pair: -pair[2])


@cache
def table() -> dict[tuple[str, str], str]:
    """(id, id) -> verdict."""
    return {(first, second): verdict for first, second, verdict in rows("near_duplicates.tsv", 3)}


def same(question_id: str) -> frozenset[str]:
    """The questions for which this question's answers are right as well."""
    return _groups((SAME,)).get(question_id, frozenset()) - {question_id}


def alike(question_id: str) -> frozenset[str]:
    """The other questions of the same cluster: the same or alike."""
    return _groups((SAME, ALIKE)).get(question_id, frozenset()) - {question_id}


def cluster(question_id: str) -> str:
    """The name of a question's cluster: the first of its ids, or its own."""
    return min(_groups((SAME, ALIKE)).get(question_id, {question_id}))


@cache
def _groups(verdicts: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Question id -> all ids that it is connected with by pairs of these verdicts, itself among them."""
    groups: dict[str, frozenset[str]] = {}
    for (first, second), verdict in table().items():
        if verdict in verdicts:
            joined = groups.get(first, frozenset({first})) | groups.get(second, frozenset({second}))
            groups.update(dict.fromkeys(joined, joined))
    return groups
