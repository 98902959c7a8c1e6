"""The tokenizer of a Gemma GGUF file, the same from every release of transformers.

transformers 4 builds a unigram model from it, which tokenises differently from Gemma's byte-pair encoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

#: Types of a token in a GGUF file.
CONTROL, USER_DEFINED = 3, 4

SPACE, UNKNOWN = "▁", "<unk>"


def read_tokens(file: Path) -> tuple[list[str], list[int]]:
    """The tokens of a GGUF file in the order of their ids, and their types."""
    from gguf import GGUFReader

    fields: dict[str, Any] = GGUFReader(file).fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    return [bytes(tokens.parts[i]).decode() for i in tokens.data], [int(types.parts[i][0]) for i in types.data]


def build(tokens: list[str], types: list[int]) -> PreTrainedTokenizerFast:
    """Gemma's tokenizer: byte-pair encoding with byte fallback, spaces as `▁`, a beginning-of-sequence token.

    A merge ranks by the id of its result, as in Gemma's own file.
    """
    vocabulary = {token if token.strip(" ") else SPACE * len(token): number for number, token in enumerate(tokens)}
    merges = [
        (token[:split], token[split:])
        for token in vocabulary
        for split in range(len(token) - 1, 0, -1)
        if token[:split] in vocabulary and token[split:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED) and token.strip(" ")
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)
