"""One figure with its words and its numbers, and how it is written: CSV of what is drawn, SVG, PNG."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.io import write_file
from lm_eval_ext.spreadsheets import frame_to_csv
from lm_eval_ext.viz import theme

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    import plotly.graph_objects as go

FORMATS = ("csv", "svg", "png")

#: Small multiples hold this many runs; a table holds the rest.
MAX_RUNS = 6

WIDTH = 960  # pixels of a static image


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: of its files, without suffix.
        title: what it shows.
        caption: how to read it; plain text.
        figure: the plotly figure, in light colours.
        data: what is drawn, one row per mark; shares lie between 0 and 1.
        height: in pixels.
        min_width: a narrower page scrolls; in pixels.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure = field(repr=False)
    data: pd.DataFrame = field(repr=False)
    height: int = 520
    min_width: int = 0

    def json(self) -> dict[str, Any]:
        """The figure as plotly.js takes it."""
        content: dict[str, Any] = self.figure.to_plotly_json()
        return content

    def csv(self) -> str:
        """What is drawn."""
        return frame_to_csv(self.data, "%.6f")

    def image(self, form: str, *, dark: bool = False) -> bytes:
        """A static image, without menus (those show the first view).

        Args:
            form: `svg` or `png` (at twice the pixels).
            dark: in the dark colours.

        Raises:
            ResultsError: kaleido, or the Chrome or Chromium that it drives, is missing.
        """
        return _images([(self, form, dark)])[0]


def write_charts(charts: Iterable[Chart], folder: Path, forms: Sequence[str] = FORMATS) -> list[Path]:
    """Write every figure as `folder/NAME.FORM`; one browser makes all images.

    Raises:
        ResultsError: an unknown format, or no kaleido or browser.
        OutputError: the folder cannot be written.
    """
    if unknown := sorted(set(forms) - set(FORMATS)):
        raise ResultsError(f"no figure can be written as {', '.join(unknown)}; formats: {', '.join(FORMATS)}")
    jobs = [(chart, form) for chart in charts for form in forms]
    images = iter(_images([(chart, form, False) for chart, form in jobs if form != "csv"]))
    written = []
    for chart, form in jobs:
        path = folder / f"{chart.name}.{form}"
        write_file(path, chart.csv() if form == "csv" else next(images))
        written.append(path)
    return written


def _images(jobs: Sequence[tuple[Chart, str, bool]]) -> list[bytes]:
    """Static images of some figures: chart, format, whether dark."""
    if not jobs:
        return []
    try:
        # A thread of its own has no event loop yet, wherever this is called from.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, _drawn(jobs)).result()
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ResultsError(
            f"cannot make {jobs[0][0].name}.{jobs[0][1]}: {reason}\n  static images need kaleido and Chrome or Chromium: "
            "pip install 'lm_eval_ext[figures]', and set BROWSER_PATH where the browser is not on PATH; "
            "the CSV and the page need neither"
        ) from error


async def _drawn(jobs: Sequence[tuple[Chart, str, bool]]) -> list[bytes]:
    from kaleido import Kaleido

    images = []
    async with Kaleido(n=1) as kaleido:
        for chart, form, dark in jobs:
            content = copy.copy(chart.json())
            content["layout"] = {**content["layout"], "updatemenus": [], "sliders": []}
            size = {"width": max(WIDTH, chart.min_width), "height": chart.height}
            options = {"format": form, "scale": 2 if form == "png" else 1, **size}
            images.append(await kaleido.calc_fig(theme.recolour(content) if dark else content, opts=options))
    return images
