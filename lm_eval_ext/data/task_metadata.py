"""What a task says of itself in the `metadata` of its YAML, which the harness copies into every results file.

    metadata:
      version: 1.0
      axis: localization   # transfer: answered alike in every language; localization: as its speakers would
      split: test          # dev: for choosing layers and strengths; test: for reporting
      form: texts          # letters: the letter of an option is scored; texts: the option's text
      family: proverbs     # what the tasks of all languages are called together; usually the name of their group
      language: sw         # of the questions, unless a document has a column `language`

Optional, for tasks that ask the questions of another family in another way (neither is an axis of the plane by default):

      variant_of: proverbs
      variant: explicit_context   # the culture is named in the question: the upper bound of localization

All of it may be left out; what a key decides is then asked of the user, or read from the names of our own earlier tasks
(`lm_eval_ext.results.legacy_names`). The harness hands the metadata to a `custom_dataset` function as keyword arguments.
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

#: The value of `variant` of tasks that name the culture in the question.
EXPLICIT_CONTEXT = "explicit_context"


@dataclass(frozen=True)
class TaskMetadata:
    """The metadata of one task; a value is checked when it is used, so that a harness task with other keys does no harm.

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
        """What the tasks of all languages are called together.

        Development questions never share a name with test questions: those of `proverbs` are `proverbs_dev`.
        """
        family = self._text("family")
        if family and self.split == "dev" and "dev" not in family.split("_"):
            return f"{family}_dev"
        return family

    @property
    def language(self) -> str | None:
        """Code of the questions' language."""
        value = self.values.get("language")
        return normalise(str(value)) if value else None

    @property
    def variant_of(self) -> str | None:
        """The family whose questions are asked in another way."""
        return self._text("variant_of")

    @property
    def variant(self) -> str | None:
        """In which way."""
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
        return DataError(
            f"task {self.task}: its metadata has {key}: {value!r}; {valid}. Correct the task's YAML (or, in results that "
            "exist, the metadata in the results file)"
        )
