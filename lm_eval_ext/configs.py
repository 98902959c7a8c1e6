"""Config files of users: YAML in which nothing changes in silence, checked by pydantic, all mistakes told at once.

A file is described by a `Table` (a pydantic model that refuses unknown keys). The description of each field says what is
needed: "a share above 0, below 1"; a message is made of it, of the place, and of what was got:

    gate.yaml: rule 2: margin is 3; needed: a share above 0, below 1
    gate.yaml: rule 3: unknown key 'marginn', did you mean 'margin'? Valid keys: axis, metric, margin

A validator raises `ValueError()` for that, and `ValueError` or `UserError` with a message for other words after the place.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from lm_eval_ext.errors import UserError


class Table(BaseModel):
    """Keys with values. Nothing is converted: `3` is no text, `"3"` no number, `true` neither."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _names(value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError
    return tuple(dict.fromkeys(word.strip() for word in words))


#: A text that is not empty, without spaces around it.
Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), Field(description="a text that is not empty")
]
#: One or more such texts, each once: a list of them, or a text in which commas divide them.
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]

T = TypeVar("T", bound=Table)

_SHOWN = 200  # characters of a refused value


def read_config(
    path: Path,
    kind: type[T],
    error: type[UserError],
    what: str,
    *,
    floats: bool = True,
    instead: Mapping[str, Any] | None = None,
) -> T:
    """Read a YAML file.

    Args:
        path: the file.
        kind: what it holds.
        error: raised for every mistake.
        what: of the file, for messages: "gate".
        floats: as `read_yaml`.
        instead: values that take the place of the file's.

    Raises:
        UserError: of the class `error`: no such file, not YAML, or something in it that means nothing. The message has all
            that is wrong with the content.
    """
    content = read_yaml(path, error, what, floats=floats)
    if isinstance(content, dict):
        content |= instead or {}
    try:
        return kind.model_validate(content)
    except ValidationError as problems:
        raise error(_joined(str(path), messages(problems, kind))) from None


