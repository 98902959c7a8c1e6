"""What hooks do to the output of vLLM's layers, and tables on their way to workers; without vLLM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny

from lm_eval_ext.backends.vllm import tables
from lm_eval_ext.backends.vllm.custom_op import CAPACITY, Buffers
from lm_eval_ext.backends.vllm.rows import Scheduled, Steering, token_rows
from lm_eval_ext.backends.vllm.stream import Stream, split
from lm_eval_ext.errors import EstimatorError, ModelError
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.registry import transform_for
from lm_eval_ext.steering.table import Addition, Change, SteeringTable

HIDDEN = tiny.HIDDEN


def table(plan: str = "en@1:2/last+loc@1:3/prompt") -> SteeringTable:
    return SteeringTable.build(Plan.parse(plan), tiny.vector_set("llama"), tiny.LAYERS)


def changing() -> SteeringTable:
    """An addition, then a projection that depends on the state, of row 1 only."""
    direction = torch.nn.functional.normalize(torch.arange(1.0, HIDDEN + 1), dim=0)
    matrix = torch.stack([torch.zeros(HIDDEN), torch.ones(HIDDEN)])
    ablate = transform_for("ablate", "ablation")
    name = next(iter(ablate.shapes))
    artifact = {name: direction if len(ablate.shapes[name]) == 1 else direction[None]}
    return SteeringTable(steps={1: (Addition("all", matrix), Change("prompt", ablate, {1: (artifact, 1.0)}))}, height=2)


def stream(steering: SteeringTable, batch: list[Scheduled]) -> Stream:
    made = Stream(HIDDEN, steering)
    made.begin(token_rows(batch, made.positions), "cpu")
    return made


BATCH = [Scheduled(Steering(1, 3), 0, 3), Scheduled(Steering(0, 2), 0, 2), Scheduled(Steering(1, 3), 2, 2)]


@pytest.mark.parametrize("steering", [table(), changing()], ids=["additions", "change"])
def test_the_stream_is_the_same_in_one_part_and_in_two(steering: SteeringTable) -> None:
    hidden, residual = torch.randn(2, 7, HIDDEN)
    before = hidden.clone(), residual.clone()
    whole = stream(steering, BATCH).after_layer(1, hidden + residual)
    fused = stream(steering, BATCH).after_layer(1, (hidden, residual))
    torch.testing.assert_close(fused[0] + fused[1], whole)
    assert torch.equal(hidden, before[0])  # never in place: a fused kernel may own it
    assert torch.equal(residual, before[1])
    changed = (whole - hidden - residual).abs().amax(1) > 1e-6
    assert changed.tolist() == [True, True, True, False, False, True, steering.steps[1][0].position == "all"]


def test_padded_batches_and_other_requests_are_left_alone() -> None:
    hidden, residual = torch.randn(2, 12, HIDDEN)  # 7 tokens and 5 of padding
    _, steered = stream(table(), BATCH).after_layer(1, (hidden, residual))
    assert torch.equal(steered[7:], residual[7:])
    assert not torch.equal(steered[:7], residual[:7])
    idle = stream(table(), [Scheduled(Steering(0, 3), 0, 3)])
    assert idle.after_layer(1, (hidden, residual)) is None
    busy = stream(table(), BATCH)
    busy.end()
    assert busy.after_layer(1, (hidden, residual)) is None


@pytest.mark.parametrize(
    "may_skip", [True, False], ids=["where nothing is to do, nothing is done", "as in a CUDA graph"]
)
def test_the_buffers_of_compiled_models_add_what_hooks_add(may_skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = table("en@1:2/last+loc@1:3/prompt+loc@2:1/all")
    buffers = Buffers(tiny.LAYERS, HIDDEN, 16, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(buffers, "_may_skip", may_skip)
    buffers.put(steering, {1, 2})
    buffers.begin(token_rows(BATCH, buffers.positions), "cpu")
    for layer in range(tiny.LAYERS):
        before = torch.randn(12, HIDDEN)  # 7 tokens and 5 of padding
        added = before.clone()
        buffers.add_to(added, layer)
        expected = stream(steering, BATCH).after_layer(layer, before) if layer in steering.steps else before
        torch.testing.assert_close(added, expected)
    buffers.check()
    buffers.end()
    left = before.clone()
    buffers.add_to(left, 1)
    assert torch.equal(left, before)


def test_what_buffers_cannot_hold() -> None:
    buffers = Buffers(tiny.LAYERS, HIDDEN, 16, torch.float32, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"depends on the state.*enforce_eager=True"):
        buffers.put(changing(), {1})
    large = SteeringTable(steps={1: (Addition("all", torch.zeros(CAPACITY + 1, HIDDEN)),)}, height=CAPACITY + 1)
    with pytest.raises(ModelError, match=f"more than {CAPACITY} vectors.*enforce_eager=True"):
        buffers.put(large, {1})
    buffers.add_to(torch.zeros(2, HIDDEN), 0)  # layer 1 returned something else, and does not call the operator
    with pytest.raises(ModelError, match=r"not a residual stream.*steered-hf"):
        buffers.put(table(), {1})


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(7, HIDDEN + 1),
        torch.zeros(7, HIDDEN, dtype=torch.int8),
        (torch.zeros(7, HIDDEN), torch.zeros(7, HIDDEN).to(torch.float8_e4m3fn)),
        (torch.zeros(7, HIDDEN), torch.zeros(7, HIDDEN), torch.zeros(7)),
        {"hidden": torch.zeros(7, HIDDEN)},
        (None, torch.zeros(7, HIDDEN)),
    ],
    ids=["another width", "int8", "a float8 part", "three parts", "no tensor", "no state"],
)
def test_a_hidden_residual_stream_is_refused(output: Any) -> None:
    with pytest.raises(ModelError, match=r"not a residual stream.*steered-hf"):
        split(output, HIDDEN)


@pytest.mark.parametrize("steering", [table(), changing(), SteeringTable()], ids=["additions", "change", "none"])
def test_tables_arrive_as_they_were_sent(steering: SteeringTable) -> None:
    content = tables.to_bytes(steering)
    arrived = tables.from_bytes(content)
    assert tables.to_bytes(arrived) == content
    assert (arrived.height, list(arrived.steps)) == (steering.height, list(steering.steps))
    hidden = torch.randn(7, HIDDEN)
    for layer in steering.steps:
        found, expected = (stream(each, BATCH).after_layer(layer, hidden) for each in (arrived, steering))
        assert torch.equal(found, expected)
    assert tables.identity(content) != tables.identity(tables.to_bytes(table("en@2:1")))


def test_a_transform_that_a_worker_lacks() -> None:
    content = tables.to_bytes(changing())
    with pytest.raises(EstimatorError, match="install the package"):
        tables.from_bytes(content.replace(b'"ablate"', b'"ablatt"'))
