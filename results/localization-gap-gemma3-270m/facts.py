"""The near-functional facts of BMLAMA-53 in Turkish, Bengali, French, Russian and English, as lines for `data import`.

    python facts.py FOLDER > facts.jsonl
    python facts.py FOLDER dev > facts_dev.jsonl

FOLDER holds {en,tr,bn,fr,ru}.tsv of 1_easyrun/BMLAMA53 of Betswish/Cross-Lingual-Consistency at commit 13c9d46c. Facts and
relations are those of the package's `bmlama` (test split), with four candidates that differ in all five languages; the gap
is asked as `___`, and the candidate alone is scored, since a task of `data import` has no text after the options.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lm_eval_ext.data.derived import _NEAR_FUNCTIONAL
from lm_eval_ext.fingerprints import hash_text

CODES = ("en", "tr", "bn", "fr", "ru")
OPTIONS = 4


def main(folder: Path, split: str = "test") -> None:
    """Print one JSON object per fact and language of a split."""
    texts = ((folder / f"{code}.tsv").read_text("utf-8").replace("\r\n", "\n") for code in CODES)
    tables = [[line.split("\t") for line in text.split("\n")[1:] if line] for text in texts]
    facts = []
    for number, rows in enumerate(zip(*tables, strict=True)):
        prompt, _, _, subject = rows[0]
        template = prompt.replace(subject, "[X]", 1)
        names = [row[2].split(", ") for row in rows]
        same = len({len(candidates) for candidates in names}) == 1
        in_split = (int(hash_text("split", template, subject), 16) % 4 == 0) is (split == "dev")
        if template in _NEAR_FUNCTIONAL and same and in_split and len(names[0]) >= OPTIONS:
            facts.append((number, template, subject, rows, names))
    answers: dict[tuple[str, str], set[str]] = {}
    for _, template, subject, rows, _ in facts:
        answers.setdefault((template, subject), set()).add(rows[0][1])
    for number, template, subject, rows, names in sorted(facts, key=lambda fact: hash_text("order", fact[0])):
        gold = names[0].index(rows[0][1])
        chosen = [gold]
        for other in sorted(range(len(names[0])), key=lambda index: hash_text("candidate", number, index)):
            texts = [{candidates[index].casefold() for index in chosen} for candidates in names]
            fresh = all(candidates[other].casefold() not in seen for candidates, seen in zip(names, texts, strict=True))
            if len(chosen) < OPTIONS and fresh and names[0][other] not in answers[template, subject]:
                chosen.append(other)
        if len(chosen) < OPTIONS:
            continue
        order = sorted(chosen, key=lambda index: hash_text(0, number, index))
        for code, row, candidates in zip(CODES, rows, names, strict=True):
            line = {
                "id": f"bmlama-{number}",
                "language": code,
                "question": row[0].replace("<mask>", "___"),
                "options": [candidates[index] for index in order],
                "answer": order.index(gold),
                "topic": template,
            }
            print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
