"""The part of `steered-vllm` that runs inside vLLM's workers: a worker class of its own (`worker_cls`).

The driver calls its methods (`collective_rpc`). In eager mode a table is put in place by hooks on the decoder layers that
this rank holds (all of them, or some under pipeline parallelism); elsewhere the layers call an operator, which is compiled
into graphs (see `custom_op`). The tokens of the coming batch are read from the model runner between its preparation and its
forward. How a request is steered, and what is to be scored, travels with the request (see `request_args`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform

from lm_eval_ext.backends.vllm import custom_op, tables
from lm_eval_ext.backends.vllm.custom_op import Buffers
from lm_eval_ext.backends.vllm.request_args import RequestArgs
from lm_eval_ext.backends.vllm.rows import Scheduled, Steering, token_rows
from lm_eval_ext.backends.vllm.stream import Stream
from lm_eval_ext.errors import UserError
from lm_eval_ext.fingerprints import weights_fingerprint
from lm_eval_ext.steering.decoder import decoder_layers, hidden_size, layer_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lm_eval_ext.backends.vllm.request_args import Scored

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker

#: Scored tokens whose logits are in memory at once.
_AT_ONCE = 128

_UNKNOWN = Steering(0, 0)  # a request of someone else: not steered


@dataclass
class _State:
    """What a worker keeps."""

    requests: dict[str, RequestArgs] = field(default_factory=dict)
    batch: list[tuple[str, Scheduled]] = field(default_factory=list)
    stream: Stream | Buffers | None = None
    buffers: Buffers | None = None
    handles: list[Any] = field(default_factory=list)
    scores: dict[int, list[Scored]] = field(default_factory=dict)
    lora_heads: list[tuple[Any, Any]] = field(default_factory=list)


class Worker(_Worker):  # type: ignore[misc]
    """vLLM's worker, whose layers can be steered and whose tokens can be scored."""

    lm_eval_ext_state: _State

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the weights; where the model is compiled or captured afterwards, its layers call the operator."""
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        self.lm_eval_ext_state = _State(lora_heads=_lora_heads(runner.get_model()))
        _watch(runner, self.lm_eval_ext_state)
        if not self.model_config.enforce_eager:
            self.lm_eval_ext_state.buffers = _with_operator(runner)

    def lm_eval_ext_steer(self, content: bytes) -> str:
        """Put a table in place of the one before; returns what is wrong, "" where nothing is."""
        state = self.lm_eval_ext_state
        for handle in state.handles:
            handle.remove()
        state.handles, state.stream = [], None
        table = tables.from_bytes(content)
        if not table.steps:
            return ""
        config = self.model_config.hf_config
        try:
            layers = _layers_here(self.model_runner)
            here = table.steps.keys() & layers.keys()
            if state.buffers is None:
                state.stream = Stream(hidden_size(config), table)
                state.handles += [layers[layer].register_forward_hook(_hook(state.stream, layer)) for layer in here]
            else:
                state.buffers.put(table, here)
                state.stream = state.buffers
        except UserError as error:
            return str(error)
        return ""

    def lm_eval_ext_take_scores(self) -> dict[int, list[Scored]]:
        """What was scored since the last call, by the requests' numbers; empty on ranks that compute no logits."""
        scores, self.lm_eval_ext_state.scores = self.lm_eval_ext_state.scores, {}
        return scores

    def lm_eval_ext_fingerprint(self) -> str:
        """A hash of the weights that this rank holds."""
        return weights_fingerprint(self.model_runner.get_model())


def _layers_here(runner: Any) -> dict[int, Any]:
    """The decoder layers that this rank holds, by number.

    Raises:
        ModelError: they cannot be told.
    """
    layers = decoder_layers(runner.get_model(), runner.model_config.hf_config)
    return {number: layer for number, layer in enumerate(layers) if type(layer).__name__ != "PPMissingLayer"}


def _with_operator(runner: Any) -> Buffers | None:
    """Let the layers call the operator; None where it is not known which they are, which is said when they are steered."""
    try:
        layers = _layers_here(runner)
    except UserError:
        return None
    config = runner.model_config.hf_config
    buffers = Buffers(layer_count(config), hidden_size(config), runner.max_num_tokens, runner.dtype, runner.device)
    runner.vllm_config.compilation_config.static_forward_context[custom_op.NAME] = buffers
    custom_op.install(layers, hidden_size(config))
    return buffers


def _hook(stream: Stream, layer: int) -> Callable[..., Any]:
    def steer(module: Any, inputs: Any, output: Any) -> Any:
        return stream.after_layer(layer, output)

    return steer


