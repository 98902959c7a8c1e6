"""Files of the mirror that are converted from upstream files: the conversion of each, and the hash of its result.

The hash of the result is checked, so that a change of an input upstream is noticed.
"""

from __future__ import annotations

import ast
import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BLEND = "https://raw.githubusercontent.com/nlee0212/BLEnD"
_HEAD = "24e7d732c082c224b3bc9c7dc3b884fe83fb8cc8"
#: The last commit at which the column `Question` still held the English "your country" wording.
_BEFORE_SWAP = "2533a64a0027038790d4d2e46d38bf4439560947"
_BMLAMA = "https://raw.githubusercontent.com/Betswish/Cross-Lingual-Consistency"
_BMLAMA_HEAD = "13c9d46c8a11e9f7798a6e6ec8bc5efa98a9e448"
_BMLAMA_LANGUAGES = ("en", "es", "id", "el", "ko", "zh", "ar")
#: Relations whose subjects mostly have one answer; our own judgement.
_NEAR_FUNCTIONAL = frozenset(
    (
        "The capital of [X] is <mask>.",
        "The headquarter of [X] is in <mask>.",
        "The native language of [X] is <mask>.",
        "The official language of [X] is <mask>.",
        "[X] died in <mask>.",
        "[X] is <mask> citizen.",
        "[X] is affiliated with the <mask> religion.",
        "[X] is located in <mask>.",
        "[X] is named after <mask>.",
        "[X] is owned by <mask>.",
        "[X] is part of <mask>.",
        "[X] is the capital of <mask>.",
        "[X] plays <mask>.",
        "[X] used to communicate in <mask>.",
        "[X] was created in <mask>.",
        "[X] was founded in <mask>.",
        "[X] was written in <mask>.",
        "[X] works in the field of <mask>.",
    )
)
_GAP = "https://raw.githubusercontent.com/vminvsky/localization-gap"
_GAP_HEAD = "bb07eea7f1fcbde1d7344b1fd062c296b5704864"
_OTHER_REGIONS = ("West_Java", "Azerbaijan", "Iran", "Ethiopia", "Northern_Nigeria", "Assam")


@dataclass(frozen=True)
class Derived:
    """A file made from upstream files.

    Attributes:
        sha256: of the result.
        inputs: addresses of the upstream files, each with its SHA-256 (or None where only the result's is known).
        convert: computes the result from the texts of the inputs, in order.
    """

    sha256: str
    inputs: dict[str, str | None]
    convert: Callable[[Sequence[str]], str]


def templates(texts: Sequence[str]) -> str:
    """The English "your country" questions (ID, Topic, Source, Question) from BLEnD's US question file."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ("ID", "Topic", "Source", "Question"), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(csv.DictReader(io.StringIO(texts[0], newline="")))
    return out.getvalue()


def question_fixes(texts: Sequence[str]) -> str:
    """The one Chinese question that is blank at the pinned commit, from the commit before.

    The columns mean the opposite there: `Translation` holds the Chinese text.
    """
    rows = csv.DictReader(io.StringIO(texts[0], newline=""))
    (text,) = (row["Translation"] for row in rows if row["ID"] == "New-en-04")
    return json.dumps({"China/New-en-04": text}, ensure_ascii=False, indent=1)


def other_regions(texts: Sequence[str]) -> str:
    """English answers and counts of the six regions whose languages are not ours, one JSON object per line."""
    lines = []
    for region, text in zip(_OTHER_REGIONS, texts, strict=True):
        for question_id, entry in json.loads(text).items():
            record = {
                "country": region,
                "ID": question_id,
                "en_question": entry["en_question"],
                "annotations": [
                    {"en_answers": group["en_answers"], "count": group["count"]} for group in entry["annotations"]
                ],
                "idks": {key: entry["idks"].get(key, 0) for key in ("idk", "no-answer", "not-applicable")},
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def bmlama(texts: Sequence[str]) -> str:
    """The rows of BMLAMA-53's tables (Prompt, Ans, Candidate Ans, Subject), languages joined, one JSON object per line."""
    tables = [[line.split("\t") for line in text.replace("\r\n", "\n").split("\n")[1:] if line] for text in texts]
    lines = []
    for number, parallel in enumerate(zip(*tables, strict=True)):
        prompt, _, _, subject = parallel[0]
        template = prompt.replace(subject, "[X]", 1)
        record = {"row": number, "template_en": template, "near_functional": template in _NEAR_FUNCTIONAL}
        for code, (cloze, answer, candidates, name) in zip(_BMLAMA_LANGUAGES, parallel, strict=True):
            options = candidates.split(", ")
            record[code] = {"cloze": cloze, "subject": name, "candidates": options, "gold": options.index(answer)}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def localization_gap(texts: Sequence[str]) -> str:
    """The five-choice questions without the prompts of one chat template, one JSON object per line."""
    lines = []
    for row in csv.DictReader(io.StringIO(texts[0], newline="")):
        options = ast.literal_eval(row["options"])
        record = {
            "idx": int(row["idx"]),
            "lang": row["lang"],
            "context": row["context"] == "True",
            "subtask": row["subtask"],
            "question": row["question"],
            "options": options,
            "by_culture": {culture: row[f"option_{culture}"] for culture in ("bn", "fr", "ru", "tr", "us")},
            "instruction": row["prompt"].split("\n", 1)[0],
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


DERIVED: dict[str, Derived] = {
    "blend/templates/templates_en.csv": Derived(
        "b2f272c0e5da52ee3284cc0034eac33a9d3a7b04d050f0995517b1c892f9e046",
        {
            f"{_BLEND}/{_BEFORE_SWAP}/data/questions/US_questions.csv": (
                "ec698768ae525ff187c346bfd81bb93b6b89fa5834a9b8b4a505c1394aa49842"
            )
        },
        templates,
    ),
    "blend/templates/question_fixes.json": Derived(
        "7c4e032942b51df12b60e9247fa810f3be06d888ac4740cdceab918041cecd8e",
        {f"{_BLEND}/{_BEFORE_SWAP}/data/questions/China_questions.csv": None},
        question_fixes,
    ),
    "blend/annotations_en_other6.jsonl": Derived(
        "0dfdfc2f6a107db47013d3a14a5bbd454de5cc2ee166f02f11eadffc6666f22b",
        {f"{_BLEND}/{_HEAD}/data/annotations/{region}_data.json": None for region in _OTHER_REGIONS},
        other_regions,
    ),
    "bmlama53/bmlama53_7lang.jsonl": Derived(
        "1944373c8a4769f0451f0ec151c074c40ce116fbed5717093a4998e8b7af5d0d",
        {f"{_BMLAMA}/{_BMLAMA_HEAD}/1_easyrun/BMLAMA53/{code}.tsv": None for code in _BMLAMA_LANGUAGES},
        bmlama,
    ),
    "localization_gap/five_choice.jsonl": Derived(
        "49a8243ec43aee0e1861af14866c60419cf94356cafd7c16899a44571530ce9d",
        {
            f"{_GAP}/{_GAP_HEAD}/analysis/5choice_dataset_input_ready.csv": (
                "e7a83c23139e4397ec20df579ab0de1116863c41c6a32c233df990cffee95ce9"
            )
        },
        localization_gap,
    ),
}
