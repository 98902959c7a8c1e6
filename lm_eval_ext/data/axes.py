"""Which axis, family and language a task of the harness has that does not say it itself: axis files.

A task of this package says all this in the `metadata` of its YAML (`task_metadata`); the harness's own tasks say nothing. An
axis file says it for them, by their names:

    tasks:
      - match: belebele_{language}      # * stands for anything, {language} for the code of the language, such as tur_Latn
        axis: transfer
        family: belebele
        form: letters
      - match: copal_id_*
        axis: localization
        family: copal_id
        language: id                    # where the name does not tell it
        form: texts

The package has one (`axes.yaml`); files of the user's come first: those of the variable `LM_EVAL_EXT_AXES`, which the option
`--axes` of the commands and the model argument `axes=` set. Of one file the first entry that matches counts. What a task
says in its own metadata goes before any file.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from lm_eval_ext.configs import Names, Table, Text, read_config
from lm_eval_ext.data.task_metadata import OUR_KEYS, TaskMetadata
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import normalise
from lm_eval_ext.paths import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Axis files of the user, joined as in PATH.
VARIABLE = "LM_EVAL_EXT_AXES"
SHIPPED = PACKAGE / "data" / "axes.yaml"

_PLACE = "{language}"
#: Codes as the harness's task names have them: tr, tur, tur_Latn, apc_arab_jord, zh-CN.
_CODE = r"[A-Za-z]{2,3}(?:[_-][A-Za-z]{2}|(?:[_-][A-Za-z]{4})*)"
_LANGUAGE = "the code of a language, such as ko or kor_Hang"


def _language(value: str) -> str:
    if not re.fullmatch(_CODE, value):
        raise ValueError
    return normalise(value)


_Code = Annotated[Text, AfterValidator(_language)]


class Entry(Table):
    """What is said of the tasks whose names match.

    Attributes:
        match: a task's name, in which `*` stands for any text and `{language}` for the language; or a list of them.
        axis, family, split, form: as in `task_metadata`.
        language: of all these tasks.
        languages: what may stand at `{language}`, and the code that it means; any code by default.
        metric: the score that is read where the user names none: METRIC, or METRIC,FILTER.
        question_id: column of the documents that says which belong together: one question in several languages, or the
            questions on one passage. Differences are resampled by it.
        about: what is asked, in a few words, for the list.
    """

    match: Names = Field(description="the name of a task, or a list of them, in which * and {language} may stand")
    axis: Literal["transfer", "localization"] = Field(description="transfer or localization")
    family: Text = Field(description="a text that is not empty")
    language: _Code | None = Field(default=None, description=_LANGUAGE)
    languages: dict[str, _Code] | None = Field(default=None, description=_LANGUAGE)
    metric: Text = Field(default="acc", description="METRIC or METRIC,FILTER")
    split: Literal["test", "dev"] = Field(default="test", description="test or dev")
    form: Literal["letters", "texts"] | None = Field(default=None, description="letters or texts")
    question_id: Text | None = Field(default=None, description="the name of a column")
    about: str = Field(default="", description="a text")

    @model_validator(mode="after")
    def _says_the_language_once(self) -> Entry:
        for name in self.match:
            places = name.count(_PLACE)
            if places > 1 or (places == 1) == (self.language is not None):
                raise ValueError(
                    f"match {name!r}: give the language either as language: CODE or as {_PLACE} in match, once"
                )
            if self.languages is not None and not places:
                raise ValueError(f"languages says what may stand at {_PLACE}, which match {name!r} does not have")
        return self

    def language_of(self, task: str) -> str | None:
        """The language of a task, None where its name does not match."""
        for name in self.match:
            if found := _pattern(name, tuple(self.languages or ())).fullmatch(task):
                if self.language is not None:
                    return self.language
                written = found["language"]
                return self.languages[written] if self.languages else normalise(written)
        return None


class AxisFile(Table):
    """An axis file."""

    tasks: list[Entry] = Field(min_length=1, description="a list of entries")


class Known(NamedTuple):
    """What an axis file says of a task.

    Attributes:
        entry: the entry that matches.
        language: the task's.
        file: the axis file.
    """

    entry: Entry
    language: str
    file: Path

    @property
    def metadata(self) -> dict[str, str]:
        """The same as keys of a task's metadata."""
        said = self.entry.model_dump(include=set(OUR_KEYS), exclude_none=True)
        return {**said, "language": self.language}


def files() -> tuple[Path, ...]:
    """The axis files in use, the user's first."""
    own = (Path(name).expanduser() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name)
    return (*own, SHIPPED)


def use(file: Path | str) -> None:
    """Read another axis file before those in use, in this process and those that it starts.

    Raises:
        DataError: the file is missing or something in it means nothing.
    """
    path = Path(file).expanduser().resolve()
    read(path)
    own = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name and name != str(path)]
    os.environ[VARIABLE] = os.pathsep.join([str(path), *own])


def read(file: Path) -> tuple[Entry, ...]:
    """The entries of an axis file.

    Raises:
        DataError: the file is missing or something in it means nothing.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        hint = "" if file == SHIPPED else f"; it is named by --axes, axes= or {VARIABLE}"
        raise DataError(f"cannot read the axis file {file}: {error.strerror}{hint}") from None
    return _read(file, changed)


def find(task: str) -> Known | None:
    """What the axis files say of a task, None where no entry matches its name.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _find(task, files())


def metadata(task: str, own: Mapping[str, Any] | None = None) -> TaskMetadata:
    """A task's metadata: its own, and what the axis files say where that is silent.

    Args:
        task: its name.
        own: the metadata of its YAML.

    Raises:
        DataError: an axis file is missing or damaged.
    """
    own = own or {}
    if own.get("family") and own.get("axis"):
        return TaskMetadata(task, own)  # it says what it is, as all tasks of this package do
    known = find(task)
    return TaskMetadata(task, {**(known.metadata if known else {}), **own})


def document_language(task: str, own: Mapping[str, Any] | None) -> str | None:
    """The language of all documents of a task that an axis file knows, whatever a column of theirs says.

    Some of the harness's data sets have a column `language` with other words than codes ("Bengali").

    Raises:
        DataError: an axis file is missing or damaged; the task's own metadata has a language that is no text.
    """
    if TaskMetadata(task, own or {}).language:
        return None
    known = find(task)
    return known.language if known else None


@lru_cache(maxsize=8192)  # asked for every request
def _find(task: str, among: tuple[Path, ...]) -> Known | None:
    for file in among:
        for entry in read(file):
            if (language := entry.language_of(task)) is not None:
                return Known(entry, language, file)
    return None


@lru_cache(maxsize=16)
def _read(file: Path, _: int) -> tuple[Entry, ...]:
    return tuple(read_config(file, AxisFile, DataError, "axis file").tasks)


@lru_cache(maxsize=1024)
def _pattern(match: str, languages: tuple[str, ...]) -> re.Pattern[str]:
    code = "|".join(map(re.escape, sorted(languages, key=len, reverse=True))) or _CODE
    parts = (re.escape(part).replace(r"\*", ".*") for part in match.split(_PLACE))
    return re.compile(f"(?P<language>{code})".join(parts))
