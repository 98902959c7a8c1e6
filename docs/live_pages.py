"""Pages of the package itself, made of measured results, which the documentation shows as they are.

The sweep is of `results/sweep-gemma3-270m`; the plane, the leaderboard and the report are of `docs/runs`, the runs of the
tutorial (scores without texts, as `lm-eval-ext gate renew` keeps them).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.site import write_site
from lm_eval_ext.plane.page import page as plane_page
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.runs import load
from lm_eval_ext.sweep.page import page as sweep_page

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
RUNS = Path(__file__).parent / "runs"
_ABOUT_THE_SWEEP = "Gemma 3 270M (base), 361 conditions; results/sweep-gemma3-270m/README.md says how it was run."
SWEEP = ROOT / "results" / "sweep-gemma3-270m"


def pages() -> Iterator[tuple[str, str]]:
    """The pages, by their place in the site."""
    summary = pd.read_csv(SWEEP / "summary.csv", keep_default_na=True).fillna({"condition": ""})
    yield (
        "live/sweep.html",
        sweep_page(summary, [_ABOUT_THE_SWEEP]),
    )
    if not any(RUNS.rglob("results_*.json")):
        return
    yield "live/plane.html", plane_page(measure(load(RUNS), baseline="unsteered"))
    with tempfile.TemporaryDirectory() as folder:
        write_site(collect([RUNS]), Path(folder))
        yield "live/leaderboard.html", (Path(folder) / "index.html").read_text(encoding="utf-8")
