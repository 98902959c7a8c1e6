"""Tokens of (context, continuation) pairs: the harness's `loglikelihood` tokenisation, in few calls of the tokenizer."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lm_eval.models.utils import has_bos_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Tokens = tuple[int, ...]


class TokenizingModel(Protocol):
    """The part of a harness model that tokenisation needs.

    Attributes:
        tokenizer: of transformers.
        add_bos_token: whether a beginning-of-sequence token is put before a text; None for the tokenizer's default.
    """

    tokenizer: Any
    add_bos_token: bool | None

    @property
    def prefix_token_id(self) -> int:
        """The token used for an empty context."""


class Pair(NamedTuple):
    """Tokens of a prompt and of its continuation; one is empty where its text has no tokens."""

    prompt: Tokens
    continuation: Tokens


def encode_pairs(model: TokenizingModel, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The tokens that the harness scores for each (context, continuation); every distinct text is tokenised once.

    As in the harness, white space at the end of a context belongs to the continuation, and an empty context becomes the
    model's prefix token, which is not repeated where the continuation begins with it.
    """
    moved = {pair: _move_spaces(*pair) for pair in set(pairs) if pair[0]}
    together = encode(model, (text for context, rest in moved.values() for text in (context, context + rest)))
    alone = encode(model, (rest for context, rest in pairs if not context), add_special_tokens=False)
    prefix = (model.prefix_token_id,)
    encoded: list[Pair] = []
    for pair in pairs:
        if pair in moved:
            context, rest = moved[pair]
            prompt = together[context]
            encoded.append(Pair(prompt, together[context + rest][len(prompt) :]))
        else:
            tokens = alone[pair[1]]
            encoded.append(Pair(prefix, tokens[1:] if tokens[:1] == prefix else tokens))
    return encoded


def encode(model: TokenizingModel, texts: Iterable[str], add_special_tokens: bool | None = None) -> dict[str, Tokens]:
    """The tokens of each text, as `model.tok_encode` returns them."""
    prefix = model.tokenizer.decode(model.prefix_token_id)
    by_option: dict[bool | None, list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        special = add_special_tokens
        if special is None:
            special = False if has_bos_prefix(text, prefix) else model.add_bos_token
        by_option[special].append(text)
    encoded: dict[str, Tokens] = {}
    for special, group in by_option.items():
        options = {} if special is None else {"add_special_tokens": special}
        encoded.update(zip(group, map(tuple, model.tokenizer(group, **options)["input_ids"]), strict=True))
    return encoded


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation
