"""The options rule, on answers made up for it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blend import IDS, answer, corpus

from lm_eval_ext.data.blend import forms, items, leaks, options, splits
from lm_eval_ext.data.blend.options import Fallen, Option
from lm_eval_ext.data.blend.source import COUNTRIES, OTHER_REGIONS
from lm_eval_ext.data.blend.tables import concepts, excluded, meaning, translations
from lm_eval_ext.languages import ENGLISH_COUNTRIES, LANGUAGES, NON_ENGLISH

ID = next(question_id for question_id in IDS if question_id not in {row[0] for row in excluded()})
ABROAD = {
    "US": [answer("hotdogs", 3)],
    "UK": [answer("marmite", 4)],
    "Indonesia": [answer("rendang", 5)],
    "Algeria": [answer("couscous", 3)],
    "China": [answer("hot pot", 3)],
}


def sets(language: str, answers: dict[str, list[options.Answer]], min_votes: int = 2) -> list[tuple[Option, ...]]:
    return options.option_sets(corpus({ID: ABROAD | answers}), language, ID, min_votes)


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
        sets("el", GREEK | {"US": [answer("hotdogs", 1)], "UK": []})
    assert fallen.value.detail == options.NO_VOTES


def test_an_other_option_is_no_answer_of_the_us_or_uk() -> None:
    found = texts("el", GREEK | {"UK": [answer("marmite", 4), answer("couscous", 2)]})
    assert all("Κουσκούς" not in chosen[2:] for chosen in found)


def test_of_tied_answers_the_one_that_fewest_others_share_is_gold() -> None:
    tied = [answer("couscous", 2, "κουσκούς"), answer("souvlaki", 2, "σουβλάκι")]
    assert sets("el", {"Greece": tied})[0][0].text == "Σουβλάκι"


def test_gold_names_every_country_that_gives_it() -> None:
    gold = sets("el", {"Greece": [answer("rendang", 2, "ρεντάνγκ")], "Spain": [answer("moussaka", 2)]})[0][0]
    assert gold.countries == ("Greece", "Indonesia")


def test_several_sets_share_gold_and_no_distractor() -> None:
    more = {"US": [answer("hotdogs", 3), answer("burger", 2)], "Spain": [answer("paella", 3)]}
    found = sets("el", GREEK | more)
    assert len(found) == 2
    assert found[0][0] == found[1][0]
    assert not set(found[0][1:]) & set(found[1][1:])


def test_one_vote_gold_only_where_asked_for_and_for_an_answer_of_its_own() -> None:
    one_each = [answer("souvlaki", 1, "σουβλάκι"), answer("toast", 1, "τοστ"), answer("rendang", 1, "ρεντάνγκ")]
    with pytest.raises(Fallen) as fallen:
        sets("el", {"Greece": one_each})
    assert fallen.value.reason == options.FEW_VOTES
    assert sets("el", {"Greece": one_each}, min_votes=1)[0][0].text in ("Σουβλάκι", "Τοστ")
    with pytest.raises(Fallen):
        sets("el", {"Greece": one_each[:2]}, min_votes=1)


NUMBERS = {
    "US": [answer("12", 3), answer("June", 2)],
    "UK": [answer("12:30", 5)],
    "Indonesia": [answer("14", 3)],
    "Algeria": [answer("£20", 3)],
    "China": [answer("16", 3)],
}


def test_like_is_compared_with_like() -> None:
    found = options.option_sets(corpus({ID: NUMBERS | {"Greece": [answer("18", 4)]}}), "el", ID)
    assert [option.text for option in found[0]] == ["18", "12", "14", "16"]


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
        found = options.option_sets(data, "el", ID)
    except Fallen:
        return
    assert found == options.option_sets(corpus({ID: by_country | {"Greece": local}}), "el", ID)
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
                if one.votes == option.votes >= 2
                and forms.display(translations("el")[one.english[0]], "el") == option.text
            ]
            assert source
            assert not any(meaning(source[0].english).overlaps(own) for own in at_home)
            assert not leaks.find(option.text, "el")


def item(item_id: str) -> items.Item:
    chosen = tuple(Option(text, text, (country,), 2) for text, country in zip("abcd", COUNTRIES, strict=False))
    return items.Item(item_id, item_id, "el", "q", "q", "q", "Food", "text", chosen)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 99))
def test_letters_are_balanced_within_two_points_for_a_thousand_items(start: int, seed: int) -> None:
    arranged = items.arrange([item(f"x-{start + number}") for number in range(1000)], seed)
    places = Counter(one.gold for one in arranged)
    assert all(abs(places[letter] / 1000 - 0.25) <= 0.02 for letter in range(4))
    assert all(one.options[one.gold].text == "a" and len({o.text for o in one.options}) == 4 for one in arranged)


def test_the_order_depends_on_the_id_and_the_seed_alone() -> None:
    ids = [f"x-{number}" for number in range(40)]
    one = items.arrange([item(i) for i in ids])
    assert one == items.arrange([item(i) for i in reversed(ids)])
    assert one != items.arrange([item(i) for i in ids], seed=1)


def draft_votes(ids: list[str], yields: dict[str, int]) -> dict[str, dict[str, int]]:
    return {code: {i: yields.get(i, 0) for i in ids if yields.get(i, 0)} for code in LANGUAGES}


def test_splits_take_extraction_from_questions_without_items_and_a_quarter_for_choosing() -> None:
    ids = [f"q{number:03}" for number in range(500)]
    order = {i: options.digest(i) for i in ids}
    table = splits.derive(draft_votes(ids, dict.fromkeys(ids[:300], 2)), ids, order)
    sizes = Counter(split for split, _ in table.values())
    assert (sizes[splits.DEV1], sizes[splits.DEV2]) == (100, 75)
    assert all(table[i][0] != splits.DEV1 for i in ids[:300])


def test_the_core_needs_all_six_languages_and_allows_two_golds_of_one_vote() -> None:
    ids = ["all", "two", "three", "missing"]
    votes = {code: dict.fromkeys(ids, 2) for code in LANGUAGES}
    for question_id, count in (("two", 2), ("three", 3)):
        for code in NON_ENGLISH[:count]:
            votes[code][question_id] = 1
    del votes["ar"]["missing"]
    table = splits.derive(votes, [], {i: i for i in ids})
    assert {i: core for i, (_, core) in table.items()} == {"all": True, "two": True, "three": False, "missing": False}
