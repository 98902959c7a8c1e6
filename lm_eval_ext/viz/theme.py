"""The one theme of every figure and page: colours for light and dark, symbols, line styles, fonts, plotly's layout.

Figures are made in the light colours. `recolour` turns a figure's JSON into the dark ones, here for static images and in
`templates/page.js` for the page: every colour of a figure is therefore one of `COLOURS_LIGHT`, and no two share a value.
Colours follow Okabe and Ito (https://jfly.uni-koeln.de/color/), darkened until they are readable as text; whatever a
colour says is also said by a symbol, a dash, a pattern or a label, so that nothing is lost in black and white.
"""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK KR', 'Noto Sans Arabic', sans-serif"

#: Name of a colour: its value in light and in dark.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8ecf0"),
    "quiet": ("#626b77", "#98a3af"),
    "grid": ("#e3e7ec", "#2b323a"),
    "paper": ("#ffffff", "#13171c"),
    "panel": ("#f6f8fa", "#1a1f25"),
    "accent": ("#0b62a0", "#67b7f0"),
    "gain": ("#f1f8f4", "#14231c"),
    "erasure": ("#fdf3ec", "#291e16"),
    "loss": ("#f7f7f8", "#1c2026"),
    "local": ("#f0f5fa", "#16202a"),
    "less": ("#f2aa78", "#8a4614"),
    "more": ("#84bce0", "#1f5f8c"),
    "blue": ("#0072b2", "#4fb3e8"),
    "vermilion": ("#b84a00", "#ff9549"),
    "green": ("#00805d", "#2fcb9b"),
    "purple": ("#aa4499", "#dd88cf"),
    "ochre": ("#826700", "#d9b93b"),
    "violet": ("#5d3a9b", "#a992e0"),
    "crimson": ("#b0203a", "#f07b8c"),
}

INK, QUIET, GRID, PAPER = (PALETTE[name][0] for name in ("ink", "quiet", "grid", "paper"))

#: Ends of a scale that diverges from `PAPER`; text in `INK` is readable on all of it.
LESS, MORE = PALETTE["less"][0], PALETTE["more"][0]

#: Runs and languages, in this order, in turn.
SERIES = tuple(PALETTE[name][0] for name in ("blue", "vermilion", "green", "purple", "ochre", "violet", "crimson"))
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "hexagon", "triangle-down"),
    *("pentagon", "bowtie", "hourglass", "star-diamond", "triangle-left", "triangle-right"),
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px 1px 2px")
PATTERNS = ("/", "x", "-", "+", "\\", "|", ".")

_TO_DARK = dict(PALETTE.values())


def recolour(part: Any) -> Any:
    """A figure's JSON, or any part of it, in the dark colours."""
    if isinstance(part, dict):
        return {key: recolour(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [recolour(value) for value in part]
    return _TO_DARK.get(part, part) if isinstance(part, str) else part


def cycle(values: tuple[str, ...], number: int) -> str:
    """The value of a series' number, from the start again after the last."""
    return values[number % len(values)]


def layout(**changes: Any) -> dict[str, Any]:
    """Plotly's layout of every figure, with what one figure changes."""
    return {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "margin": {"l": 20, "r": 20, "t": 56, "b": 20},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        "hoverlabel": {"align": "left", "bgcolor": PAPER, "font": {"family": FONT, "size": 12, "color": INK}},
        "hovermode": "closest",
        "dragmode": "zoom",
        **changes,
    }


def axis(**changes: Any) -> dict[str, Any]:
    """One axis of every figure."""
    if isinstance(title := changes.get("title"), dict):
        changes["title"] = {"font": {"size": 13}, **title}
    return {
        "gridcolor": GRID,
        "zerolinecolor": INK,
        "zerolinewidth": 1.5,
        "ticks": "outside",
        "tickcolor": GRID,
        "tickformat": "~g",
        "automargin": True,
        "showline": False,
        **changes,
    }


def menu(buttons: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A menu above a figure."""
    return {
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "pad": {"l": 0, "b": 4},
        "bgcolor": PAPER,
        "bordercolor": GRID,
        **changes,
    }


def slider(steps: list[dict[str, Any]], active: int) -> dict[str, Any]:
    """A slider over the layers, below a figure."""
    return {
        "active": active,
        "steps": steps,
        "currentvalue": {"prefix": "layer "},
        "pad": {"t": 46},
        "bgcolor": GRID,
        "activebgcolor": QUIET,
        "bordercolor": GRID,
        "tickcolor": GRID,
    }


def css_variables(dark: bool) -> str:
    """The palette as CSS custom properties."""
    return " ".join(f"--{name}: {values[dark]};" for name, values in PALETTE.items())
