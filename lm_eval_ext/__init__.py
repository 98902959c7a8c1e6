"""Measure, and repair, what cross-lingual alignment does to a language model.

A plugin for EleutherAI's lm-evaluation-harness, and a library::

    import lm_eval_ext as lx

    pairs = lx.load_pairs("loc", "mini", languages=["ko", "el"])
    vectors = lx.extract(model, tokenizer, pairs, estimator="mean_difference", layers="all")
    with vectors.apply(model, "loc@58%:2", language="ko"):
        model.generate(**inputs)
    run = lx.evaluate("steered-hf", tasks=["localization_mini_ko_cloze"], vectors=vectors, plan="loc@58%:2")
    plane = lx.plane(lx.load("results"), baseline="unsteered")

The names in `__all__` are the public interface and follow semantic versioning; everything else is private. Importing the
package is cheap on purpose: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module

from lm_eval_ext.version import __version__

TYPE_CHECKING = False  # of `typing`, whose import would take longer than all else here
if TYPE_CHECKING:
    from lm_eval_ext.data.pairs import Pair as Pair
    from lm_eval_ext.data.pairs import PairSet as PairSet
    from lm_eval_ext.data.pairs import load_pairs as load_pairs
    from lm_eval_ext.errors import UserError as UserError
    from lm_eval_ext.evaluation import evaluate as evaluate
    from lm_eval_ext.models.embedded import embedded_model as embedded_model
    from lm_eval_ext.plane.shifts import Plane as Plane
    from lm_eval_ext.plane.shifts import measure as plane
    from lm_eval_ext.report.build import Report as Report
    from lm_eval_ext.report.build import report as report
    from lm_eval_ext.results.runs import Runs as Runs
    from lm_eval_ext.results.runs import load as load
    from lm_eval_ext.steering.estimators.base import Estimator as Estimator
    from lm_eval_ext.steering.estimators.base import PairStates as PairStates
    from lm_eval_ext.steering.estimators.base import StateBatch as StateBatch
    from lm_eval_ext.steering.extraction import extract as extract
    from lm_eval_ext.steering.plan import Plan as Plan
    from lm_eval_ext.steering.registry import register_estimator as register_estimator
    from lm_eval_ext.steering.transforms.base import Transform as Transform
    from lm_eval_ext.steering.vectors import VectorSet as VectorSet
    from lm_eval_ext.sweep.result import SweepResult as SweepResult
    from lm_eval_ext.sweep.run import sweep as sweep

#: The module of each public name. The functions `plane`, `report` and `sweep` are called through their packages.
_HOMES = {
    "Estimator": "steering.estimators.base",
    "Pair": "data.pairs",
    "PairSet": "data.pairs",
    "PairStates": "steering.estimators.base",
    "Plan": "steering.plan",
    "Plane": "plane.shifts",
    "Report": "report.build",
    "Runs": "results.runs",
    "StateBatch": "steering.estimators.base",
    "SweepResult": "sweep.result",
    "Transform": "steering.transforms.base",
    "UserError": "errors",
    "VectorSet": "steering.vectors",
    "embedded_model": "models.embedded",
    "evaluate": "evaluation",
    "extract": "steering.extraction",
    "load": "results.runs",
    "load_pairs": "data.pairs",
    "register_estimator": "steering.registry",
}
_CALLABLE_PACKAGES = ("plane", "report", "sweep")

__all__ = [  # noqa: RUF022 - by what they are for
    "__version__",
    "UserError",
    # contrastive pairs, vectors, and steering with them
    "Pair",
    "PairSet",
    "load_pairs",
    "extract",
    "VectorSet",
    "Plan",
    # evaluations and grids of them
    "embedded_model",
    "evaluate",
    "sweep",
    "SweepResult",
    # what results show
    "load",
    "Runs",
    "plane",
    "Plane",
    "report",
    "Report",
    # estimators of your own
    "Estimator",
    "PairStates",
    "StateBatch",
    "Transform",
    "register_estimator",
]


if not TYPE_CHECKING:  # a type checker knows the names from above, and tells of others

    def __getattr__(name):
        if name in _CALLABLE_PACKAGES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