def read_yaml(path: Path, error: type[UserError], what: str, *, floats: bool = True) -> Any:
    """The content of a YAML file.

    A word without quotes is a number, `true`, `false` or nothing (`null`, `~`) only where it can be nothing else, as in YAML
    1.2: `no`, `off`, `2024-05-01`, `1_000`, `12:30` and `010` are texts. A key that is given twice is an error.

    Args:
        path: the file.
        error: raised for every mistake.
        what: of the file, for messages: "gate".
        floats: whether `0.50` is a number; else it is a text, which keeps its digits.

    Raises:
        UserError: of the class `error`: no such file, not UTF-8, or not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _LoaderWithFloats if floats else _Loader)  # noqa: S506
    except OSError as problem:
        raise error(f"cannot read the {what} {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not text in UTF-8") from None
    except _Duplicate as problem:
        raise error(f"{path}: {problem}") from None
    # Of values that do not fit a tag in the file, such as `!!int x`, the library says other things.
    except (yaml.YAMLError, AttributeError, KeyError, RecursionError, ValueError) as problem:
        raise error(f"{path} is not YAML: {problem}") from None


def parse_value(text: str) -> Any:
    """What a word means in a config file: `1e-3` is a number, `no` a text. What is no YAML is a text, too."""
    try:
        return yaml.load(text, _LoaderWithFloats)  # noqa: S506
    except (yaml.YAMLError, AttributeError, KeyError, RecursionError, ValueError):
        return text


def messages(problems: ValidationError, kind: type[BaseModel]) -> list[str]:
    """What is wrong, a line for each problem: the place, what was got, what is needed.

    Args:
        problems: of pydantic.
        kind: the model that refused something.
    """
    return list(dict.fromkeys(_message(problem, kind) for problem in problems.errors(include_url=False)))


def _joined(where: str, lines: Sequence[str]) -> str:
    return f"{where}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{where}: {len(lines)} mistakes", *lines])


def _message(problem: ErrorDetails, kind: type[BaseModel]) -> str:
    steps: Sequence[str | int] = problem["loc"]
    if problem["type"] == "extra_forbidden":
        *parents, key = steps
        valid = _keys(_place(kind, parents).kind)
        close = get_close_matches(str(key), valid, n=1)
        hint = f", did you mean {close[0]!r}? Valid" if close else "; valid"
        return f"{_words(parents)}unknown key {key!r}{hint} keys: {', '.join(valid)}"
    if steps and steps[-1] == "[key]":  # pydantic's word for a key that is refused
        steps = steps[:-2]
    place = _place(kind, steps)
    steps = place.steps
    if problem["type"] == "value_error" and (own_words := str(problem["ctx"]["error"])):
        return f"{_words(steps)}{own_words}"
    needed = place.needed or ("keys with values" if problem["type"] == "dict_type" else problem["msg"])
    if valid := _keys(place.kind):
        needed = f"keys with values; valid keys: {', '.join(valid)}"
    got = "" if problem["type"] == "missing" or problem["input"] is None else repr(problem["input"])
    got = got if len(got) <= _SHOWN else f"{got[:_SHOWN]}..."
    if not steps or isinstance(steps[-1], int):
        return f"{_words(steps)}got {got or 'nothing'}; needed: {needed}"
    return f"{_words(steps[:-1])}{steps[-1]} is {got or 'missing'}; needed: {needed}"


def _words(steps: Sequence[str | int]) -> str:
    """A place as a person says it: `rules, 1` is `rule 2`, `countries, 1, 0` is `country 2.1`."""
    words: list[str] = []
    for before, step in zip(("", *steps), steps, strict=False):
        if not isinstance(step, int):
            words.append(step)
        elif isinstance(before, int):
            words[-1] += f".{step + 1}"
        else:
            words[-1:] = [f"{re.sub('(ie|(?<!s))s$', lambda end: 'y' if end[1] else '', before)} {step + 1}"]
    return "".join(f"{word}: " for word in words)


class _Place(NamedTuple):
    """Where in a model a problem is: the steps that lead there, the type, and what its field says is needed."""

    steps: Sequence[str | int]
    kind: Any
    needed: str


def _place(kind: Any, steps: Sequence[str | int]) -> _Place:
    needed = ""
    for done, step in enumerate(steps):
        kind = _bare(kind)
        if _keys(kind):
            field = next(field for name, field in kind.model_fields.items() if step in (name, field.alias))
            kind, needed = field.annotation, field.description or ""
        elif get_origin(kind) in (list, tuple, dict):
            kind = get_args(kind)[1 if get_origin(kind) is dict else 0]
            needed = next((part.description or "" for part in get_args(kind) if isinstance(part, FieldInfo)), "")
        else:  # pydantic goes on into the branches of a union
            return _Place(steps[:done], kind, needed)
    return _Place(steps, _bare(kind), needed)


def _bare(kind: Any) -> Any:
    """A type without `Annotated` and `| None`."""
    while get_origin(kind) is Annotated or type(None) in get_args(kind):
        kind = get_args(kind)[0]
    return kind


def _keys(kind: Any) -> list[str]:
    """The valid keys of a model; none of anything else."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return []
    return [field.alias or name for name, field in kind.model_fields.items()]


class _Duplicate(yaml.YAMLError):
    """A key that is given twice."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the words of YAML 1.2, whose keys are texts that are given once."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, words) for tag, words in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _Duplicate(f"the key {key.value!r} is given twice, in lines {lines[key.value]} and {line}")
                lines[key.value] = line
                key.tag = _TAG + "str"
        return super().construct_mapping(node, deep)


class _LoaderWithFloats(_Loader):
    pass


_TAG = "tag:yaml.org,2002:"
_FLOAT = r"-?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|-?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
_Loader.add_implicit_resolver(_TAG + "bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"-?(0|[1-9][0-9]*)$"), list("-0123456789"))
# After the two above: it takes a copy of what its base has.
_LoaderWithFloats.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT), list("-.0123456789"))
