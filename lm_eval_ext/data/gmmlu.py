"""Global-MMLU (Singh et al., 2024; arXiv 2412.03304): the transfer axis, from a mirror or the hub."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lm_eval.api.samplers import ContextSampler

from lm_eval_ext import languages
from lm_eval_ext.data import sources
from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.errors import DataError, LanguageError

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

REPO = "CohereLabs/Global-MMLU"
#: Commit of the data set on the Hugging Face Hub.
REVISION = "0e619dbeb34206cd48705a1a0ea7fb21cae09993"
#: Rows of a language in the full release.
ROWS = {"test": 14_042, "dev": 285}
#: Culturally agnostic and culturally sensitive questions, as annotated upstream (2,058 and 792 per language).
SUBSETS = ("all", "CA", "CS")
#: Codes of the 42 languages of the release.
LANGUAGES = tuple(sorted(PROMPTS))

_LETTERS = "ABCD"
_OPTIONS = ("option_a", "option_b", "option_c", "option_d")
#: The schema of the release.
COLUMNS = (
    *("sample_id", "subject", "subject_category", "question", *_OPTIONS, "answer", "required_knowledge"),
    *("time_sensitive", "reference", "culture", "region", "country", "cultural_sensitivity_label", "is_annotated"),
)

logger = logging.getLogger(__name__)


def load(language: str, subset: str = "all", split: str = "test", **_: object) -> dict[str, Dataset]:
    """A split of a language for the harness (`custom_dataset`, under the name `test`).

    All upstream columns are kept; `id`, `language`, `options` (list of four texts) and `gold` (index) are added.

    Args:
        language: one of the 42.
        subset: `all`, `CA` or `CS`; the last two hold annotated questions only.
        split: `test`, or `dev` for choosing layers, without the questions that are in the test split too.

    Raises:
        LanguageError: the language is not one of the 42.
        DataError: the data is unreachable or not in the Global-MMLU schema, or the subset or split is unknown or empty.
    """
    from datasets import Dataset

    if subset not in SUBSETS:
        raise DataError(f"unknown Global-MMLU subset {subset!r}; valid: {', '.join(SUBSETS)}")
    if split not in ROWS:
        raise DataError(f"unknown Global-MMLU split {split!r}; valid: {', '.join(ROWS)}")
    rows = documents(_code(language), split)
    if split == "dev":
        untested = {row["id"] for row in _untested()}
        rows = [row for row in rows if row["id"] in untested]
    if subset != "all":
        rows = [row for row in rows if row["is_annotated"] and row["cultural_sensitivity_label"] == subset]
        if not rows:
            raise DataError(
                f"no question of {REPO} ({language}) is annotated {subset}: "
                "the mirror holds a copy without the cultural_sensitivity_label of the release"
            )
    return {"test": Dataset.from_list(rows)}


def documents(language: str, split: str) -> list[dict[str, Any]]:
    """The rows of a split (`test` or `dev`): from `gmmlu/{language}/{split}.jsonl` (or `.parquet`), else from the hub.

    Raises:
        DataError: the rows are unreachable or not in the Global-MMLU schema.
    """
    name = f"gmmlu/{language}/{split}"
    if file := sources.mirrored(f"{name}.jsonl") or sources.mirrored(f"{name}.parquet"):
        where, rows = str(file), _read(file)
        if len(rows) != ROWS[split]:
            logger.warning("%s has %d rows; the full release has %d", where, len(rows), ROWS[split])
    else:
        where = f"{REPO}/{language}/{split} at {REVISION}"
        rows = sources.hub_dataset(REPO, language, REVISION, split, f"{name}.jsonl").to_list()
        if len(rows) != ROWS[split]:
            raise DataError(f"{where} has {len(rows)} rows instead of {ROWS[split]}")
    return [_document(row, language, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]


def not_from_test(_: Dataset) -> list[dict[str, Any]]:
    """No few-shot examples: task files name the test split so that `SameSubject` is called with the document."""
    return []


class SameSubject(ContextSampler):  # type: ignore[misc]  # the harness is untyped
    """Few-shot examples as in MMLU: the first n dev questions of the evaluated question's own subject.

    The dev split is read when the first example is drawn.
    """

    df: list[dict[str, Any]]

    def sample(self, n: int, eval_doc: dict[str, Any], **_: object) -> list[dict[str, Any]]:
        """The `n` examples for a document.

        Raises:
            DataError: the subject has fewer (the release has five).
        """
        self.df = self.df or documents(eval_doc["language"], "dev")
        others = (row for row in self.df if row["id"] != eval_doc["id"])  # a dev question is not an example for itself
        examples = [row for row in others if row["subject"] == eval_doc["subject"]][:n]
        if len(examples) < n:
            raise DataError(
                f"num_fewshot={n}, but the Global-MMLU dev split has {len(examples)} other questions "
                f"on {eval_doc['subject']} (the release: 5 per subject)"
            )
        return examples


def pairs(language: str) -> list[tuple[str, str]]:
    """The dev questions in English and in another language, for extracting the EN vector.

    A few of them are in the test split too; these are left out.

    Raises:
        LanguageError: the language is not one of the 42.
        DataError: as `documents`, or the two dev splits share no question.
    """
    english = {row["id"]: row["question"].strip() for row in _untested()}
    translated = {row["id"]: row["question"].strip() for row in documents(_code(language), "dev")}
    shared = [(text, translated[sample_id]) for sample_id, text in english.items() if sample_id in translated]
    if not shared:
        raise DataError(f"the dev splits of {REPO} in en and {language} have no sample_id in common")
    return shared


def _untested() -> list[dict[str, Any]]:
    """The English dev questions that are not in the test split too."""
    evaluated = {row["question"].strip() for row in documents("en", "test")}
    return [row for row in documents("en", "dev") if row["question"].strip() not in evaluated]


def _code(language: str) -> str:
    if (code := languages.normalise(language)) not in LANGUAGES:
        raise LanguageError(f"unknown language {language!r} of Global-MMLU; valid: {', '.join(LANGUAGES)}")
    return code


def _read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return sources.read_jsonl(file)
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are either
        raise DataError(f"cannot read {file} as parquet ({error}): copy or fetch it again") from error
    return rows


def _document(row: dict[str, Any], language: str, where: str) -> dict[str, Any]:
    if missing := [column for column in COLUMNS if column not in row]:
        raise DataError(f"{where}, is not in the Global-MMLU schema: it has no {', '.join(missing)}")
    if row["answer"] not in tuple(_LETTERS) or not row["question"]:
        raise DataError(
            f"{where} ({row['sample_id']}): needs a question and an answer among {', '.join(_LETTERS)}, "
            f"got question {row['question']!r} and answer {row['answer']!r}"
        )
    return {
        **row,
        "id": row["sample_id"],
        "language": language,
        "options": [str(row[column]) for column in _OPTIONS],
        "gold": _LETTERS.index(row["answer"]),
    }
