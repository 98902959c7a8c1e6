"""Packages that can be called like the function they are about: `lm_eval_ext.plane(...)` beside `lm_eval_ext.plane.shifts`.

Importing a submodule binds its package as an attribute of `lm_eval_ext`, whatever stood there before. A public function of
the same name would vanish then; a package that can be called stays what it is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, module: str, function: str) -> None:
    """Let calls of a package go to a function of one of its modules, which is imported when it is called.

    Args:
        package: its full name.
        module, function: where they go.
    """

    def call(_: ModuleType, *args: Any, **options: Any) -> Any:
        return getattr(import_module(f"{package}.{module}"), function)(*args, **options)

    sys.modules[package].__class__ = type("CallablePackage", (ModuleType,), {"__call__": call})
