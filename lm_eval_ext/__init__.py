"""Measure, and repair, what cross-lingual alignment does to a language model.

A plugin for EleutherAI's lm-evaluation-harness, and a library::

    import lm_eval_ext as lx

    pairs = lx.load_pairs("loc", "mini", languages=["ko", "el"])
    vectors = lx.extract(model, tokenizer, pairs, estimator="mean_difference", layers="all")
    with vectors.apply(model, "loc@58%:2", language="ko"):
        model.generate(**inputs)

The names in `__all__` are the public interface and follow semantic versioning; everything else is private. Importing the
package is cheap on purpose: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_ext.data.pairs import Pair as Pair
    from lm_eval_ext.data.pairs import PairSet as PairSet
    from lm_eval_ext.data.pairs import load_pairs as load_pairs
    from lm_eval_ext.errors import UserError as UserError
    from lm_eval_ext.steering.estimators.base import Estimator as Estimator
    from lm_eval_ext.steering.estimators.base import PairStates as PairStates
    from lm_eval_ext.steering.estimators.base import StateBatch as StateBatch
    from lm_eval_ext.steering.extraction import extract as extract
    from lm_eval_ext.steering.plan import Plan as Plan
    from lm_eval_ext.steering.registry import register_estimator as register_estimator
    from lm_eval_ext.steering.transforms.base import Transform as Transform
    from lm_eval_ext.steering.vectors import VectorSet as VectorSet

__version__ = "0.1.0"

#: The module of each public name.
_HOMES = {
    "Estimator": "steering.estimators.base",
    "Pair": "data.pairs",
    "PairSet": "data.pairs",
    "PairStates": "steering.estimators.base",
    "Plan": "steering.plan",
    "StateBatch": "steering.estimators.base",
    "Transform": "steering.transforms.base",
    "UserError": "errors",
    "VectorSet": "steering.vectors",
    "extract": "steering.extraction",
    "load_pairs": "data.pairs",
    "register_estimator": "steering.registry",
}
__all__ = [  # noqa: RUF022 - by what they are for
    "__version__",
    "UserError",
    # contrastive pairs and vectors
    "Pair",
    "PairSet",
    "load_pairs",
    "extract",
    "VectorSet",
    "Plan",
    # estimators of your own
    "Estimator",
    "PairStates",
    "StateBatch",
    "Transform",
    "register_estimator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
