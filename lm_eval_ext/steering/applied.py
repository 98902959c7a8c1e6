"""Steering a transformers model directly: `with vectors.apply(model, plan, language="ko"): model.generate(...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.errors import LanguageError, ModelError
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.tokens import GeneratedTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.table import SteeringTable


#: The argument with the KV cache, by releases and families of transformers.
_CACHES = ("past_key_values", "cache")


class AppliedSteering:
    """Hooks on a model that steer every forward until they are removed; a context manager that removes them at its end.

    The tokens of a forward without a KV cache, or with an empty one, are a prompt; tokens of later forwards with that
    cache were generated after it. Several of these on one model add up.

    Args:
        model: a decoder-only model of transformers.
        table: the plan, resolved.
        languages: of all examples, or of each example of a batch.
    """

    def __init__(self, model: PreTrainedModel, table: SteeringTable, languages: str | Sequence[str] | None) -> None:
        self._model = model
        self._table = table
        self._same_language = languages is None or isinstance(languages, str)
        codes = [languages] if languages is None or isinstance(languages, str) else languages
        self._rows = [table.row(code) for code in codes]
        self._injector: Injector | None = None
        self._handles: list[Any] = []
        self._depth = 0
        self._prompt: Tensor | None = None
        self._without_cache: Tensor | None = None
        self._in_forward = False
        self.attach()

    def attach(self) -> None:
        """Register the hooks on the model, unless they are registered."""
        if self._injector is None:
            self._injector = Injector(self._model, self._table)
            called = _innermost(self._model)
            # The forward hook runs also where the forward raised.
            self._handles = [
                called.register_forward_pre_hook(self._before, with_kwargs=True),
                called.register_forward_hook(self._after, always_call=True),
                *(
                    decoder_layers(self._model)[layer].register_forward_pre_hook(self._check)
                    for layer in self._table.steps
                ),
            ]

    def remove(self) -> None:
        """Remove the hooks from the model, if they are registered."""
        if self._injector is not None:
            self._injector.remove()
            for handle in self._handles:
                handle.remove()
            self._injector, self._handles = None, []
            self._prompt = self._without_cache = None

    def __enter__(self) -> AppliedSteering:
        self.attach()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.remove()

    def _before(self, module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        assert self._injector is not None
        self._in_forward = True
        ids = options.get("input_ids", arguments[0] if arguments else None)
        tokens = ids if ids is not None else options["inputs_embeds"]
        n, length = tokens.shape[:2]
        cache = next((options[name] for name in _CACHES if options.get(name) is not None), None)
        past = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
        if past == 0 and not self._repeats_previous(ids, cache, options):
            self._prompt = _prompt_mask(options.get("attention_mask"), n, length, tokens.device)
        elif self._prompt is None or self._prompt.shape[0] != n:  # registered in the middle of a generation
            self._prompt = _prompt_mask(options.get("attention_mask"), n, past or length, tokens.device)
        assert self._prompt is not None
        self._injector.begin(self._rows_of(n), GeneratedTokens(self._prompt), offset=past)

    def _after(self, module: Any, arguments: Any, output: Any) -> None:
        self._in_forward = False
        if self._injector is not None:
            self._injector.end()

    def _check(self, module: Any, arguments: Any) -> None:
        """A forward that reaches a steered layer past `_before` would not be steered, without a word."""
        if not self._in_forward:
            raise ModelError(
                f"the decoder layers of this {type(self._model).__name__} were called past its forward, so that nothing "
                "says which tokens to steer: call vectors.apply on the model that is called"
            )

    def _repeats_previous(self, ids: Tensor | None, cache: Any, options: dict[str, Any]) -> bool:
        """Whether a forward repeats the previous one with one more token: generation with `use_cache=False`."""
        before, self._without_cache = self._without_cache, None
        if cache is not None or options.get("use_cache") is not False or ids is None:
            return False
        self._without_cache = ids
        return (
            before is not None
            and before.shape[0] == ids.shape[0]
            and ids.shape[1] == before.shape[1] + 1
            and bool(torch.equal(ids[:, :-1], before))
        )

    def _rows_of(self, n: int) -> list[int]:
        if self._same_language:
            return self._rows * n
        if n % len(self._rows):
            raise LanguageError(
                f"language= names {len(self._rows)} languages, but the batch has {n} examples: name one for each, or one "
                "for all"
            )
        return [row for row in self._rows for _ in range(n // len(self._rows))]  # the beams of an example are adjacent


def _innermost(model: Any) -> Any:
    """The model that every call comes down to: `generate` of PEFT's wrapper, or of a compiled model, does not call these."""
    model = getattr(model, "_orig_mod", model)
    return getattr(model, "get_base_model", lambda: model)()


def _prompt_mask(mask: Any, n: int, length: int, device: torch.device) -> Tensor:
    """[batch, length], true at the prompts' tokens; at all where there is no 2-dimensional attention mask."""
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] >= length:
        return mask[:, :length]
    return torch.ones(n, length, dtype=torch.long, device=device)
