"""Writes the per-language and group files under `tasks/`: `python -m lm_eval_ext.data.tasks_tree`.

What tasks share (data, prompt, metrics) is in the hand-written template files there, which have no suffix. Hand-written
YAML files beside the generated ones are not changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from lm_eval_ext.data import localization_gap
from lm_eval_ext.data.prompts import PROMPTS
from lm_eval_ext.data.task_metadata import EXPLICIT_CONTEXT
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import FURTHER, LANGUAGES, NON_ENGLISH
from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

HEADER = "# Written by `python -m lm_eval_ext.data.tasks_tree`."
LETTERS, CLOZE = "", "_cloze"

#: SHA-256 of all items of BLEnD as they are built (`lm-eval-ext data card blend`); part of the version of their tasks.
BLEND_ITEMS = "db2520679f8d93fee491085e9f5d1136083133878b6fc2a5c7ee9d856e681f00"
_BLEND_VERSION = f"3.0+{BLEND_ITEMS[:12]}"
_MINI_VERSION = "2.0"

RULES = ("acc", "acc_norm", "acc_mutual_info")
_RULES_BY_COUNTRY = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_prior")


@dataclass(frozen=True)
class Member:
    """One task of a family.

    Attributes:
        name: suffix to the family's name.
        language: code; of the prompt's words and of the documents.
        options: further keyword arguments of the loader.
    """

    name: str
    language: str
    options: Mapping[str, str | bool] = field(default_factory=dict)


def per_language(*codes: str) -> tuple[Member, ...]:
    """One task per language, named by its code."""
    return tuple(Member(code, code) for code in codes)


@dataclass(frozen=True)
class Family:
    """Tasks that differ in language (or country) only, with letters and as cloze, and their two groups.

    Attributes:
        name: of the group; a task is `{name}_{member}`, each again with the suffix `_cloze`.
        folder: under `tasks/`, with the templates.
        members: the tasks of the group, in order.
        further: tasks that belong to no group.
        options: extra keyword arguments of the loader.
        averaged: the groups, by suffix, and their metrics: the mean over members, each counting the same.
        templates: by suffix.
        version: raised whenever a score could change.
        axis, split, variant: metadata of its tasks (see `lm_eval_ext.data.task_metadata`); the loader is given the split.
        forms: metadata too, by suffix.
        variant_of: the family whose questions it asks in another form, without suffix.
    """

    name: str
    folder: str
    members: tuple[Member, ...] = per_language(*LANGUAGES)
    further: tuple[Member, ...] = ()
    options: Mapping[str, str | bool] = field(default_factory=dict)
    averaged: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {LETTERS: ("acc",), CLOZE: RULES})
    version: str = "1.0"
    templates: Mapping[str, str] = field(default_factory=lambda: {LETTERS: "_letters", CLOZE: "_cloze"})
    axis: str = "localization"
    split: str = "test"
    forms: Mapping[str, str] = field(default_factory=lambda: {LETTERS: "letters", CLOZE: "texts"})
    variant_of: str = ""
    variant: str = ""

    @property
    def groups(self) -> list[str]:
        """The names of its groups."""
        return [self.name + suffix for suffix in self.averaged]


#: The other languages of Global-MMLU. Czech (`cs`) has its three-letter code, as `gmmlu_cs` are the culturally sensitive
#: questions.
_FURTHER_GMMLU = tuple(Member({"cs": "ces"}.get(code, code), code) for code in sorted(set(PROMPTS) - set(LANGUAGES)))
_ABOUT = tuple(Member(LANGUAGES[code].country, "en", {"about": LANGUAGES[code].country}) for code in NON_ENGLISH)
BY_COUNTRY = {LETTERS: ("acc",), CLOZE: _RULES_BY_COUNTRY}
BIAS = {
    LETTERS: ("english_bias", "english_bias_unshared", "acc", "other_rate"),
    CLOZE: ("english_bias", "english_bias_unshared", "english_bias_norm", *_RULES_BY_COUNTRY, "other_rate"),
}


def _gmmlu(name: str, further: tuple[Member, ...] = _FURTHER_GMMLU, split: str = "test", **options: str) -> Family:
    return Family(name, "gmmlu", further=further, options=options, axis="transfer", split=split)


def _blend(
    name: str,
    members: tuple[Member, ...] = per_language(*LANGUAGES),
    folder: str = "blend_decon",
    averaged: Mapping[str, tuple[str, ...]] = BY_COUNTRY,
    split: str = "test",
    variant: str = "",
    **options: str,
) -> Family:
    return Family(
        name,
        folder,
        members,
        options=options,
        averaged=averaged,
        version=_BLEND_VERSION,
        split=split,
        variant_of=f"blend_decon{'_dev' if split == 'dev' else ''}" if variant else "",
        variant=variant,
    )


def _bmlama(name: str, split: str = "test") -> Family:
    return Family(
        name,
        "bmlama",
        averaged={LETTERS: RULES},
        templates={LETTERS: "_candidates"},
        axis="transfer",
        split=split,
        forms={LETTERS: "texts"},
    )


def _gap(name: str, split: str = "test", named: bool = False) -> Family:
    return Family(
        name,
        "localization_gap",
        per_language(*localization_gap.LANGUAGES),
        options={"named": True} if named else {},
        averaged=BY_COUNTRY,
        split=split,
        variant_of=name.replace("_ctx", "") if named else "",
        variant=EXPLICIT_CONTEXT if named else "",
    )


FAMILIES = (
    _gmmlu("gmmlu"),
    _gmmlu("gmmlu_ca", subset="CA"),
    _gmmlu("gmmlu_cs", subset="CS"),
    _gmmlu("gmmlu_dev", further=per_language(*FURTHER), split="dev"),
    _blend("blend_decon"),
    _blend("blend_decon_dev", split="dev"),
    _blend("blend_decon_firm", subset="firm"),
    _blend("blend_decon_core", per_language(*NON_ENGLISH), subset="core"),
    _blend("blend_decon_en_about", _ABOUT, variant="english_with_country"),
    _blend("blend_ctx", variant=EXPLICIT_CONTEXT, wording="ctx"),
    _blend("blend_ctx_dev", split="dev", variant=EXPLICIT_CONTEXT, wording="ctx"),
    _blend("english_bias", per_language(*NON_ENGLISH), "english_bias", BIAS, variant="english_bias"),
    _bmlama("bmlama"),
    _bmlama("bmlama_dev", split="dev"),
    _gap("localization_gap"),
    _gap("localization_gap_dev", split="dev"),
    _gap("localization_gap_ctx", named=True),
    _gap("localization_gap_ctx_dev", split="dev", named=True),
    Family("transfer_mini", "transfer_mini", version=_MINI_VERSION, axis="transfer"),
    Family("localization_mini", "localization_mini", averaged=BY_COUNTRY, version=_MINI_VERSION),
    Family(
        "localization_mini_ctx",
        "localization_mini",
        options={"named": True},
        averaged=BY_COUNTRY,
        version=_MINI_VERSION,
        variant_of="localization_mini",
        variant=EXPLICIT_CONTEXT,
    ),
)


#: Groups of the Global-MMLU tasks in the languages of localization_gap: the transfer axis beside it.
_GAP_GROUPS = ("gmmlu", "gmmlu_ca", "gmmlu_cs", "gmmlu_dev")


def files() -> dict[str, str]:
    """Every generated file: path under `tasks/` -> content."""
    contents = {f"{family.folder}/{name}.yaml": text for family in FAMILIES for name, text in yaml_files(family)}
    for family in (family for family in FAMILIES if family.name in _GAP_GROUPS):
        selected = replace(family, members=per_language(*localization_gap.LANGUAGES))
        for suffix, metrics in family.averaged.items():
            group = f"{family.name}_gap{suffix}"
            contents[f"gmmlu/_{group}.yaml"] = _yaml(HEADER, _group(selected, suffix, metrics, group))
    return contents


def write(folder: Path) -> None:
    """Write the files of `files` to a folder, and delete generated YAML files that are not among them.

    Only files that begin with `HEADER` are changed or deleted.

    Raises:
        DataError: a hand-written file has the name of a generated one.
    """
    contents = {folder / name: text for name, text in files().items()}
    for file in set(folder.rglob("*.yaml")) - set(contents):
        if is_generated(file):
            file.unlink()
    for file, text in contents.items():
        if file.exists() and not is_generated(file):
            raise DataError(f"{file} is hand-written and has the name of a generated task: give it another name")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")


def is_generated(file: Path) -> bool:
    """Whether a YAML file was written by this module."""
    return file.read_text(encoding="utf-8").startswith(HEADER)


def family_of_task(task: str) -> Family | None:
    """The family of a task of this package, by the task's exact name; None for other tasks."""
    return _by_task().get(task)


