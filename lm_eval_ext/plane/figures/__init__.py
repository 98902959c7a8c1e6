"""The figures of a measured plane, each a `viz.chart.Chart`: a plotly figure with its caption and the data it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.viz.chart import Chart


def charts(plane: Plane) -> list[Chart]:
    """Every figure of a plane: itself, by language, slopes, English bias, explicit-context gap, as far as scored."""
    from lm_eval_ext.plane.figures.bias import bias_bars
    from lm_eval_ext.plane.figures.context import context_gap
    from lm_eval_ext.plane.figures.facets import plane_by_language
    from lm_eval_ext.plane.figures.plane import plane_chart
    from lm_eval_ext.plane.figures.slopes import language_slopes

    others = (make(plane) for make in (plane_by_language, language_slopes, bias_bars, context_gap))
    return [plane_chart(plane), *(chart for chart in others if chart)]
