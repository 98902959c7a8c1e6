"""The card of a trained model: what was done to which base, with what, and the command that does it again."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lm_eval_ext.models import embedded
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from lm_eval_ext.training.config import TrainingConfig
    from lm_eval_ext.training.methods.base import Method

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
_SOURCE = (
    "Han, Agrawal and Briakou, *Rethinking Cross-lingual Alignment: Balancing Transfer and Cultural Erasure in "
    "Multilingual LLMs* (arXiv 2510.26024). Their settings are not known: those below are ours."
)


def versions() -> dict[str, str]:
    """What it was trained with."""
    return {"lm_eval_ext": __version__, **{name: version(name) for name in _PACKAGES}}


def command(config: TrainingConfig) -> str:
    """The command of a run, with the last part of every path."""
    words = ["lm-eval-ext", "train", config.method]
    for name, (_, default) in config.options().items():
        value = getattr(config, name)
        if name == "resume" or value == default:
            continue
        flag = config.flags(name)[0]
        words += [flag] if value is True else [flag, _short(value)]
    return shlex.join(words)


def adapted(parts: dict[str, list[str]]) -> str:
    """One line: what an adapter changes, and what it leaves as it is."""
    left = f"; left as they are: {', '.join(parts['not_adapted'])}" if parts["not_adapted"] else ""
    return f"LoRA on {', '.join(parts['adapted'])}{left}"


def text(record: dict[str, Any], method: Method) -> str:
    """The card of a finished run, Markdown with the hub's header."""
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
    told = ("method", "model_name_or_path", "max_steps", "template", *method.details)
    lines = [
        *header,
        "---",
        "",
        f"# {settings['method']} of {_short(base['name'])}",
        "",
        f"{method.title}. After {_SOURCE}",
        "",
        f"- Base: {_short(base['name'])}, weights {base['weights']}"
        + (f" ({embedded.LICENCE})" if base["name"] == embedded.NAME else ""),
        f"- Use: {load}",
        f"- Command: `{record['command']}`, {record['processes']} process(es)",
        *([f"- Adapted: {adapted(record['adapter'])}"] if "adapter" in record else []),
        f"- Prompts: {record['template']!r}",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in record['versions'].items())}",
        "",
        "| data | rows | left out | SHA-256 of the rows |",
        "|---|---|---|---|",
        *(_data_row(record[kind]) for kind in method.data.record),
        "",
        "| setting | value |",
        "|---|---|",
        f"| optimiser steps | {record['steps']} |",
        *(f"| {name} | {value} |" for name, value in method.details.items()),
        *(f"| {name} | {_short(value)} |" for name, value in settings.items() if name not in told),
        "",
        f"Last losses: {_last(record['log'])}.",
        "",
    ]
    return "\n".join(lines)


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
