"""The figures of a sweep: effect by layer and by gamma with the null band of random directions, and the two-layer grid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.viz.curves import effect_curves
from lm_eval_ext.viz.heatmap import two_layer_heatmap

if TYPE_CHECKING:
    from lm_eval_ext.viz.chart import Chart


def charts(summary: pd.DataFrame) -> list[Chart]:
    """For each family: the average effect along the layers and along gamma for each kind and position, and of all pairs."""
    average = summary[(summary["language"] == AVERAGE) & summary["control"].isna() & (summary["condition"] != "")]
    singles, pairs = average[average["layer"].notna()], average[average["layer"].isna()]
    all_charts: list[Chart] = []
    for family in average["family"].unique():
        metric = str(average.loc[average["family"] == family, "metric"].iloc[0])
        for position in singles["position"].unique():
            part = singles[(singles["family"] == family) & (singles["position"] == position)]
            if part.empty:
                continue
            where = f"{family}, {position} positions"
            suffix = f"{family}_{position}"
            by_layer = pd.concat([_at_best(group, "gamma") for _, group in part.groupby("kinds", sort=False)])
            by_gamma = pd.concat([_at_best(group, "layer") for _, group in part.groupby("kinds", sort=False)])
            layers = effect_curves(_series(by_layer, "gamma"), "layer", title=f"Effect by layer: {where}", score=metric)
            gammas = effect_curves(_series(by_gamma, "layer"), "gamma", title=f"Effect by gamma: {where}", score=metric)
            all_charts += [
                replace(layers, name=f"layer_curves_{suffix}", caption=_BEST.format("gamma") + layers.caption),
                replace(gammas, name=f"gamma_curves_{suffix}", caption=_BEST.format("layer") + gammas.caption),
            ]
        both = pairs[pairs["family"] == family]
        if len(both):
            heatmap = two_layer_heatmap(_grid(both), title=f"Two layers: {family}", score=metric)
            all_charts.append(replace(heatmap, name=f"two_layers_{family}"))
    return all_charts


_BEST = (
    "Average over all languages but English. Each kind at the {} of its largest average effect (among those with controls "
    "everywhere, if any), which is biased upwards: it is the best of several on these questions. "
)


def _at_best(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of one kind at the value of `column` with the largest change; one with controls in all rows, if any."""
    controlled = rows.groupby(column)["null_low"].transform(lambda band: band.notna().all())
    chosen = rows[controlled] if controlled.any() else rows
    best = chosen[column].iloc[int(chosen["change"].argmax())]
    rows_at_best: pd.DataFrame = rows[rows[column] == best]
    return rows_at_best


def _series(rows: pd.DataFrame, fixed: str) -> pd.DataFrame:
    """Curves, and behind each the band of its random controls, where all of its points have one."""
    named = rows.assign(
        series=[f"{kind}, {fixed} {value:g}" for kind, value in zip(rows["kinds"], rows[fixed], strict=True)]
    )
    curves = named[["series", "layer", "gamma", "change", "low", "high"]].assign(is_control=False)
    banded = named[named.groupby("series")["null_low"].transform(lambda band: band.notna().all())]
    bands = pd.DataFrame(
        {
            "series": "random directions for " + banded["series"],
            "layer": banded["layer"],
            "gamma": banded["gamma"],
            "change": (banded["null_low"] + banded["null_high"]) / 2,
            "low": banded["null_low"],
            "high": banded["null_high"],
            "is_control": True,
        }
    )
    series: pd.DataFrame = pd.concat([curves, bands], ignore_index=True) if len(bands) else curves
    return series


def _grid(pairs: pd.DataFrame) -> pd.DataFrame:
    terms = [Plan.parse(name).interventions for name in pairs["condition"]]
    grid = pairs[["condition", "change", "low", "high"]].assign(
        en_layer=[int(first.first.value) for first, _ in terms],
        loc_layer=[int(second.first.value) for _, second in terms],
    )
    best: pd.DataFrame = grid.sort_values("change", ascending=False).drop_duplicates(["en_layer", "loc_layer"])
    return best
