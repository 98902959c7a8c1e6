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

#: Layers of one kind share their code; shapes vary from batch to batch.
_OPTIONS: dict[str, Any] = {"dynamic": True}


def compile_layers(model: PreTrainedModel) -> None:
    """Compile what each decoder layer computes where no keys and values come in or go out.

    Equal layers share their code, so that this takes as long as compiling one. Hooks, and with them the steering, run
    between the compiled parts: they may be registered before or after. A forward with a cache runs as it is, since its
    shapes are new at every token.

    Raises:
        ModelError: nothing can be compiled here, for example without a C++ compiler.
    """
    layers = list(decoder_layers(model))
    for layer in layers:
        layer.forward = _without_cache(layer.forward)
    device = model.get_input_embeddings().weight.device
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(2, 3, dtype=torch.long, device=device), use_cache=False)
    except Exception as error:  # of the compiler's many
        raise ModelError(
            f"torch_compile=True: the model cannot be compiled here ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); leave it out, or install a C++ compiler"
        ) from error


def _without_cache(plain: Any) -> Any:
    compiled = torch.compile(plain, **_OPTIONS)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        cached = any(isinstance(given, Cache) for given in (*args, *kwargs.values()))
        return (plain if cached else compiled)(*args, **kwargs)

    return forward
