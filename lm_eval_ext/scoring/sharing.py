"""What the rows of a forward may share with one model: measured on the model itself before anything is shared.

Scoring is quick because rows of several lengths run in one forward, because rows continue from keys and values of an
earlier one, and because prompts and options lie in one row under an attention mask of ours. Each of these can change
results: windows and chunks that count columns, attention that selects tokens, recurrent state, frequencies that depend on
the longest row. So the same requests are scored one row at a time and in each of these ways, with prompts as long as those
of the run, and what moves results by more than rounding does is not used.

The noise of rounding is measured too: the embeddings and the output of every decoder layer are changed by about half of the
last bit of the run's dtype. A number that a way of sharing may change by this much is one that another order of summation
changes as well.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring.batching import out_of_memory
from lm_eval_ext.scoring.kv_cache import cache_kinds
from lm_eval_ext.scoring.requests import Request
from lm_eval_ext.scoring.tree_attention import cannot_run_trees
from lm_eval_ext.steering.decoder import decoder_layers, text_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lm_eval_ext.scoring.lm_head import Token

    #: Scores requests in one way: log-probability of every token of every continuation.
    Run = Callable[[Sequence[Request], "Sharing"], dict[Request, list[Token]]]

#: Differences of up to this many times the largest measured noise are rounding (our defaults): in half precision, where
#: products are summed in float32 and rounded once, and in float32 and float64, where the order of their sums counts too.
NOISE_FACTOR, NOISE_FACTOR_FULL = 2.0, 16.0

#: Shortest and longest prompt of the probe. It is longer only where the config has a window beyond the latter.
_SHORTEST, _LONGEST = 64, 768

#: Numbers in a config that are sizes or ids, not lengths in tokens.
_SIZE = re.compile(
    r"hidden|intermediate|vocab|head|dim|rank|expert|ffn|layer|token|width|channel|embd|image|audio|vision|seed|max_pos|"
    r"n_positions|theta|group|bias|version"
)

#: Keys of configs whose attention selects tokens, also in releases of transformers without a cache of its own for them.
_SELECTS = re.compile(
    r"index_topk|indexer_budget|sparse_attention|sparse_topk|keep_window_size|lsh_|topk_blocks|block_topk"
)


class Sharing(IntEnum):
    """How much the rows of a forward share; each includes those before."""

    #: One row in a forward.
    ALONE = 0
    #: Rows of several lengths in a forward, padded.
    BATCHES = 1
    #: Rows continue from the keys and values of an earlier one.
    CACHE = 2
    #: Prompts and options in one row.
    TREES = 3


_WORDS = {
    Sharing.ALONE: "one row per forward",
    Sharing.BATCHES: "rows in batches, nothing shared between them",
    Sharing.CACHE: "rows in batches that continue from shared keys and values",
    Sharing.TREES: "prompts and options in one row",
}


@dataclass(frozen=True)
class Verdict:
    """What may be shared.

    Attributes:
        sharing: the most that changes nothing.
        reason: why no more; empty for all.
        length: prompts of up to so many tokens were tried.
        noise: largest change of a token's log-probability by rounding alone, in nats.
        tolerance: largest difference that is taken for rounding.
        differences: largest change by each way of sharing that was tried, in nats.
    """

    sharing: Sharing
    reason: str = ""
    length: int = 0
    noise: float = 0.0
    tolerance: float = 0.0
    differences: tuple[tuple[Sharing, float], ...] = ()

    def __str__(self) -> str:
        return _WORDS[self.sharing] + (f": {self.reason}" if self.reason else "")

    def record(self) -> dict[str, Any]:
        """For `get_model_info()`."""
        return {
            "sharing": self.sharing.name.lower(),
            "meaning": _WORDS[self.sharing],
            "reason": self.reason or None,
            "probed_tokens": self.length,
            "rounding_noise": self.noise,
            "tolerance": self.tolerance,
            "differences": {way.name.lower(): value for way, value in self.differences},
        }


#: What a forward costs besides its tokens, in tokens: its weights are read, its operators called (our default).
_FORWARD = 32


def cost(rows: Iterable[int]) -> int:
    """What forwards of one row cost, in tokens.

    Args:
        rows: tokens of each.
    """
    return sum(_FORWARD + length for length in rows)


def probe_cost(length: int) -> int:
    """About what `check` costs with a longest prompt of `length` tokens: fourteen forwards of thirteen times that many."""
    return 14 * _FORWARD + 13 * length


def rope_switch(model: PreTrainedModel) -> int | None:
    """The length beyond which rotary frequencies depend on the longest sequence of a forward; None where they never do."""
    text = text_config(model.config)
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)] if isinstance(parameters, dict) else []
    lengths: list[int] = []
    for rope in [parameters, *nested]:
        kind = str(rope.get("rope_type") or rope.get("type") or "")
        if kind == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            lengths.append(int(original or text.max_position_embeddings))
        elif "dynamic" in kind:
            lengths.append(int(rope.get("original_max_position_embeddings") or text.max_position_embeddings))
    return min(lengths, default=None)


def probe_length(config: Any, longest: int, limit: int) -> int:
    """Tokens of the longest prompt of the probe: of the run's longest row, or of one beyond its last window.

    Args:
        config: of the model. Every number in it that is no size is taken for a window, whatever its name.
        longest: row of the run.
        limit: most tokens of a prompt.
    """
    windows = [value for value in _lengths(text_config(config).to_dict()) if _LONGEST <= value < longest]
    wanted = max(_SHORTEST, min(longest, _LONGEST), *(value + _SHORTEST for value in windows), 0)
    return min(wanted, limit)


def _lengths(values: Any, key: str = "") -> Iterator[int]:
    if isinstance(values, dict):
        for name, value in values.items():
            if not _SIZE.search(str(name)):
                yield from _lengths(value, str(name))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _lengths(value, key)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield values


def selecting(config: Any, length: int) -> list[str]:
    """Keys of a config by which attention selects tokens where a row has `length` of them.

    Indexers score tokens by a ReLU, so that several have a score of exactly zero; which of them are taken is left to `topk`,
    whose choice changes with the length of the row that it is given. A probe may or may not meet such a case.
    """
    values = config.to_dict()
    return sorted(
        key for key in values if _SELECTS.search(key) and any(0 < n < length for n in _lengths(values[key], key))
    )


def check(model: PreTrainedModel, run: Run, tokens: Sequence[int], length: int, *, trees: bool = True) -> Verdict:
    """What may be shared, from a comparison with forwards of one row.

    Args:
        model: the model.
        run: scores requests in one way, unsteered.
        tokens: of the run's prompts and options, of which the probe is made.
        length: of the longest prompt; see `probe_length`.
        trees: whether the rows of the run may be trees at all.
    """
    requests = _requests(tokens, length)
    first_of_each = list({request.prompt: request for request in reversed(requests)}.values())
    scored = run(requests, Sharing.ALONE)
    noise = [_noise(model, run, first_of_each, scored, seed=0)]
    sharing, reason, differences = Sharing.ALONE, "", list[tuple[Sharing, float]]()
    for way in (Sharing.BATCHES, Sharing.CACHE, Sharing.TREES)[: 3 if trees else 2]:
        reason = _structure(model, way, length)
        if reason:
            break
        asked = first_of_each if way == Sharing.BATCHES else requests
        expected = _values(scored, asked)
        try:
            found = _values(run(asked, way), asked)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, ModelError) as error:
            if out_of_memory(error):
                raise
            reason = f"{_TRIED[way]} failed ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})"
            break
        difference = _difference(found, expected)
        if not difference <= _tolerance(model, expected, noise):
            # Of several draws one may show what is rare, such as a router that chooses otherwise.
            noise += [_noise(model, run, first_of_each, scored, seed) for seed in range(len(noise), 5)]
        differences.append((way, difference))
        if not difference <= _tolerance(model, expected, noise):
            reason = (
                f"{_TRIED[way]} changes the log-probability of a token by {difference:.2g} nats, rounding by "
                f"{max(noise):.1g}"
            )
            break
        sharing = way
    tolerance = _tolerance(model, _values(scored, requests), noise)
    return Verdict(sharing, reason, length, max(noise), tolerance, tuple(differences))


_TRIED = {
    Sharing.BATCHES: "a batch of rows of different lengths",
    Sharing.CACHE: "continuing from shared keys and values",
    Sharing.TREES: "a row of several prompts with their options under a custom attention mask",
}


def _structure(model: PreTrainedModel, way: Sharing, length: int) -> str:
    """The reason against a way of sharing that needs no forward, with prompts of up to `length` tokens."""
    if way == Sharing.BATCHES and (keys := selecting(text_config(model.config), length)):
        return (
            f"its attention selects some of up to {length} tokens ({', '.join(keys)}), and which of equally good ones "
            "depends on the longest row of a forward"
        )
    if way == Sharing.CACHE:
        if kinds := cache_kinds(model):
            return f"its cache is not of keys and values only ({kinds})"
        if keys := sorted(key for key in text_config(model.config).to_dict() if _SELECTS.search(key)):
            return f"its attention selects tokens ({', '.join(keys)})"
    if way == Sharing.TREES:
        return cannot_run_trees(model)
    return ""


def _requests(tokens: Sequence[int], length: int) -> list[Request]:
    """Three prompts of different lengths, two with a common beginning, whose continuations branch.

    The options of the two continue from pasts of different lengths in one forward, of which one is padded. All tokens are of
    the run, in another order for each prompt, so that what leaks from a neighbour shows.
    """
    distinct = list(dict.fromkeys(tokens)) or [0]
    generator = torch.Generator().manual_seed(length)
    order = torch.randint(len(distinct), (2 * length + 9,), generator=generator).tolist()
    drawn = [distinct[index] for index in order]
    a, b, c, d, e, f = islice(cycle(drawn[-9:]), 6)
    half = length * 5 // 8
    prompts = [tuple(drawn[:length]), tuple(drawn[:half] + drawn[length : length + length // 8 + 1])]
    short = tuple(drawn[length + half : length + half + max(1, length // 4)])
    return [
        *(Request(prompts[0], continuation, 0) for continuation in ((a, b, c), (d, e, f))),
        *(Request(prompts[1], continuation, 0) for continuation in ((e, f), (d, a))),
        *(Request(short, continuation, 0) for continuation in ((a, b), (c, d, e), (f,))),
    ]


def _values(scored: dict[Request, list[Token]], requests: Sequence[Request]) -> list[float]:
    return [value for request in dict.fromkeys(requests) for value, _ in scored[request]]


def _difference(found: list[float], expected: list[float]) -> float:
    differences = (torch.tensor(found, dtype=torch.float64) - torch.tensor(expected, dtype=torch.float64)).abs()
    return float(differences.max())  # NaN where anything is


def _noise(
    model: PreTrainedModel, run: Run, requests: Sequence[Request], scored: dict[Request, list[Token]], seed: int
) -> float:
    """Largest change of a token's log-probability where the last bits change."""
    with rounded(model, seed):
        return _difference(_values(run(requests, Sharing.ALONE), requests), _values(scored, requests))


