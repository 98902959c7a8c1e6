"""Published question sets for `data import --format`: LocQA and SemEval-2026 task 7, in the files their authors give.

`locqa` (google-research-datasets/locqa, `locqa.json`; Mor-Lan et al., ACL 2026): 44 questions whose answer depends on where
one lives, in 12 languages, with the answer of each of 49 countries:

    {QUESTION: {"category": ..., "languages": {"French": {"translated_question": ..., "answers": {"France": ..., ...}}}}}

The set has no options. Here the right option is the answer of the language's own country; the others are answers of other
countries that are written in the language, or in figures alone (then of any country). An answer that shares all its words
with another is no option beside it. Questions that leave fewer than two options are counted and left out.

`semeval2026` (BLEnD-SemEval2026/SemEval-2026-Task-7; Ousidhoum et al., arXiv 2605.02601), the track of multiple choice.
Either the trial data,

    index  lang_reg  question  multiple_choice_options (one per line)  correct_answer

or the questions of the other phases, with their answers (letters) in a second file:

    id (ga-IE_0001)  question  option_A  option_B  option_C  option_D        and        id  answer

These questions are for evaluation only and must not be passed on.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources
from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.data.rows import Report
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_text
from lm_eval_ext.languages import ENGLISH_COUNTRIES, normalise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMATS = ("locqa", "semeval2026")
#: Sets that may be evaluated only, not passed on.
EVALUATION_ONLY = ("semeval2026",)

MAX_OPTIONS = 5
#: LocQA's languages: the code and the country whose answer is the local one (our choice; the set names none).
_LOCAL = {
    "English": ("en", "US"),
    "Spanish": ("es", "Spain"),
    "French": ("fr", "France"),
    "German": ("de", "Germany"),
    "Hebrew": ("he", "Israel"),
    "Hindi": ("hi", "India"),
    "Indonesian": ("id", "Indonesia"),
    "Italian": ("it", "Italy"),
    "Japanese": ("ja", "Japan"),
    "Korean": ("ko", "South Korea"),
    "Portuguese": ("pt", "Portugal"),
    "Chinese": ("zh", "China"),
}
_COUNTRIES = {"USA": "US", "China\n(Chinese)": "China", "Singapore\n(Chinese)": "Singapore"}
_FIGURES = re.compile(r"[\d\s.,:/%+–-]+")

_TRIAL = ("index", "lang_reg", "question", "multiple_choice_options", "correct_answer")
_OPTIONS = ("option_A", "option_B", "option_C", "option_D")
_QUESTIONS = ("id", "question", *_OPTIONS)
_ANSWERS = ("id", "answer")
_SHORT_ANSWERS = ("index", "lang_reg", "question", "correct_answer"), ("id", "text")
_LOCALE = re.compile(r"[a-z]{2}-[A-Z]{2}")
#: Languages written in other scripts than Latin: a question without such a letter is not in its language.
_OTHER_SCRIPTS = frozenset(["am", "ar", "as", "bg", "bn", "el", "fa", "ja", "ko", "ta", "zh"])


def read(form: str, file: Path, answers: Path | None = None, language: str = "") -> tuple[list[dict[str, Any]], Report]:
    """The questions of a published set as lines of `own`'s schema, and how many were kept and left out.

    Args:
        form: one of `FORMATS`.
        file: the questions.
        answers: of `semeval2026`: the file with the answers, where they are not among the questions.
        language: of `semeval2026`: the language the questions are written in, where it is not that of their locale.

    Raises:
        DataError: an unknown format, or a file in another.
    """
    if form not in FORMATS:
        raise DataError(f"--format {form!r} is unknown; valid: {', '.join(FORMATS)}")
    if form == "locqa":
        if answers is not None or language:
            raise DataError(
                "--answers and --lang are not for --format locqa: its file has the answers and the languages"
            )
        return _locqa(file)
    return _semeval(file, answers, normalise(language) if language else "")


# LocQA ----------------------------------------------------------------------------------------------------------------


def _locqa(file: Path) -> tuple[list[dict[str, Any]], Report]:
    content = sources.read_json(file)
    report = Report()
    lines = []
    n_answers = 0
    try:
        for number, (question, entry) in enumerate(content.items()):
            by_language = {
                name: (said["translated_question"], _answers(said["answers"]))
                for name, said in entry["languages"].items()
            }
            n_answers += sum(len(said["answers"]) for said in entry["languages"].values())
            for name in by_language:
                if name not in _LOCAL:
                    raise DataError(f"{file}: unknown language {name!r} of {question!r}; valid: {', '.join(_LOCAL)}")
                line = _locqa_line(number, name, by_language, report)
                if line:
                    lines.append({**line, "topic": entry["category"]})
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not locqa.json as google-research-datasets/locqa publishes it "
            f"(an object of questions, each with category and languages): {error!r}"
        ) from None
    report.notes.append(f"{n_answers:,} answers to {len(content)} questions were read")
    return lines, report


def _answers(said: Mapping[str, str]) -> dict[str, str]:
    """Country -> answer, without those that a country has not."""
    cleaned = {_COUNTRIES.get(country, country): " ".join(answer.split()) for country, answer in said.items()}
    return {country: answer for country, answer in cleaned.items() if answer and answer.upper() != "N/A"}


def _locqa_line(
    number: int, name: str, by_language: Mapping[str, tuple[str, Mapping[str, str]]], report: Report
) -> dict[str, Any] | None:
    code, country = _LOCAL[name]
    question, own = by_language[name]
    if country not in own:
        report.leave_out("no answer of the language's own country", code)
        return None
    local = own[country]
    pool = [(where, text) for where, text in own.items()]
    if _FIGURES.fullmatch(local):
        pool = [(where, text) for _, answers in by_language.values() for where, text in answers.items()]
        pool = [(where, text) for where, text in pool if _FIGURES.fullmatch(text)]
    countries: dict[str, list[str]] = {}
    for where, text in pool:
        owners = countries.setdefault(text, [])
        if where not in owners:
            owners.append(where)
    # The local answer first, then that of the US, then the others as a hash draws them.
    ranked = sorted(
        countries,
        key=lambda text: (text != local, ENGLISH_COUNTRIES.isdisjoint(countries[text]), hash_text(str(number), text)),
    )
    options: list[str] = []
    for text in ranked:
        if len(options) < MAX_OPTIONS and not any(_overlap(text, other) for other in options):
            options.append(text)
    if len(options) < 2:
        report.leave_out("no other answer to choose from", code)
        return None
    report.kept[code] += 1
    options.sort(key=lambda text: hash_text("order", str(number), text))
    return {
        "id": f"locqa-{number:02}",
        "language": code,
        "question": question,
        "options": options,
        "answer": options.index(local),
        "countries": [sorted(countries[text], key=lambda where: (where != country, where)) for text in options],
    }


def _overlap(text: str, other: str) -> bool:
    """Whether one answer has all the words of the other: `18` and `18 to 19`."""
    first, second = (set(re.findall(r"\w+", answer.casefold())) or {answer} for answer in (text, other))
    return first <= second or second <= first


# SemEval-2026 task 7 --------------------------------------------------------------------------------------------------


def _semeval(file: Path, answers: Path | None, language: str) -> tuple[list[dict[str, Any]], Report]:
    header, rows = _table(file)
    if set(_TRIAL) <= set(header):
        if answers is not None:
            raise DataError(f"{file} has its answers in the column correct_answer: leave --answers out")
        asked = [_trial_line(row) for row in rows]
    elif set(_QUESTIONS) <= set(header):
        if answers is None:
            raise DataError(f"{file} has no answers: give the file with the columns id and answer with --answers")
        asked = _with_letters(file, rows, answers)
    else:
        raise DataError(f"{file}: {_other_shape(header)}")
    report = Report()
    lines = []
    for line in asked:
        line["language"] = code = language or {"tl": "fil"}.get(line["topic"][:2], line["topic"][:2])
        if problem := _problem(line):
            report.leave_out(problem, code)
        else:
            report.kept[code] += 1
            lines.append(line)
    if not language:
        _check_scripts(file, lines)
    return lines, report


def _trial_line(row: Mapping[str, str]) -> dict[str, Any]:
    options = [text.strip() for text in row["multiple_choice_options"].split("\n") if text.strip()]
    return {
        "id": f"{row['lang_reg']}_{row['index']}",
        "question": row["question"].strip(),
        "options": options,
        "answer": row["correct_answer"].strip(),
        "topic": row["lang_reg"],
    }


def _with_letters(file: Path, rows: Iterable[Mapping[str, str]], answers: Path) -> list[dict[str, Any]]:
    header, gold_rows = _table(answers)
    if not set(_ANSWERS) <= set(header):
        raise DataError(f"--answers {answers} must have the columns id and answer, it has {', '.join(header)}")
    gold = {row["id"]: row["answer"].strip() for row in gold_rows}
    lines = []
    for row in rows:
        if row["id"] not in gold:
            raise DataError(f"{answers} has no answer to {row['id']} of {file}: are both files of one phase?")
        lines.append(
            {
                "id": row["id"],
                "question": row["question"].strip(),
                "options": [row[option].strip() for option in _OPTIONS],
                "answer": gold[row["id"]],
                "topic": row["id"].rpartition("_")[0],
            }
        )
    return lines


def _problem(line: Mapping[str, Any]) -> str | None:
    """Why a question cannot be asked."""
    letters = "ABCD"[: len(line["options"])]
    if not _LOCALE.fullmatch(line["topic"]):
        return "no locale such as el-GR"
    if line["language"] not in PROMPTS:
        return "no words for a prompt in the language"
    if len({*line["options"]} - {""}) < max(len(line["options"]), 2):
        return "options that are empty or the same"
    if line["answer"] not in (*line["options"], *letters):
        return "the answer is none of the options"
    return None


def _check_scripts(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Raise where questions of a locale are in English, as those of the test phase are."""
    for line in lines:
        if line["language"] in _OTHER_SCRIPTS and line["question"].isascii():
            raise DataError(
                f"{file}: the question {line['id']} is not in the language of its locale; if all are in English, as in the "
                "test phase, say --lang en"
            )


def _other_shape(header: list[str]) -> str:
    if any(set(columns) == set(header) for columns in _SHORT_ANSWERS):
        return "these are the questions for short answers (track 1); only multiple choice (track 2) can be imported"
    if set(_ANSWERS) == set(header):
        return "these are the answers: give them with --answers, and the questions as the file"
    return (
        "not a file of SemEval-2026 task 7: it must have the columns "
        f"{', '.join(_TRIAL)} or {', '.join(_QUESTIONS)}, it has {', '.join(header) or 'none'}"
    )


def _table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a file with tabs between the cells; cells in quotes may hold line breaks."""
    reader = csv.DictReader(io.StringIO(sources.read_text(file).lstrip("\ufeff"), newline=""), delimiter="\t")
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise DataError(f"{file}, line {reader.line_num}: it must have {len(header)} cells with tabs between them")
        rows.append(row)
    return header, rows
