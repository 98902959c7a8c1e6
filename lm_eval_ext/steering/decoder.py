"""Where a transformers model keeps its residual stream: decoder layers, their count and width, and its identity.

The residual stream after decoder layer `l` (0-based) is the output of block `l`, that is `hidden_states[l + 1]`. Of families
with several streams see `ResidualStream`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: The convention of every layer number in plans, vector files and results (our default; the paper does not say).
LAYER_CONVENTION = "0-based output of block l = hidden_states[l+1]"

_IDENTITY = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

#: How often looped layers are run, by the config's key (Dory, Inkling 2).
_LOOPS = ("n_recurrent_loops", "loop_num_passes")


def text_config(config: Any) -> Any:
    """The part of a config that describes the text decoder (multimodal models nest it)."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def fingerprint(config: Any) -> str:
    """A short hash of the decoder's shape: the same for a base model and its fine-tuned or adapted descendants.

    Vectors of one model may be used on another with the same fingerprint. The vocabulary is left out, since adapters may
    add tokens.
    """
    text = text_config(config)
    identity = {key: _attribute(text, key) for key in _IDENTITY}
    # Some releases of transformers leave these out where they follow from the others.
    heads = identity["num_attention_heads"]
    identity["num_key_value_heads"] = _attribute(text, "num_key_value_heads") or heads
    width = identity["hidden_size"]
    derived = width // heads if isinstance(width, int) and isinstance(heads, int) else None
    identity["head_dim"] = _attribute(text, "head_dim") or derived
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _attribute(text: Any, name: str) -> Any:
    """An attribute of a config, None where it has none; a list where transformers keeps one for each layer (Gemma 4)."""
    try:
        return getattr(text, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError, which older releases lack
        return [getattr(layer, name) for layer in text.per_layer_config]


def layer_count(config: Any) -> int:
    """Number of decoder layers, from the config alone (no weights needed).

    Raises:
        ModelError: the config has no such number.
    """
    text = text_config(config)
    if getattr(text, "num_hidden_layers", None) is None:
        raise ModelError(
            f"the config of {text.model_type} has no num_hidden_layers: this architecture is not supported"
        )
    return int(text.num_hidden_layers)


def hidden_size(config: Any) -> int:
    """Width of the residual stream, from the config alone."""
    return int(text_config(config).hidden_size)


def text_only(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Arguments that say that token ids [batch, length] hold no image, where a model asks for that in training (Gemma 3)."""
    base = getattr(model, "get_base_model", lambda: model)()  # of PEFT
    asks = model.training and "token_type_ids" in inspect.signature(base.forward).parameters
    return {"token_type_ids": ids.new_zeros(ids.shape)} if asks else {}


def decoder_layers(model: PreTrainedModel | nn.Module, config: Any = None) -> nn.ModuleList:
    """The decoder layers of `model`, whatever wraps it (PEFT, multimodal) and however its family names them.

    Found by structure, not by a table of names: the module list with as many entries as the config has layers.

    Args:
        model: of transformers, or another engine's module.
        config: of transformers; the model's own where left out.

    Raises:
        ModelError: an encoder-decoder, or no such list, or several; layers that run more than once, or
            that see more than the tokens of the text.
    """
    from torch import nn

    config = model.config if config is None else config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{config.model_type} is an encoder-decoder; steering needs a decoder-only model (AutoModelForCausalLM)"
        )
    if any((getattr(text_config(config), key, None) or 1) > 1 for key in _LOOPS):
        raise ModelError(
            f"{config.model_type} runs some of its decoder layers several times in a forward, so that they have no residual "
            "stream of their own: it can be evaluated, but not steered"
        )
    if config.model_type == "xlnet":
        raise ModelError("the layers of xlnet return [length, batch, hidden]: it can be evaluated, but not steered")
    if getattr(text_config(config), "prompt_length", 0):
        raise ModelError(
            f"{config.model_type} puts {text_config(config).prompt_length} positions of its own before every text: it can "
            "be evaluated, but not steered"
        )
    count = layer_count(config)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and not _of_another_modality(name)
    }
    # Per-layer lists inside a layer (experts, say) may have as many entries: the stack itself is the outermost.
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists if other != n)}
    if len(outermost) != 1:
        candidates = ", ".join(outermost) or "none"
        raise ModelError(
            f"cannot tell which module list of {config.model_type} holds its {count} decoder layers: {candidates}"
        )
    return next(iter(outermost.values()))


def _of_another_modality(name: str) -> bool:
    return any(word in name for word in ("vision", "visual", "image", "img", "audio"))


@dataclass(frozen=True)
class ResidualStream:
    """Where the residual stream is in what a decoder layer returns: a tensor, or the head of a tuple (transformers 4).

    Most families return the stream itself, [batch, length, hidden]. Of several streams it is the one that carries the
    prediction:

    - AltUp (Gemma 3n; Baykal et al. 2023), [inputs, batch, length, hidden]: the active input. The layer computes on it, and
      corrects the others from it.
    - Hyper-connections (DeepSeek V4; Xie et al. 2026), [batch, length, streams, hidden]: the mean of the streams. Layers mix
      them by doubly stochastic matrices, which keep the mean, and the model's head reads a weighted sum of them. A change of
      the mean is made in every stream. Qwen4-Exp, whose streams are not mixed, has them side by side,
      [batch, length, streams * hidden].

    Attributes:
        active: the active input of AltUp; None for other families.
        n_streams: of hyper-connections; 0 for other families.
        side_by_side: whether the streams are in one dimension.
    """

    active: int | None = None
    n_streams: int = 0
    side_by_side: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> ResidualStream:
        """That of a model's family, from its config."""
        text = text_config(model.config)
        active = getattr(text, "altup_active_idx", None)
        if n_streams := getattr(text, "hc_count", 0):
            return cls(n_streams=int(n_streams), side_by_side=True)
        return cls(None if active is None else int(active), int(getattr(text, "hc_mult", 0) or 0))

    def read(self, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The residual stream [batch, length, hidden] in a decoder layer's output.

        Raises:
            ModelError: the layers return something else.
        """
        if hasattr(output, "_fields"):
            raise ModelError(
                f"the decoder layers of this architecture return {type(output).__name__}, not a residual stream [batch, "
                "length, hidden]: it can be evaluated, but not steered"
            )
        stream = output[0] if isinstance(output, (tuple, list)) else output
        if self.side_by_side and stream.dim() == 3:
            return stream.view(*stream.shape[:2], self.n_streams, -1).mean(2)
        if stream.dim() == 4 and self.active is not None:
            return stream[self.active]
        if stream.dim() == 4 and self.n_streams and stream.shape[2] == self.n_streams:
            return stream.mean(2)
        if stream.dim() != 3:
            raise ModelError(
                f"the decoder layers of this architecture return {list(stream.shape)}, not a residual stream [batch, "
                "length, hidden]: it can be evaluated, but not steered"
            )
        return stream

    def write(self, output: Tensor | tuple[Tensor, ...], value: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`output` with its residual stream replaced (never edited in place)."""
        stream = output[0] if isinstance(output, (tuple, list)) else output
        if self.side_by_side:
            value = stream + (value - self.read(stream)).repeat(1, 1, self.n_streams)
        elif stream.dim() == 4 and self.active is None:
            value = stream + (value - stream.mean(2)).unsqueeze(2)
        elif stream.dim() == 4:
            import torch

            value = torch.stack([value if index == self.active else x for index, x in enumerate(stream.unbind(0))])
        return (value, *output[1:]) if isinstance(output, (tuple, list)) else value


def residual(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The only residual stream in a decoder layer's output; see `ResidualStream.read`."""
    return ResidualStream().read(output)


def with_residual(output: Tensor | tuple[Tensor, ...], value: Tensor) -> Tensor | tuple[Tensor, ...]:
    """`output` with its only residual stream replaced; see `ResidualStream.write`."""
    return ResidualStream().write(output, value)
