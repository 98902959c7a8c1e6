"""Of which tokens of a text the hidden states are taken: a grammar, like that of the positions of plans.

    last        the text's last token, at which `last` of a plan adds
    last3       the mean over its last three tokens
    first2      the mean over its first two tokens
    mean        the mean over all tokens
    after       the mean over the tokens of a pair's text that its other text does not begin with: in a question with its
                country named the words from the country on, in the other one those that stand in their place
    generated   the mean over the tokens of the pair's answer, which continues both texts

Tokens are counted as in plans: special tokens that the tokenizer adds count, but are left out of every mean, because the
norm of a beginning-of-sequence token is a hundred times that of others, so that a mean with it would reflect mostly the
length of the text.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from lm_eval_ext.errors import DataError, UserError
from lm_eval_ext.steering.plan import n_first, n_last

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from lm_eval_ext.data.pairs import Pair

#: One of `POOLINGS`, `after`, `generated`, or `last` or `first` with a count.
Pooling = str
POOLINGS: tuple[Pooling, ...] = ("last", "mean")
VALID_POOLINGS = "last, mean, last3, first2 (any count), after, generated"


def parse_pooling(text: str) -> Pooling:
    """A pooling given by the user, in its one spelling (`last1` is `last`).

    Raises:
        UserError: none of `VALID_POOLINGS`.
    """
    from lm_eval_ext.steering.plan import parse_position

    if text in (*POOLINGS, "after", "generated"):
        return text
    try:
        position = parse_position(text)
    except UserError:
        position = ""
    if not (n_last(position) or n_first(position)):
        raise UserError(f"pooling {text!r} is unknown, valid: {VALID_POOLINGS}")
    return position


class PooledText(NamedTuple):
    """The tokens of a text, and the indices of those whose states are pooled."""

    ids: list[int]
    indices: list[int]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[PooledText]:
    """Token ids of each text, and the indices of those that are not special tokens.

    As in the harness, no special tokens are added to a text that begins with one itself, as chat templates do.
    """
    begin = tokenizer.bos_token
    whole = [begin is not None and text.startswith(str(begin)) for text in texts]
    encoded: list[PooledText | None] = [None] * len(texts)
    for has_begin in set(whole):
        numbers = [number for number, flag in enumerate(whole) if flag is has_begin]
        options = {"add_special_tokens": False} if has_begin else {}
        encoding = tokenizer([texts[n] for n in numbers], return_special_tokens_mask=True, **options)
        for number, ids, mask in zip(numbers, encoding["input_ids"], encoding["special_tokens_mask"], strict=True):
            skipped = 1 if has_begin and len(ids) > 1 else 0
            encoded[number] = PooledText(ids, [i for i, special in enumerate(mask) if not special and i >= skipped])
    return [text for text in encoded if text is not None]


def pool(text: PooledText, pooling: Pooling, start: int = 0) -> PooledText:
    """A text with the indices that a pooling takes.

    Args:
        text: with the indices of all tokens but special ones.
        pooling: of the grammar.
        start: for `after` and `generated` the index of the first token.
    """
    indices = text.indices
    if count := n_last(pooling):
        indices = [index for index in indices if index > indices[-1] - count]
    elif count := n_first(pooling):
        indices = [index for index in indices if index < count]
    elif pooling in ("after", "generated"):
        # Where the other text goes on and this one is at its end, its last token stands before what it lacks.
        indices = [index for index in indices if index >= start] or indices[-1:]
    return PooledText(text.ids, indices)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], pooling: Pooling, where: str
) -> list[tuple[list[PooledText], list[PooledText]]]:
    """The tokens of the positive and negative texts of each pair, with the indices that are pooled.

    Raises:
        DataError: `generated` and a pair without an answer; a text of which no token is left.
    """
    if pooling == "generated" and (lacking := sum(not pair.answer for pair in pairs)):
        raise DataError(
            f"pooling generated: {lacking} of {len(pairs)} pairs of {where} have no answer, whose tokens would be pooled: "
            "give one to each (pairs of tasks have them), or use another pooling"
        )
    sides = [(pair.positives, pair.negatives) for pair in pairs]
    prompts = iter(encode(tokenizer, [text for pair in sides for side in pair for text in side]))
    answered = iter(
        encode(
            tokenizer,
            [text + pair.answer for pair in pairs for side in (pair.positives, pair.negatives) for text in side],
        )
        if pooling == "generated"
        else ()
    )
    encoded = []
    for positives, negatives in sides:
        both = [next(prompts) for _ in positives], [next(prompts) for _ in negatives]
        taken: tuple[list[PooledText], list[PooledText]] = ([], [])
        for own, other, into in zip(both, reversed(both), taken, strict=True):
            for text in own:
                whole, start = text, 0
                if pooling == "generated":
                    whole, start = next(answered), len(text.ids)
                elif pooling == "after":
                    start = max(_n_common(text.ids, counterpart.ids) for counterpart in other)
                into.append(pool(whole, pooling, start))
        encoded.append(taken)
    if not all(text.indices for taken in encoded for side in taken for text in side):
        raise DataError(f"a text of {where} has no tokens" + (f" at {pooling}" if n_first(pooling) else ""))
    return encoded


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
