"""The part of `steered-vllm` that runs inside vLLM's workers, as a worker extension (`worker_extension_cls`).

vLLM makes `Extension` a base class of its worker and lets the driver call its methods (`collective_rpc`). A table is put in
place by hooks on the decoder layers that this rank holds (all of them, or some under pipeline parallelism). The tokens of
the coming batch are read from the model runner between its preparation and its forward. How a request is steered, and what
is to be scored, travels with the request (`SamplingParams.extra_args`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.backends.vllm import tables
from lm_eval_ext.backends.vllm.rows import Scheduled, Steering, token_rows
from lm_eval_ext.backends.vllm.stream import Stream
from lm_eval_ext.errors import UserError
from lm_eval_ext.fingerprints import weights_fingerprint
from lm_eval_ext.steering.decoder import decoder_layers, hidden_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

#: Key of a request's `extra_args`.
KEY = "lm_eval_ext"

#: Scored tokens whose logits are in memory at once.
_AT_ONCE = 128

#: What is scored in one request: index of a token, log-probabilities of the tokens that it asks for, and the best token.
Scored = tuple[int, list[float], int]


def extra_args(steering: Steering, number: int | None = None, wanted: Sequence[tuple[int, Sequence[int]]] = ()) -> Any:
    """The `extra_args` of a request: how it is steered, and under which number what is to be scored."""
    return {KEY: [*steering, number, [[index, list(tokens)] for index, tokens in wanted]]}


@dataclass
class _Request:
    steering: Steering
    number: int | None
    wanted: list[tuple[int, list[int]]]

    @classmethod
    def of(cls, sampling_params: Any) -> _Request | None:
        given = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
        if given is None:
            return None
        row, prompt_length, generates, number, wanted = given
        return cls(Steering(row, prompt_length, generates), number, [(index, tokens) for index, tokens in wanted])


_UNKNOWN = Steering(0, 0)  # a request of someone else: not steered


@dataclass
class _State:
    """What an extension keeps on its worker."""

    requests: dict[str, _Request] = field(default_factory=dict)
    batch: list[tuple[str, Scheduled]] = field(default_factory=list)
    stream: Stream | None = None
    handles: list[Any] = field(default_factory=list)
    scores: dict[int, list[Scored]] = field(default_factory=dict)
    lora_heads: list[tuple[Any, Any]] = field(default_factory=list)


class Extension:
    """Methods that vLLM adds to its worker; they are called in every worker process."""

    model_runner: Any
    lm_eval_ext_state: _State

    def lm_eval_ext_steer(self, content: bytes) -> str:
        """Put a table in place of the one before; returns what is wrong, "" where nothing is."""
        runner = self.model_runner
        if "lm_eval_ext_state" not in vars(self):
            self.lm_eval_ext_state = _State(lora_heads=_lora_heads(runner.get_model()))
            _watch(runner, self.lm_eval_ext_state)
        state = self.lm_eval_ext_state
        for handle in state.handles:
            handle.remove()
        state.handles, state.stream = [], None
        table = tables.from_bytes(content)
        if not table.steps:
            return ""
        config = runner.model_config.hf_config
        try:
            layers = decoder_layers(runner.get_model(), config)
        except UserError as error:
            return str(error)
        stream = Stream(hidden_size(config), table)
        for layer in table.steps:
            if type(layers[layer]).__name__ != "PPMissingLayer":  # it is on another rank
                state.handles.append(layers[layer].register_forward_hook(_hook(stream, layer)))
        state.stream = stream
        return ""

    def lm_eval_ext_take_scores(self) -> dict[int, list[Scored]]:
        """What was scored since the last call, by the requests' numbers; empty on ranks that compute no logits."""
        scores, self.lm_eval_ext_state.scores = self.lm_eval_ext_state.scores, {}
        return scores

    def lm_eval_ext_fingerprint(self) -> str:
        """A hash of the weights that this rank holds."""
        return weights_fingerprint(self.model_runner.get_model())


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
            if (request := _Request.of(new.sampling_params)) is not None:
                state.requests[new.req_id] = request
        state.batch = []
        try:
            output = execute_model(scheduler_output, *args, **kwargs)
        finally:
            if state.stream is not None:
                state.stream.end()
        _score(runner, state)
        return output

    runner.execute_model = execute_and_score
    setattr(runner, prepare, prepare_and_steer)


def _batch(
    runner: Any, prepared: Any, scheduler_output: Any, requests: dict[str, _Request]
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
