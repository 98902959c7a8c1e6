"""Greedy generation in which a prompt leaves the batch when its text ends, and a waiting one takes its place.

transformers generates from a batch until its last text ends, so that most rows of most steps are thrown away. Here a row is
dropped as soon as it produced an end token or a stop sequence, and rows that wait enter beside those that go on: their keys
and values are padded on the left, where the mask hides the padding. Only models that were found to continue rows from shared
keys and values without a change (`scoring.sharing`) generate like this.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationConfig

from lm_eval_ext.scoring.kv_cache import cache_name
from lm_eval_ext.scoring.lm_head import ScoredPositions
from lm_eval_ext.scoring.products import fast_products
from lm_eval_ext.steering.tokens import DecodedTokens, GeneratedTokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.injection import Injector

#: Arguments of a generation that are understood here; any other is left to transformers.
_ARGUMENTS = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "num_beams")

#: Settings of a model's generation config that change nothing of a greedy generation.
_HARMLESS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "max_new_tokens"),
    *("cache_implementation", "use_cache", "num_beams", "num_return_sequences"),
)

#: Share of a batch that must be free before waiting prompts enter: each entry costs a forward of its own (our default).
_FREE_SHARE = 0.25


def is_greedy(arguments: Mapping[str, Any]) -> bool:
    """Whether the harness's arguments of a generation ask for the most likely tokens and nothing else."""
    sampled = arguments.get("do_sample") or arguments.get("temperature") or (arguments.get("num_beams") or 1) > 1
    return not sampled and not set(arguments) - set(_ARGUMENTS)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model's generation config changes no logits (repetition penalties, forced or suppressed tokens, ...)."""
    config = getattr(model, "generation_config", None)
    if config is None or getattr(model.config, "is_encoder_decoder", False):
        return False
    default = GenerationConfig().to_dict()
    return all(
        not value or value == default.get(key) or key in _HARMLESS or (key.endswith("penalty") and value == 1)
        for key, value in config.to_dict().items()
    )


class NotANumberError(Exception):
    """The logits after some prompts, which `places` numbers, are NaN."""

    def __init__(self, places: list[int]) -> None:
        super().__init__(places)
        self.places = places


