"""The figures beside the plane, each a `Chart`: a plotly figure with its caption and the data that it draws.

`charts` makes all that a measured plane allows. `effect_curves`, `two_layer_heatmap` and `layer_pca` draw tidy frames of
layer studies.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_ext.plane.figures.bias import bias_bars as bias_bars
    from lm_eval_ext.plane.figures.chart import Chart as Chart
    from lm_eval_ext.plane.figures.chart import write_charts as write_charts
    from lm_eval_ext.plane.figures.context import context_gap as context_gap
    from lm_eval_ext.plane.figures.curves import effect_curves as effect_curves
    from lm_eval_ext.plane.figures.facets import plane_by_language as plane_by_language
    from lm_eval_ext.plane.figures.heatmap import two_layer_heatmap as two_layer_heatmap
    from lm_eval_ext.plane.figures.pca import layer_pca as layer_pca
    from lm_eval_ext.plane.figures.slopes import language_slopes as language_slopes
    from lm_eval_ext.plane.shifts import Plane

_HOME = {
    "Chart": "chart",
    "bias_bars": "bias",
    "context_gap": "context",
    "effect_curves": "curves",
    "plane_by_language": "facets",
    "layer_pca": "pca",
    "language_slopes": "slopes",
    "two_layer_heatmap": "heatmap",
    "write_charts": "chart",
}
__all__ = [*_HOME, "charts"]


def charts(plane: Plane) -> list[Chart]:
    """Every figure of a plane: itself, by language, slopes, English bias, explicit-context gap, as far as scored."""
    from lm_eval_ext.plane.figure import plane_chart
    from lm_eval_ext.plane.figures.bias import bias_bars
    from lm_eval_ext.plane.figures.context import context_gap
    from lm_eval_ext.plane.figures.facets import plane_by_language
    from lm_eval_ext.plane.figures.slopes import language_slopes

    others = (make(plane) for make in (plane_by_language, language_slopes, bias_bars, context_gap))
    return [plane_chart(plane), *(chart for chart in others if chart)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
