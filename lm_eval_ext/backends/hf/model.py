"""`--model steered-hf`: the harness's Hugging Face model, with vectors added to its residual stream and faster scoring.

Without a plan it evaluates like `hf`. With one, each request is steered with the vector of its own language.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import get_max_memory
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessorList

from lm_eval_ext.backends.base import STEERING_ARGUMENTS, SteeredBackend
from lm_eval_ext.backends.hf.compilation import compile_layers
from lm_eval_ext.backends.hf.generation import NotANumberWatch, SteeredGeneration
from lm_eval_ext.errors import ModelError
from lm_eval_ext.fingerprints import hash_json, hash_text, state_fingerprint, tokenizer_fingerprint
from lm_eval_ext.models import launch
from lm_eval_ext.models.loading import with_adapter
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.tokens import GeneratedTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval.api.instance import Instance
    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.scoring.requests import Request, Score
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import VectorSet


log = logging.getLogger(__name__)


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
        """See `SteeredBackend.score`."""
        with torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        ):
            return self._scorer.score(requests, None if self.batch_size == "auto" else int(self.batch_size), progress)

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
        """See `SteeredBackend.generate`. Languages share batches, unless several of them have the same text."""
        self._asked_by = {request.args[0]: request for request in requests}
        if not self._plan:
            return HFLM.generate_until(self, requests, disable_tqdm)  # type: ignore[no-any-return]
        texts = [""] * len(requests)
        for generation in SteeredGeneration.divide([request.args[0] for request in requests], rows):
            self._generation = generation
            try:
                generated = HFLM.generate_until(self, [requests[index] for index in generation.indices], disable_tqdm)
            finally:
                self._generation = None
            generation.check_complete()
            for index, text in zip(generation.indices, generated, strict=True):
                texts[index] = text
        return texts

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The harness's tokenisation of a batch to generate from; looks up the rows of its prompts."""
        self._prompts = list(strings)
        if self._generation is not None:
            self._generation.begin(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)  # type: ignore[no-any-return]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        rows = [0] * len(context) if self._generation is None else self._generation.take(len(context))
        prompt = kwargs.get("attention_mask", torch.ones_like(context))
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
