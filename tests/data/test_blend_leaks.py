"""The canary: planted leaks are found, and nothing else is."""

from __future__ import annotations

import pytest

from lm_eval_ext.data.blend import audit, leaks
from lm_eval_ext.data.blend.report import Finding

PLANTED = [
    ("en", "What do people in the US eat?", "country"),
    ("en", "the most popular food in the U.K.?", "country"),
    ("en", "Greek salad", "country"),
    ("en", "twenty dollars", "currency"),
    ("en", "The White House", "institution"),
    ("en", "Traditional Korean wrestling", "country"),
    ("en", "the north of Mexico", "country"),
    ("es", "¿Qué se come en España?", "country"),
    ("es", "comida mexicana", "country"),
    ("es", "la Casa Blanca", "institution"),
    ("es", "30 euros", "currency"),
    ("es", "los ingleses", "country"),
    ("es", "EE. UU.", "country"),
    ("es", "té CHINO", "country"),
    ("id", "Apa makanan populer di Indonesia?", "country"),
    ("id", "Masakan Tionghoa", "country"),
    ("id", "orang Yunani", "country"),
    ("id", "50 ribu rupiah", "currency"),
    ("id", "Istana Merdeka", "institution"),
    ("id", "dolar", "currency"),
    ("el", "Τι τρώνε στην Ελλάδα;", "country"),
    ("el", "ελληνικός καφές", "country"),
    ("el", "ΕΛΛΗΝΙΚΌ ΠΡΩΤΆΘΛΗΜΑ", "country"),
    ("el", "20 ευρώ", "currency"),
    ("el", "Λευκός Οίκος", "institution"),
    ("el", "από την Κίνα", "country"),
    ("el", "Αμερικανοί", "country"),
    ("ko", "대한민국에서 인기 있는 음식은?", "country"),
    ("ko", "한국식 나이", "country"),
    ("ko", "미국인", "country"),
    ("ko", "5만 원", "currency"),
    ("ko", "청와대", "institution"),
    ("ko", "그리스식 커피", "country"),
    ("zh", "在中国，什么最受欢迎？", "country"),
    ("zh", "中餐", "country"),
    ("zh", "100元", "currency"),
    ("zh", "人民大会堂", "institution"),
    ("zh", "韩国泡菜", "country"),
    ("zh", "英式早餐", "country"),
    ("ar", "ما هو الطعام الشعبي في الجزائر؟", "country"),
    ("ar", "المطبخ الجَزائِرِيّ", "country"),
    ("ar", "والصينيون", "country"),
    ("ar", "ألف دينار", "currency"),
    ("ar", "البيت الأبيض", "institution"),
    ("ar", "أمريكا", "country"),
    ("ar", "دولارات أمريكية", "currency"),
    ("es", "desayuno inglés", "country"),
    ("en", "English breakfast", "country"),
    ("zh", "NBC of the USA", "country"),
    ("ko", "BBC", "institution"),
]


@pytest.mark.parametrize(("language", "text", "category"), PLANTED)
def test_a_planted_leak_is_found_in_the_question_and_in_an_option(language: str, text: str, category: str) -> None:
    rows = [
        {"language": language, "id": "x", "question": text, "options": ["a", "b", "c", "d"]},
        {"language": language, "id": "y#2", "question": "?", "options": ["a", text, "c", "d"]},
    ]
    found = {(finding.id, finding.where) for finding in audit(rows) if finding.category == category}
    assert found == {("x", "question"), ("y#2", "option 2")}


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "ask us in a town where turkeys and chinaware won"),
        ("en", "American football"),
        ("en", "New England"),
        ("es", "Inglés"),
        ("es", "chinchetas"),
        ("id", "Bahasa Inggris"),
        ("el", "αμερικανικό ποδόσφαιρο, ευρωπαϊκός δρόμος, κίνηση"),
        ("ko", "아메리카노와 그리스도교, 크리스마스, 병원"),
        ("zh", "元旦、中秋节、美式橄榄球、韩愈"),
        ("ar", "كرة القدم الأمريكية وتانغ يوان"),
        ("ar", "الجزائر العاصمة"),
    ],
)
def test_what_only_looks_like_one_passes(language: str, text: str) -> None:
    assert leaks.find(text, language) == ()


def test_a_wording_is_let_pass_only_in_the_language_and_question_it_is_listed_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = (leaks.Allowed("es", "Al-en-01", "café griego", "a test"),)
    monkeypatch.setattr(leaks, "allow_list", lambda: allowed)
    assert not leaks.find("un café griego!", "es", "Al-en-01")
    assert leaks.find("un café griego!", "es", "Al-en-02")
    assert leaks.find("un café griego!", "id", "Al-en-01") == ()  # not Indonesian words at all
    leaks.find.cache_clear()


def test_a_finding_says_where_and_what() -> None:
    row = {"language": "el", "id": "Al-en-01", "question": "?", "options": ["a", "b", "c", "στην Ελλάδα"]}
    assert audit([row]) == [Finding("el", "Al-en-01", "option 4", "country", "ελλαδα")]
