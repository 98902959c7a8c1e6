"""A small mirror of every data set in the form of its publisher, its contents made up: for tests that need only the form.

Question ids of BLEnD are real, so that the packaged tables apply; everything else is made up. The files are not those that
the package knows, so `LM_EVAL_EXT_ALLOW_MODIFIED=1` belongs with it.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import bmlama, localization_gap
from lm_eval_ext.data.blend import duplicates, review, splits
from lm_eval_ext.data.blend.source import COUNTRIES, OTHER_REGIONS
from lm_eval_ext.data.blend.tables import EditError, Edits, concepts, decontext, remove_country, translations
from lm_eval_ext.languages import KNOWN, LANGUAGES, NON_ENGLISH
from support import gmmlu_mirror

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Questions of BLEnD with answers, in each split; those of the core and others.
PER_SPLIT = 12
#: Questions of Global-MMLU in each split, by label.
PER_LABEL = 9
FACTS = 60


def write(folder: Path) -> Path:
    """Write the mirror into a folder."""
    _write_blend(folder / "blend")
    for code in chain(LANGUAGES, ("tr", "bn", "fr", "ru")):
        for split in ("test", "dev"):
            labels = [f"anatomy/{split}/{n}" for n in range(2 * PER_LABEL)]
            named = {name: "CS" if n < PER_LABEL else "CA" for n, name in enumerate(labels)}
            questions = {name: f"{code} {name}?" for name in labels}
            gmmlu_mirror.write_questions(folder, code, split, questions, named)
    _write_lines(folder / bmlama.FILE, (_fact(number) for number in range(FACTS)))
    _write_lines(
        folder / localization_gap.FILE,
        (
            _gap(number, code, named)
            for code in localization_gap.LANGUAGES
            for named in (False, True)
            for number in range(localization_gap.N_QUESTIONS)
        ),
    )
    return folder


def _write_lines(file: Path, rows: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


# --- BLEnD -----------------------------------------------------------------------------------------------------------


def _write_blend(folder: Path) -> None:
    texts = {i: asked for i in decontext("en") if (asked := _asked(i))}
    answered = [
        *_first(texts, splits.TEST, core=True),
        *_first(texts, splits.TEST, core=False)[: PER_SPLIT // 4],
        *_first(texts, splits.DEV2),
    ]
    words, languages = _words(), {language.country: code for code, language in LANGUAGES.items()}
    records: dict[str, dict[str, Any]] = {country: {} for country in (*COUNTRIES, *OTHER_REGIONS)}
    for country, of_country in records.items():
        code = languages.get(country)
        place = "the US" if country == "US" else country.replace("_", " ")
        for question_id in decontext("en"):
            asked = texts.get(question_id, {}).get(code or "", "")
            of_country[question_id] = {
                "question": f"{asked} In the US?" if asked and country == "US" else asked,
                "en_question": f"{_name(question_id)} What is it in {place}?",
                "annotations": [],
                "idks": {"idk": 0, "no-answer": 0, "not-applicable": 0},
            }
        for number, question_id in enumerate(answered):
            if (country, number) == ("Greece", 0):
                continue  # languages have different numbers of items
            word = words[(number * 7 + list(records).index(country)) % len(words)]
            local = translations(code).get(word, word) if code else word
            annotation = {"answers": [local], "en_answers": [word], "count": 4}
            of_country[question_id]["annotations"] = [annotation]
    for country in COUNTRIES:
        file = folder / "annotations" / f"{country}_data.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(records[country], ensure_ascii=False), "utf-8")
    _write_lines(
        folder / "annotations_en_other6.jsonl",
        ({"country": region, "ID": i, **record} for region in OTHER_REGIONS for i, record in records[region].items()),
    )
    (folder / "templates").mkdir()
    rows = "".join(f'{i},Food,made up,"{texts.get(i, {}).get("en", "")}"\n' for i in decontext("en"))
    (folder / "templates" / "templates_en.csv").write_text(f"ID,Topic,Source,Question\n{rows}", "utf-8")
    (folder / "templates" / "question_fixes.json").write_text("{}", "utf-8")


def _asked(question_id: str) -> dict[str, str]:
    """The question in every language, with the words in it that the tables take out; empty where a table drops it."""
    texts = {}
    for code in LANGUAGES:
        edits = decontext(code).get(question_id)
        if edits is None or not edits.steps or edits.dropped or review.dropped(question_id, code):
            return {}
        steps = (*edits.steps, *review.edits(question_id, code))
        text = f"{_name(question_id)} {' '.join(old for old, _ in steps)}?"
        try:
            if remove_country(text, Edits(steps)) == text:
                return {}
        except EditError:
            return {}
        texts[code] = text
    return texts


def _name(question_id: str) -> str:
    return f"({question_id})"


def _first(texts: Mapping[str, object], split: str, core: bool | None = None) -> list[str]:
    """The first questions of a split, one of those that are alike."""
    own = {duplicates.cluster(i): i for i in texts if splits.of(i) == split and core in (None, i in splits.core())}
    return list(own.values())[:PER_SPLIT]


def _words() -> list[str]:
    """English answers of one word with a translation in every language, in its script; none broader than another."""
    tables = [translations(code) for code in NON_ENGLISH]
    words: dict[str, str] = {}
    for word, (concept, broader) in concepts().items():
        texts = [table.get(word, "") for table in tables]
        ascii_only = [code for code, text in zip(NON_ENGLISH, texts, strict=True) if text.isascii()]
        if not broader and len(word) > 2 and all(map(str.isalpha, (word, *texts))) and {*ascii_only} <= {"es", "id"}:
            words.setdefault(concept, word)
    return list(words.values())


# --- The others ------------------------------------------------------------------------------------------------------


def _fact(number: int) -> dict[str, Any]:
    candidates = ["Rome", "Venice", "Oslo", "Lima", "Bern"]
    fact = {"cloze": f"X{number} died in <mask>.", "subject": f"X{number}", "candidates": candidates, "gold": 4}
    by_language = {code: {**fact, "cloze": f"{code}: {fact['cloze']}"} for code in LANGUAGES}
    by_language["zh"]["cloze"] = f"X{number}死于<mask>。"  # no spaces between words
    return {"row": number, "template_en": "[X] died in <mask>.", "near_functional": True, **by_language}


def _gap(number: int, code: str, named: bool) -> dict[str, Any]:
    subtask = ("names", "cities", "o1")[(number >= 50) + (number >= 70)]
    options: Sequence[str] = [f"{code} {culture} {number}" for culture in localization_gap.CULTURES.values()]
    return {
        "idx": number,
        "lang": KNOWN[code].name,
        "context": named,
        "subtask": subtask,
        "question": f"{f'I live in {KNOWN[code].country}. ' if named else ''}{code} {subtask}?",
        "options": options,
        "by_culture": dict(zip(localization_gap.CULTURES.values(), options, strict=True)),
    }
