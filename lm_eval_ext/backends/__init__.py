"""Engines that run a steered model for the harness: the common base class (`base`), and a package for each engine.

A new engine is a package beside `hf` with a subclass of `base.SteeredBackend`, a line in `harness.MODELS`, and an entry
point in pyproject.toml.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lm_eval_ext import harness
from lm_eval_ext.errors import ModelError

if TYPE_CHECKING:
    from lm_eval_ext.backends.base import SteeredBackend


def load(model_type: str, pretrained: Any = None, **arguments: Any) -> SteeredBackend:
    """A model of the harness whose residual stream can be steered.

    Args:
        model_type: what `lm_eval --model` takes: a key of `harness.MODELS`.
        pretrained: model name, folder, or whatever else the engine takes; the embedded model where left out.
        arguments: what `--model_args` takes (see `base.SteeredBackend` and the engine's class). `vectors` may also be a
            `VectorSet` and `steer` a `Plan`.

    Raises:
        ModelError: an unknown model type, or a model that cannot be loaded.
        UserError: a plan, vector file, language or layer that does not fit; raised before the weights are loaded.
    """
    if model_type not in harness.MODELS:
        raise ModelError(f"the model type {model_type!r} is unknown, valid: {', '.join(harness.MODELS)}")
    module, _, name = harness.MODELS[model_type].partition(":")
    backend: SteeredBackend = getattr(importlib.import_module(module), name)(pretrained, **arguments)
    return backend
