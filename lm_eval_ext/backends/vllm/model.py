"""`--model steered-vllm`: the harness's vLLM model, with vectors added to its residual stream and cheaper scoring.

Importing this module needs vLLM.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_ext.backends.base import STEERING_ARGUMENTS, SteeredBackend
from lm_eval_ext.backends.vllm import release, tables
from lm_eval_ext.backends.vllm.engines import WORKER, Engine, LocalEngine, Replicas
from lm_eval_ext.backends.vllm.jobs import After, Job, Jobs, in_parts
from lm_eval_ext.backends.vllm.request_args import KEY, extra_args
from lm_eval_ext.backends.vllm.rows import Steering
from lm_eval_ext.backends.vllm.salts import Salts
from lm_eval_ext.errors import ModelError
from lm_eval_ext.models import precision

RELEASE = release.check(release.installed())

# The model runner V1, whose batches the worker extension is tested with; V2 needs Triton, and its batches are read too.
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

with release.importing(RELEASE):
    from lm_eval.models.vllm_causallms import VLLM
    from vllm import SamplingParams, TokensPrompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lm_eval.api.instance import Instance

    from lm_eval_ext.backends.vllm.jobs import Place
    from lm_eval_ext.scoring.requests import Request, Score
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import VectorSet

log = logging.getLogger(__name__)

#: Requests of one call of the engine: what is interrupted loses no more (our default).
_REQUESTS_AT_ONCE = 8192

#: Tokens of a block of the prefix cache where the engine does not say: any block is a multiple of one token.
_SMALLEST_BLOCK = 1

#: Block of the KV cache on CPUs, where vLLM's default of 128 tokens would hold few prompts' beginnings.
_CPU_BLOCK = 32

#: Version of the operator that is compiled into models: to be counted up when it changes.
_OPERATOR = 1

#: Said once, where a plan switches graphs and compilation off.
EAGER = (
    "steered-vllm: enforce_eager=True, because the plan has transforms that depend on the state, which run between the "
    "layers; without CUDA graphs and torch.compile prefill costs a few per cent more, and generation, one token at a time, "
    "up to several times as much on small models"
)


class SteeredVLLM(SteeredBackend, VLLM):  # type: ignore[misc]
    """A causal language model on vLLM whose residual stream can be steered.

    Args:
        pretrained: model name or folder; the embedded Gemma 3 270M where left out.
        kwargs: `vectors`, `steer`, `lang`, `positions`, `any_model` and `axes` (see `SteeredBackend`), and everything that
            the harness's `vllm` takes (`tensor_parallel_size`, `data_parallel_size`, `quantization`, `lora_local_path`,
            `gpu_memory_utilization`, ...).

    Raises:
        UserError: a plan, vector file, language, layer or model that does not fit, or an argument of the engine that
            steering does not work with; raised before the engine starts.
    """

    def __init__(self, pretrained: str | None = None, *args: Any, **kwargs: Any) -> None:
        if isinstance(pretrained, torch.nn.Module):
            raise ModelError("steered-vllm loads the model itself: give its name or folder, or use steered-hf")
        self._lora = kwargs.get("lora_local_path")
        super().__init__(pretrained, *args, **kwargs)
        gpus = 0 if RELEASE.is_cpu_build else int(self.tensor_parallel_size)
        self._engine: Engine = (
            Replicas(self.model_args, self.data_parallel_size, gpus)
            if self.data_parallel_size > 1
            else LocalEngine(self.model)
        )
        with self._closed_on_error():
            self._put_table()

    # Arguments ----------------------------------------------------------------------------------------------------------

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter on top of the model."""
        return None if self._lora is None else str(self._lora)

    @property
    def max_length(self) -> int:
        """The most tokens of a scored request: one less than the engine's, which generates one."""
        return int(VLLM.max_length.fget(self)) - 1

    def engine_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """See `SteeredBackend.engine_arguments`.

        Transforms that depend on the state run in eager mode only.
        """
        release.check_arguments(arguments)
        given = {key: value for key, value in arguments.items() if key != "device"}
        given["worker_cls"] = WORKER
        # Part of the key of vLLM's cache of compiled models: one without our operator must not be taken.
        given["additional_config"] = {**(given.get("additional_config") or {}), KEY: _OPERATOR}
        given.setdefault("enable_prefix_caching", True)
        if RELEASE.is_cpu_build:
            given.setdefault("block_size", _CPU_BLOCK)
        if self._table.has_changes and not given.get("enforce_eager"):
            log.warning("%s", EAGER)
            given["enforce_eager"] = True
        return given

    def runs_on_cpu(self, arguments: dict[str, Any]) -> bool:
        """See `SteeredBackend.runs_on_cpu`."""
        return RELEASE.is_cpu_build

    def dtype_argument(self, chosen: precision.Precision) -> str:
        """See `SteeredBackend.dtype_argument`. vLLM's `auto` would halve the weights of a float32 checkpoint."""
        keeps = RELEASE.is_cpu_build and chosen.argument == "auto" and chosen.checkpoint == "float32"
        return chosen.checkpoint if keeps else chosen.argument

    def argument_hint(self) -> str:
        """See `SteeredBackend.argument_hint`."""
        return (
            "Check --model_args: pretrained must be a folder or a name on the hub that this machine can reach; besides "
            f"{', '.join(STEERING_ARGUMENTS)} everything goes to the harness's vllm (tensor_parallel_size, quantization, "
            "gpu_memory_utilization, lora_local_path, ...)"
        )

    def get_model_info(self) -> dict[str, Any]:
        """See `SteeredBackend.get_model_info`; the release of vLLM is under `engine`."""
        info = super().get_model_info()
        if "dtype" in info:
            info["dtype"]["used"] = self._dtype()
        return {**info, "engine": f"{RELEASE.distribution} {RELEASE.version}"}

    def weights_identity(self) -> dict[str, str]:
        """See `SteeredBackend.weights_identity`."""
        return {"model": f"vllm {self._engine.fingerprint()}", "dtype": self._dtype()}

    def _dtype(self) -> str:
        if self.data_parallel_size > 1:  # the engines are elsewhere
            return precision.name_of(self.model_args["dtype"])
        return precision.name_of(self.model.llm_engine.model_config.dtype)

    # Steering -----------------------------------------------------------------------------------------------------------

    def steer(self, plan: Plan, vectors: VectorSet | None, known: Mapping[Request, Score] | None = None) -> None:
        """See `SteeredBackend.steer`; the engine runs on."""
        super().steer(plan, vectors, known)
        self._put_table()

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _put_table(self) -> None:
        content = tables.to_bytes(self._table)
        self._engine.steer(content)
        positions = {step.position for steps in self._table.steps.values() for step in steps}
        self._salts = Salts(tables.identity(content), positions, self._block())

    def _block(self) -> int:
        if self.data_parallel_size > 1:
            return _SMALLEST_BLOCK
        cache = self.model.llm_engine.vllm_config.cache_config
        sizes = [getattr(cache, name, None) for name in ("block_size", "hash_block_size", "prefix_match_unit")]
        return math.gcd(*(int(size) for size in sizes if size)) or _SMALLEST_BLOCK

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    # Scoring ------------------------------------------------------------------------------------------------------------

    def score(
        self, requests: Sequence[Request], progress: Callable[[dict[Request, Score]], object] = lambda done: None
    ) -> list[Score]:
        """See `SteeredBackend.score`. Requests of one prompt, and prompts with the same beginning, are run together."""
        scores: dict[Request, Score] = {}
        for part in in_parts(requests, _REQUESTS_AT_ONCE):
            jobs = Jobs(part, self.max_length)
            after = self._run(jobs.jobs)
            if missing := [job for job in jobs.jobs if any(place not in after for place in job.places)]:
                # Their scored tokens were in the prefix cache, which holds no hidden states.
                after |= self._run(missing, skip_reading_prefix_cache=True)
            done = jobs.scores(after)
            scores |= done
            progress(done)
        return [scores[request] for request in requests]

    def _run(self, jobs: Sequence[Job], **options: Any) -> dict[Place, After]:
        prompts = [(job.tokens, job.steering) for job in jobs]
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=1,
                detokenize=False,
                extra_args=extra_args(job.steering, number, job.wanted),
                **options,
            )
            for number, job in enumerate(jobs)
        ]
        self._generate(prompts, params, progress=False)
        after: dict[Place, After] = {}
        for number, scored in self._engine.take_scores().items():
            job = jobs[number]
            tokens_at = {index: (tokens, place) for (index, tokens), place in zip(job.wanted, job.places, strict=True)}
            for index, values, best in scored:
                tokens, place = tokens_at[index]
                after[place] = After(dict(zip(tokens, values, strict=True)), best)
        return after

    def _generate(self, prompts: Sequence[tuple[Any, Steering]], params: Sequence[Any], *, progress: bool) -> list[Any]:
        salted = [
            TokensPrompt(prompt_token_ids=list(tokens), cache_salt=self._salts.of(tokens, steering))
            for tokens, steering in prompts
        ]
        return self._engine.generate(salted, params, self.lora_request, progress=progress)

    # Generation: by the harness, the row of each prompt among its arguments ---------------------------------------------

    def generate(self, requests: list[Instance], rows: Sequence[int], disable_tqdm: bool) -> list[str]:
        """See `SteeredBackend.generate`."""
        steered = [copy.copy(request) for request in requests]
        for request, row in zip(steered, rows, strict=True):
            text, options = request.args
            request.arguments = (text, {**options, "extra_args": {**options.get("extra_args", {}), KEY: row}})
        return VLLM.generate_until(self, steered, disable_tqdm)  # type: ignore[no-any-return]

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: list[Any] | None = None
    ) -> list[Any]:
        if not generate or sampling_params is None:
            raise ModelError("internal error: the harness scores requests itself; report it to lm_eval_ext")
        prompts = []
        for tokens, params in zip(requests, sampling_params, strict=True):
            steering = Steering(params.extra_args[KEY], len(tokens), generates=True)
            params.extra_args = {**params.extra_args, **extra_args(steering)}
            prompts.append((tokens, steering))
        return self._generate(prompts, sampling_params, progress=self.batch_size == "auto")
