"""What the names of earlier tasks say, for results that were written before tasks had metadata, and for the harness's tasks.

Used only where a task's metadata (`lm_eval_ext.data.task_metadata`) does not say it. Do not add names here: a new task says
what it is in its YAML.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lm_eval_ext.data.task_metadata import split_of_name as split
from lm_eval_ext.languages import LANGUAGES, is_code, normalise

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["axis", "explicit_context_of", "families_of", "family", "form", "language", "split", "tasks"]

_CLOZE = "_cloze"

_AXES = {
    **dict.fromkeys(
        ("transfer_mini", "gmmlu", "gmmlu_ca", "gmmlu_cs", "gmmlu_dev", "bmlama", "bmlama_dev"), "transfer"
    ),
    **dict.fromkeys(
        (
            *("localization_mini", "localization_mini_ctx", "blend_decon", "blend_decon_core", "blend_decon_dev"),
            "blend_ctx",
        ),
        "localization",
    ),
}

#: Families that score texts without the suffix that says so.
_TEXTS = ("bmlama", "bmlama_dev")

#: Families with the country named: the same questions without it.
_EXPLICIT_CONTEXT_OF = {"localization_mini_ctx": "localization_mini", "blend_ctx": "blend_decon"}


def family(task: str) -> str:
    """A task's name without its language: `blend_decon_ko_cloze` is of `blend_decon_cloze`."""
    return "_".join(token for token in task.split("_") if token not in LANGUAGES)


def tasks(family: str) -> set[str]:
    """The names that the tasks of a family have in our seven languages: `NAME_ko`, or `NAME_ko_cloze`."""
    base, suffix = _without_form(family)
    return {f"{base}_{code}{suffix}" for code in LANGUAGES}


def language(task: str) -> str | None:
    """The only language code in a task's name."""
    codes = [token for token in re.split(r"[_\-]", task) if token in LANGUAGES]
    return codes[0] if len(codes) == 1 else None


def families_of(tasks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Family and language of tasks whose names end in the code of a language that is none of the seven.

    A code of two letters may be a word (`no`, `is`, `it`), so that it counts only where tasks of one name have at least
    three codes, and no task has the name alone.
    """
    names = set(tasks)
    codes: dict[str, dict[str, str]] = {}
    for task in names:
        base, suffix = _without_form(task)
        stem, _, code = base.rpartition("_")
        if stem and is_code(code) and f"{stem}_{code}" not in _AXES and stem + suffix not in names:
            codes.setdefault(stem + suffix, {})[task] = normalise(code)
    return {
        task: (family, code)
        for family, of_family in codes.items()
        if len(of_family) >= 3
        for task, code in of_family.items()
        if language(task) is None
    }


def axis(family: str) -> str | None:
    """The axis of one of our own families."""
    return _AXES.get(_without_form(family)[0])


def form(family: str) -> str | None:
    """What is scored in one of our own families."""
    if axis(family) is None:
        return None
    return "texts" if family.endswith(_CLOZE) or family in _TEXTS else "letters"


def explicit_context_of(family: str) -> str | None:
    """The family with the same questions where the country is not named."""
    base, suffix = _without_form(family)
    plain = _EXPLICIT_CONTEXT_OF.get(base)
    return plain + suffix if plain else None


def _without_form(family: str) -> tuple[str, str]:
    base = family.removesuffix(_CLOZE)
    return base, family[len(base) :]
