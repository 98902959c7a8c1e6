"""`--model steered-hf`: the harness's Hugging Face model, with vectors added to its residual stream and faster scoring.

Without a plan it evaluates like `hf`. With one, each request is steered with the vector of its own language.
"""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object, get_max_memory
from accelerate.utils.memory import clear_device_cache
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessorList

from lm_eval_ext.backends.base import STEERING_ARGUMENTS, SteeredBackend
from lm_eval_ext.backends.hf.compilation import compile_layers
from lm_eval_ext.backends.hf.continuous import (
    ContinuousGeneration,
    NotANumberError,
    StopSequences,
    is_greedy,
    is_plain,
)
from lm_eval_ext.backends.hf.generation import NotANumberWatch, SteeredGeneration
from lm_eval_ext.console import Progress
from lm_eval_ext.errors import ModelError
from lm_eval_ext.fingerprints import hash_json, hash_text, state_fingerprint, tokenizer_fingerprint
from lm_eval_ext.models import launch
from lm_eval_ext.models.loading import return_freed_memory, with_adapter
from lm_eval_ext.models.speed import distinct_tokens, forward_seconds
from lm_eval_ext.scoring.batching import RowCost, divide_by_cost, out_of_memory
from lm_eval_ext.scoring.requests import Request, Score
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.tokens import GeneratedTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from lm_eval.api.instance import Instance
    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import VectorSet


log = logging.getLogger(__name__)

#: Batches of prompts that the harness passes at a time to a continuous generation; it caches responses after each.
_BATCHES_AT_A_TIME = 8


