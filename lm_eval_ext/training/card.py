"""The card of a trained model: what was done to which base, with what, and the command that does it again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from lm_eval_ext import __version__
from lm_eval_ext.models import embedded

if TYPE_CHECKING:
    from lm_eval_ext.training.settings import Settings

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
_METHODS = {
    "mist": "MIST: instruction tuning in several languages, loss on the responses only",
    "sft-en": "English instruction tuning, loss on the responses only: the control that separates tuning from alignment",
    "midalign": "MIDALIGN: MIST's loss, and a contrastive loss on parallel sentences at a middle layer",
    "clo": "CLO: a two-way preference for the language of the prompt, and the response loss in the other language",
}
_SOURCE = (
    "Han, Agrawal and Briakou, *Rethinking Cross-lingual Alignment: Balancing Transfer and Cultural Erasure in "
    "Multilingual LLMs* (arXiv 2510.26024). Their settings are not known: those below are ours."
)


def versions() -> dict[str, str]:
    """What it was trained with."""
    return {"lm_eval_ext": __version__, **{name: version(name) for name in _PACKAGES}}


def command(settings: Settings) -> str:
    """The command of a run, with the last part of every path."""
    words = ["lm-eval-ext", "train", settings.method]
    hints = get_type_hints(type(settings), include_extras=True)
    for option in fields(settings):
        value = getattr(settings, option.name)
        if option.name == "resume" or value == option.default:
            continue
        named = [name for name in get_args(hints[option.name])[1].param_decls or () if name.startswith("--")]
        flag = named[0] if named else f"--{option.name.replace('_', '-')}"
        words += [flag] if value is True else [flag, _short(value)]
    return shlex.join(words)


def text(record: dict[str, Any]) -> str:
    """The card, Markdown with the hub's header."""
    settings, base = record["settings"], record["base"]
    hub = "/" in base["name"] and not base["name"].startswith((".", "/", "~"))
    header = [
        "---",
        *([f"base_model: {base['name']}"] if hub else []),
        "tags:",
        "- lm_eval_ext",
        f"- {settings['method']}",
    ]
    header += [] if settings["full"] else ["library_name: peft"]
    given = "THIS_FOLDER" if settings["full"] else "BASE,peft=THIS_FOLDER"
    load = f"`lm_eval --model steered-hf --model_args pretrained={given}`"
    if not settings["full"]:
        load += "; `lm-eval-ext train merge THIS_FOLDER --out MERGED` makes one model of it and its base"
    lines = [
        *header,
        "---",
        "",
        f"# {settings['method']} of {_short(base['name'])}",
        "",
        f"{_METHODS[settings['method']]}. After {_SOURCE}",
        "",
        f"- Base: {_short(base['name'])}, weights {base['weights']}"
        + (f" ({embedded.LICENCE})" if base["name"] == embedded.NAME else ""),
        f"- Use: {load}",
        f"- Command: `{record['command']}`, {record['processes']} process(es)",
        f"- Prompts: {record['template']!r}",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in record['versions'].items())}",
        "",
        "| data | rows | left out | SHA-256 of the rows |",
        "|---|---|---|---|",
        *(_data_row(record[kind]) for kind in ("data", "pairs") if kind in record),
        "",
        "| setting | value |",
        "|---|---|",
        f"| optimiser steps | {record['steps']} |",
        *(f"| {name} | {record[name]} |" for name in ("layer", "contrastive_steps") if name in record),
        *(f"| {name} | {_short(value)} |" for name, value in settings.items() if name not in _ELSEWHERE),
        "",
        f"Last losses: {_last(record['log'])}.",
        "",
    ]
    return "\n".join(lines)


_ELSEWHERE = ("method", "model", "steps", "layer", "contrastive_steps", "template")


def _data_row(data: dict[str, Any]) -> str:
    rows = ", ".join(f"{code} {n}" for code, n in data["rows"].items())
    left = "; ".join(f"{reason}: {sum(counts.values())}" for reason, counts in data["left_out"].items()) or "none"
    return f"| {data['source']} | {rows} | {left} | {data['sha256']} |"


def _last(log: list[dict[str, Any]]) -> str:
    last: dict[str, float] = {}
    for entry in log:
        last |= {name: value for name, value in entry.items() if name.endswith("_loss") and name != "train_loss"}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in last.items()) or "none logged"


def _short(value: Any) -> str:
    text = str(value)
    return text.rstrip("/").rpartition("/")[2] if text.startswith((".", "/", "~")) else text
