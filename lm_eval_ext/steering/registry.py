"""The estimators of this package, and those that installed packages add.

A package adds one by an entry point of the group `lm_eval_ext.estimators`, whose name is the estimator's::

    [project.entry-points."lm_eval_ext.estimators"]
    ablation = "my_package.ablation:Ablation"

A package is imported only when its estimator is used.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import EstimatorError

if TYPE_CHECKING:
    from lm_eval_ext.steering.estimators.base import Estimator
    from lm_eval_ext.steering.transforms.base import Transform

GROUP = "lm_eval_ext.estimators"

DEFAULT_ESTIMATOR = "mean_difference"

#: The estimators of this package.
_ESTIMATORS = "lm_eval_ext.steering.estimators"
_BUILT_IN = {
    "mean_difference": f"{_ESTIMATORS}.mean_difference:MeanDifference",
    "culture_difference": f"{_ESTIMATORS}.culture_difference:CultureDifference",
    "universal_difference": f"{_ESTIMATORS}.universal_difference:UniversalDifference",
    "pca_difference": f"{_ESTIMATORS}.pca_difference:PcaDifference",
    "logistic_probe": f"{_ESTIMATORS}.logistic_probe:LogisticProbe",
    "whitened_difference": f"{_ESTIMATORS}.whitened_difference:WhitenedDifference",
    "lda": f"{_ESTIMATORS}.lda:Lda",
    "least_squares": f"{_ESTIMATORS}.least_squares:LeastSquares",
    "ablation": f"{_ESTIMATORS}.ablation:Ablation",
    "complement": f"{_ESTIMATORS}.complement:Complement",
    "rotation": f"{_ESTIMATORS}.rotation:Rotation",
    "conditional": f"{_ESTIMATORS}.conditional:Conditional",
    "trained": f"{_ESTIMATORS}.trained:TrainedVector",
    "affine": f"{_ESTIMATORS}.affine:TrainedAffine",
}

#: The transforms of this package: usable by files whose estimator is not installed.
_TRANSFORMS = {
    "add": "lm_eval_ext.steering.transforms.add:Add",
    "rotate": "lm_eval_ext.steering.transforms.rotate:Rotate",
    "conditional": "lm_eval_ext.steering.transforms.conditional:Conditional",
    "ablate": "lm_eval_ext.steering.transforms.project:Ablate",
    "keep": "lm_eval_ext.steering.transforms.project:Keep",
    "affine": "lm_eval_ext.steering.transforms.affine:Affine",
}

#: Estimators that were registered in this process.
_registered: dict[str, type[Estimator]] = {}


def register_estimator(estimator: type[Estimator]) -> type[Estimator]:
    """Add an estimator for this process, for example one defined in a notebook; usable as a decorator.

    Raises:
        EstimatorError: there is another one of this name.

    Example:
        >>> from lm_eval_ext.steering.transforms.add import Add
        >>> @lx.register_estimator
        ... class FirstPair(lx.Estimator):
        ...     name = "first_pair"
        ...     transform = Add
        ...
        ...     def fit(self, states):
        ...         positive, negative = states.collect()
        ...         return {"vector": positive[:, 0] - negative[:, 0]}
        >>> vectors = lx.extract(model, tokenizer, pairs, estimator="first_pair")
    """
    name = estimator.name
    if name in _registered and _same(_registered[name], estimator):
        _registered[name] = estimator  # a notebook cell that was run again
        return estimator
    if name in names():
        raise EstimatorError(f"there is an estimator {name!r} already: give yours another name")
    _registered[name] = estimator
    return estimator


def names() -> list[str]:
    """The names of all estimators; none is imported."""
    return list(dict.fromkeys([*_BUILT_IN, *(point.name for point in _points()), *_registered]))


def estimator_class(name: str) -> type[Estimator]:
    """The estimator of that name.

    Raises:
        EstimatorError: there is none, there are several, or its package cannot be imported.
    """
    from lm_eval_ext.steering.estimators.base import Estimator

    if name in _registered:
        return _registered[name]
    points = [point for point in _points() if point.name == name]
    sources = [*(["lm_eval_ext"] if name in _BUILT_IN else []), *(_distribution(point) for point in points)]
    if len(sources) > 1:
        raise EstimatorError(f"the estimator {name!r} is defined by {' and '.join(sources)}: uninstall all but one")
    if not sources:
        raise EstimatorError(
            f"there is no estimator {name!r}; valid: {', '.join(names())}. A package adds one by an entry point of the "
            f"group {GROUP}"
        )
    if not points:
        return _imported(_BUILT_IN[name])  # type: ignore[no-any-return]
    try:
        loaded = points[0].load()
    except Exception as error:  # any error of a third-party module
        raise EstimatorError(
            f"the estimator {name!r} of {sources[0]} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    if not (inspect.isclass(loaded) and issubclass(loaded, Estimator)) or getattr(loaded, "name", None) != name:
        raise EstimatorError(
            f"the entry point {name!r} of {sources[0]} must lead to a subclass of lm_eval_ext.Estimator with "
            f"name = {name!r}, not to {loaded!r}"
        )
    return loaded


def make_estimator(name: str, parameters: dict[str, Any] | None = None) -> Estimator:
    """An estimator with its parameters.

    Raises:
        EstimatorError: an unknown estimator, an unknown parameter, or a value that the estimator refuses.
    """
    cls = estimator_class(name)
    try:
        return cls(**(parameters or {}))
    except TypeError as error:
        valid = ", ".join(inspect.signature(cls).parameters) or "none"
        raise EstimatorError(f"estimator {name!r}: {error}; its parameters: {valid}") from None
    except ValueError as error:
        raise EstimatorError(f"estimator {name!r}: {error}") from None


def transform_for(transform: str, estimator: str) -> Transform:
    """The transform of an entry of a vector file.

    Args:
        transform: its name.
        estimator: the estimator whose artifact it applies, and which defines the transform unless this package does.

    Raises:
        EstimatorError: the estimator is not installed, or has another transform now.
    """
    if transform in _TRANSFORMS:
        return _imported(_TRANSFORMS[transform])()  # type: ignore[no-any-return]
    try:
        transform_class = estimator_class(estimator).transform
    except EstimatorError as error:
        raise EstimatorError(
            f"the transform {transform!r} comes with the estimator {estimator!r}, which is not available: {error}"
        ) from None
    if transform_class.name != transform:
        raise EstimatorError(
            f"the estimator {estimator!r} has the transform {transform_class.name!r} now, the file was made for "
            f"{transform!r}: extract again"
        )
    return transform_class()


def parse_estimator(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME` or `NAME:field=value,field=value` as name and parameters; values are read as YAML.

    Raises:
        EstimatorError: a part that is not `field=value`.
    """
    from lm_eval_ext.configs import parse_value

    name, _, rest = text.partition(":")
    parameters = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise EstimatorError(f"estimator {text!r}: expected NAME:field=value,field=value, got {part!r}")
        parameters[key.strip()] = parse_value(value)
    return name, parameters


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _same(one: type, other: type) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
