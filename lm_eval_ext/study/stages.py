"""The stages of a study: what each runs, reads and writes, in an order in which they can run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import harness
from lm_eval_ext.backends.vllm import release
from lm_eval_ext.configs import read_yaml
from lm_eval_ext.errors import StudyError
from lm_eval_ext.languages import KNOWN
from lm_eval_ext.steering.plan import Gamma, Plan
from lm_eval_ext.study import config
from lm_eval_ext.training.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval_ext.study.config import Study
    from lm_eval_ext.study.options import CommandLines

#: What stands for a plan that a sweep has yet to choose.
UNCHOSEN = "(chosen by {stage})"


@dataclass(frozen=True)
class Outputs:
    """The files of a stage that others read: those in a folder that match one of some patterns, at least one."""

    folder: Path
    patterns: tuple[str, ...]

    def files(self) -> list[Path]:
        """The files that exist."""
        return sorted({file for pattern in self.patterns for file in self.folder.glob(pattern) if file.is_file()})


@dataclass(frozen=True)
class Stage:
    """One subprocess of a study.

    Attributes:
        name: `train/mist`.
        arguments: of `lm-eval-ext`; those that depend on a plan yet to be chosen have `UNCHOSEN` in them.
        outputs: what it writes and others read.
        needs: names of the stages whose files this one reads.
        reads: files and model folders of the user that it reads.
        clears: what is removed before the stage starts anew, all inside the study's folder.
        resume: what is added to the arguments to resume an interrupted run; None where a run cannot be resumed.
        chosen: the plan that its arguments depend on, where a sweep chooses it.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: Outputs
    needs: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()
    clears: tuple[Path, ...] = ()
    resume: tuple[str, ...] | None = None
    chosen: Choice | None = None

    def ready(self) -> Stage:
        """The stage with its plan in its arguments.

        Raises:
            StudyError: no plan was chosen.
        """
        if self.chosen is None:
            return self
        plan = self.chosen.plan()
        return replace(
            self, arguments=tuple(a.replace(self.chosen.unchosen, plan) for a in self.arguments), chosen=None
        )

    def clear(self) -> None:
        """Remove what an earlier run left."""
        for path in self.clears:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Choice:
    """The plan of a condition, from what a sweep chooses."""

    sweep: str
    file: Path
    condition: str

    @property
    def unchosen(self) -> str:
        """What stands for the plan until it is known."""
        return UNCHOSEN.format(stage=self.sweep)

    def plan(self) -> str:
        """The plan.

        Raises:
            StudyError: the sweep chose none.
        """
        try:
            chosen = read_yaml(self.file, StudyError, "plan", floats=False)["steer"]
        except (StudyError, KeyError, TypeError):
            raise StudyError(
                f"{self.sweep} chose no plan: that takes development splits of a transfer and of a localization task, "
                "such as bmlama_dev and blend_decon_dev_cloze, under sweep: tasks; or set steer"
            ) from None
        return plan_for_condition(self.condition, str(chosen))


def plan_for_condition(condition: str, surgical: str) -> str:
    """The plan of a condition, of the surgical plan; `random`, `other` and `negative` are its controls."""
    terms = Plan.parse(surgical).interventions
    if condition in ("en", "loc"):
        terms = tuple(term for term in terms if term.kind == condition)
    elif condition in ("random", "other"):
        terms = tuple(replace(term, control=condition) for term in terms)
    elif condition == "negative":
        terms = tuple(replace(term, gamma=Gamma(-term.gamma.value, term.gamma.is_relative)) for term in terms)
    return str(Plan(terms))


def plan(study: Study, commands: CommandLines) -> list[Stage]:
    """All stages of a study, each after those that it needs; every command line is checked.

    Args:
        study: the study.
        commands: writes the command lines.

    Raises:
        StudyError: an option or name that does not fit; tasks made of what is trained on.
        ModelError: `engine: vllm` without a vLLM that can be steered.
    """
    if study.engine == "vllm":
        release.check(release.installed())
    return list(_Stages(study, commands).all())


def check_tasks(study: Study) -> None:
    """Find out before a night of training whether there are the tasks that come after it.

    Raises:
        UserError: a name that is neither task nor group of the harness.
    """
    harness.task_manager([*study.evaluate.tasks, *swept_tasks(study)])