class StopSequences:
    """Whether a text contains one of some stop sequences, asked after every token.

    The last tokens are decoded first; only where they contain one is the whole text decoded, so that the answer is that of
    the text which the harness cuts at the stop sequence.
    """

    def __init__(self, tokenizer: Any, sequences: Sequence[str]) -> None:
        self._decode = tokenizer.decode
        self._sequences = [sequence for sequence in sequences if sequence]
        ids = (tokenizer.encode(sequence, add_special_tokens=False) for sequence in self._sequences)
        self._n_last = max(map(len, ids), default=0) + 2

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens contains one."""
        if not self._in(tokens[-self._n_last :]):
            return False
        return len(tokens) <= self._n_last or self._in(tokens)

    def _in(self, tokens: Sequence[int]) -> bool:
        # A character whose last bytes are yet to come is decoded as this one, and may become another.
        text = self._decode(tokens, skip_special_tokens=True).rstrip("\ufffd")
        return any(sequence in text for sequence in self._sequences)


@dataclass
class _Rows:
    """The rows of the batch: which prompts, what they produced, and their keys and values."""

    numbers: list[int]
    padding: list[int]  # columns on the left of each row's first token
    tokens: Tensor  # [rows] the token that each row feeds next
    cache: DynamicCache
    width: int  # columns of the cache

    def keep(self, places: list[int]) -> None:
        """Drop all other rows, and the columns that are padding of all that are left."""
        self.numbers = [self.numbers[place] for place in places]
        self.padding = [self.padding[place] for place in places]
        index = torch.tensor(places)
        self.tokens = self.tokens[index.to(self.tokens.device)]
        cut = min(self.padding, default=0)
        for layer in self.cache.layers:
            if layer.keys is not None:
                on_device = index.to(layer.keys.device)
                layer.keys, layer.values = (part[on_device, :, cut:] for part in (layer.keys, layer.values))
        self.padding = [columns - cut for columns in self.padding]
        self.width -= cut

    def add(self, others: _Rows) -> None:
        """Append other rows; the narrower cache is padded on the left."""
        width = max(self.width, others.width)
        for mine, theirs in zip(self.cache.layers, others.cache.layers, strict=True):
            if mine.keys is not None:
                for name in ("keys", "values"):
                    parts = [(getattr(mine, name), self.width), (getattr(theirs, name), others.width)]
                    setattr(mine, name, torch.cat([pad(part, (0, 0, width - columns, 0)) for part, columns in parts]))
        self.padding = [
            *(columns + width - self.width for columns in self.padding),
            *(columns + width - others.width for columns in others.padding),
        ]
        self.numbers += others.numbers
        self.tokens = torch.cat([self.tokens, others.tokens])
        self.width = width


@dataclass
class ContinuousGeneration:
    """Greedy generation from many prompts with one model.

    Attributes:
        model: a causal language model of transformers, possibly wrapped by PEFT.
        injector: its steering hooks.
        size: most rows of a forward.
        ends: end tokens, which are part of what is generated.
    """

    model: PreTrainedModel
    injector: Injector
    size: int
    ends: frozenset[int]
    _head: ScoredPositions = field(init=False)
    _cache_name: str = field(init=False)
    _takes_positions: bool = field(init=False)

    def __post_init__(self) -> None:
        self._head = ScoredPositions(self.model)
        self._cache_name = cache_name(self.model)
        base = getattr(self.model, "get_base_model", lambda: self.model)()  # of PEFT
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        steering: Sequence[int],
        new_tokens: int,
        stop: StopSequences,
    ) -> Iterator[tuple[int, list[int]]]:
        """The number of each prompt with the tokens generated from it, as they are finished.

        Args:
            prompts: tokens, at least one each.
            steering: the row of the steering table of each prompt.
            new_tokens: most tokens of each.
            stop: ends a text.

        Raises:
            NotANumberError: the logits of some prompts are NaN.
        """
        waiting = list(range(len(prompts)))[::-1]
        found: dict[int, list[int]] = {number: [] for number in waiting}
        rows: _Rows | None = None
        enough = max(1, int(self.size * _FREE_SHARE))
        while waiting or rows is not None:
            free = self.size - (0 if rows is None else len(rows.numbers))
            entering: _Rows | None = None
            if waiting and (rows is None or free >= min(enough, len(waiting))):
                numbers = [waiting.pop() for _ in range(min(free, len(waiting)))]
                entering = self._prompts([prompts[number] for number in numbers], numbers, steering)
            else:
                assert rows is not None
                self._step(rows, steering)
            current = entering or rows
            assert current is not None
            kept = []
            for place, (number, token) in enumerate(zip(current.numbers, current.tokens.tolist(), strict=True)):
                tokens = found[number]
                tokens.append(token)
                if token in self.ends or len(tokens) >= new_tokens or stop.end(tokens):
                    yield number, found.pop(number)
                else:
                    kept.append(place)
            if kept and len(kept) < len(current.numbers):
                current.keep(kept)
            if entering is not None and rows is not None and kept:
                rows.add(entering)
            elif entering is None or rows is None:
                rows = current if kept else None

    def _prompts(self, prompts: list[Sequence[int]], numbers: list[int], steering: Sequence[int]) -> _Rows:
        """The first forward of some prompts, padded on the left."""
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, padding[row] :] = torch.tensor(prompt)
        cache = DynamicCache()
        mask = (torch.arange(width)[None] >= torch.tensor(padding)[:, None]).long()
        with self.injector.batch([steering[number] for number in numbers], GeneratedTokens(mask)):
            tokens = self._forward(ids, cache, padding, width, numbers)
        return _Rows(numbers, padding, tokens, cache, width)

    def _step(self, rows: _Rows, steering: Sequence[int]) -> None:
        """One more token of every row."""
        with self.injector.batch([steering[number] for number in rows.numbers], DecodedTokens()):
            rows.width += 1
            rows.tokens = self._forward(rows.tokens[:, None], rows.cache, rows.padding, rows.width, rows.numbers)

    def _forward(self, ids: Tensor, cache: DynamicCache, padding: list[int], width: int, numbers: list[int]) -> Tensor:
        """The most likely next token of each row; `width` counts the columns with those of `ids`."""
        device = self.model.get_input_embeddings().weight.device
        device = torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves the input
        arguments: dict[str, Any] = {"use_cache": True, self._cache_name: cache}
        if any(padding):
            left = torch.tensor(padding, device=device)[:, None]
            arguments["attention_mask"] = (torch.arange(width, device=device)[None] >= left).long()
            if self._takes_positions:
                columns = torch.arange(width - ids.shape[1], width, device=device)[None]
                arguments["position_ids"] = (columns - left).clamp(min=0)
        places = [(row, ids.shape[1], 1) for row in range(len(ids))]
        products = fast_products(self.model.get_input_embeddings().weight)
        with torch.inference_mode(), products, self._head.only(places, ids.shape[1]):
            output = self.model(input_ids=ids.to(device), **arguments)
            highest, tokens = self._head.scored(output.logits).max(-1)
        if bool(highest.isnan().any()):
            lost = highest.isnan().tolist()
            raise NotANumberError([number for number, is_lost in zip(numbers, lost, strict=True) if is_lost])
        return tokens
