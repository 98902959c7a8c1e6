"""Running a sweep: from its settings to its files."""

from __future__ import annotations

import shutil
import time
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.console import output
from lm_eval_ext.errors import PlanError, UserError
from lm_eval_ext.fingerprints import weights_fingerprint
from lm_eval_ext.steering.plan import Gamma, Plan, parse_position
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.grid import Condition, Grid, intervention, problems
from lm_eval_ext.sweep.processes import Processes
from lm_eval_ext.sweep.result import SweepResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd
    from rich.console import Console

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.sweep.engine import Engine
    from lm_eval_ext.sweep.questions import Questions, ScoredTree
    from lm_eval_ext.sweep.settings import Settings
    from lm_eval_ext.sweep.store import Store


class Sweep:
    """A sweep. Everything that can be checked without the model's weights is checked before they are loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def vectors(self) -> VectorSet:
        """The steering vectors."""
        vectors = self.settings.vectors
        return vectors if isinstance(vectors, VectorSet) else VectorSet.load(vectors)

    @cached_property
    def n_layers(self) -> int:
        """Number of decoder layers of the vectors' model."""
        return self.vectors.model.n_layers

    @cached_property
    def questions(self) -> Questions:
        """The questions of the tasks."""
        from lm_eval_ext.data.task_questions import Rendering
        from lm_eval_ext.models import embedded
        from lm_eval_ext.models.loading import load_tokenizer
        from lm_eval_ext.sweep.questions import Questions

        settings = self.settings
        return Questions(
            settings.tasks,
            limit=settings.limit,
            num_fewshot=settings.num_fewshot,
            languages=settings.languages,
            with_prior=settings.prior,
            default_language=settings.lang,
            include_path=settings.include_path,
            rendering=Rendering(
                apply_chat_template=settings.apply_chat_template,
                system_instruction=settings.system_instruction,
                tokenizer=load_tokenizer(settings.model or str(embedded.path()))
                if settings.apply_chat_template
                else None,
            ),
        )

    def grid(self) -> tuple[Grid, list[str]]:
        """The grid, and the errors in its settings."""
        from lm_eval_ext.steering.extraction import parse_layers

        settings, errors = self.settings, list[str]()

        def read(parse: Callable[[str], Any], texts: Iterable[str]) -> tuple[Any, ...]:
            values = []
            for text in texts:
                try:
                    values.append(parse(text))
                except UserError as error:
                    errors.append(str(error))
            return tuple(values)

        layers = [
            layer for part in read(lambda text: parse_layers(text, self.n_layers), [settings.layers]) for layer in part
        ]
        grid = Grid(
            kinds=tuple(kind for kind in settings.kinds if kind in self.vectors.kinds),
            layers=tuple(layers),
            gammas=read(_gamma, settings.gammas),
            positions=read(parse_position, settings.positions),
            n_random=settings.n_random,
            with_controls=settings.controls,
            control_gammas=read(_gamma, settings.control_gammas),
            n_shuffled={kind: self.vectors.n_shuffled(kind) for kind in self.vectors.kinds},
        )
        unknown = [kind for kind in settings.kinds if kind not in self.vectors.kinds]
        if unknown:
            errors.append(
                f"{self.vectors.where} has no kind {', '.join(unknown)}; kinds: {', '.join(self.vectors.kinds)}"
            )
        return grid, errors

    def _check(self) -> list[Condition]:
        """The unsteered condition and those of one vector, if all of them can run.

        Raises:
            UserError: all problems of the grid.
        """
        grid, errors = self.grid()
        languages = self.questions.languages
        if not grid.layers:  # the languages can be checked anyway
            some = self.vectors.vectors[next(iter(self.vectors.vectors))].info.layers[:1]
            errors += problems(replace(grid, layers=some).singles(), self.vectors, self.n_layers, languages)
        errors += self._seen_questions()
        singles = grid.singles()
        errors += problems(singles, self.vectors, self.n_layers, languages)
        if errors:
            raise UserError("invalid sweep grid:\n" + "\n".join(f"  {error}" for error in errors))
        return [Condition(Plan()), *singles]

    def _seen_questions(self) -> list[str]:
        """The test tasks that ask what the vectors were made from; development tasks are for choosing, and noted."""
        from lm_eval.utils import simple_parse_args_string

        from lm_eval_ext.steering.reuse import HOW_TO_GO_ON, SeenQuestions

        if simple_parse_args_string(self.settings.model_args).get("allow_same_split"):
            return []
        seen = SeenQuestions(Plan(tuple(intervention(k, 0, Gamma(1), "all") for k in self.vectors.kinds)), self.vectors)
        errors, notes = list[str](), list[str]()
        for task, split in {question.task: question.split for question in self.questions.questions}.items():
            if problem := seen.of_task(task, self.questions.metadata(task), self.questions.prompts(task)):
                (notes if split == "dev" else errors).append(problem)
        if notes:
            output(stderr=True).print(
                f"note: {notes[0]}{f' (and {len(notes) - 1} tasks more)' if len(notes) > 1 else ''}; layers and strengths "
                "are chosen on what the vectors were made from",
                style="yellow",
            )
        return [*errors, HOW_TO_GO_ON] if errors else []

    def run(self, *, dry_run: bool = False) -> SweepResult | None:
        """Check, compute, and write the results; every process of a launch computes its share, the first one writes.

        Returns:
            the result; None of a dry run, and in all processes of a launch but the first.

        Raises:
            UserError: settings, tasks, vectors, a model or a folder that cannot be used.
        """
        console = output(stderr=True)
        singles = self._check()
        console.print(
            f"{len(singles)} conditions on {len(self.questions.questions)} questions in "
            f"{', '.join(self.questions.languages)}" + (", then pairs of the best" if self.settings.has_pairs else "")
        )
        if dry_run:
            return None
        started = time.monotonic()
        with Processes() as processes:
            self._prepare_folder(processes)
            model = self._load()
            dtype = model.get_model_info().get("dtype", {})
            self._note_vectors_dtype(dtype.get("used", ""), console)
            computed = self._compute(model, singles, processes, console)
        if computed is None:
            return None
        conditions, trees, store = computed
        frame = self._items(trees, conditions, store)
        summary = self._summary(frame, conditions)
        seconds = time.monotonic() - started
        result = SweepResult(self.settings, self.vectors, self.questions, conditions, frame, summary, seconds, dtype)
        result.write()
        return result

    def _prepare_folder(self, processes: Processes) -> None:
        try:
            if self.settings.restart and processes.is_first:
                shutil.rmtree(self.settings.cells, ignore_errors=True)
            processes.wait()
            self.settings.cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.settings.out}: cannot write there ({error.strerror})") from None

    def _load(self) -> SteeredBackend:
        from lm_eval.utils import simple_parse_args_string

        from lm_eval_ext import backends

        settings = self.settings
        arguments = dict(simple_parse_args_string(settings.model_args))
        conflicting = sorted({"vectors", "steer", "positions"} & arguments.keys())
        if conflicting:
            raise UserError(
                f"--model_args {', '.join(conflicting)}: a sweep has --vectors, --positions and a grid of plans"
            )
        if settings.device:
            arguments["device"] = settings.device
        # The vectors are passed so that they are checked against the model; no plan is set.
        return backends.load(
            "steered-hf", settings.model or None, vectors=self.vectors, lang=settings.lang, **arguments
        )

    def _note_vectors_dtype(self, dtype: str, console: Console) -> None:
        others = sorted({entry.info.dtype for entry in self.vectors.vectors.values()} - {dtype})
        if dtype and others:
            console.print(
                f"note: the model runs in {dtype}, the vectors were extracted in {', '.join(others)}", style="yellow"
            )

    def _engine(self, model: SteeredBackend, questions: list[ScoredTree], console: Console) -> Engine:
        from lm_eval_ext.scoring.batching import Budget
        from lm_eval_ext.scoring.shared_forward import SweepModel
        from lm_eval_ext.sweep.engine import MAX_TOKENS, SeparateEngine, SharedEngine

        settings = self.settings
        trees = SweepModel(model.model)
        if reason := trees.check([question.tree for question in questions]):
            console.print(f"note: {reason}; every condition is computed in full", style="yellow")
            return SeparateEngine(model.model, self.vectors, self.n_layers, max_length=model.max_length)
        tokens = settings.max_tokens or MAX_TOKENS.get(model.device.type, MAX_TOKENS["cuda"])
        return SharedEngine(trees, self.vectors, self.n_layers, Budget(tokens, settings.memory))

    def _compute(
        self, model: SteeredBackend, singles: list[Condition], processes: Processes, console: Console
    ) -> tuple[list[Condition], list[ScoredTree], Store] | None:
        """All conditions and trees in the store of the first process; None in the others."""
        from lm_eval_ext.sweep.store import Store

        requests = model.encode(self.questions.instances)
        trees = self.questions.trees(requests, model.max_length, likelihoods=self.settings.likelihoods)
        if self.questions.n_truncated:
            console.print(
                f"note: {self.questions.n_truncated} prompts are truncated from the left: they are longer than the model's "
                f"{model.max_length} tokens",
                style="yellow",
            )
        store = Store(self.settings.cells, self._identity(model), processes.rank)
        stored = store.trees()
        if stored and processes.is_first:
            requested = {tree.key for tree in trees}
            console.print(
                f"{self.settings.cells}: {len(stored & requested)} of {len(requested)} prompts were begun by earlier runs"
                + (f", {len(stored - requested)} others are not used now" if stored - requested else "")
            )
        engine = self._engine(model, trees, console)
        conditions = singles
        self._run(engine, trees, conditions, store, processes, "Sweeping")
        if self.settings.has_pairs:
            conditions = [*singles, *self._pairs(trees, singles, store)]
            self._run(engine, trees, conditions, store, processes, "Pairs")
        if missing := self._missing_controls(trees, conditions, store):
            conditions = [*conditions, *missing]
            self._run(engine, trees, conditions, store, processes, "Controls of the best")
        return (conditions, trees, store) if processes.is_first else None

    def _run(
        self,
        engine: Engine,
        trees: list[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        processes: Processes,
        title: str,
    ) -> None:
        from tqdm import tqdm

        share = sorted(trees, key=lambda tree: (-len(tree.tree), tree.key))[processes.rank :: processes.count]
        done = sum(store.get(condition.name, tree.key) is not None for condition in conditions for tree in share)
        total = len(share) * len(conditions)
        with tqdm(total=total, initial=done, desc=title, unit="cell", disable=not processes.is_first) as bar:
            engine.run(share, conditions, store, bar.update)
        processes.wait()
        if processes.count > 1:
            store.refresh()

    def _pairs(self, trees: list[ScoredTree], singles: list[Condition], store: Store) -> list[Condition]:
        """The two-layer conditions: the best layers of both kinds, by the axis of each."""
        from lm_eval_ext.sweep.choice import SURGICAL, Axes, best_by_layer

        summary = self._summary(self._items(trees, [c for c in singles if c.control is None], store), singles)
        axes = Axes.of(self.questions.questions, set(summary["family"]))
        families = {kind: axes[subject] or summary["family"].iloc[0] for kind, subject in SURGICAL.items()}
        best = {
            kind: best_by_layer(summary, kind, family, self.settings.pair_layers) for kind, family in families.items()
        }
        return self.grid()[0].pairs(best["en"], best["loc"])

    def _missing_controls(self, trees: list[ScoredTree], conditions: list[Condition], store: Store) -> list[Condition]:
        """The controls of reported plans that have none yet."""
        from lm_eval_ext.sweep.choice import Axes, reported

        controlled = {condition.of for condition in conditions if condition.control}
        plans = [condition for condition in conditions if condition.control is None]
        summary = self._summary(self._items(trees, plans, store), plans)
        axes = Axes.of(self.questions.questions, set(summary["family"]))
        best = [plan for plan in reported(summary, axes) if str(plan) not in controlled]
        return [control for plan in best for control in self.grid()[0].controls(plan)]

    def _items(self, trees: list[ScoredTree], conditions: Sequence[Condition], store: Store) -> pd.DataFrame:
        from tqdm import tqdm

        from lm_eval_ext.sweep.summary import items

        with tqdm(total=len(conditions), desc="Scoring", unit="condition") as bar:
            return items(self.questions, trees, conditions, store, bar.update)

    def _summary(self, frame: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
        from lm_eval_ext.sweep.summary import summarise

        summary = summarise(frame, conditions, metric=self.settings.metric, resamples=self.settings.resamples)
        if summary.empty:
            metrics = [name for name in frame if frame[name].dtype == float and name != "margin"]
            raise UserError(f"--metric {self.settings.metric!r}: the tasks score {', '.join(map(str, metrics))}")
        return summary

    def _identity(self, model: SteeredBackend) -> dict[str, str]:
        return {
            "model": weights_fingerprint(model.model),
            "vector file": self.vectors.digest[:16],
            "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        }


def _gamma(text: str) -> Gamma:
    try:
        return Plan.parse(f"x@0:{text}").interventions[0].gamma
    except PlanError:
        raise PlanError(f"gamma {text!r} is not a strength such as 2, 0.5 or 5%") from None


def sweep(
    tasks: Sequence[str], vectors: VectorSet | Path | str, out: Path | str = "sweep", **settings: Any
) -> SweepResult | None:
    """Evaluate a grid of steering plans on the same questions, for little more than one evaluation.

    Every kind at every layer with every strength, the unsteered model and controls; then the best layers of `en` and `loc`
    together. Each cell equals a run of `lm_eval --model steered-hf` with that plan. A second call resumes where the
    first was interrupted. Writes `items.parquet`, `summary.csv`, `sweep.html`, figures and `plan.yaml` to `out`.

    Args:
        tasks: multiple-choice tasks or groups of the harness.
        vectors: a vector set, or a vector file.
        out: folder for the cells and the results.
        settings: the grid, the questions and the model: the fields of `sweep.settings.Settings`, such as `layers="40%-60%"`,
            `gammas=["1", "2"]`, `positions=["last"]`, `limit=50`, `model="google/gemma-3-12b-pt"`.

    Returns:
        the result; None in all processes of `accelerate launch` but the first.

    Raises:
        UserError: an unknown setting, a grid, vectors, tasks or a model that do not fit.

    Example:
        >>> best = lx.sweep(
        ...     tasks=["localization_mini_ko_cloze"],
        ...     vectors="v.safetensors",
        ...     out="sweep",
        ...     kinds=["loc"],
        ...     layers="40%-60%",
        ...     gammas=["2"],
        ...     limit=2,
        ...     model=folder,
        ...     model_args="dtype=float32",
        ... )
        >>> sorted(path.name for path in Path("sweep").iterdir() if path.is_file())
        ['items.parquet', 'summary.csv', 'sweep.html', 'sweep.json']
    """
    from lm_eval_ext.sweep.settings import Settings

    valid = [field.name for field in fields(Settings)]
    if unknown := [name for name in settings if name not in valid]:
        raise UserError(f"a sweep has no setting {', '.join(unknown)}; valid: {', '.join(valid)}")
    lists = {name: tuple(map(str, value)) for name, value in settings.items() if isinstance(value, list | tuple)}
    paths: dict[str, Callable[[Any], Any]] = {"include_path": Path, "model": str}
    settings |= {name: paths[name](settings[name]) for name in paths if settings.get(name) is not None}
    source = vectors if isinstance(vectors, VectorSet) else Path(vectors)
    return Sweep(Settings(source, tuple(tasks), Path(out), **{**settings, **lists})).run()
