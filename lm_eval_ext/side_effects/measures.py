"""The measures of side effects, by name."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Scale = Literal["exponential", "relative", "share", "nats"]


class Measure(NamedTuple):
    """What is measured.

    Attributes:
        title: in words.
        scale: `exponential` values are logarithms, shown as exponentials; `exponential` and `relative` ones change by a
            share of the baseline, others by a difference.
    """

    title: str
    scale: Scale


MEASURES: dict[str, Measure] = {
    "perplexity": Measure("perplexity of the texts, per token", "exponential"),
    "kl": Measure("KL divergence of the next token, baseline to model, nats per token", "nats"),
    "same_token": Measure("share of places with the same most likely next token", "share"),
    "language": Measure("share of generations in the prompt's language, every line", "share"),
    "english": Measure("share of generations with a line in English, other prompts", "share"),
    "length": Measure("length of generations, tokens", "relative"),
    "repetition": Measure("share of repeated 4-grams in generations", "share"),
}
#: How the measures of accuracy begin; the task follows.
ACCURACY = "accuracy "


def scale(name: str) -> Scale:
    """The scale of a measure."""
    return MEASURES[name].scale if name in MEASURES else "share"


def is_measure(name: str) -> bool:
    """Whether a measure has this name."""
    return name in MEASURES or (name.startswith(ACCURACY) and name != ACCURACY)


def level_text(value: float, kind: Scale) -> str:
    """A level in the unit of its measure: `12.3`, `0.014` nats or `97.5%`."""
    if math.isnan(value):
        return "-"
    return {"share": f"{value:.1%}", "nats": f"{value:.4f}"}.get(
        kind, f"{value:.2f}" if value < 1e4 else f"{value:.2e}"
    )


def change_text(value: float, kind: Scale) -> str:
    """A change with its sign: `+1.2%` of the baseline (`×12` where it is more than ten times), `−0.5 points`, or nats."""
    if not math.isfinite(value):
        return "-"
    if kind in ("exponential", "relative") and value >= 9:
        return f"×{value + 1:.3g}"
    text = {"share": f"{100 * value:+.1f} points", "nats": f"{value:+.4f}"}.get(kind, f"{100 * value:+.1f}%")
    return text.replace("-", "−")
