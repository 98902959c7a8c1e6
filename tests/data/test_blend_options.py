"""The options rule, on answers made up for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blend import IDS, answer, corpus, set_review

from lm_eval_ext.data.blend import duplicates, forms, items, leaks, options, review, selection
from lm_eval_ext.data.blend.options import Fallen, Option
from lm_eval_ext.data.blend.review import Verdict
from lm_eval_ext.data.blend.source import COUNTRIES, OTHER_REGIONS
from lm_eval_ext.data.blend.tables import concepts, meaning, translations
from lm_eval_ext.languages import ENGLISH_COUNTRIES

if TYPE_CHECKING:
    from collections.abc import Iterator

ID, OTHER_ID = IDS[:2]
ABROAD = {
    "US": [answer("hotdogs", 3)],
    "UK": [answer("marmite", 4)],
    "Indonesia": [answer("rendang", 5)],
    "Algeria": [answer("couscous", 3)],
    "China": [answer("hot pot", 3)],
}


@pytest.fixture(autouse=True)
def _unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    set_review(monkeypatch)
    yield
    review._by_question.cache_clear()


def sets(language: str, answers: dict[str, list[options.Answer]]) -> list[tuple[Option, ...]]:
    return sets_in(corpus({ID: ABROAD | answers}), language)


def sets_in(data: options.Corpus, language: str) -> list[tuple[Option, ...]]:
    chosen, fallen = selection.choose({ID: options.pool(data, language, ID)})
    if fallen:
        raise fallen[ID]
    return chosen[ID]


def texts(language: str, answers: dict[str, list[options.Answer]]) -> list[list[str]]:
    return [[option.text for option in chosen] for chosen in sets(language, answers)]


GREEK = {"Greece": [answer("souvlaki", 3, "σουβλάκι"), answer("koulouri", 1, "κουλούρι")]}


def test_gold_is_the_top_answer_beside_one_english_and_two_other_options() -> None:
    gold, *distractors = sets("el", GREEK)[0]
    assert (gold.text, gold.countries, gold.votes) == ("Σουβλάκι", ("Greece",), 3)
    assert [option.countries[0] in ENGLISH_COUNTRIES for option in distractors] == [True, False, False]
    assert len({option.countries[0] for option in distractors}) == 3


def test_in_english_the_uk_gives_no_option() -> None:
    gold, *distractors = sets("en", {"US": [answer("hotdogs", 3)]})[0]
    assert gold.countries[0] == "US"
    assert not any(ENGLISH_COUNTRIES.intersection(option.countries) for option in distractors)


@pytest.mark.parametrize(
    ("language", "sibling", "local"),
    [("es", "Mexico", "Spain"), ("ko", "North_Korea", "South_Korea"), ("id", "West_Java", "Indonesia")],
)
def test_no_option_is_taken_from_another_country_of_the_language(language: str, sibling: str, local: str) -> None:
    own = {"es": "gazpacho", "ko": "떡볶이", "id": "gudeg"}[language]
    given = {sibling: [answer("tacos", 5)], local: [answer("gold", 3, own)], "Greece": [answer("moussaka", 3)]}
    found = sets(language, given)
    assert sibling not in {option.countries[0] for chosen in found for option in chosen}


@pytest.mark.parametrize(
    "overlap",
    [
        answer("hotdogs", 1, "χοτ ντογκ"),  # the same answer
        answer("fast food", 1, "φαστ φουντ"),  # broader
        answer("the hotdogs", 1, "λουκάνικο σε ψωμί"),  # the same words, not in the concept table
        answer("something else", 1, "χοτ ντογκ"),  # written alike
    ],
)
def test_one_vote_in_the_local_country_is_enough_to_rule_a_distractor_out(overlap: options.Answer) -> None:
    given = {"Greece": [*GREEK["Greece"], overlap], "UK": []}
    with pytest.raises(Fallen) as fallen:
        sets("el", given)
    assert fallen.value.reason == options.NO_ENGLISH
    assert fallen.value.detail in (options.OVERLAPS, options.WRITTEN_ALIKE)


def test_one_vote_abroad_is_not_enough_to_be_an_option() -> None:
    with pytest.raises(Fallen) as fallen:
        sets("el", GREEK | {"Indonesia": [answer("rendang", 1)], "Algeria": [], "China": [answer("hot pot", 1)]})
    assert fallen.value.detail == options.NO_VOTES


def test_one_vote_in_the_us_or_uk_is_enough_where_no_answer_with_two_is_left() -> None:
    assert "Χοτ ντογκ" not in texts("el", GREEK | {"US": [answer("hotdogs", 1)], "UK": [answer("marmite", 2)]})[0]
    assert "Χοτ ντογκ" in texts("el", GREEK | {"US": [answer("hotdogs", 1)], "UK": []})[0]
    local = {"Greece": [*GREEK["Greece"], answer("marmite", 1, "μαρμάιτ")]}
    assert "Χοτ ντογκ" in texts("el", local | {"US": [answer("hotdogs", 1)], "UK": [answer("marmite", 2)]})[0]


def test_an_other_option_is_no_answer_of_the_us_or_uk() -> None:
    found = texts("el", GREEK | {"UK": [answer("marmite", 4), answer("couscous", 2)]})
    assert all("Κουσκούς" not in chosen[2:] for chosen in found)


@pytest.mark.parametrize("first", ["souvlaki", "gyros"])
def test_of_tied_answers_upstreams_first_is_gold_and_a_tie_at_two_votes_is_none(first: str) -> None:
    tied = [answer("souvlaki", 3, "σουβλάκι"), answer("gyros", 3, "γύρος")]
    if first == "gyros":
        tied.reverse()
    assert sets("el", {"Greece": tied})[0][0].english == first.capitalize()
    with pytest.raises(Fallen) as fallen:
        sets("el", {"Greece": [options.Answer(one.local, one.english, 2) for one in tied]})
    assert fallen.value.reason == options.TIED


def test_no_gold_has_one_vote() -> None:
    for votes, count in ((1, 1), (1, 3)):
        given = [answer(word, votes, word) for word in ("σουβλάκι", "τοστ", "πίτα")[:count]]
        with pytest.raises(Fallen) as fallen:
            sets("el", {"Greece": given})
        assert fallen.value.reason == options.FEW_VOTES


def test_gold_names_every_country_that_gives_it() -> None:
    gold = sets("el", {"Greece": [answer("rendang", 2, "ρεντάνγκ")], "Spain": [answer("moussaka", 2)]})[0][0]
    assert gold.countries == ("Greece", "Indonesia")


def test_several_sets_share_gold_and_no_distractor() -> None:
    more = {"US": [answer("hotdogs", 3), answer("burger", 2)], "Spain": [answer("paella", 3)]}
    found = sets("el", GREEK | more)
    assert len(found) == 2
    assert found[0][0] == found[1][0]
    assert not set(found[0][1:]) & set(found[1][1:])


NUMBERS = {
    "US": [answer("12", 3), answer("June", 2)],
    "UK": [answer("12:30", 5)],
    "Indonesia": [answer("14", 3)],
    "Algeria": [answer("£20", 3)],
    "China": [answer("16", 3)],
}


def test_like_is_compared_with_like() -> None:
    found = sets_in(corpus({ID: NUMBERS | {"Greece": [answer("18", 4)]}}), "el")
    assert [option.text for option in found[0]] == ["18", "12", "14", "16"]


@pytest.mark.parametrize(
    ("local", "distractor", "near"),
    [
        (["10", "14"], "12", True),  # inside the range
        (["10", "14"], "18", True),  # within their step
        (["10", "14"], "19", False),
        (["10", "14"], "5", False),
        (["18"], "19", True),
        (["18"], "20", False),
        (["0.5"], "1.2", True),
        (["17", "σε 20 χρόνια"], "20", False),  # text is not in the range
        (["13:00"], "14:00", True),
        (["13:00"], "14:01", False),
        (["13:00", "18:00"], "15:30", False),  # times: an hour about each answer
        (["23:30"], "00:15", True),
        (["05/31"], "05/31", True),
        (["05/31"], "12/31", False),
    ],
)
def test_numbers_and_times_near_the_local_ones(local: list[str], distractor: str, near: bool) -> None:
    assert forms.is_near(distractor, local) == near


def test_no_number_within_the_range_of_one_vote_answers_is_an_option() -> None:
    local = {"Greece": [answer("18", 4), answer("13", 1)]}
    numbers = {
        country: [one for one in given if forms.form(one.english[0]) == forms.NUMBER]
        for country, given in NUMBERS.items()
    }
    with pytest.raises(Fallen) as fallen:
        sets_in(corpus({ID: numbers | local}), "el")
    assert fallen.value.detail == options.NEAR


@pytest.mark.parametrize(
    ("local", "foreign"),
    [
        (("cocktail", "ντρινκ"), "cocktails"),  # English stems
        (("a cake of apples", "μηλόπιτα"), "apple cake"),
        (("something", "τα σουβλάκια"), "kebab"),  # Greek stems: σουβλάκι
    ],
)
def test_overlap_is_tested_on_stems_in_english_and_in_the_language(
    local: tuple[str, str], foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = dict(translations("el")) | {"kebab": "σουβλάκι", "apple cake": "κέικ", "cocktails": "κοκτέιλ"}
    monkeypatch.setattr(options, "translations", lambda language: words)
    given = {"Greece": [answer("moussaka", 3, "μουσακάς"), answer(local[0], 1, local[1])]}
    found = texts("el", given | {"US": [answer(foreign, 3), answer("marmite", 2)], "UK": []})
    assert all(chosen[1] == "Μάρμαϊτ" for chosen in found)


def test_answers_to_a_question_that_asks_the_same_rule_distractors_out() -> None:
    first, second = next(pair for pair, verdict in duplicates.table().items() if verdict == duplicates.SAME)
    data = corpus({first: ABROAD | GREEK, second: ABROAD | {"Greece": [answer("hotdogs", 2, "χοτ ντογκ")]}})
    assert "Χοτ ντογκ" not in {one.option.text for one in options.pool(data, "el", first).english}


def test_no_gold_is_a_distractor_of_a_question_that_is_asked_alike() -> None:
    first, second = next(pair for pair, verdict in duplicates.table().items() if verdict == duplicates.ALIKE)
    data = corpus({first: ABROAD | GREEK, second: ABROAD | {"Greece": [answer("couscous", 3, "κουσκούς")]}})
    assert "Κουσκούς" not in {one.option.text for one in options.pool(data, "el", first).others}
    data = corpus({first: ABROAD | GREEK, second: ABROAD | GREEK})
    assert "Κουσκούς" in {one.option.text for one in options.pool(data, "el", first).others}


def test_a_reader_rejects_an_answer_or_shows_it_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    two_sets = GREEK | {"Spain": [answer("paella", 3)]}
    assert {chosen[1] for chosen in texts("el", two_sets)} == {"Χοτ ντογκ", "Μάρμαϊτ"}
    reject = Verdict(ID, "el", "hotdogs", review.EXCLUDE, "true-too", "sold everywhere")
    set_review(monkeypatch, reject, Verdict(ID, "*", "couscous", review.VARIANT, "form", "as written", "Κους κους"))
    assert [chosen[1] for chosen in texts("el", two_sets)] == ["Μάρμαϊτ"]
    assert "Κους κους" in {one.option.text for one in options.pool(corpus({ID: ABROAD | GREEK}), "el", ID).others}
    set_review(monkeypatch, reject, Verdict(ID, "el", "hotdogs", review.KEEP, reader="maria"))
    assert {chosen[1] for chosen in texts("el", two_sets)} == {"Χοτ ντογκ", "Μάρμαϊτ"}


def test_a_reader_drops_an_item_edits_its_wording_and_may_take_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus({ID: ABROAD | GREEK})
    drop = Verdict(ID, "el", review.ANY, review.DROP, "gold-false", "no longer true")
    set_review(monkeypatch, drop)
    assert items.build(data, "el").fallen == {ID: (items.DROPPED, "no longer true")}
    again = corpus({ID: ABROAD | GREEK})
    question = items.wordings(again, "el", ID)[1]
    set_review(monkeypatch, drop, Verdict(ID, "el", review.ANY, review.KEEP))
    assert [item.question for item in items.build(again, "el").items][:1] == [question]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("12", forms.NUMBER),
        ("0.5", forms.NUMBER),
        ("9:00", forms.TIME),
        ("05/31", forms.DATE),
        ("05/05", forms.DATE),
        ("05/12", forms.AMBIGUOUS),
        ("31/05", forms.AMBIGUOUS),
        ("00/00", forms.AMBIGUOUS),
        ("5 dollars", forms.MONEY),
        ("€20", forms.MONEY),
        ("500만원", forms.MONEY),
        ("11th grade", forms.NUMBERED),
        ("toast", forms.TEXT),
    ],
)
def test_forms(text: str, form: str) -> None:
    assert forms.form(text) == form


@pytest.mark.parametrize(
    ("text", "language", "shown"),
    [
        ("american football", "en", "American Football"),
        ("bbc of the uk.", "en", "BBC of the Uk"),
        ("8:00", "el", "08:00"),
        ("06", "zh", "6"),
        ("0.5", "ar", "0.5"),
        ("Zαγοράκης", "el", "Ζαγοράκης"),
        ("曼城 对 曼联", "zh", "曼城对曼联"),
        ("real madrid", "es", "Real Madrid"),
        ("القهوة", "ar", "قهوة"),
    ],
)
def test_one_spelling(text: str, language: str, shown: str) -> None:
    assert forms.display(text, language) == shown


ENGLISH = sorted(set(concepts()) & set(translations("el")))
votes = st.integers(1, 5)
answers_abroad = st.lists(st.builds(answer, st.sampled_from(ENGLISH), votes), max_size=4)
answers_at_home = st.lists(
    st.builds(lambda word, count: answer(word, count, translations("el")[word]), st.sampled_from(ENGLISH), votes),
    min_size=1,
    max_size=5,
)
abroad = st.fixed_dictionaries(dict.fromkeys((*COUNTRIES, *OTHER_REGIONS), answers_abroad))


@settings(max_examples=60, deadline=None)
@given(abroad, answers_at_home)
def test_whatever_the_answers_every_set_keeps_the_rule(
    by_country: dict[str, list[options.Answer]], local: list[options.Answer]
) -> None:
    data = corpus({ID: by_country | {"Greece": local}})
    try:
        found = sets_in(data, "el")
    except Fallen:
        return
    assert found == sets_in(corpus({ID: by_country | {"Greece": local}}), "el")
    at_home = [meaning(one.english) for one in local]
    for gold, *distractors in found:
        assert gold.votes == max(one.votes for one in local) >= 2
        assert len({forms.key(option.text) for option in (gold, *distractors)}) == 4
        assert len({(forms.form(option.text), forms.script(option.text)) for option in (gold, *distractors)}) == 1
        assert sum(bool(ENGLISH_COUNTRIES.intersection(option.countries)) for option in distractors) == 1
        for option in distractors:
            source = [
                one
                for one in by_country[option.countries[0]]
                if one.votes == option.votes >= (1 if option.countries[0] in ENGLISH_COUNTRIES else 2)
                and forms.display(translations("el")[one.english[0]], "el") == option.text
            ]
            assert source
            assert not any(meaning(source[0].english).overlaps(own) for own in at_home)
            assert not leaks.find(option.text, "el")


FOREIGN = tuple(
    Option(text, text, (owner,), 2) for text, owner in zip("abcd", ("Greece", "UK", "China", "Iran"), strict=True)
)


def item(item_id: str) -> items.Item:
    chosen = tuple(Option(text, text, (country,), 2) for text, country in zip("abcd", COUNTRIES, strict=False))
    return items.Item(item_id, item_id, item_id, "el", "q", "q", "q", "Food", "text", chosen)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 99))
def test_letters_are_balanced_within_two_points_for_a_thousand_items(start: int, seed: int) -> None:
    arranged = items.arrange([item(f"x-{start + number}") for number in range(1000)], seed)
    places = Counter(one.gold for one in arranged)
    assert all(abs(places[letter] / 1000 - 0.25) <= 0.02 for letter in range(4))
    assert all(one.options[one.gold].text == "a" and len({o.text for o in one.options}) == 4 for one in arranged)


def test_the_option_of_the_us_or_uk_is_balanced_as_gold_is() -> None:
    for count in (40, 100, 1000):
        arranged = items.arrange([replace(item(f"x-{number}"), options=FOREIGN) for number in range(count)])
        english = Counter(next(k for k, o in enumerate(one.options) if items.is_english(o)) for one in arranged)
        gold = Counter(one.gold for one in arranged)
        for places in (english, gold):
            assert max(places.values()) - min(places.values()) <= 2
        assert {tuple(sorted(o.text for o in one.options)) for one in arranged} == {("a", "b", "c", "d")}


def test_the_order_depends_on_the_id_and_the_seed_alone() -> None:
    ids = [f"x-{number}" for number in range(40)]
    one = items.arrange([item(i) for i in ids])
    assert one == items.arrange([item(i) for i in reversed(ids)])
    assert one != items.arrange([item(i) for i in ids], seed=1)
