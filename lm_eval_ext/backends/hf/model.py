"""`--model steered-hf`: the harness's Hugging Face model, with vectors added to its residual stream and faster scoring.

Without a plan it evaluates like `hf`. With one, each request is steered with the vector of its own language.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import get_max_memory
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lm_eval_ext import harness
from lm_eval_ext.backends.encoding import encode, encode_pairs
from lm_eval_ext.backends.hf.compilation import compile_layers
from lm_eval_ext.backends.language import LANGUAGE_COLUMNS, METADATA_KEY, request_language
from lm_eval_ext.backends.response_cache import ResponseCache
from lm_eval_ext.errors import LanguageError, ModelError
from lm_eval_ext.languages import normalise
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, loading
from lm_eval_ext.scoring.requests import Request, Score
from lm_eval_ext.scoring.scorer import Scorer
from lm_eval_ext.steering.decoder import fingerprint, layer_count
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.plan import DEFAULT_POSITION, Plan, parse_position
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.steering.tokens import GeneratedTokens
from lm_eval_ext.steering.vectors import VectorSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_ARGUMENTS = (
    "Check --model_args: pretrained must be a folder or a name on the hub that this machine can reach; besides vectors, "
    "steer, lang, positions, any_model, padding_side and torch_compile everything goes to the harness's hf "
    "(dtype, peft, tokenizer, ...)"
)

harness.install()


@register_model("steered-hf")
class SteeredHFLM(HFLM):  # type: ignore[misc]
    """A Hugging Face causal language model whose residual stream can be steered.

    Args:
        pretrained: model name, folder, or a loaded model; the embedded Gemma 3 270M where left out.
        vectors: vector file made by `lm-eval-ext extract`.
        steer: steering plan, `en@42%:2+loc@58%:2` (see `lm_eval_ext.steering.plan`); empty means plain evaluation.
        lang: language of requests whose document and task name none.
        positions: tokens to steer where the plan does not say: `prompt` (every prompt token, up to the one that scores
            the first option token; our default), `last` (the prompt's last token, and what is generated after it), `all`.
        any_model: accept vectors of another architecture of the same width and depth.
        padding_side: side of padding of rows that are scored in one forward, `right` (default) or `left`.
            Generation pads on the left, as in the harness.
        torch_compile: compile the decoder layers; worth it for runs of many minutes, since compiling takes one or two.
        kwargs: everything that the harness's `hf` takes (`peft`, `dtype`, `device_map`, `revision`, ...).

    Raises:
        UserError: a plan, vector file, language, layer or model that does not fit, before the weights are loaded; weights,
            an adapter or an argument of the harness's model that cannot be used.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel | None = None,
        vectors: str | None = None,
        steer: str | None = None,
        lang: str | None = None,
        positions: str = DEFAULT_POSITION,
        any_model: bool = False,
        padding_side: str = "right",
        torch_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ModelError(f"padding_side={padding_side!r} is unknown, valid: left, right")
        self._plan = Plan.parse(None if steer is None else str(steer))
        self._positions = parse_position(str(positions))
        self._lang = None if lang is None else normalise(str(lang))
        self._vectors = None if vectors is None else VectorSet.load(Path(str(vectors)).expanduser())
        self._name = embedded.NAME if pretrained is None else str(getattr(pretrained, "name_or_path", pretrained))
        if pretrained is None:
            log.warning("No pretrained= given: using the embedded %s (%s)", embedded.NAME, embedded.LICENCE)
            pretrained = str(embedded.path())
        if not isinstance(pretrained, torch.nn.Module):
            pretrained = str(pretrained)
        config = _config(pretrained, kwargs)
        if self._vectors is not None:
            self._vectors.check_model(self._name, config, any_model=any_model)
        table = SteeringTable.build(self._plan, self._vectors, layer_count(config), self._positions)
        self._fingerprint = fingerprint(config)
        with loading(self._name, _ARGUMENTS):
            super().__init__(pretrained, **_placement(kwargs))
        _check_adapter(self.model)
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ModelError(f"batch_size={self.batch_size} is not possible, valid: 1, 2, 3 ... or auto")
        self._injector = Injector(self.model, table)
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
        self._responses = ResponseCache(str(self._plan))
        self._generated_rows: list[int] = []

    def get_model_info(self) -> dict[str, Any]:
        """What the harness saves of the model, with the steering under the key `steering`."""
        return {**super().get_model_info(), "steering": self.steering_identity()}

    def steering_identity(self) -> dict[str, Any]:
        """The plan, the vector file's hash and the model's fingerprint: two runs that differ here are not comparable."""
        return {
            "plan": str(self._plan),
            "positions": self._positions,
            "lang": self._lang,
            "vectors": None
            if self._vectors is None
            else {"path": str(self._vectors.path), "sha256": self._vectors.sha256},
            "model_fingerprint": self._fingerprint,
            "pretrained": self._name,
            "peft": self.peft,
        }

    # Requests and their languages ------------------------------------------------------------------------------------

    def _rows(self, requests: Sequence[Instance]) -> list[int]:
        """The row of the steering table of each request.

        Raises:
            LanguageError: the plan steers by language and a request's language is unknown; the message names the tasks.
        """
        if not self._plan:
            return [0] * len(requests)
        rows: list[int] = []
        problems: dict[str, str] = {}
        for request in requests:
            try:
                rows.append(self._injector.table.row(self.language(request)))
            except LanguageError as error:
                problems.setdefault(request.task_name or "?", str(error))
        if problems:
            raise LanguageError(
                "\n".join(f"task {task}: {problem}" for task, problem in problems.items())
                + f"\nName the language in a document column ({' or '.join(LANGUAGE_COLUMNS)}), in the task's metadata "
                f"({METADATA_KEY}: ko) or with --model_args lang=ko"
            )
        return rows

    def language(self, instance: Instance) -> str | None:
        """The language of a request: its document's column, its task's metadata, `lang=`; None where none names one."""
        return request_language(instance, self._lang)

    def encode(self, instances: Sequence[Instance]) -> list[Request]:
        """The tokens of `loglikelihood` instances, as the harness makes them, and the rows of their steering.

        Raises:
            LanguageError: the plan steers by language and an instance's language is unknown.
            ModelError: the tokenizer makes nothing of a prompt or a continuation.
        """
        rows = self._rows(instances)
        pairs = encode_pairs(self, [instance.args for instance in instances])
        for instance, pair in zip(instances, pairs, strict=True):
            if not pair.prompt or not pair.continuation:
                raise ModelError(
                    f"task {instance.task_name or '?'}, document {instance.doc_id}: the tokenizer makes no token of the "
                    f"{'continuation' if pair.prompt else 'prompt'} in {instance.args!r}: change the document, or the "
                    "task's target_delimiter"
                )
        return [Request(*pair, row) for pair, row in zip(pairs, rows, strict=True)]

    # What the harness calls: languages share batches ------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, each steered with its own language's vector."""
        if self.backend != "causal" or self.enable_thinking:  # the second is refused there
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[no-any-return]
        scored = self.encode(requests)
        self._responses.note_ambiguous("loglikelihood", requests, [request.row for request in scored])
        texts: dict[Request, list[tuple[str, str]]] = defaultdict(list)
        for instance, request in zip(requests, scored, strict=True):
            texts[request].append(instance.args)

        def remember(done: dict[Request, Score]) -> None:
            for request, score in done.items():
                for text in texts[request]:
                    self.cache_hook.add_partial("loglikelihood", text, tuple(score))

        return [(score.log_likelihood, score.is_greedy) for score in self._score(scored, disable_tqdm, remember)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts in the harness's windows. The prompt of a window is what stands before its first
        scored token: one token, or more before a last window that would be shorter than the others.
        """
        if self.backend != "causal":
            return super().loglikelihood_rolling(requests, disable_tqdm)  # type: ignore[no-any-return]
        rows = self._rows(requests)
        self._responses.note_ambiguous("loglikelihood_rolling", requests, rows)
        owners: list[int] = []
        scored: list[Request] = []
        tokens = encode(self, (request.args[0] for request in requests))
        for index, request in enumerate(requests):
            text = list(tokens[request.args[0]])
            for window in get_rolling_token_windows(text, self.prefix_token_id, self.max_length, context_len=1):
                prompt, continuation = make_disjoint_window(window)
                owners.append(index)
                scored.append(Request(tuple(prompt), tuple(continuation), rows[index]))
        totals = [0.0] * len(requests)
        for index, score in zip(owners, self._score(scored, disable_tqdm), strict=True):
            totals[index] += score.log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated continuations."""
        rows = self._rows(requests)
        self._responses.note_ambiguous("generate_until", requests, rows)
        prompts = [
            replace(request, arguments=(_Prompt(request.args[0], row), *request.args[1:]))
            for request, row in zip(requests, rows, strict=True)
        ]
        return super().generate_until(prompts, disable_tqdm)  # type: ignore[no-any-return]

    # What the harness's own methods come down to ---------------------------------------------------------------------

    def _score(
        self,
        requests: list[Request],
        disable_tqdm: bool,
        remember: Callable[[dict[Request, Score]], None] = lambda done: None,
    ) -> list[Score]:
        if not requests:
            return []
        bar = tqdm(
            total=len(set(requests)), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests"
        )

        def progress(done: dict[Request, Score]) -> None:
            remember(done)
            bar.update(len(done))

        with (
            bar,
            torch.autocast(
                device_type=self.device.type,
                dtype=self.mixed_precision_dtype,
                enabled=self.mixed_precision_dtype is not None,
            ),
        ):
            return self._scorer.score(requests, None if self.batch_size == "auto" else int(self.batch_size), progress)

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The harness's tokenisation of a batch to generate from; notes which vector steers each prompt."""
        self._generated_rows = [
            string.row if isinstance(string, _Prompt) else self._injector.table.row(self._lang) for string in strings
        ]
        return super().tok_batch_encode(strings, *args, **kwargs)  # type: ignore[no-any-return]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        prompt = kwargs.get("attention_mask", torch.ones_like(context))
        with self._injector.batch(self._generated_rows, GeneratedTokens(prompt)):
            return super()._model_generate(context, max_length, stop, **kwargs)  # type: ignore[no-any-return]

    # The harness's response cache ------------------------------------------------------------------------------------

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Accept a `--use_cache` file only if it was made under the same steering.

        Raises:
            UserError: the cache was made by another model type while this one is steered, or under another steering.
        """
        self._responses.open(cache_hook.dbdict, self._cache_identity())
        super().set_cache_hook(cache_hook)

    def _cache_identity(self) -> dict[str, Any]:
        """What decides a response besides the request: not where the vector file lies, nor one that no plan uses."""
        identity = self.steering_identity()
        if not self._plan:
            return {key: identity[key] for key in ("plan", "model_fingerprint", "pretrained", "peft")}
        assert self._vectors is not None  # a plan without vectors was refused
        return {**identity, "vectors": self._vectors.sha256}


class _Prompt(str):
    """A prompt on its way through the harness's batching, with the row of the vector that steers it."""

    row: int

    def __new__(cls, text: str, row: int) -> _Prompt:
        prompt = super().__new__(cls, text)
        prompt.row = row
        return prompt


_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


def _config(pretrained: str | PreTrainedModel, kwargs: dict[str, Any]) -> Any:
    if not isinstance(pretrained, str):
        return pretrained.config
    keys = ("revision", "trust_remote_code", "gguf_file", "subfolder")
    return load_config(pretrained, **{key: kwargs.get(key) for key in keys})


def _check_adapter(model: PreTrainedModel) -> None:
    """Prompt and prefix tuning put tokens of their own before each prompt, which no position of a plan means."""
    for name, adapter in getattr(model, "peft_config", {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise ModelError(
                f"the adapter {name!r} is of type {adapter.peft_type}, which adds virtual tokens; valid: adapters that "
                "change weights, such as LoRA. Evaluate this one with --model hf"
            )


def _placement(kwargs: dict[str, Any]) -> dict[str, Any]:
    """`device_map=` reaches transformers in the harness only with `parallelize`, which leaves the CPU out of every map it
    makes; its CUDA default must not reach a machine without.
    """
    placed = dict(kwargs)
    if placed.get("device_map") is not None:
        placed["parallelize"] = True
        if placed["device_map"] in _SPREAD and set(get_max_memory()) == {"cpu"}:
            placed["device_map"] = {"": "cpu"}
    if str(placed.get("device") or "cuda").startswith("cuda") and not torch.cuda.is_available():
        placed["device"] = "cpu"
    return placed
