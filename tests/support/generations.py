"""Generated tokens of `steered-vllm` and of `steered-hf`, compared up to a near-tie of the two best tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

    Prompt = tuple[int, ...]


def watch_vllm(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[Prompt, list[int]]:
    """What the engine generates from now on: the tokens after each prompt."""
    generated: dict[Prompt, list[int]] = {}
    generate = model._engine.generate

    def watched(*args: Any, **kwargs: Any) -> list[Any]:
        outputs: list[Any] = generate(*args, **kwargs)
        generated.update({tuple(output.prompt_token_ids): list(output.outputs[0].token_ids) for output in outputs})
        return outputs

    monkeypatch.setattr(model._engine, "generate", watched)
    return generated


def watch_hf(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[Prompt, tuple[list[int], Tensor]]:
    """What transformers generates from now on: the tokens after each prompt, and the logits [tokens, vocabulary]."""
    generated: dict[Prompt, tuple[list[int], Tensor]] = {}
    generate = model.model.generate

    def watched(input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        output = generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            return_dict_in_generate=True,
            output_logits=True,
            **kwargs,
        )
        logits = torch.stack(output.logits, 1)
        for ids, mask, sequence, of_row in zip(input_ids, attention_mask, output.sequences, logits, strict=True):
            prompt = tuple(ids[mask.bool()].tolist())
            generated[prompt] = sequence[len(ids) :].tolist(), of_row
        sequences: Tensor = output.sequences
        return sequences

    monkeypatch.setattr(model, "_can_continue", lambda requests: False)  # by transformers, whose logits are to be had
    monkeypatch.setattr(model.model, "generate", watched)
    return generated


def first_differences(
    on_vllm: dict[Prompt, list[int]], on_hf: dict[Prompt, tuple[list[int], Tensor]]
) -> dict[Prompt, tuple[int, float]]:
    """Where generations first differ: the number of the token, and by how much transformers' own token is ahead there.

    The logits' difference to vLLM's token is that of log-probabilities, in nats. A text that vLLM ends is shorter.
    """
    assert on_vllm.keys() == on_hf.keys()
    differences = {}
    for prompt, tokens in on_vllm.items():
        expected, logits = on_hf[prompt]
        assert 0 < len(tokens) <= len(expected)
        for number, (token, other) in enumerate(zip(tokens, expected, strict=False)):
            if token != other:
                differences[prompt] = number, float(logits[number, other] - logits[number, token])
                break
    return differences
