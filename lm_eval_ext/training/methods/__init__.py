"""The alignment methods, a module each, and the registry of them.

A module of this package brings a method: a subclass of `TrainingConfig` with its options and a subclass of `Method` with its
data and its loss. It is registered by being there. Nothing heavy is imported with them, since `--help` reads all of them:
torch and TRL are imported in the functions that need them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from lm_eval_ext.training.methods.base import Method

if TYPE_CHECKING:
    from collections.abc import Mapping


def _registry() -> dict[str, type[Method]]:
    methods: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for kind in vars(importlib.import_module(module.name)).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, Method)
                and kind.__module__ == module.name != Method.__module__
            ):
                if kind.name() in methods:
                    raise TypeError(
                        f"{kind.__name__} and {methods[kind.name()].__name__} are both called {kind.name()!r}"
                    )
                methods[kind.name()] = kind
    return methods


#: Method by its name, which is that of its command (`lm-eval-ext train NAME`) too.
METHODS: Mapping[str, type[Method]] = _registry()