class SteeredHFLM(SteeredBackend, HFLM):  # type: ignore[misc]
    """A Hugging Face causal language model whose residual stream can be steered.

    Args:
        pretrained: model name, folder, or a loaded model; the embedded Gemma 3 270M where left out.
        padding_side: side of padding of rows that are scored in one forward, `right` (default) or `left`.
            Generation pads on the left, as in the harness.
        torch_compile: compile the decoder layers; worth it for runs of many minutes, since compiling takes one or two.
        kwargs: `vectors`, `steer`, `lang`, `positions`, `any_model` and `axes` (see `SteeredBackend`), and everything that
            the harness's `hf` takes (`peft`, `dtype`, `device_map`, `revision`, ...).

    Raises:
        UserError: a plan, vector file, language, layer or model that does not fit, raised before the weights are loaded;
            weights, an adapter or an argument of the harness's model that cannot be used.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel | None = None,
        *args: Any,
        padding_side: str = "right",
        torch_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ModelError(f"padding_side={padding_side!r} is unknown, valid: left, right")
        launch.join_on_cpus()
        super().__init__(pretrained, *args, **kwargs)
        return_freed_memory()
        _check_adapter(self.model)
        self._divide_among_processes()
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ModelError(f"batch_size={self.batch_size} is invalid, valid: 1, 2, 3 ... or auto")
        self._injector = Injector(self.model, self._table)
        if torch_compile:
            compile_layers(self.model)
        self._scorer = Scorer(
            self.model,
            self._injector,
            max_length=self.max_length,
            padding_side="left" if padding_side == "left" else "right",
            softmax_dtype=self.softmax_dtype or torch.float32,
            max_rows=kwargs.get("max_batch_size"),
        )
        self._generation: SteeredGeneration | None = None
        self._bar: Progress | None = None  # of a generation that is continuous
        self._n_rows = 1
        self._prompts: list[str] = []
        self._asked_by: dict[str, Instance] = {}

    def _divide_among_processes(self) -> None:
        """Take one share of the documents where several processes were launched on CPUs.

        The harness divides them on GPUs only, and would have each process evaluate all of them.
        """
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1 and self.device.type == "cpu":
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        elif accelerator is None and launch.is_launched_alone():
            log.warning(
                "One process evaluates everything: `accelerate launch --cpu` starts no more without mpirun. "
                "`torchrun --nproc_per_node N -m lm_eval_ext eval ...` divides the documents among N processes"
            )

    @property
    def adapter(self) -> str | None:
        """The PEFT adapter on top of the model."""
        return self.peft  # type: ignore[no-any-return]

    def engine_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """See `SteeredBackend.engine_arguments`.

        The harness passes `device_map=` to transformers only with `parallelize`, which leaves the CPU out of every map that
        it makes; and its default device, CUDA, may be missing.
        """
        placed = dict(arguments)
        if placed.get("device_map") is not None:
            placed["parallelize"] = True
            if placed["device_map"] in _SPREAD and set(get_max_memory()) == {"cpu"}:
                placed["device_map"] = {"": "cpu"}
        if str(placed.get("device") or "cuda").startswith("cuda") and not torch.cuda.is_available():
            placed["device"] = "cpu"
        return placed

    def runs_on_cpu(self, arguments: dict[str, Any]) -> bool:
        """See `SteeredBackend.runs_on_cpu`."""
        placed = arguments.get("device_map")
        where = set(placed.values()) if isinstance(placed, dict) else {placed or arguments.get("device")}
        return {str(device) for device in where} == {"cpu"}

    def argument_hint(self) -> str:
        """See `SteeredBackend.argument_hint`."""
        ours = (*STEERING_ARGUMENTS, "padding_side")
        return (
            "Check --model_args: pretrained must be a folder or a name on the hub that this machine can reach; besides "
            f"{', '.join(ours)} and torch_compile everything goes to the harness's hf (dtype, peft, tokenizer, ...)"
        )

    def engine_identity(self) -> dict[str, Any]:
        """See `SteeredBackend.engine_identity`. Hashes stand for what is long."""
        configs = {"config": self.model.config, "generation_config": getattr(self.model, "generation_config", None)}
        adapters = getattr(self.model, "peft_config", {})
        return {
            "weights": state_fingerprint(self.model),
            **{name: None if config is None else _config_hash(config) for name, config in configs.items()},
            "adapters": {name: _config_hash(config) for name, config in adapters.items()},
            "dtype": str(self.model.dtype),
            "softmax_dtype": str(self.softmax_dtype),
            "mixed_precision_dtype": str(self.mixed_precision_dtype),
            "revision": str(getattr(self, "revision", None)),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "chat_template": hash_json(getattr(self.tokenizer, "chat_template", None)),
            "chat_template_args": str(self.chat_template_args),
            "think_end_token": str(self.think_end_token),
            "add_bos_token": self.add_bos_token,
            "prefix_token_id": self.prefix_token_id,
            "max_length": self.max_length,
            "truncation": self.truncation,
        }

    def steer(self, plan: Plan, vectors: VectorSet | None, known: Mapping[Request, Score] | None = None) -> None:
        """See `SteeredBackend.steer`."""
        super().steer(plan, vectors, known)
        self._injector.remove()
        self._injector = self._scorer.injector = Injector(self.model, self._table)

    def sharing(self) -> dict[str, Any] | None:
        """See `SteeredBackend.sharing`."""
        return None if self._scorer.verdict is None else self._scorer.verdict.record()

    def close(self) -> None:
        """Take the steering hooks off the model."""
        self._injector.remove()

    def score(
        self, requests: Sequence[Request], progress: Callable[[dict[Request, Score]], object] = lambda done: None
    ) -> list[Score]:
        """See `SteeredBackend.score`. Processes of a launch divide what all of them ask by the tokens that it takes.

        With `--use_cache` each answers its own documents: one whose answers are all cached asks nothing.
        """
        is_divided = self.world_size > 1 and not self._known and not self._responses.is_open
        own = self._share_of_all(list(requests)) if is_divided else requests
        with self._autocast():
            scores = self._scorer.score(own, None if self.batch_size == "auto" else int(self.batch_size), progress)
        if not is_divided:
            return scores
        known = {
            Request(*request): Score(*score) for request, score in gather_object(list(zip(own, scores, strict=True)))
        }
        return [known[request] for request in requests]

    def _autocast(self) -> AbstractContextManager[object]:
        """The user's mixed precision."""
        return torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )

    def _share_of_all(self, requests: list[Request]) -> list[Request]:
        """This process's share of the requests of all; those of one prompt stay together."""
        by_prompt: dict[tuple[int, ...], dict[Request, None]] = {}
        for request in gather_object(requests):
            by_prompt.setdefault(request[0], {})[Request(*request)] = None
        groups = [list(group) for group in by_prompt.values()]
        costs = [len(group[0].prompt) + sum(len(one.continuation) - 1 for one in group) for group in groups]
        share = divide_by_cost(costs, self.world_size)[self.rank]
        return [request for index in sorted(share) for request in groups[index]]

    def scoring_seconds(self, requests: Collection[Request]) -> float | None:
        """See `SteeredBackend.scoring_seconds`: as if all that prompts share were computed once."""
        continued = {(request.prompt, request.continuation[:-1]) for request in requests}
        prompts = {request.prompt for request in requests}
        options = sum(len(fed) for _, fed in continued)
        return forward_seconds(self.model, distinct_tokens(prompts) + options, len(prompts) + options)

    def _create_model(self, pretrained: str, *args: Any, peft: str | None = None, **kwargs: Any) -> None:
        """The harness's, but for the adapter: see `loading.with_adapter`."""
        if peft and kwargs.get("delta"):
            raise ModelError("peft= and delta= cannot be used together: leave one out")
        super()._create_model(pretrained, *args, **kwargs)
        if peft:
            self._model: Any = with_adapter(self._model, peft, revision=kwargs.get("revision"))
            # The harness ties the weights again, which they are already: it fails on a tied head that an adapter wraps.
            self._model.tie_weights = lambda *_, **__: None

    # Generation: by the harness, with the row of each prompt ------------------------------------------------------------

    def generate(self, requests: list[Instance], rows: Sequence[int], disable_tqdm: bool) -> list[str]:
        """See `SteeredBackend.generate`. Languages share batches, unless several of them have the same text.

        Without a plan, with sampling or beams, and where a model's rows cannot be moved between batches, by transformers.
        """
        self._asked_by = {request.args[0]: request for request in requests}
        if not self._plan:
            return HFLM.generate_until(self, requests, disable_tqdm)  # type: ignore[no-any-return]
        texts = [""] * len(requests)
        for generation in SteeredGeneration.divide([request.args[0] for request in requests], rows):
            self._generation = generation
            of_call = [requests[index] for index in generation.indices]
            try:
                with self._continuously(of_call, disable_tqdm) as bar:
                    generated = HFLM.generate_until(self, of_call, disable_tqdm or bar is not None)
            finally:
                self._generation = None
            generation.check_complete()
            for index, text in zip(generation.indices, generated, strict=True):
                texts[index] = text
        return texts

    @contextmanager
    def _continuously(self, requests: list[Instance], disable_tqdm: bool) -> Iterator[Progress | None]:
        """Where the requests can be generated from continuously, let the harness pass many prompts at a time."""
        if not self._can_continue(requests):
            yield None
            return
        given = self.batch_size
        self._n_rows = self._rows_that_fit(requests) if given == "auto" else int(given)
        self.batch_size_per_gpu = _BATCHES_AT_A_TIME * self._n_rows
        hidden = disable_tqdm or self.rank != 0
        try:
            with Progress(len(requests), "Running generate_until requests", "request", hidden=hidden) as self._bar:
                yield self._bar
        finally:
            self.batch_size_per_gpu, self._bar = given, None

    def _rows_that_fit(self, requests: list[Instance]) -> int:
        """As many rows as the harness takes at most, or as the free memory holds keys and values of."""
        longest = max(len(self.tok_encode(request.args[0])) + self._new_tokens(request) for request in requests)
        cost = RowCost.from_memory(self.model)
        # Twice more while rows leave or enter: their keys and values are copied.
        return max(1, min(int(self.max_batch_size), int(cost.free / (3 * longest * max(1.0, cost.past / 2)))))

    def _new_tokens(self, request: Instance) -> int:
        """Most tokens that a request asks for."""
        arguments = request.args[1]
        return int(arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or self.max_gen_toks)

    def _can_continue(self, requests: list[Instance]) -> bool:
        plain = self.backend == "causal" and not isinstance(self.think_end_token, int) and is_plain(self.model)
        if not plain or not all(is_greedy(request.args[1]) for request in requests):
            return False
        return self._scorer.can_continue_rows(
            [tuple(self.tok_encode(request.args[0])) for request in requests],
            max(self._new_tokens(request) for request in requests),
        )

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The harness's tokenisation of a batch to generate from; looks up the rows of its prompts."""
        self._prompts = list(strings)
        if self._generation is not None:
            self._generation.begin(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)  # type: ignore[no-any-return]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        rows = [0] * len(context) if self._generation is None else self._generation.take(len(context))
        prompt = kwargs.get("attention_mask", torch.ones_like(context))
        if self._bar is not None:
            return self._generate_continuously(context, prompt, rows, max_length - context.shape[1], stop)
        watch = NotANumberWatch()
        arguments = {**kwargs, "logits_processor": LogitsProcessorList([watch])}
        try:
            with self._injector.batch(rows, GeneratedTokens(prompt)):
                generated = super()._model_generate(context, max_length, stop, **arguments)
        except RuntimeError as error:  # of drawing a token
            if not watch.rows(len(context)):
                raise
            raise self._not_generated(watch.rows(len(context))) from error
        if lost := watch.rows(len(context)):
            raise self._not_generated(lost)
        return generated  # type: ignore[no-any-return]

    def _generate_continuously(
        self, context: Tensor, mask: Tensor, rows: Sequence[int], new_tokens: int, stop: list[str]
    ) -> Tensor:
        """What transformers returns: prompts [rows, prompt length] and what was generated from them, padded."""
        ends = self.model.generation_config.eos_token_id
        generation = ContinuousGeneration(
            self.model,
            self._injector,
            self._n_rows,
            frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        )
        prompts = [ids[seen].tolist() for ids, seen in zip(context.cpu(), mask.cpu().bool(), strict=True)]
        generated = torch.full((len(context), new_tokens), self.tokenizer.pad_token_id)
        texts_end = StopSequences(self.tokenizer, stop)
        left = list(range(len(prompts)))
        while left:
            asked, of_table = [prompts[number] for number in left], [rows[number] for number in left]
            finished: set[int] = set()
            try:
                with self._autocast():
                    for place, tokens in generation.run(asked, of_table, new_tokens, texts_end):
                        generated[left[place], : len(tokens)] = torch.tensor(tokens)
                        finished.add(place)
                        if self._bar is not None:
                            self._bar.update(1)
            except NotANumberError as error:
                raise self._not_generated([left[place] for place in error.places]) from None
            except Exception as error:
                if not out_of_memory(error) or generation.size == 1:
                    raise
            if len(finished) < len(left):
                generation.size = self._n_rows = max(1, generation.size // 2)
                log.warning("Out of memory: generating with at most %d rows in a forward", generation.size)
                clear_device_cache(garbage_collection=True)
            left = [number for place, number in enumerate(left) if place not in finished]
        return torch.cat([context.cpu(), generated], dim=1)

    def _not_generated(self, rows: Sequence[int]) -> ModelError:
        """The error for rows of a batch whose logits are NaN."""
        texts = [self._prompts[row] for row in rows if row < len(self._prompts)]
        return self.not_a_number([self._asked_by[text] for text in texts if text in self._asked_by])


def _config_hash(config: Any) -> str:
    """Of a configuration without its name and the release that wrote it."""
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_CONFIG}
    as_json = json.dumps(
        values, sort_keys=True, default=lambda x: sorted(map(str, x)) if isinstance(x, set) else str(x)
    )
    return hash_text(as_json)[:16]


#: `dtype` has a place of its own; the others change no answer.
_NOT_CONFIG = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "base_model_name_or_path",
    "inference_mode",
)

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


def _check_adapter(model: PreTrainedModel) -> None:
    """Refuse prompt and prefix tuning, whose virtual tokens before each prompt no position of a plan covers."""
    for name, adapter in getattr(model, "peft_config", {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise ModelError(
                f"the adapter {name!r} is of type {adapter.peft_type}, which adds virtual tokens; valid: adapters that "
                "change weights, such as LoRA. Evaluate this one with --model hf"
            )
