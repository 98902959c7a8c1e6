"""Which row each token of vLLM's batch takes: the same as `steered-hf` takes, however the tokens are scheduled."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.backends.vllm.rows import Scheduled, Steering, token_rows
from lm_eval_ext.steering.tokens import GeneratedTokens, ScoredTokens

POSITIONS = ("prompt", "last", "all", "generated", "last3", "first2")

steerings = st.builds(Steering, st.integers(0, 5), st.integers(1, 12), st.booleans())
sequences = st.lists(st.tuples(steerings, st.integers(1, 20)), min_size=1, max_size=5)


def reference(steering: Steering, length: int, position: str) -> list[int]:
    """Rows of a whole sequence by the masks of `steered-hf`."""
    if steering.generates:
        mask = GeneratedTokens(torch.ones(1, steering.prompt_length)).mask(position, 0, length)
    else:
        mask = ScoredTokens(torch.tensor([0]), torch.tensor([steering.prompt_length])).mask(position, 0, length)
    steered = torch.as_tensor(mask).expand(1, length)[0].bool()
    return [steering.row if here else 0 for here in steered.tolist()]


@given(sequences, st.sampled_from(POSITIONS), st.data())
def test_rows_equal_those_of_steered_hf_in_any_schedule(
    sequences: list[tuple[Steering, int]], position: str, data: st.DataObject
) -> None:
    """Chunks of a prompt, several requests in a step, a beginning in the KV cache: only the index of a token counts."""
    cuts = [data.draw(st.lists(st.integers(0, length), max_size=3).map(sorted)) for _, length in sequences]
    chunks = [
        [(number, start, end) for start, end in zip([0, *cut], [*cut, length], strict=True) if end > start]
        for number, ((_, length), cut) in enumerate(zip(sequences, cuts, strict=True))
    ]
    found: list[list[int]] = [[] for _ in sequences]
    while any(chunks):
        step = [of_sequence.pop(0) for of_sequence in chunks if of_sequence]
        batch = [Scheduled(sequences[number][0], start, end - start) for number, start, end in step]
        rows = token_rows(batch, [position])[position].tolist()
        for number, start, end in step:
            found[number] += rows[: end - start]
            del rows[: end - start]
        assert not rows
    assert found == [reference(steering, length, position) for steering, length in sequences]
