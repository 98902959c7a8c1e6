"""What reviewers ask of steering on `localization_gap`: how strong, which layers, how many pairs, whose vector.

    lm-eval-ext extract --out 20.safetensors --kinds loc --languages tr,bn,fr,ru --layers 6,8,10,12 --dtype float32 \\
            --pairs loc=task:localization_gap_ctx_dev_cloze/localization_gap_dev_cloze \\
            --estimator trained:epochs=8 --max-pairs 20
    (the same with --layers 6 --max-pairs 10 into 10.safetensors, and --layers 6 without --max-pairs into all.safetensors)
    python questions.py FOLDER_OF_THE_FILES

Writes `summary.csv` and `questions.png`. The reference of all four questions is the plan that `tune` chose on the
development split: a vector trained on 20 pairs after layer 6 of 18, twice, at the prompt's last token and what follows.
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from plotly.subplots import make_subplots

from lm_eval_ext.console import notes
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.cells import Cells
from lm_eval_ext.sweep.grid import Condition, Grid
from lm_eval_ext.sweep.loading import load_backend, rendering
from lm_eval_ext.sweep.processes import Processes
from lm_eval_ext.sweep.questions import Questions
from lm_eval_ext.sweep.summary import summarise
from lm_eval_ext.tune.candidates import renamed

if TYPE_CHECKING:
    import pandas as pd

LANGUAGES = ("tr", "bn", "fr", "ru")
REFERENCE = "loc@6:2/last"
#: Question -> label on the axis -> plan.
ASKED = {
    "strength, times the vector": {f"{gamma:g}": f"loc@6:{gamma:g}/last" for gamma in (0.5, 1, 2, 4, 8)},
    "layer, or layers that share the strength": {
        **{str(layer): f"loc@{layer}:2/last" for layer in (6, 8, 10, 12)},
        "6+8": "loc@6:1/last+loc@8:1/last",
        "6+8+10": "loc@6:0.7/last+loc@8:0.7/last+loc@10:0.7/last",
    },
    "pairs of each language": {"10": "n10@6:2/last", "20": REFERENCE, "all 39": "all@6:2/last"},
    "whose vector, in all languages": {
        "own": REFERENCE,
        **{code: f"loc~{code}@6:2/last" for code in LANGUAGES},
    },
}


def main(folder: Path) -> None:
    """Compute what is missing, and draw."""
    files = {"loc": "20", "n10": "10", "all": "all"}
    loaded = {kind: VectorSet.load(folder / f"{name}.safetensors") for kind, name in files.items()}
    entries = {key: entry for kind, vectors in loaded.items() for key, entry in renamed(vectors, "loc", kind).items()}
    vectors = VectorSet(loaded["loc"].model, entries)
    questions = Questions(
        ("localization_gap_cloze",), limit=None, num_fewshot=None, languages=LANGUAGES, with_prior=False,
        default_language=None, include_path=None, rendering=rendering("", num_fewshot=None),
    )  # fmt: skip
    plans = list(dict.fromkeys(chain.from_iterable(plans.values() for plans in ASKED.values())))
    conditions = [Condition(Plan()), *(Condition(Plan.parse(plan), of=plan) for plan in plans)]
    grid = Grid((), (), (), (), n_random=3, with_controls=False)
    for plan in ASKED["strength, times the vector"].values():
        conditions += grid.controls(Plan.parse(plan))
    model = load_backend("", "dtype=float32", "cpu", refused=(), because="")
    with Processes() as processes:
        cells = Cells(model, questions, vectors, folder / "cells", processes, notes())
        cells.compute(conditions, "Questions")
        frame = cells.items(conditions)
    summary = summarise(frame, conditions, metric="acc", resamples=10_000)
    summary.to_csv("summary.csv", index=False, float_format="%.4f")
    draw(summary[summary["language"] == AVERAGE].set_index("condition"))


def draw(rows: pd.DataFrame) -> None:
    """Four panels: the change of local answers with its interval; the grey band is that of the random directions."""
    figure = make_subplots(rows=2, cols=2, subplot_titles=list(ASKED), horizontal_spacing=0.08, vertical_spacing=0.16)
    hidden = {"showlegend": False}
    for number, plans in enumerate(ASKED.values()):
        place = {"row": 1 + number // 2, "col": 1 + number % 2}
        labels = list(plans)
        part = 100 * rows.loc[list(plans.values()), ["change", "low", "high", "null_low", "null_high"]].set_axis(labels)
        if number == 0:
            for side, fill in (("null_high", None), ("null_low", "tonexty")):
                shown = {"fill": fill, "fillcolor": "rgba(120,120,120,0.3)", "line": {"width": 0}, "mode": "lines"}
                figure.add_scatter(x=labels, y=part[side], **shown, **hidden, **place)
        ends = {"array": part["high"] - part["change"], "arrayminus": part["change"] - part["low"]}
        dots = {"mode": "markers", "marker": {"size": 8, "color": "#1f77b4"}}
        figure.add_scatter(x=labels, y=part["change"], error_y=ends, **dots, **hidden, **place)
        figure.add_hline(y=0, line={"width": 1, "color": "black"}, **place)
        figure.update_xaxes(type="category", **place)
        figure.update_yaxes(title="points of local answers", **place)
    figure.update_layout(template="simple_white", width=1100, height=750)
    figure.write_image("questions.png", scale=1.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
