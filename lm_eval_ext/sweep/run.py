"""Running a sweep: from its settings to its files."""

from __future__ import annotations

import shutil
import time
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.console import notes
from lm_eval_ext.errors import PlanError, UserError
from lm_eval_ext.steering.plan import Gamma, Plan, parse_position
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.sweep.grid import Condition, Grid, problems
from lm_eval_ext.sweep.processes import Processes
from lm_eval_ext.sweep.result import SweepResult
from lm_eval_ext.sweep.settings import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd
    from rich.console import Console

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.sweep.cells import Cells
    from lm_eval_ext.sweep.questions import Questions
    from lm_eval_ext.sweep.settings import Settings


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
        from lm_eval_ext.sweep.loading import rendering
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
            rendering=rendering(
                settings.model,
                apply_chat_template=settings.apply_chat_template,
                system_instruction=settings.system_instruction,
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
            gammas=read(parse_gamma, settings.gammas),
            positions=read(parse_position, settings.positions),
            n_random=settings.n_random,
            with_controls=settings.controls,
            control_gammas=read(parse_gamma, settings.control_gammas),
            n_shuffled={kind: self.vectors.n_shuffled(kind) for kind in self.vectors.kinds},
        )
        unknown = [kind for kind in settings.kinds if kind not in self.vectors.kinds]
        if unknown:
            errors.append(
                f"{self.vectors.where} has no kind {', '.join(unknown)}; kinds: {', '.join(self.vectors.kinds)}"
            )
        return grid, errors

    def size(self) -> dict[str, Any]:
        """How much a run of it computes, from the checked grid: what `--dry-run` tells."""
        return {
            "conditions": len(self._check()),
            "questions": len(self.questions.questions),
            "languages": self.questions.languages,
            "pairs_of_the_best": self.settings.has_pairs,
        }

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
        seen = SeenQuestions(self.vectors, self.vectors.kinds)
        errors, in_dev = list[str](), list[str]()
        for task, split in {question.task: question.split for question in self.questions.questions}.items():
            if problem := seen.of_task(task, self.questions.metadata(task), self.questions.prompts(task)):
                (in_dev if split == "dev" else errors).append(problem)
        if in_dev:
            notes().print(
                f"note: {in_dev[0]}{f' (and {len(in_dev) - 1} tasks more)' if len(in_dev) > 1 else ''}; layers and "
                "strengths are chosen on what the vectors were made from",
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
        console = notes()
        if self.settings.engine not in ENGINES:
            raise UserError(f"--engine {self.settings.engine!r} is unknown, valid: {', '.join(ENGINES)}")
        singles = self._check()
        console.print(
            f"{len(singles)} conditions on {len(self.questions.questions)} questions in "
            f"{', '.join(self.questions.languages)}" + (", then pairs of the best" if self.settings.has_pairs else "")
        )
        if dry_run:
            return None
        started = time.monotonic()
        with Processes() as processes:
            if processes.count > 1 and self.settings.engine == "vllm":
                raise UserError(
                    "--engine vllm runs its own workers: start it without accelerate launch, and divide the model with "
                    "--model-args tensor_parallel_size=N or data_parallel_size=N"
                )
            self._prepare_folder(processes)
            model = self._load()
            dtype = model.get_model_info().get("dtype", {})
            self._note_vectors_dtype(dtype.get("used", ""), console)
            cells = self._cells(model, processes, console)
            conditions = self._compute(cells, singles)
        if not processes.is_first:
            return None
        frame = cells.items(conditions)
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
        from lm_eval_ext.sweep.loading import load_backend

        settings = self.settings
        more: dict[str, Any] = (
            {"enforce_eager": True} if settings.engine == "vllm" else {}
        )  # plans are put in place later
        # The vectors are passed so that they are checked against the model; no plan is set.
        return load_backend(
            *(settings.model, settings.model_args, settings.device),
            refused=("vectors", "steer", "positions"),
            because="--model_args {}: a sweep has --vectors, --positions and a grid of plans",
            engine=settings.engine,
            vectors=self.vectors,
            lang=settings.lang,
            **more,
        )

    def _note_vectors_dtype(self, dtype: str, console: Console) -> None:
        others = sorted({entry.info.dtype for entry in self.vectors.vectors.values()} - {dtype})
        if dtype and others:
            console.print(
                f"note: the model runs in {dtype}, the vectors were extracted in {', '.join(others)}", style="yellow"
            )

    def _cells(self, model: SteeredBackend, processes: Processes, console: Console) -> Cells:
        from lm_eval_ext.sweep.cells import Cells

        settings = self.settings
        return Cells(
            *(model, self.questions, self.vectors, settings.cells, processes, console),
            likelihoods=settings.likelihoods,
            max_tokens=settings.max_tokens,
            memory=settings.memory,
            engine=settings.engine,
        )

    def _compute(self, cells: Cells, singles: list[Condition]) -> list[Condition]:
        """Compute all conditions; those of pairs and the controls of the best depend on the results of the others."""
        conditions = singles
        cells.compute(conditions, "Sweeping")
        if self.settings.has_pairs:
            conditions = [*singles, *self._pairs(cells, singles)]
            cells.compute(conditions, "Pairs")
        if missing := self._missing_controls(cells, conditions):
            conditions = [*conditions, *missing]
            cells.compute(conditions, "Controls of the best")
        return conditions

    def _pairs(self, cells: Cells, singles: list[Condition]) -> list[Condition]:
        """The two-layer conditions: the best layers of both kinds, by the axis of each."""
        from lm_eval_ext.sweep.choice import SURGICAL, Axes, best_by_layer

        summary = self._summary(cells.items([c for c in singles if c.control is None]), singles)
        axes = Axes.of(self.questions.questions, set(summary["family"]))
        families = {kind: axes[subject] or summary["family"].iloc[0] for kind, subject in SURGICAL.items()}
        best = {
            kind: best_by_layer(summary, kind, family, self.settings.pair_layers) for kind, family in families.items()
        }
        return self.grid()[0].pairs(best["en"], best["loc"])

    def _missing_controls(self, cells: Cells, conditions: list[Condition]) -> list[Condition]:
        """The controls of reported plans that have none yet."""
        from lm_eval_ext.sweep.choice import Axes, reported

        controlled = {condition.of for condition in conditions if condition.control}
        plans = [condition for condition in conditions if condition.control is None]
        summary = self._summary(cells.items(plans), plans)
        axes = Axes.of(self.questions.questions, set(summary["family"]))
        best = [plan for plan in reported(summary, axes) if str(plan) not in controlled]
        return [control for plan in best for control in self.grid()[0].controls(plan)]

    def _summary(self, frame: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
        from lm_eval_ext.sweep.summary import summarise

        summary = summarise(frame, conditions, metric=self.settings.metric, resamples=self.settings.resamples)
        if summary.empty:
            metrics = [name for name in frame if frame[name].dtype == float and name != "margin"]
            raise UserError(f"--metric {self.settings.metric!r}: the tasks score {', '.join(map(str, metrics))}")
        return summary


def parse_gamma(text: str) -> Gamma:
    """A strength as in a plan.

    Raises:
        PlanError: the text is none.
    """
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
