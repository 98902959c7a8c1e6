"""The picture of `compared.csv`: each estimator's best plan on the test split, beside its controls.

python picture.py            # writes compared.png
"""

from __future__ import annotations

import pandas as pd
from plotly.subplots import make_subplots

from lm_eval_ext.languages import AVERAGE

NAMES = {
    "loc_mean_difference": "mean difference",
    "loc_universal_difference": "universal difference",
    "loc_lda": "LDA",
    "loc_least_squares": "least-squares map",
    "loc_trained": "trained vector",
}
TITLES = {"localization_gap_cloze": "local answers", "facts_cloze": "facts"}


def main() -> None:
    """Draw both axes by right answers: intervals, bands of random directions (grey) and of shuffled pairs (orange)."""
    rows = pd.read_csv("compared.csv")
    rows = rows[(rows["language"] == AVERAGE) & (rows["metric"] == "acc")]
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=list(TITLES.values()), horizontal_spacing=0.04
    )
    for column, family in enumerate(TITLES, start=1):
        part = rows[rows["family"] == family].set_index("kinds").loc[list(NAMES)]
        place = {"row": 1, "col": column}
        legend = {"showlegend": column == 1}
        bands = {
            "random directions": ("null", "rgba(120,120,120,0.45)"),
            "shuffled pairs": ("shuffled", "rgba(230,140,40,0.6)"),
        }
        for name, (prefix, colour) in bands.items():
            low, high = 100 * part[f"{prefix}_low"], 100 * part[f"{prefix}_high"]
            bar = {
                "base": low,
                "orientation": "h",
                "marker": {"color": colour},
                "width": 0.5 if prefix == "null" else 0.25,
            }
            figure.add_bar(x=high - low, y=list(NAMES.values()), name=name, **bar, **legend, **place)
        change = 100 * part["change"]
        ends = {"array": 100 * part["high"] - change, "arrayminus": change - 100 * part["low"]}
        dots = {"mode": "markers", "marker": {"size": 9, "color": "#1f4e9c"}, "name": "the plan, 95% interval"}
        figure.add_scatter(x=change, y=list(NAMES.values()), error_x=ends, **dots, **legend, **place)
        figure.add_vline(x=0, line={"width": 1, "color": "black"}, **place)
        figure.update_xaxes(title="points of change, test split", **place)
    gap = 100 * rows["gap"].dropna().iloc[0]
    figure.add_vline(
        x=gap,
        line={"dash": "dot", "color": "black", "width": 2},
        opacity=1,
        annotation_text="country named",
        annotation_position="bottom right",
        row=1,
        col=1,
    )
    figure.update_layout(
        template="simple_white",
        barmode="overlay",
        width=1100,
        height=420,
        margin={"t": 50},
        legend={"orientation": "h", "y": -0.3},
    )
    figure.write_image("compared.png", scale=1.5)


if __name__ == "__main__":
    main()
