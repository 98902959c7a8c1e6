"""Which sets of distractors are taken: what the options alone give away, and the near-duplicates."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support.blend import IDS

from lm_eval_ext.data.blend import duplicates, selection, shortcuts
from lm_eval_ext.data.blend.options import Candidate, Option, Pool
from lm_eval_ext.data.blend.source import corpus
from lm_eval_ext.data.blend.tables import meaning

if TYPE_CHECKING:
    from pathlib import Path


def candidate(text: str, country: str) -> Candidate:
    return Candidate(Option(text, text, (country,), 4), meaning((text,)), False)


def pool(question_id: str, gold: str, *others: str) -> Pool:
    """English and one distractor of it, and any others."""
    return Pool(
        "el",
        question_id,
        Option(gold, gold, ("Greece",), 4),
        (candidate(f"english {question_id}", "UK"),),
        tuple(
            candidate(text, country)
            for text, country in zip(others, ("Spain", "China", "Iran", "Mexico"), strict=False)
        ),
    )


def row(gold: str, *others: str, cluster: str = "") -> dict[str, Any]:
    return {"options": [*others, gold], "gold": len(others), "cluster": cluster or gold}


def test_an_ending_that_only_gold_has_is_avoided() -> None:
    """In every question gold ends in -kis; two candidates do as well, two do not."""
    letters, vowels = "bdfgklmnpr", "aeiou"
    words = iter([f"{a}{x}{b}{y}" for x in vowels for a in letters for y in vowels for b in letters][::7])
    pools = {}
    for number in range(45):
        gold, *others = (next(words) + end for end in ("kis", "ta", "ta", "kis", "kis"))
        pools[f"q{number}"] = pool(f"q{number}", gold, *others)
    chosen, fallen = selection.choose(pools)
    assert not fallen
    others = [option.text for sets in chosen.values() for option in sets[0][2:]]
    assert sum(text.endswith("kis") for text in others) > 0.7 * len(others)


def test_gold_that_is_always_the_shortest_is_left_out_until_few_are() -> None:
    ids = [f"q{number}" for number in range(100)]
    long = {i: pool(i, f"{i}a", f"{i} long one", f"{i} long two") for i in ids[:60]}
    same = {i: pool(i, f"{i} and the longest of all", f"{i} long one", f"{i} long two") for i in ids[60:]}
    chosen, fallen = selection.choose(long | same)
    assert {str(fall) for fall in fallen.values()} == {selection.GIVEN_AWAY}
    shortest = sum(len(sets[0][0].text) < min(len(o.text) for o in sets[0][1:]) for sets in chosen.values())
    assert shortest / len(chosen) <= selection.MOST_BY_LENGTH or len(chosen) < selection._ENOUGH


def test_a_gold_is_used_twice_at_most_and_the_one_with_more_votes_is_kept() -> None:
    pools = {i: pool(i, "football", f"{i} one", f"{i} two") for i in ("q1", "q2", "q3")}
    weak = pools["q2"]
    pools["q2"] = Pool(weak.language, "q2", Option("football", "football", ("Greece",), 3), weak.english, weak.others)
    chosen, fallen = selection.choose(pools)
    assert set(chosen) == {"q1", "q3"}
    assert {i: str(fall) for i, fall in fallen.items()} == {"q2": selection.REPEATED_GOLD}


def test_the_choice_does_not_depend_on_the_order_of_the_questions() -> None:
    pools = {i: pool(i, f"{i}kis", *(f"{i}{end}" for end in ("ta", "kis", "mo", "la"))) for i in IDS[:30]}
    assert selection.choose(pools)[0] == selection.choose(dict(reversed(pools.items())))[0]


def test_rules_that_see_only_the_options() -> None:
    rows = [row("ccc", "a", "bb", "dd"), row("c", "aa", "bb", "ddd")]
    rates = shortcuts.rates(rows)
    assert (rates["longest"], rates["shortest"], rates["first"]) == (50, 50, 0)
    assert shortcuts.rates([row("aa", "bb", "c", "d")])["longest"] == 50  # a tie counts in part
    assert shortcuts.rates([row("a", "b", "c", "d")])["n-grams"] == 25  # nothing to learn from


def test_the_classifier_finds_an_ending_and_the_frequency_a_repeated_gold() -> None:
    golds = [f"{a}{b}{a}kis" for a in "bdfgklm" for b in "aeiou"]
    told = [row(gold, f"x{gold[:3]}ta", f"y{gold[:3]}mo", f"z{gold[:3]}la") for gold in golds]
    assert shortcuts.rates(told)["n-grams"] > 90
    assert shortcuts.rates(told)["most frequent"] == pytest.approx(25)
    repeated = [row("football", f"x{n}", f"y{n}", f"z{n}", cluster=f"c{n}") for n in range(40)]
    assert shortcuts.rates(repeated)["most frequent"] == 100
    one_cluster = [{**one, "cluster": "same"} for one in repeated]
    assert shortcuts.rates(one_cluster)["most frequent"] == 25  # a cluster is in one fold


def test_near_duplicates_are_found_by_their_stems_and_all_of_upstreams_are_listed(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    asked = {"a": "What do men like to watch in your country?", "b": "What do women like to watch in your country?"}
    asked |= {"c": "How long is a semester in your country? (Provide Arabic numerals only.)"}
    assert [pair[:2] for pair in duplicates.candidates(asked)] == [("a", "b")]
    questions = {i: template.text for i, template in corpus().templates.items()}
    listed = {frozenset(pair) for pair in duplicates.table()}
    assert {frozenset(pair[:2]) for pair in duplicates.candidates(questions)} <= listed


def test_verdicts_on_pairs_make_clusters() -> None:
    assert set(duplicates.table().values()) == {duplicates.SAME, duplicates.ALIKE, duplicates.DIFFERENT}
    clusters = Counter(duplicates.cluster(i) for pair in duplicates.table() for i in pair)
    assert clusters.most_common(1)[0][1] > 1
    for (first, second), verdict in duplicates.table().items():
        if verdict != duplicates.DIFFERENT:
            assert duplicates.cluster(first) == duplicates.cluster(second)
            assert second in duplicates.alike(first)
        assert (second in duplicates.same(first)) >= (verdict == duplicates.SAME)
