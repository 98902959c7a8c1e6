"""`study.yaml`: what is trained, extracted, swept, evaluated and drawn.

    out: results/my-study        # folder of everything that the study makes; --out goes before it
    model: google/gemma-3-270m   # where all methods start from; the embedded model where left out
    engine: hf                   # or vllm, what sweeps and evaluations run on
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

A key without a value counts as left out. Paths are taken from where the command is run, as in every other command.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lm_eval_ext import languages
from lm_eval_ext.configs import Names, Table, Text, read_config
from lm_eval_ext.errors import StudyError
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.training.methods import METHODS

#: What each model is evaluated with; the first four are the paper's, the others controls of `surgical`.
CONDITIONS = ("unsteered", "en", "loc", "surgical", "random", "other", "negative")
DEFAULT_CONDITIONS = CONDITIONS[:4]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
_SET_BY_STUDY = ("pretrained", "peft", "lora_local_path", "vectors", "steer", "device", "batch_size")


def run_name(model: str, condition: str) -> str:
    """What the evaluation of a model under a condition is called, in the plane too."""
    return model if condition == "unsteered" else f"{model}-{condition}"


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


def _folder(value: Any) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    if any(char in value for char in ",="):
        raise ValueError(f"{value} must have no comma and no equals sign in it")
    return Path(value.strip())


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name: letters, digits, dots, _ and - inside")
    return value


def _trained(options: dict[str, Any]) -> dict[str, Any]:
    if options and options.get("method") not in METHODS:
        raise ValueError(
            f"method is {options.get('method')!r}; valid: {', '.join(METHODS)}, or {{}} for the model as it is"
        )
    return options


def _from_source(options: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(options.get("source"), str):
        raise ValueError("source is missing: mini, oasst1, oasst2 or a file")
    return options


def _codes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(languages.get(name, languages.KNOWN).code for name in names))


def _of_both_kinds(text: str) -> str:
    plan = Plan.parse(text)
    if {term.kind for term in plan.interventions} != {"en", "loc"}:
        raise ValueError(f"{text!r} must name both en and loc: the conditions are made of them")
    return str(plan)


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise ValueError(f"unknown condition {unknown[0]!r}; valid: {', '.join(CONDITIONS)}")
    return names


def _not_set_by_study(arguments: dict[str, Any]) -> dict[str, Any]:
    if given := [key for key in _SET_BY_STUDY if key in arguments]:
        raise ValueError(f"{given[0]} is set by the study itself or beside tasks")
    return arguments


_OPTIONS = "keys with values"
_Name = Annotated[str, AfterValidator(_name)]
#: Of a command; they are checked where its command line is made.
_Options = Annotated[dict[str, Any], BeforeValidator(_none_is_empty)]


class _Section(Table):
    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}


class Evaluate(_Section):
    """What every model is asked, under which conditions.

    Attributes:
        tasks: of the harness.
        conditions: some of `CONDITIONS`.
        batch_size, limit, num_fewshot, device: further options of the harness; None where left out.
        model_args: further arguments of the model.
    """

    tasks: Names = Field(description="a list of names")
    conditions: Annotated[Names, AfterValidator(_known)] = Field(
        default=DEFAULT_CONDITIONS, description="a list of names"
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None, alias="batch-size", description="a whole number from 1, or auto"
    )
    limit: int | None = Field(default=None, ge=1, description="a whole number from 1")
    num_fewshot: int | None = Field(default=None, alias="num-fewshot", ge=0, description="a whole number from 0")
    device: Text | None = Field(default=None, description="a text, such as cuda:0")
    model_args: Annotated[_Options, AfterValidator(_not_set_by_study)] = Field(
        default={}, alias="model-args", description=_OPTIONS
    )

    @model_validator(mode="before")
    @classmethod
    def _with_dashes(cls, content: Any) -> Any:
        """Keys may be written as the harness does, `batch_size`."""
        if not isinstance(content, dict):
            return content
        written: dict[str, str] = {}
        for key in content:
            if (first := written.setdefault(key.replace("_", "-"), key)) != key:
                raise ValueError(f"{first} and {key} are one key; give it once")
        return {name: content[key] for name, key in written.items()}

    @property
    def options(self) -> dict[str, int | str]:
        """The options of the harness that are given, by its names."""
        options = {key: getattr(self, key) for key in ("batch_size", "limit", "num_fewshot", "device")}
        return {key: value for key, value in options.items() if value is not None}


class Study(_Section):
    """A study as its file says; options of commands are checked where their command lines are made."""

    out: Annotated[Path, BeforeValidator(_folder)] = Field(description="a text, the folder of what is made")
    model: str = Field(default="", description="a text, the name or folder of a model")
    engine: Literal["hf", "vllm"] = Field(default="hf", description="hf or vllm, what sweeps and evaluations run on")
    languages: Annotated[Names, AfterValidator(_codes)] = Field(
        default=tuple(languages.LANGUAGES), description="a list of names"
    )
    data: dict[_Name, Annotated[_Options, AfterValidator(_from_source)]] = Field(
        default={}, description="names with options, such as oasst: {source: oasst2}"
    )
    train: dict[str, Any] = Field(default={}, description=_OPTIONS)
    models: dict[_Name, Annotated[_Options, AfterValidator(_trained)]] = Field(
        min_length=1, description="at least one name with its options, such as base: {}"
    )
    extract: dict[str, Any] = Field(default={}, description=_OPTIONS)
    sweep: dict[str, Any] | None = Field(default=None, description=_OPTIONS)
    steer: Annotated[str, AfterValidator(_of_both_kinds)] = Field(
        default="", description="a plan, such as en@42%:2+loc@58%:2"
    )
    evaluate: Evaluate
    plane: dict[str, Any] = Field(default={}, description=_OPTIONS)
    report: dict[str, Any] | None = Field(default=None, description=_OPTIONS)

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        conditions = self.evaluate.conditions
        runs = [run_name(model, condition) for model in self.models for condition in conditions]
        if twice := [run for run in runs if runs.count(run) > 1]:
            raise ValueError(f"models: two runs would be called {twice[0]!r}; rename a model")
        if set(conditions) - {"unsteered"} and not self.steer and self.sweep is None:
            raise ValueError(
                "nothing says which layers to steer: give sweep, which chooses them on development splits, or steer, such "
                "as en@42%:2+loc@58%:2"
            )
        return self


def read(file: Path, out: Path | None = None) -> Study:
    """Read a study.

    Args:
        file: the YAML file.
        out: folder of results, instead of what the file says.

    Raises:
        StudyError: it cannot be read, or keys or values in it mean nothing; the message names all of them and what is valid.
    """
    # No number with a fraction is asked for here: options go on to commands as they are written.
    return read_config(file, Study, StudyError, "study", floats=False, instead={"out": str(out)} if out else {})
