"""Which sequences share a beginning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.scoring import prefixes
from lm_eval_ext.scoring.prefixes import MIN_SHARED, Group, shared_prefixes


def saved(groups: list[Group]) -> int:
    return sum((len(group.members) - 1) * group.length for group in groups)


SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=7).map(tuple), max_size=9)


@given(SEQUENCES, st.integers(1, 3))
def test_groups_share_their_beginning_and_hold_everything_once(sequences: list[tuple[int, ...]], least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_SHARED", least)
        groups = shared_prefixes(sequences)
    assert sorted(index for group in groups for index in group.members) == list(range(len(sequences)))
    for group in groups:
        assert len({sequences[index][: group.length] for index in group.members}) == 1
        assert all(len(sequences[index]) >= group.length for index in group.members)
        assert group.length >= least or (group.length == 0 and len(group.members) == 1)
    common = min((len(sequence) for sequence in sequences), default=0)
    while len({sequence[:common] for sequence in sequences}) > 1:
        common -= 1
    if common >= least:
        assert saved(groups) >= (len(sequences) - 1) * common


def test_the_examples_of_each_subject_are_found_behind_a_common_header() -> None:
    header = (1,) * (MIN_SHARED + 5)
    examples = [(subject,) * 200 for subject in (2, 3)]
    questions = [(*header, *shots, 9, n, n) for shots in examples for n in range(4, 8)]
    assert shared_prefixes(questions) == [Group([0, 1, 2, 3], 238), Group([4, 5, 6, 7], 238)]


def test_short_beginnings_are_not_shared() -> None:
    assert [group.length for group in shared_prefixes([(1,) * (MIN_SHARED - 1), (1,) * 9 + (2,) * 40])] == [0, 0]
    assert shared_prefixes([]) == []
