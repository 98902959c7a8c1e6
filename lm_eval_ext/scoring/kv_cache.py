"""The KV cache of a forward, from which any rows of later forwards can continue."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import DynamicCache

from lm_eval_ext.steering.decoder import text_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel


class Span(NamedTuple):
    """The columns of a cache that hold a sequence: from `start` to `end` (exclusive)."""

    start: int
    end: int


class Past(NamedTuple):
    """The KV cache that a forward continues from.

    Attributes:
        cache: for the model's forward, as the argument `cache_name`; the forward appends to it.
        lengths: cached tokens of each row; rows shorter than the longest are padded on the left.
    """

    cache: Any
    lengths: Tensor

    @property
    def width(self) -> int:
        """Columns of the cache."""
        return int(self.lengths.max())


class KVCache:
    """Keys and values of a batch of sequences, of every column at every layer.

    Layers with a sliding window keep all columns too, so that any row can be moved: windows count columns, and no row has
    padding between its tokens.
    """

    def __init__(self, cache: Any, spans: Sequence[Span]) -> None:
        # A layer without keys shares those of an earlier one.
        self._layers = {n: (x.keys, x.values) for n, x in enumerate(cache.layers) if x.keys is not None}
        self._spans = torch.tensor(spans)

    def take(self, rows: Sequence[int]) -> Past:
        """The cache of rows that continue these sequences (repeats allowed), aligned on the right."""
        start, end = self._spans[list(rows)].unbind(1)
        lengths = end - start
        width = int(lengths.max())
        column = (end[:, None] - width + torch.arange(width)).clamp(
            min=0
        )  # padding repeats the first columns; it is masked
        row = torch.tensor(rows)[:, None]
        cache = DynamicCache()
        for index, parts in self._layers.items():
            keys, values = (_gather(part, row, column) for part in parts)
            cache.update(keys, values, index)
        return Past(cache, lengths)


def _gather(part: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """[rows, heads, columns, width] of [batch, heads, all columns, width]."""
    index = (row.to(part.device, non_blocking=True), column.to(part.device, non_blocking=True))
    return part.transpose(1, 2)[index].transpose(1, 2)


def kv_bytes_per_token(config: Any, itemsize: int) -> int:
    """Memory of the keys and values of one token, at all layers together, in bytes.

    Args:
        config: of a transformers model.
        itemsize: bytes of one number in the model's dtype.
    """
    text = text_config(config)
    n_layers = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", None) or 0)  # the last ones share
    # Since transformers 5 a config may say for each layer what differs there.
    layers = list(getattr(text, "per_layer_config", None) or [text] * n_layers)
    return sum(2 * _kv_heads(layer, n) * _head_dim(layer, n) for n, layer in enumerate(layers[:n_layers])) * itemsize


def _kv_heads(config: Any, layer: int) -> int:
    heads = _of_layer(getattr(config, "num_key_value_heads", None), layer)
    return int(heads or _of_layer(getattr(config, "num_attention_heads", None), layer) or 0)  # none in Mamba


def _head_dim(config: Any, layer: int) -> int:
    width = _of_layer(getattr(config, "head_dim", None), layer)
    heads = _of_layer(getattr(config, "num_attention_heads", None), layer)
    return int(width or (config.hidden_size // heads if heads else 0))


def _of_layer(value: Any, layer: int) -> Any:
    return value[layer] if isinstance(value, (list, tuple)) else value


#: Classes of cache layers that hold keys and values only, by name: some releases of transformers lack them.
_PLAIN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")  # the last keeps nothing


def forget_positions(model: PreTrainedModel) -> None:
    """Drop the offset of positions that multimodal models (Qwen-VL and its kin) keep from one generation.

    They would apply it to every later forward that continues a KV cache, with the batch size of that generation.
    """
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None


def cache_name(model: PreTrainedModel) -> str:
    """The argument of a model's forward that takes the KV cache: `cache`, before transformers 5.24 `past_key_values`."""
    base = getattr(model, "get_base_model", lambda: model)()  # of PEFT
    parameters = inspect.signature(base.forward).parameters
    return "cache" if "cache" in parameters and "past_key_values" not in parameters else "past_key_values"


def cache_kinds(model: PreTrainedModel) -> str:
    """What a model's cache holds besides keys and values, by the classes of its layers; empty where it is nothing.

    The state of a recurrent layer, or the keys of an indexer, cannot be moved between rows.
    """
    device = model.get_input_embeddings().weight.device
    token = torch.zeros(1, 1, dtype=torch.long, device="cpu" if device.type == "meta" else device)
    with torch.inference_mode():
        output = model(input_ids=token, use_cache=True)
    # By the names that it has: releases of transformers warn of one that they replaced.
    cache = next((output[name] for name in output if name in ("cache", "past_key_values")), None)
    layers: list[Any] = getattr(cache, "layers", None) or []
    if type(cache) is not DynamicCache or not layers:
        return "none" if cache is None else type(cache).__name__
    return ", ".join(sorted({type(layer).__name__ for layer in layers} - set(_PLAIN_LAYERS)))