@cache
def _by_task() -> dict[str, Family]:
    return {
        f"{family.name}_{member.name}{suffix}": family
        for family in FAMILIES
        for suffix in family.averaged
        for member in (*family.members, *family.further)
    }


def yaml_files(family: Family, header: str = HEADER) -> Iterator[tuple[str, str]]:
    """The files of one family, as (name without suffix, content): its groups, then its tasks."""
    for suffix, metrics in family.averaged.items():
        yield f"_{family.name}{suffix}", _yaml(header, _group(family, suffix, metrics))
        for member in (*family.members, *family.further):
            yield f"{family.name}_{member.name}{suffix}", _yaml(header, _task(family, member, suffix))


def _group(family: Family, suffix: str, metrics: tuple[str, ...], name: str = "") -> list[str]:
    lines = [f"group: {name or family.name + suffix}", "task:"]
    lines += [f"  - {family.name}_{member.name}{suffix}" for member in family.members]
    lines += ["aggregate_metric_list:"]
    for metric in metrics:
        lines += [f"  - metric: {metric}", "    weight_by_size: false"]
    return [*lines, "metadata:", f"  version: {family.version}"]


def _task(family: Family, member: Member, suffix: str) -> list[str]:
    lines = [f"include: {family.templates[suffix]}", f"task: {family.name}_{member.name}{suffix}"]
    if options := {**family.options, **member.options}:
        lines += ["dataset_kwargs:", *(f"  {key}: {json.dumps(value)}" for key, value in options.items())]
    if suffix == CLOZE:
        prompt = PROMPTS[member.language]
        lines += [f"doc_to_text: {_quoted(prompt.template)}", f"target_delimiter: {_quoted(prompt.delimiter)}"]
    return [*lines, "metadata:", f"  version: {family.version}", *_metadata(family, member, suffix)]


def metadata_of_task(task: str) -> dict[str, str]:
    """The metadata of a task of this package, by the task's exact name; empty for other tasks."""
    for family in FAMILIES:
        for suffix in family.averaged:
            for member in (*family.members, *family.further):
                if task == f"{family.name}_{member.name}{suffix}":
                    return _values(family, member, suffix)
    return {}


def _metadata(family: Family, member: Member, suffix: str) -> list[str]:
    return [f"  {key}: {_quoted(value)}" for key, value in _values(family, member, suffix).items()]


def _values(family: Family, member: Member, suffix: str) -> dict[str, str]:
    values = {
        "axis": family.axis,
        "split": family.split,
        "form": family.forms[suffix],
        "family": f"{family.name}{suffix}",
        "language": member.language,
        "variant_of": f"{family.variant_of}{suffix}" if family.variant_of else "",
        "variant": family.variant,
    }
    return {key: value for key, value in values.items() if value}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _yaml(header: str, lines: list[str]) -> str:
    return "\n".join([header, *lines]) + "\n"


if __name__ == "__main__":
    write(tasks_dir())
