"""`study.yaml`: what is trained, extracted, swept, evaluated and drawn.

    out: results/my-study        # folder of everything that the study makes; --out goes before it
    model: google/gemma-3-270m   # where all methods start from; the embedded model where left out
    languages: [en, es, ko]      # of training and vectors; all seven where left out
    data:                        # files to train on: options of `lm-eval-ext data instruct`
      oasst: {source: oasst2, max-chars: 2000}
    train: {steps: 200}          # options of `lm-eval-ext train` for every method that has them
    models:                      # what is compared, by name
      base: {}                   # as it is
      mist: {method: mist, data: oasst, batch-size: 4}
    extract: {pairs: [en=ntrex, loc=blend]}              # options of `lm-eval-ext extract`
    sweep: {tasks: [bmlama_dev, blend_decon_dev_cloze]}  # options of `lm-eval-ext sweep`: chooses each model's layers
    steer: en@42%:2+loc@58%:2    # these layers instead
    evaluate:
      tasks: [bmlama, blend_decon_cloze]
      conditions: [unsteered, en, loc, surgical]         # also: random, other, negative (controls of surgical)
      batch-size: 16             # and limit, num-fewshot, device, model-args
    plane: {baseline: base}      # options of `lm-eval-ext plane`
    report: {}                   # options of `lm-eval-ext report`; no report where left out

Paths are taken from where the command is run, as in every other command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm_eval_ext import languages
from lm_eval_ext.errors import StudyError, UserError
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.training.methods import METHODS

KEYS = (
    "out",
    "model",
    "languages",
    "data",
    "train",
    "models",
    "extract",
    "sweep",
    "steer",
    "evaluate",
    "plane",
    "report",
)
#: What each model is evaluated with; the first four are the paper's, the others controls of `surgical`.
CONDITIONS = ("unsteered", "en", "loc", "surgical", "random", "other", "negative")
DEFAULT_CONDITIONS = CONDITIONS[:4]
_EVALUATE = ("tasks", "conditions", "batch-size", "limit", "num-fewshot", "device", "model-args")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")


@dataclass(frozen=True)
class Evaluate:
    """What every model is asked, under which conditions.

    Attributes:
        tasks: of the harness.
        conditions: some of `CONDITIONS`.
        options: further options of the harness: batch_size, limit, num_fewshot, device.
        model_args: further arguments of the model.
    """

    tasks: tuple[str, ...]
    conditions: tuple[str, ...]
    options: dict[str, int | str]
    model_args: dict[str, str | int | float]


@dataclass(frozen=True)
class Study:
    """A study as its file says; options of commands are checked where their command lines are made."""

    out: Path
    model: str
    languages: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    extract: dict[str, Any]
    evaluate: Evaluate
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] | None = None
    steer: str = ""
    plane: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] | None = None


def run_name(model: str, condition: str) -> str:
    """What the evaluation of a model under a condition is called, in the plane too."""
    return model if condition == "unsteered" else f"{model}-{condition}"


def read(file: Path, out: Path | None = None) -> Study:
    """Read a study.

    Args:
        file: the YAML file.
        out: folder of results, instead of what the file says.

    Raises:
        StudyError: it cannot be read, or a key or value in it means nothing; the message names key and valid values.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"cannot read the study {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StudyError(f"{file} is not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{file} is not YAML: {error}") from None
    return _Reader(str(file)).study(content, out)


