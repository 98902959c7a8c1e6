"""`torch_compile=True`: decoder layers compiled one by one (regional compilation)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from lm_eval_ext.errors import ModelError
from lm_eval_ext.steering.decoder import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Shapes vary from batch to batch.
_OPTIONS: dict[str, Any] = {"dynamic": True}


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the forward of each decoder layer, for calls without a KV cache.

    Layers with the same code are compiled once. Hooks, and with them the steering, run between the compiled layers; they may
    be registered before or after. A forward with a KV cache is not compiled, since its shapes change at every token.

    Raises:
        ModelError: the model cannot be compiled, for example without a C++ compiler.
    """
    layers = list(decoder_layers(model))
    for layer in layers:
        layer.forward = _without_cache(layer.forward)
    device = model.get_input_embeddings().weight.device
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(2, 3, dtype=torch.long, device=device), use_cache=False)
    except Exception as error:  # the compiler's errors share no base class
        raise ModelError(
            f"torch_compile=True: the model cannot be compiled here ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); leave it out, or install a C++ compiler"
        ) from error


def _without_cache(plain: Any) -> Any:
    compiled = torch.compile(plain, **_OPTIONS)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        cached = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))
        return (plain if cached else compiled)(*args, **kwargs)

    return forward
