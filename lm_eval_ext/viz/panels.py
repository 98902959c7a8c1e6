"""What small multiples share: how panels are laid out and named, and how a language looks."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from lm_eval_ext.languages import KNOWN
from lm_eval_ext.viz import theme


def text(name: str) -> str:
    """A name as plotly shows it: its own small HTML switched off."""
    return escape(name, quote=False)


def short(name: str, length: int = 24) -> str:
    """A long name by its end, where the difference usually is."""
    return text(name if len(name) <= length else f"…{name[1 - length :]}")


def language_style(code: str) -> dict[str, str]:
    """Colour, symbol and dash of a language, the same in every figure; English is black."""
    codes = list(KNOWN)
    number = codes.index(code) - 1 if code in codes else sum(map(ord, code))
    if number < 0:
        return {"colour": theme.INK, "symbol": "circle-open", "dash": "solid"}
    return {
        "colour": theme.cycle(theme.SERIES, number),
        "symbol": theme.cycle(theme.SYMBOLS, number),
        "dash": theme.cycle(theme.DASHES, number),
    }


def panel_title(name: str, number: int) -> dict[str, Any]:
    """The title above the panel of a grid whose axes have this number."""
    suffix = "" if number == 1 else str(number)
    return {
        "text": f"<b>{name}</b>",
        "xref": f"x{suffix} domain",
        "yref": f"y{suffix} domain",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
        "font": {"size": 13, "color": theme.INK},
    }


def spread(values: list[float], gap: float, ends: tuple[float, float] = (-math.inf, math.inf)) -> list[float]:
    """Heights near `values`, in their order, at least `gap` apart: labels that would cover each other.

    All stay between `ends`, as long as there is room for so many.
    """

    def low(group: list[int]) -> float:
        """Where the lowest label of a group stands when the group is centred on its values."""
        height = gap * (len(group) - 1)
        return max(ends[0], min(sum(values[index] for index in group) / len(group) - height / 2, ends[1] - height))

    order = sorted(range(len(values)), key=lambda index: values[index])
    placed = list(values)
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and low(groups[-1]) < low(groups[-2]) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    for group in groups:
        for step, index in enumerate(group):
            placed[index] = low(group) + step * gap
    return placed