@dataclass(frozen=True)
class _Reader:
    """Turns parsed YAML into a study; `where` leads every message."""

    where: str

    def study(self, content: Any, out: Path | None) -> Study:
        table = self._table(content, "the study", KEYS)
        models = self._tables(table, "models")
        if not models:
            raise StudyError(f"{self.where}: models is missing; name at least one, such as base: {{}}")
        for name, options in models.items():
            if options and options.get("method") not in METHODS:
                raise StudyError(
                    f"{self.where}: models: {name}: method is {options.get('method')!r}; valid: {', '.join(METHODS)}, or "
                    "{} for the model as it is"
                )
        data = self._tables(table, "data")
        for name, options in data.items():
            if not isinstance(options.get("source"), str):
                raise StudyError(f"{self.where}: data: {name}: source is missing: mini, oasst1, oasst2 or a file")
        evaluate = self._evaluate(table.get("evaluate"))
        runs = [run_name(model, condition) for model in models for condition in evaluate.conditions]
        if twice := [run for run in runs if runs.count(run) > 1]:
            raise StudyError(f"{self.where}: models: two runs would be called {twice[0]!r}; rename a model")
        study = Study(
            out=out or Path(self._text(table, "out")),
            model=self._text(table, "model", "") if table.get("model") is not None else "",
            languages=self._languages(table.get("languages")),
            models=models,
            data=data,
            train=self._table(table.get("train"), "train"),
            extract=self._table(table.get("extract"), "extract"),
            sweep=self._table(table["sweep"], "sweep") if table.get("sweep") is not None else None,
            steer=self._plan(table.get("steer")),
            evaluate=evaluate,
            plane=self._table(table.get("plane"), "plane"),
            report=self._table(table["report"], "report") if table.get("report") is not None else None,
        )
        if any(char in str(study.out) for char in ",="):
            raise StudyError(f"{self.where}: out {study.out} must have no comma and no equals sign in it")
        if set(evaluate.conditions) - {"unsteered"} and not study.steer and study.sweep is None:
            raise StudyError(
                f"{self.where}: nothing says which layers to steer: give sweep, which chooses them on development "
                "splits, or steer, such as en@42%:2+loc@58%:2"
            )
        return study

    def _evaluate(self, content: Any) -> Evaluate:
        table = {str(key).replace("_", "-"): value for key, value in self._table(content, "evaluate").items()}
        if unknown := [key for key in table if key not in _EVALUATE]:
            raise StudyError(f"{self.where}: evaluate: unknown key {unknown[0]!r}; valid: {', '.join(_EVALUATE)}")
        tasks = self._words(table.get("tasks"), "evaluate: tasks")
        conditions = self._words(table.get("conditions", list(DEFAULT_CONDITIONS)), "evaluate: conditions")
        if unknown := [name for name in conditions if name not in CONDITIONS]:
            raise StudyError(
                f"{self.where}: evaluate: unknown condition {unknown[0]!r}; valid: {', '.join(CONDITIONS)}"
            )
        options: dict[str, int | str] = {}
        for key in ("batch-size", "limit", "num-fewshot"):
            value = table.get(key)
            if value is None:
                continue
            lowest = 0 if key == "num-fewshot" else 1
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
            if not whole and not (key == "batch-size" and value == "auto"):
                raise StudyError(f"{self.where}: evaluate: {key} is {value!r}; needed: a whole number from {lowest}")
            options[key.replace("-", "_")] = value
        if table.get("device") is not None:
            options["device"] = self._text(table, "device")
        model_args = self._table(table.get("model-args"), "evaluate: model-args")
        for key in ("pretrained", "peft", "vectors", "steer", "device", "batch_size"):
            if key in model_args:
                raise StudyError(
                    f"{self.where}: evaluate: model-args: {key} is set by the study itself or beside tasks"
                )
        return Evaluate(tasks, conditions, options, model_args)

    def _table(self, content: Any, what: str, valid: tuple[str, ...] = ()) -> dict[str, Any]:
        if content is None and not valid:
            return {}
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            needed = f"; valid keys: {', '.join(valid)}" if valid else ""
            raise StudyError(f"{self.where}: {what} is {content!r}, needed are keys with values{needed}")
        if valid and (unknown := [key for key in content if key not in valid]):
            raise StudyError(f"{self.where}: unknown key {unknown[0]!r}; valid keys: {', '.join(valid)}")
        return content

    def _tables(self, table: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
        found = {name: self._table(value, f"{key}: {name}") for name, value in self._table(table.get(key), key).items()}
        if wrong := [name for name in found if not _NAME.fullmatch(name)]:
            raise StudyError(f"{self.where}: {key}: {wrong[0]!r} is no name: letters, digits, dots, _ and - inside")
        return found

    def _text(self, table: dict[str, Any], key: str, default: str | None = None) -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or (not value.strip() and default is None):
            raise StudyError(f"{self.where}: {key} is {'missing' if value is None else repr(value)}; needed: a text")
        return value.strip()

    def _words(self, value: Any, what: str) -> tuple[str, ...]:
        words = value.split(",") if isinstance(value, str) else value
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) and word.strip() for word in words)
        ):
            raise StudyError(f"{self.where}: {what} is {value!r}; needed: a list of names")
        return tuple(dict.fromkeys(word.strip() for word in words))

    def _languages(self, value: Any) -> tuple[str, ...]:
        if value is None:
            return tuple(languages.LANGUAGES)
        codes = self._words(value, "languages")
        try:
            return tuple(dict.fromkeys(languages.get(code).code for code in codes))
        except UserError as error:
            raise StudyError(f"{self.where}: languages: {error}") from None

    def _plan(self, value: Any) -> str:
        if value is None:
            return ""
        try:
            plan = Plan.parse(value if isinstance(value, str) else repr(value))
        except UserError as error:
            raise StudyError(f"{self.where}: steer: {error}") from None
        if {term.kind for term in plan.interventions} != {"en", "loc"}:
            raise StudyError(
                f"{self.where}: steer: {value!r} must name both en and loc: the conditions are made of them"
            )
        return str(plan)
