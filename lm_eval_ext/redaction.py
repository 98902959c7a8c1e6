"""Credentials among the arguments of a model, which must not stand in anything that is published.

Model arguments name tokens, keys, headers and passwords, and URLs hold them: everything that this package writes of such
arguments has `LEFT_OUT` in their place.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT = "(left out)"

#: Parts of names whose values are credentials, wherever they stand in the name.
_ANYWHERE = re.compile(
    r"api_?key|secret|passw|passphrase|credential|cookie|bearer|private_?key|access_?key|authoriz", re.I
)
#: Such words of a name, between its `_` and `-`.
_WORDS = {"token", "auth", "pwd", "pw", "header", "headers", "key", "pat", "jwt", "signature", "sig"}
#: `*_token` of a tokenizer, which are no credentials.
_TOKENS = re.compile(
    r"(add_)?(bos|eos|pad|unk|sep|cls|mask|prefix|stop|image|audio|video|boi|eoi|(end_)?think(ing)?(_(start|end))?)_token",
    re.I,
)
_NO_VALUES = {"", "true", "false", "none", "null", LEFT_OUT}

_USER_IN_URL = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/@:]+:[^\s@]*)@")
_USER_AT_HOST = re.compile(r"(?<![\w/@])[\w.+-]+:[^\s/@,]+@(?=[A-Za-z][\w-]*(?:\.[A-Za-z]|:\d)|localhost)")
_ASSIGNED = re.compile(
    r"""(?P<name>[A-Za-z][\w.-]*)(?P<equals>["']?\s*[:=]\s*)(?P<value>"[^"]*"|'[^']*'|\{[^}]*\}?|[^\s,&;"'}\])]+)"""
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abps]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]+\.[\w-]+\.[\w-]+)|(?<=\bBearer )[^\s,\"']+|(?<=\bBasic )[^\s,\"']+"
)


def is_secret(name: str) -> bool:
    """Whether the values under a name are credentials."""
    plain = name.strip().strip("\"'").replace("-", "_").replace(".", "_")
    if _TOKENS.fullmatch(plain):
        return False
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).lower().split("_")
    return bool(_ANYWHERE.search(plain)) or words[-1] in _WORDS or bool({"auth", "pwd"} & set(words))


def redact(value: Any, name: str = "") -> Any:
    """A value without its credentials: those of dictionaries by their names, those of texts by their form.

    Args:
        value: what JSON can hold.
        name: under which it stands. A plan is text of another form and stays as it is.
    """
    if name and is_secret(name):
        return value if value is None or isinstance(value, bool) or str(value).lower() in _NO_VALUES else LEFT_OUT
    if isinstance(value, dict):
        return {key: redact(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact(entry) for entry in value]
    if not isinstance(value, str) or name in ("steer", "plan"):
        return value
    return redact_text(value)


def redact_text(text: str) -> str:
    """A text (an argument, a name, a command line) without the credentials in it."""
    text = _USER_IN_URL.sub(f"{LEFT_OUT}@", text)
    text = _USER_AT_HOST.sub(f"{LEFT_OUT}@", text)
    text = _ASSIGNED.sub(_without_value, text)
    return _TOKEN.sub(LEFT_OUT, text)


def _without_value(match: re.Match[str]) -> str:
    name, equals, value = match["name"], match["equals"], match["value"]
    if is_secret(name) and value.strip("\"'").lower() not in _NO_VALUES and not value.startswith("("):
        return f"{name}{equals}{LEFT_OUT}"
    return f"{name}{equals}{_ASSIGNED.sub(_without_value, value)}"


def parse_args(model_args: Any) -> dict[str, Any]:
    """Model arguments, which the harness saves as it was given them: a dictionary, JSON, or `key=value,key=value`.

    A comma inside brackets belongs to its value, so that a header is one value.
    """
    if isinstance(model_args, dict):
        return model_args
    text = str(model_args or "")
    if text.lstrip().startswith("{"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return parsed
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    arguments: dict[str, Any] = {}
    last = ""
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals and is_secret(last):  # the rest of a credential that has a comma
            arguments[last] += f",{part}"
        elif last := key.strip():
            arguments[last] = value.strip()
    return arguments


def redact_args(model_args: Any) -> dict[str, Any]:
    """Model arguments in any of their forms as a dictionary without credentials."""
    redacted: dict[str, Any] = redact(parse_args(model_args))
    return redacted


def names_left_out(value: Any, name: str = "") -> list[str]:
    """Under which names something was left out of a redacted value."""
    if isinstance(value, dict):
        return list(dict.fromkeys(found for key, entry in value.items() for found in names_left_out(entry, str(key))))
    if isinstance(value, list):
        return list(dict.fromkeys(found for entry in value for found in names_left_out(entry, name)))
    return [name] if isinstance(value, str) and LEFT_OUT in value else []


def secret_values(model_args: Any, least: int = 6) -> set[str]:
    """The credentials among model arguments, to be looked for elsewhere.

    Args:
        model_args: in any of their forms.
        least: length of what is no word that stands everywhere.
    """

    def search(value: Any, secret: bool) -> Iterator[str]:
        if isinstance(value, dict):
            for key, entry in value.items():
                yield from search(entry, secret or is_secret(str(key)))
        elif isinstance(value, list | tuple):
            for entry in value:
                yield from search(entry, secret)
        elif secret and isinstance(value, str) and len(value) >= least:
            yield value
            yield from (word for word in re.findall(r"[^\s\"',:{}]+", value) if len(word) >= least + 2)

    return set(search(parse_args(model_args), False))