def _watch(runner: Any, state: _State) -> None:
    """Let `state` know of the requests that the runner is given, of its batches and of their hidden states."""
    prepare = "_prepare_inputs" if hasattr(runner, "_prepare_inputs") else "prepare_inputs"
    execute_model, prepare_inputs = runner.execute_model, getattr(runner, prepare)

    @wraps(prepare_inputs)
    def prepare_and_steer(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare_inputs(*args, **kwargs)
        state.batch = _batch(runner, prepared, args[0] if args else kwargs["scheduler_output"], state.requests)
        if state.stream is not None:
            rows = token_rows([scheduled for _, scheduled in state.batch], state.stream.positions)
            state.stream.begin(rows, runner.device)
        return prepared

    @wraps(execute_model)
    def execute_and_score(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        for request_id in scheduler_output.finished_req_ids:
            state.requests.pop(request_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            if (request := RequestArgs.of(new.sampling_params)) is not None:
                state.requests[new.req_id] = request
        state.batch = []
        try:
            output = execute_model(scheduler_output, *args, **kwargs)
            if state.buffers is not None:
                state.buffers.check()
        finally:
            if state.stream is not None:
                state.stream.end()
        _score(runner, state)
        return output

    runner.execute_model = execute_and_score
    setattr(runner, prepare, prepare_and_steer)


def _batch(
    runner: Any, prepared: Any, scheduler_output: Any, requests: dict[str, RequestArgs]
) -> list[tuple[str, Scheduled]]:
    """The requests of the coming forward, in the order of their tokens."""
    if hasattr(prepared, "num_computed_tokens_np"):  # vLLM's model runner V2
        ids, computed = prepared.req_ids, prepared.num_computed_tokens_np
    else:
        ids, computed = runner.input_batch.req_ids, runner.input_batch.num_computed_tokens_cpu
    counts = scheduler_output.num_scheduled_tokens
    return [
        (
            request_id,
            Scheduled(
                requests[request_id].steering if request_id in requests else _UNKNOWN,
                int(computed[number]),
                int(counts[request_id]),
            ),
        )
        for number, request_id in enumerate(ids)
    ]


@torch.inference_mode()
def _score(runner: Any, state: _State) -> None:
    """Note the log-probabilities that the batch's requests want after tokens of this batch."""
    places: list[int] = []
    owners: list[tuple[int, int, list[int]]] = []
    start = 0
    for request_id, (_, first, count) in state.batch:
        request = state.requests.get(request_id)
        if request is not None and request.number is not None:
            for index, tokens in request.wanted:
                if first <= index < first + count:
                    places.append(start + index - first)
                    owners.append((request.number, index, tokens))
        start += count
    executed = runner.execute_model_state
    hidden = None if executed is None else executed.hidden_states
    if not places or not isinstance(hidden, torch.Tensor):  # the last rank of a pipeline has the hidden states
        return
    model = runner.get_model()
    for begin in range(0, len(places), _AT_ONCE):
        part = torch.tensor(places[begin : begin + _AT_ONCE], device=hidden.device)
        with _without_lora(state.lora_heads):
            logits: Tensor | None = model.compute_logits(hidden[part])
        if logits is None:  # gathered on another rank
            continue
        of_part = owners[begin : begin + _AT_ONCE]
        best = logits.argmax(-1).tolist()
        width = max(len(tokens) for *_, tokens in of_part)
        ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for *_, tokens in of_part], device=logits.device)
        exact = logits.float()
        values = (exact.gather(1, ids) - exact.logsumexp(-1, keepdim=True)).tolist()
        for (number, index, tokens), of_place, top in zip(of_part, values, best, strict=True):
            state.scores.setdefault(number, []).append((index, of_place[: len(tokens)], top))


def _lora_heads(model: Any) -> list[tuple[Any, Any]]:
    """Modules with a logits processor that is wrapped for LoRA, and the processor."""
    heads = [(module, getattr(module, "logits_processor", None)) for module in model.modules()]
    return [(module, processor) for module, processor in heads if hasattr(processor, "base_layer")]


@contextmanager
def _without_lora(heads: list[tuple[Any, Any]]) -> Iterator[None]:
    """Compute logits of any places: under LoRA vLLM's computation fits the batch's sampled places only.

    Adapters of the LM head, for which it is there, are refused by `release.check_adapter`.
    """
    try:
        for module, processor in heads:
            module.logits_processor = processor.base_layer
        yield
    finally:
        for module, processor in heads:
            module.logits_processor = processor
