"""The part of a steered model that is independent of the engine.

It checks plans, vectors and languages before anything heavy is loaded, selects the row of the steering table for each
request's language, keeps cached responses of different steering apart, and tokenises `loglikelihood` requests.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lm_eval_ext import harness
from lm_eval_ext.backends.encoding import encode, encode_pairs
from lm_eval_ext.backends.response_cache import ResponseCache
from lm_eval_ext.console import Progress
from lm_eval_ext.data import axes as axis_files
from lm_eval_ext.data.request_language import LANGUAGE_COLUMNS, METADATA_KEY, request_language
from lm_eval_ext.errors import DataError, LanguageError, ModelError
from lm_eval_ext.fingerprints import weights_fingerprint
from lm_eval_ext.languages import normalise
from lm_eval_ext.models import embedded, precision
from lm_eval_ext.models.loading import load_config, loading
from lm_eval_ext.scoring.requests import Request, Score, not_a_number
from lm_eval_ext.steering.decoder import fingerprint, layer_count
from lm_eval_ext.steering.plan import DEFAULT_POSITION, Plan, parse_position
from lm_eval_ext.steering.reuse import HOW_TO_GO_ON, SeenQuestions
from lm_eval_ext.steering.table import SteeringTable
from lm_eval_ext.steering.vectors import VectorSet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook

log = logging.getLogger(__name__)

#: Arguments of every steered model, which the harness's class of the engine does not take.
STEERING_ARGUMENTS = ("vectors", "steer", "lang", "positions", "axes", "any_model", "allow_same_split")

#: Of the engine's arguments, those that decide which config is read.
_CONFIG_ARGUMENTS = ("revision", "trust_remote_code", "gguf_file", "subfolder")

harness.install()


class SteeredBackend(TemplateLM):  # type: ignore[misc]
    """A causal language model of the harness whose residual stream can be steered; without a plan it is not changed.

    An engine is a subclass that also derives from the harness's class of that engine, which comes second:
    `class SteeredHFLM(SteeredBackend, HFLM)`. It implements `score` and `generate`, and whatever of `engine_arguments`,
    `argument_hint`, `adapter` and `close` it needs.

    Args:
        pretrained: model name, folder, or a loaded model; the embedded Gemma 3 270M where left out.
        vectors: vector file made by `lm-eval-ext extract`, or a set of vectors.
        steer: steering plan, `en@42%:2+loc@58%:2` (see `lm_eval_ext.steering.plan`); empty means plain evaluation;
            or the path of the `plan.yaml` of a sweep.
        lang: language of requests whose document and task name none.
        positions: tokens to steer where the plan does not say: `prompt` (every prompt token, up to the one that scores
            the first option token; our default), `last` (the prompt's last token, and generated tokens), `all`, or another
            position of plans.
        any_model: accept vectors of another architecture of the same width and depth.
        axes: axis file that says the language of tasks of the harness (see `lm_eval_ext.data.axes`).
        allow_same_split: evaluate also what the vectors were made from, or the plan was chosen on.
        engine: arguments of the harness's class of the engine.

    Raises:
        UserError: a plan, vector file, language, layer or model that does not fit, raised before the weights are loaded;
            weights, an adapter or an argument of the engine that cannot be used.
    """

    _precision: precision.Precision | None = None  # of a model that was given loaded, or whose engine chooses

    def __init__(
        self,
        pretrained: Any = None,
        vectors: str | Path | VectorSet | None = None,
        steer: str | Plan | None = None,
        lang: str | None = None,
        positions: str = DEFAULT_POSITION,
        any_model: bool = False,
        axes: Path | str | None = None,
        allow_same_split: bool = False,
        **engine: Any,
    ) -> None:
        if axes is not None:
            axis_files.use(axes)
        self._plan = steer if isinstance(steer, Plan) else Plan.read(None if steer is None else str(steer))
        self._positions = parse_position(str(positions))
        if not isinstance(lang, str | None):  # from a YAML file of arguments, in which `no` is false
            raise LanguageError(f"lang={lang!r} is no code of a language; write it as a text: lang: 'no'")
        self._lang = None if lang is None else normalise(lang)
        self._vectors = (
            vectors if isinstance(vectors, VectorSet | None) else VectorSet.load(Path(str(vectors)).expanduser())
        )
        published = ""
        self._name = embedded.NAME if pretrained is None else str(getattr(pretrained, "name_or_path", pretrained))
        if pretrained is None:
            log.warning("No pretrained= given: using the embedded %s (%s)", embedded.NAME, embedded.LICENCE)
            pretrained, published = embedded.path(), embedded.DTYPE
        if isinstance(pretrained, torch.nn.Module):
            config = pretrained.config
        else:
            pretrained = str(pretrained)
            config = load_config(pretrained, **{key: engine.get(key) for key in _CONFIG_ARGUMENTS})
        if self._vectors is not None:
            self._vectors.check_model(self._name, config, any_model=any_model)
        self._table = SteeringTable.build(self._plan, self._vectors, layer_count(config), self._positions)
        self._allow_same_split = allow_same_split
        self._seen = SeenQuestions.of_plan(self._plan, self._vectors)
        self._fingerprint = fingerprint(config)
        self._responses = ResponseCache(str(self._plan))
        self._known: Mapping[Request, Score] = {}
        self._n_layers = layer_count(config)
        with loading(self._name, self.argument_hint()):
            arguments = self.engine_arguments(engine)
            on_cpu = None if isinstance(pretrained, torch.nn.Module) else self.runs_on_cpu(arguments)
            if on_cpu is not None:
                requested = arguments.pop("dtype", None)
                self._precision = precision.choose(requested, config, on_cpu=on_cpu, checkpoint=published, **arguments)
                arguments["dtype"] = self.dtype_argument(self._precision)
            super().__init__(pretrained, **arguments)

    # Implemented by engines ----------------------------------------------------------------------------------------------

    @abstractmethod
    def score(
        self, requests: Sequence[Request], progress: Callable[[dict[Request, Score]], object] = lambda done: None
    ) -> list[Score]:
        """The log-likelihood of each request's continuation, steered by the row of the table that the request names.

        Args:
            requests: to score; may contain duplicates.
            progress: called with the scores of the distinct requests just finished.
        """

    @abstractmethod
    def generate(self, requests: list[Instance], rows: Sequence[int], disable_tqdm: bool) -> list[str]:
        """The generated text of each `generate_until` request, steered by its row of the table."""

    def engine_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The user's arguments of the engine, as they are passed to the harness's class."""
        return arguments

    def runs_on_cpu(self, arguments: dict[str, Any]) -> bool | None:
        """Whether the engine's arguments place the whole model on a CPU, where `dtype=auto` is chosen by the machine.

        None for an engine that has no argument `dtype`.
        """
        return None

    def dtype_argument(self, chosen: precision.Precision) -> str:
        """The engine's argument `dtype` for what was chosen."""
        return chosen.argument

    def argument_hint(self) -> str:
        """What to check where the model cannot be loaded."""
        return (
            "Check --model_args: pretrained must be a folder or a name on the hub that this machine can reach; besides "
            f"{', '.join(STEERING_ARGUMENTS)} everything goes to the harness's model"
        )

    def engine_identity(self) -> dict[str, Any]:
        """What an answer depends on besides steering and request, as JSON: weights, dtype, tokenizer, context length."""
        return {}

    def scoring_seconds(self, requests: Collection[Request]) -> float | None:
        """An estimate of how long scoring these requests takes; None where none can be made."""
        return None

    @property
    def adapter(self) -> str | None:
        """Name or folder of the adapter on top of the model, None where there is none."""
        return None

    def steer(self, plan: Plan, vectors: VectorSet | None, known: Mapping[Request, Score] | None = None) -> None:
        """Put a plan in place of the one before.

        Args:
            plan: the plan; empty for the unsteered model.
            vectors: for the plan.
            known: scores under this plan that were computed before, and are not computed again.
        """
        self._table = SteeringTable.build(plan, vectors, self._n_layers, self._positions)
        self._plan, self._vectors = plan, vectors
        self._seen = SeenQuestions.of_plan(plan, vectors)
        self._responses = ResponseCache(str(plan))
        self._known = known or {}

    def weights_identity(self) -> dict[str, str]:
        """A hash of the loaded weights under `model`, and their `dtype`: what stored scores depend on."""
        dtype = next(self.model.parameters()).dtype
        return {"model": weights_fingerprint(self.model), "dtype": precision.name_of(dtype)}

    def sharing(self) -> dict[str, Any] | None:
        """What rows of a forward shared, with the reason why no more; None where nothing was scored or measured."""
        return None

    def close(self) -> None:
        """Remove the hooks of steering from a model that is used further. The backend cannot be used afterwards."""

    # What is saved ------------------------------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What the harness saves about the model, with the steering under `steering` and why its dtype under `dtype`."""
        of_engine: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        dtype = {} if self._precision is None else {"dtype": self._precision.record(of_engine.get("model_dtype"))}
        sharing = self.sharing()
        scoring = {} if sharing is None else {"scoring": sharing}
        return {**of_engine, **dtype, **scoring, "steering": self.steering_identity()}

    def steering_identity(self) -> dict[str, Any]:
        """The plan, the vector file's hash and the model's fingerprint: two runs that differ here are not comparable."""
        return {
            "plan": str(self._plan),
            "positions": self._positions,
            "lang": self._lang,
            "vectors": None if self._vectors is None else _vectors_identity(self._vectors),
            "model_fingerprint": self._fingerprint,
            "pretrained": self._name,
            "peft": self.adapter,
        }

    # Requests and their languages ---------------------------------------------------------------------------------------

    def language(self, instance: Instance) -> str | None:
        """The language of a request: its document's column, its task's metadata, `lang=`; None where none names one."""
        return request_language(instance, self._lang)

    def rows(self, requests: Sequence[Instance]) -> list[int]:
        """The row of the steering table of each request.

        Raises:
            LanguageError: the plan steers by language and a request's language is unknown; the message names the tasks.
            DataError: a task asks what the vectors were made from, or the plan was chosen on.
        """
        if not self._plan:
            return [0] * len(requests)
        self._check_unseen(requests)
        rows: list[int] = []
        problems: dict[str, str] = {}
        for request in requests:
            try:
                rows.append(self._table.row(self.language(request)))
            except LanguageError as error:
                problems.setdefault(request.task_name or "?", str(error))
        if problems:
            raise LanguageError(
                "\n".join(f"task {task}: {problem}" for task, problem in problems.items())
                + f"\nName the language in a document column ({' or '.join(LANGUAGE_COLUMNS)}), in the task's metadata "
                f"({METADATA_KEY}: ko), in an axis file (axes=FILE, `lm-eval-ext axes --help`) or with --model_args lang=ko"
            )
        return rows

    def _check_unseen(self, requests: Sequence[Instance]) -> None:
        if self._allow_same_split or not self._seen:
            return
        prompts: dict[str, set[tuple[Any, str]]] = defaultdict(set)
        for request in requests:
            prompts[request.task_name or "?"].add((request.doc_id, str(request.args[0])))
        checked = (
            self._seen.of_task(task, harness.task_metadata(task) or {}, [prompt for _, prompt in of_task])
            for task, of_task in prompts.items()
        )
        if problems := [problem for problem in checked if problem]:
            raise DataError("\n".join([*problems, HOW_TO_GO_ON]))

    def encode(self, instances: Sequence[Instance]) -> list[Request]:
        """The tokens of `loglikelihood` instances, as the harness makes them, and the rows of their steering.

        Raises:
            LanguageError: the plan steers by language and an instance's language is unknown.
            ModelError: a prompt or a continuation without tokens.
        """
        rows = self.rows(instances)
        pairs, merged = encode_pairs(self, [instance.args for instance in instances])
        if merged:
            _warn_of_merged([instances[index] for index in merged])
        for instance, pair in zip(instances, pairs, strict=True):
            if not pair.prompt or not pair.continuation:
                raise ModelError(
                    f"task {instance.task_name or '?'}, document {instance.doc_id}: the tokenizer gives no tokens for the "
                    f"{'continuation' if pair.prompt else 'prompt'} in {instance.args!r}: change the document, or the "
                    "task's target_delimiter"
                )
        return [Request(pair.prompt, pair.continuation, row, pair.lead) for pair, row in zip(pairs, rows, strict=True)]

    # Called by the harness: languages share batches ---------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, each steered with its own language's vector."""
        # The harness refuses `enable_thinking`, which releases of 0.5 have no attribute of.
        if self.backend != "causal" or getattr(self, "enable_thinking", None):
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[no-any-return]
        scored = self.encode(requests)
        self._responses.note("loglikelihood", requests, [request.row for request in scored])
        asked_by: dict[Request, list[Instance]] = defaultdict(list)
        for instance, request in zip(requests, scored, strict=True):
            asked_by[request].append(instance)

        def cache(done: dict[Request, Score]) -> None:
            for request, score in done.items():
                for instance in asked_by[request]:
                    self.cache_hook.add_partial("loglikelihood", instance.args, tuple(score))

        scores = self._score_with_bar(scored, asked_by, disable_tqdm, cache)
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float] | list[tuple[float, bool]]:
        """Log-likelihoods of whole texts in the harness's windows. The prompt of a window are the tokens before its
        first scored token: one, or more before a last window that would be shorter than the others.

        Releases of the harness from 0.5 on ask with an empty context before the text, and take a pair, as of any other
        log-likelihood, whose second part says nothing.
        """
        if self.backend != "causal":
            return super().loglikelihood_rolling(requests, disable_tqdm)  # type: ignore[no-any-return]
        rows = self.rows(requests)
        self._responses.note("loglikelihood_rolling", requests, rows)
        owners: list[int] = []
        scored: list[Request] = []
        asked_by: dict[Request, list[Instance]] = defaultdict(list)
        tokens = encode(self, (request.args[-1] for request in requests))
        for index, request in enumerate(requests):
            text = list(tokens[request.args[-1]])
            for window in get_rolling_token_windows(text, self.prefix_token_id, self.max_length, context_len=1):
                prompt, continuation = make_disjoint_window(window)
                owners.append(index)
                scored.append(Request(tuple(prompt), tuple(continuation), rows[index]))
                asked_by[scored[-1]].append(request)
        totals = [0.0] * len(requests)
        for index, score in zip(owners, self._score_with_bar(scored, asked_by, disable_tqdm), strict=True):
            totals[index] += score.log_likelihood
        responses: list[Any] = [
            total if len(request.args) == 1 else (total, False) for request, total in zip(requests, totals, strict=True)
        ]
        for request, response in zip(requests, responses, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, response)
        return responses

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated continuations, each steered with its own language's vector."""
        rows = self.rows(requests)
        self._responses.note("generate_until", requests, rows)
        return self.generate(requests, rows, disable_tqdm)

    def _score_with_bar(
        self,
        requests: list[Request],
        asked_by: Mapping[Request, Sequence[Instance]],
        disable_tqdm: bool,
        cache: Callable[[dict[Request, Score]], None] = lambda done: None,
    ) -> list[Score]:
        if not requests:
            return []
        hidden = disable_tqdm or self.rank != 0
        todo = set(requests)
        seconds = None if hidden or self._known else self.scoring_seconds(todo)
        with Progress(len(todo), "Running loglikelihood requests", "request", seconds=seconds, hidden=hidden) as bar:

            def progress(done: dict[Request, Score]) -> None:
                lost = [request for request, score in done.items() if math.isnan(score.log_likelihood)]
                if lost:  # before anything of it is cached
                    raise self.not_a_number([instance for request in lost for instance in asked_by[request]])
                cache(done)
                bar.update(len(done))

            if not self._known:
                return self.score(requests, progress)
            known = {request: self._known[request] for request in requests if request in self._known}
            progress(known)
            rest = [request for request in dict.fromkeys(requests) if request not in known]
            scores = known | dict(zip(rest, self.score(rest, progress) if rest else [], strict=True))
            return [scores[request] for request in requests]

    def not_a_number(self, instances: Sequence[Instance]) -> ModelError:
        """The error for requests whose answer is NaN; names their tasks."""
        first: dict[str, Any] = {}
        for instance in instances:
            first.setdefault(instance.task_name or "?", instance.doc_id)
        where = ", ".join(f"task {task} (document {document})" for task, document in first.items())
        return not_a_number(where, self.model.dtype, str(self._plan))

    # The harness's response cache ---------------------------------------------------------------------------------------

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Accept a `--use_cache` file only if it was made by the same model under the same steering.

        Raises:
            UserError: the cache was made by another model type, by another model or under another steering.
        """
        store = cache_hook.dbdict
        self._responses.open(store, {} if store is None else self._cache_identity())
        super().set_cache_hook(cache_hook)

    def forget_other_rows(self, kind: str, requests: Sequence[Instance]) -> None:
        """Called before `--use_cache` looks up `requests`: see `ResponseCache.forget`."""
        self._responses.forget(kind, requests, self.rows(requests))

    def _cache_identity(self) -> dict[str, Any]:
        """What a response depends on besides the request: all but the path of vectors, and vectors without a plan."""
        identity = self.steering_identity() | self.engine_identity()
        if not self._plan:
            return {key: value for key, value in identity.items() if key not in ("vectors", "positions", "lang")}
        return {**identity, "vectors": identity["vectors"]["sha256"]}  # a plan has vectors


def _warn_of_merged(instances: Sequence[Instance]) -> None:
    counts = Counter(instance.task_name or "?" for instance in instances)
    first = instances[0]
    log.warning(
        "A token spans prompt and option in %d requests (%s; first: document %s, %r after %r): the options of these prompts "
        "are scored from that token on, all of them; the harness's hf leaves the characters in it out of the score. Where "
        "that is not meant, change the task's target_delimiter",
        *(len(instances), ", ".join(f"{task}: {n}" for task, n in counts.items()), first.doc_id, first.args[1]),
        first.args[0][-20:],
    )


def _vectors_identity(vectors: VectorSet) -> dict[str, Any]:
    """The path of vectors, and the hash of their file; for vectors in memory, the hash that their file would have."""
    return {"path": None if vectors.path is None else str(vectors.path), "sha256": vectors.digest}