def swept_tasks(study: Study) -> list[str]:
    """The tasks of the sweep."""
    tasks = (study.sweep or {}).get("tasks", [])
    return [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]


@dataclass(frozen=True)
class _Stages:
    study: Study
    commands: CommandLines
    _trained: dict[str, Stage] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.study.out

    def all(self) -> Iterator[Stage]:
        yield from (self._data(name, options) for name, options in self.study.data.items())
        for name, options in self.study.models.items():
            if options:
                self._trained[name] = self._train(name, options)
                yield self._trained[name]
        steered = set(self.study.evaluate.conditions) - {"unsteered"}
        if steered:
            yield from map(self._extract, self.study.models)
        if steered and self.study.sweep is not None:
            yield from map(self._sweep, self.study.models)
        evaluations = [self._evaluate(m, c) for m in self.study.models for c in self.study.evaluate.conditions]
        yield from evaluations
        needs = tuple(stage.name for stage in evaluations)
        yield self._page("plane", self.study.plane, ("plane.html", "plane.csv"), needs)
        if self.study.report is not None:
            yield self._page("report", self.study.report, ("report.html",), needs)

    def _data(self, name: str, options: dict[str, Any]) -> Stage:
        out = self.out / "data" / f"{name}.jsonl"
        given = {key: value for key, value in options.items() if key != "source"}
        arguments = self.commands.write(
            ("data", "instruct"), given, f"data: {name}", {"out": str(out), "": str(options["source"])}
        )
        return self._stage(f"data/{name}", arguments, Outputs(out.parent, (out.name,)), clears=(out,))

    def _train(self, name: str, options: dict[str, Any]) -> Stage:
        method = options["method"]
        where = f"models: {name}"
        out = self.out / "models" / name
        path = ("train", method)
        config_class = METHODS[method].config_class
        common = {key: value for key, value in self.study.train.items() if self.commands.has_option(path, key)}
        given = {**self._languages(path, config_class.language_choices), **common, **options}
        del given["method"]
        needs: tuple[str, ...] = ()
        if (data := given.get("data")) in self.study.data:
            needs = (f"data/{data}",)
            given["data"] = str(self.out / "data" / f"{data}.jsonl")

        def check(parameters: dict[str, Any]) -> None:
            config = config_class(**parameters)
            config.codes()
            config.check_tasks(self.study.evaluate.tasks)

        fixed = {"out": str(out), "model": self.study.model or None, "resume": None}
        arguments = self.commands.write(path, given, where, fixed, check)
        # The log and the card say when they were written: they do not decide whether others run again.
        outputs = Outputs(out, ("*.safetensors", "adapter_config.json", "config.json"))
        return self._stage(f"train/{name}", arguments, outputs, needs, clears=(out,), resume=("--resume",))

    def _extract(self, name: str) -> Stage:
        out = self.out / "vectors" / f"{name}.safetensors"
        model, adapter = self._model(name)
        fixed = {"out": str(out), "model": model or None, "peft": adapter or None}
        given = {**self._languages(("extract",)), **self.study.extract}
        arguments = self.commands.write(("extract",), given, "extract", fixed)
        return self._stage(
            f"extract/{name}", arguments, Outputs(out.parent, (out.name,)), self._after_training(name), clears=(out,)
        )

    def _sweep(self, name: str) -> Stage:
        assert self.study.sweep is not None
        out = self.out / "sweep" / name
        model, adapter = self._model(name)
        model_args = {**self.study.evaluate.model_args, **({self._adapter_argument: adapter} if adapter else {})}
        fixed = {
            "out": str(out),
            "vectors": str(self.out / "vectors" / f"{name}.safetensors"),
            "model": model or None,
            "model-args": _joined(model_args) or None,
            "restart": None,
            "engine": None if self.study.engine == "hf" else self.study.engine,
        }
        arguments = self.commands.write(("sweep",), self.study.sweep, "sweep", fixed)
        needs = (*self._after_training(name), f"extract/{name}")
        outputs = Outputs(out, ("plan.yaml", "summary.csv"))
        return self._stage(f"sweep/{name}", arguments, outputs, needs, clears=(out,), resume=())  # it resumes by itself

    def _evaluate(self, name: str, condition: str) -> Stage:
        run = config.run_name(name, condition)
        out = self.out / "results" / run
        model, adapter = self._model(name)
        arguments = {"pretrained": model, self._adapter_argument: adapter}
        needs = self._after_training(name)
        chosen = None
        if condition != "unsteered":
            needs = (*needs, f"extract/{name}")
            arguments["vectors"] = str(self.out / "vectors" / f"{name}.safetensors")
            if self.study.steer:
                arguments["steer"] = plan_for_condition(condition, self.study.steer)
            else:
                chosen = Choice(f"sweep/{name}", self.out / "sweep" / name / "plan.yaml", condition)
                arguments["steer"] = chosen.unchosen
                needs = (*needs, chosen.sweep)
        evaluate = self.study.evaluate
        model_args = {**{key: value for key, value in arguments.items() if value}, **evaluate.model_args}
        line = ["eval", "--model", f"steered-{self.study.engine}"]
        line += ["--model_args", _joined(model_args)] if model_args else []
        line += ["--tasks", ",".join(evaluate.tasks), "--output_path", str(out), "--log_samples"]
        line += [part for key, value in evaluate.options.items() for part in (f"--{key}", str(value))]
        outputs = Outputs(out, ("**/results_*.json", "**/samples_*.jsonl"))
        return replace(self._stage(f"evaluate/{run}", line, outputs, needs, clears=(out,)), chosen=chosen)

    def _page(self, command: str, options: dict[str, Any], files: tuple[str, ...], needs: tuple[str, ...]) -> Stage:
        given = {"baseline": next(iter(self.study.models)), **options}
        where = command
        runs = [need.partition("/")[2] for need in needs]
        if given["baseline"] not in runs:
            raise StudyError(f"{where}: baseline {given['baseline']!r} is no run of this study: {', '.join(runs)}")
        compared = [run for run in runs if run != given["baseline"]]
        if not compared:
            raise StudyError(
                f"{where}: there is only the run {runs[0]}: name another model or condition to compare it with"
            )
        fixed = {"out": str(self.out / files[0]), "": str(self.out / "results"), "run": compared}
        return self._stage(
            command,
            self.commands.write((command,), given, where, fixed),
            Outputs(self.out, files),
            needs,
            clears=tuple(self.out / name for name in files),
        )

    def _stage(
        self,
        name: str,
        arguments: list[str],
        outputs: Outputs,
        needs: tuple[str, ...] = (),
        clears: tuple[Path, ...] = (),
        resume: tuple[str, ...] | None = None,
    ) -> Stage:
        return Stage(name, tuple(arguments), outputs, needs, self._read_by(arguments), clears, resume)

    def _read_by(self, arguments: list[str]) -> tuple[Path, ...]:
        """The user's files and folders among arguments, also as `en=FILE.tsv`; what the study writes is not among them."""
        parts = [part for argument in arguments for part in argument.split(",")]
        words = {word for part in parts for word in (part, part.rpartition("=")[2])}
        paths = sorted(Path(word) for word in words if word and _is_input(Path(word)))
        return tuple(path for path in paths if self.out not in (path, *path.parents))

    def _languages(self, path: tuple[str, ...], choices: Sequence[str] = tuple(KNOWN)) -> dict[str, str]:
        codes = [code for code in self.study.languages if code in choices]
        return {"languages": ",".join(codes)} if self.commands.has_option(path, "languages") else {}

    def _model(self, name: str) -> tuple[str, str]:
        """The weights and the adapter of a model; either may be empty."""
        trained = self._trained.get(name)
        if trained is None:
            return self.study.model, ""
        folder = str(trained.outputs.folder)
        return (folder, "") if "--full" in trained.arguments else (self.study.model, folder)

    @property
    def _adapter_argument(self) -> str:
        """What the engine's model calls an adapter."""
        return "peft" if self.study.engine == "hf" else "lora_local_path"

    def _after_training(self, name: str) -> tuple[str, ...]:
        return (f"train/{name}",) if name in self._trained else ()


def _is_input(path: Path) -> bool:
    """Whether a word among arguments is a file, or the folder of a model or adapter."""
    return path.is_file() or any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


def _joined(arguments: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in arguments.items())
