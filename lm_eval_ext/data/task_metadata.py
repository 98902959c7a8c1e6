"""The keys of this package in the `metadata` of a task's YAML, which the harness copies into every results file.

    metadata:
      version: 1.0
      axis: localization   # transfer: the same answer in every language; localization: the answer of its speakers
      split: test          # dev: for choosing layers and strengths; test: for reporting
      form: texts          # letters: the letter of an option is scored; texts: the option's text
      family: proverbs     # common name of the tasks of all languages; usually that of their group
      language: sw         # of the questions, unless a document has a column `language`

      metric: acc          # the score that is read where the user names none
      question_id: story   # column that says which documents belong together, where it is not one of the usual names

Optional, for tasks that ask the questions of another family in another form (these are no axis of the plane by default):

      variant_of: proverbs
      variant: explicit_context   # the culture is named in the question: the upper bound of localization

All keys are optional; without a key an axis file says it (`lm_eval_ext.data.axes`), or the user sets an option instead, or
it follows from the names of earlier tasks of this package (`lm_eval_ext.results.legacy_names`). The harness passes the
metadata to a `custom_dataset` function as keyword arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import normalise

if TYPE_CHECKING:
    from collections.abc import Mapping

AXES = ("transfer", "localization")
SPLITS = ("dev", "test")
FORMS = ("letters", "texts")

#: What an axis file may say of a task, too.
OUR_KEYS = ("axis", "family", "language", "metric", "split", "form", "question_id")

#: The value of `variant` of tasks that name the culture in the question.
EXPLICIT_CONTEXT = "explicit_context"


def split_of_name(name: str) -> str:
    """The split of a task or family without this key: `dev` where its name says so."""
    return "dev" if "dev" in name.split("_") else "test"


@dataclass(frozen=True)
class TaskMetadata:
    """The metadata of one task; values are checked when they are used, as harness tasks may use the same keys otherwise.

    Attributes:
        task: name of the task, for messages.
        values: the metadata as in the YAML.
    """

    task: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def axis(self) -> str | None:
        """The axis of the plane: one of `AXES`.

        Raises:
            DataError: another value; so do the other properties.
        """
        return self._choice("axis", AXES)

    @property
    def split(self) -> str | None:
        """Whether the questions choose layers or are reported: one of `SPLITS`."""
        return self._choice("split", SPLITS)

    @property
    def form(self) -> str | None:
        """What is scored: one of `FORMS`."""
        return self._choice("form", FORMS)

    @property
    def family(self) -> str | None:
        """Common name of the tasks of all languages.

        Development questions never share a name with test questions: those of `proverbs` are `proverbs_dev`.
        """
        family = self._text("family")
        if family and self.split == "dev" and "dev" not in family.split("_"):
            return f"{family}_dev"
        return family

    @property
    def language(self) -> str | None:
        """Code of the questions' language, None where the metadata name none.

        Raises:
            DataError: no text. The harness reads YAML in which `no` without quotes is not Norwegian but false.
        """
        value = self.values.get("language")
        if value is None or value == "":
            return None
        return normalise(str(self._text("language")))

    @property
    def metric(self) -> str | None:
        """The score that is read where the user names none: METRIC, or METRIC,FILTER."""
        return self._text("metric")

    @property
    def question_id(self) -> str | None:
        """Column of the documents whose values say which belong together."""
        return self._text("question_id")

    @property
    def variant_of(self) -> str | None:
        """The family whose questions are asked in another form."""
        return self._text("variant_of")

    @property
    def variant(self) -> str | None:
        """The form in which they are asked."""
        return self._text("variant")

    def _choice(self, key: str, valid: tuple[str, ...]) -> str | None:
        value = self.values.get(key)
        if value is not None and value not in valid:
            raise self._wrong(key, value, f"valid: {', '.join(valid)}")
        return value

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise self._wrong(key, value, "it must be a text")
        return value

    def _wrong(self, key: str, value: object, valid: str) -> DataError:
        quotes = ", in quotes where YAML takes it for something else (language: 'no')" if key == "language" else ""
        return DataError(
            f"task {self.task}: its metadata has {key}: {value!r}; {valid}{quotes}. Correct the task's YAML (or, in results "
            "that exist, the metadata in the results file)"
        )
