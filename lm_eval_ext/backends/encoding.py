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
    """Tokens of a prompt and of what is scored after it; one is empty where its text has no tokens.

    Attributes:
        prompt: tokens before the first scored one.
        continuation: scored tokens.
        lead: how many of the scored tokens are the end of the context: white space, or what a sibling option merged with.
    """

    prompt: Tokens
    continuation: Tokens
    lead: int = 0


class Encoded(NamedTuple):
    """What `encode_pairs` returns.

    Attributes:
        pairs: tokens of each (context, continuation).
        merged: indices of those in which a token spans context and continuation.
    """

    pairs: list[Pair]
    merged: list[int]


def encode_pairs(model: TokenizingModel, pairs: Sequence[tuple[str, str]]) -> Encoded:
    """The tokens that are scored for each (context, continuation); every distinct text is tokenised once.

    As in the harness, white space at the end of a context is scored with the continuation, and an empty context becomes
    the model's prefix token, which is not repeated where the continuation begins with it.

    Where a token spans context and continuation, the harness cuts the joint tokens after as many as the context alone has,
    and with them characters of the continuation. Here all continuations of that context are scored from the last token on
    that context and joint text have in common, so that they stay comparable with each other.
    """
    moved = {pair: _move_spaces(*pair) for pair in set(pairs) if pair[0]}
    texts = [text for context, rest in moved.values() for text in (context, context + rest)]
    together = encode(model, [*texts, *(context for context, _ in moved)])
    alone = encode(model, (rest for context, rest in pairs if not context), add_special_tokens=False)
    prefix = (model.prefix_token_id,)
    split: dict[str, int] = {}
    for context, rest in moved.values():
        common = _n_common(together[context], together[context + rest])
        split[context] = min(common, split.get(context, common))
    encoded: list[Pair] = []
    merged: list[int] = []
    for index, pair in enumerate(pairs):
        if pair not in moved:
            tokens = alone[pair[1]]
            encoded.append(Pair(prefix, tokens[1:] if tokens[:1] == prefix else tokens))
            continue
        context, rest = moved[pair]
        tokens, first = together[context + rest], split[context]
        if _n_common(together[context], tokens) < len(together[context]):
            merged.append(index)
        prompt, continuation = tokens[:first], tokens[first:]
        if together[context] and not prompt:
            prompt = prefix
        lead = min(_n_common(together[pair[0]], tokens) - first, len(continuation) - 1)
        encoded.append(Pair(prompt, continuation, max(0, lead)))
    return Encoded(encoded, merged)


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


def _n_common(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    if b[: len(a)] == a:
        return len(a)
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