def _tolerance(model: PreTrainedModel, expected: list[float], noise: list[float]) -> float:
    resolution = 4 * torch.finfo(torch.float32).eps * max(map(abs, expected))  # log-softmaxes are float32 numbers
    factor = NOISE_FACTOR_FULL if _dtype(model) in (torch.float32, torch.float64) else NOISE_FACTOR
    return max(factor * max(noise), resolution)


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """That the layers compute in."""
    weight = model.get_input_embeddings().weight
    dtype: torch.dtype = weight.dtype
    device = weight.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # weights that are offloaded are on the meta device
        dtype = torch.get_autocast_dtype(device)
    return dtype if dtype.is_floating_point else torch.bfloat16


@contextmanager
def rounded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Inside, the embeddings and the outputs of all decoder layers are rounded up or down at random."""
    step = torch.finfo(_dtype(model)).eps
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor) -> Tensor:
        noise = torch.rand(tensor.shape, generator=generator).sub_(0.5).mul_(step).add_(1)
        return (tensor.float() * noise.to(tensor.device)).to(tensor.dtype)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            parts = (change(output[0]), *output[1:])
            return type(output)(*parts) if hasattr(output, "_fields") else parts
        return change(output) if isinstance(output, torch.Tensor) else None

    try:
        layers = list(decoder_layers(model))
    except ModelError:
        layers = []
    handles = [module.register_forward_hook(hook) for module in (model.get_input_embeddings(), *layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
