"""An English and an Arabic Global-MMLU mirror in the true schema, from MMLU and its Arabic translation.

`python tests/support/gmmlu_mirror.py ../shared/data/mmlu MIRROR` writes MIRROR/gmmlu/{en,ar}/{test,dev}.jsonl. Questions,
subjects and answers are real; the source has no cultural annotation, so the labels are drawn by a hash in the release's
numbers (792 CS, 2,058 CA) and mean nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

CS, CA = 792, 2_058
_UNKNOWN = dict.fromkeys(("required_knowledge", "time_sensitive", "reference", "culture", "region", "country"), "[]")


def write(source: Path, mirror: Path, limit: int | None = None) -> None:
    """Write the mirror; with `limit`, only that many test questions (the dev split is always whole)."""
    with gzip.open(source / "mmlu_en_ar.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    upstream = (json.loads(line) for line in (source / "global_mmlu_dev_en.jsonl").read_text("utf-8").splitlines())
    categories = {row["subject"]: row["subject_category"] for row in upstream}
    splits = {split: [row for row in rows if f"/{split}/" in row["sample_id"]] for split in ("test", "dev")}
    splits["test"] = splits["test"][:limit]
    drawn = sorted(splits["test"], key=lambda row: hashlib.sha256(row["sample_id"].encode()).hexdigest())
    labels = {row["sample_id"]: "CS" if rank < CS else "CA" for rank, row in enumerate(drawn[: CS + CA])}
    for language in ("en", "ar"):
        for split, questions in splits.items():
            file = mirror / "gmmlu" / language / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            documents = (_row(row, language, categories, labels) for row in questions)
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents), "utf-8")


def write_questions(
    mirror: Path, language: str, split: str, questions: dict[str, str], labels: dict[str, str] | None = None
) -> None:
    """Write one split of made-up questions, by their ids, in the same schema; labels (CS, CA) of those that have one."""
    texts = {"question": "", "options": ["one", "two", "three", "four"]}
    rows = [
        _row(
            {"sample_id": name, "subject": "anatomy", "answer": "A", language: {**texts, "question": question}},
            language,
            {"anatomy": "STEM"},
            labels or {},
        )
        for name, question in questions.items()
    ]
    file = mirror / "gmmlu" / language / f"{split}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _row(row: dict, language: str, categories: dict[str, str], labels: dict[str, str]) -> dict:
    return {
        "sample_id": row["sample_id"],
        "subject": row["subject"],
        "subject_category": categories[row["subject"]],
        "question": row[language]["question"],
        **{f"option_{letter}": text for letter, text in zip("abcd", row[language]["options"], strict=True)},
        "answer": row["answer"],
        **_UNKNOWN,
        "cultural_sensitivity_label": labels.get(row["sample_id"], "-"),
        "is_annotated": row["sample_id"] in labels,
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
