"""What a training run is asked to do: one field per option of its command, checked before anything is loaded.

The fields have the names of TRL's and transformers' configurations (`SFTConfig`, `ModelConfig`) where these have the same
thing. They are no subclasses of them: importing TRL takes seconds, and `--help` and the study read the fields, too.
`trainer.sft_config` makes TRL's configuration out of them by name, so that a method may add any of TRL's fields to its own.
Options have a short name besides, such as `--steps` for `--max-steps`; earlier releases recorded runs under the short names.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from lm_eval_ext.errors import TrainingError
from lm_eval_ext.languages import LANGUAGES, get

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = ("auto", "bfloat16", "float32")

#: Learning rates (our defaults): with an adapter, and of the whole model. The paper's are not known.
LEARNING_RATES = {"adapter": 2e-4, "full": 1e-5}

#: What a resumed run may change: where it writes, what it logs and keeps, and on which device it runs.
NOT_IDENTITY = (
    "output_dir",
    "resume",
    "report_to",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "device",
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all methods share; a method's own class adds to it. Where nothing else is said, a default is ours.

    The docstring of a method's class is the help of its command, the annotation of each field an option.

    Attributes:
        method: name of the method: of its command, and in the records of its runs.
        language_choices: the languages that it can be trained on.
        passes_per_row: how many texts a row puts through the model, to estimate the time of a run.
    """

    method: ClassVar[str] = ""
    language_choices: ClassVar[tuple[str, ...]] = tuple(LANGUAGES)
    passes_per_row: ClassVar[int] = 1

    output_dir: Annotated[
        Path,
        typer.Option("--out", "--output-dir", help="Folder for the adapter (or model), its card and the checkpoints."),
    ]
    model_name_or_path: Annotated[
        str,
        typer.Option(
            "--model", "--model-name-or-path", help="Base model, name or folder; the embedded model where left out."
        ),
    ] = ""
    data: Annotated[str, typer.Option(help="What to train on: mini (in the package) or a JSONL file.")] = "mini"
    num_train_epochs: Annotated[
        float, typer.Option("--epochs", "--num-train-epochs", help="Passes through the data.")
    ] = 1.0
    max_steps: Annotated[
        int, typer.Option("--steps", "--max-steps", min=0, help="Optimiser steps, instead of --epochs.")
    ] = 0
    per_device_train_batch_size: Annotated[
        int,
        typer.Option("--batch-size", "--per-device-train-batch-size", min=1, help="Rows per forward and process."),
    ] = 8
    gradient_accumulation_steps: Annotated[
        int,
        typer.Option("--accumulation", "--gradient-accumulation-steps", min=1, help="Batches per optimiser step."),
    ] = 1
    learning_rate: Annotated[float, typer.Option(help="Default: 2e-4, with --full 1e-5.")] = 0.0
    warmup_steps: Annotated[
        float,
        typer.Option(
            "--warmup",
            "--warmup-steps",
            help="Steps in which the learning rate rises; below 1: their share of all steps.",
        ),
    ] = 0.03
    max_length: Annotated[int, typer.Option(min=2, help="Rows with more tokens are left out, and counted.")] = 512
    template: Annotated[
        str, typer.Option(help="Text with {prompt}; default: the tokenizer's chat template, else a plain one.")
    ] = ""
    full: Annotated[bool, typer.Option("--full", help="Train the whole model instead of a LoRA adapter.")] = False
    lora_r: Annotated[int, typer.Option("--rank", "--lora-r", min=1, help="Rank of the LoRA matrices.")] = 16
    lora_alpha: Annotated[
        int, typer.Option(min=0, help="LoRA's alpha; the scale of the matrices is alpha / rank. 0: twice the rank.")
    ] = 0
    dtype: Annotated[
        str, typer.Option(help="auto (the model's own, float32 on CPUs that are slow in it), bfloat16 or float32.")
    ] = "auto"
    device: Annotated[str, typer.Option(help="cpu or cuda; a GPU if there is one where left out.")] = ""
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, about a quarter more time.")
    ] = False
    packing: Annotated[bool, typer.Option("--packing", help="Put the rows of a batch into one, unpadded.")] = False
    seed: Annotated[int, typer.Option(min=0, help="Of the adapter's start and of the order of rows.")] = 0
    save_steps: Annotated[
        int, typer.Option("--save-every", "--save-steps", min=1, help="Steps between checkpoints.")
    ] = 100
    save_total_limit: Annotated[
        int, typer.Option("--keep", "--save-total-limit", min=1, help="Checkpoints to keep.")
    ] = 2
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False
    report_to: Annotated[str, typer.Option(help="none, or what transformers offers: tensorboard, wandb, ...")] = "none"
    logging_steps: Annotated[
        int, typer.Option("--log-every", "--logging-steps", min=1, help="Steps between entries of the log.")
    ] = 10
    model_revision: Annotated[
        str, typer.Option("--revision", "--model-revision", help="Revision of the model on the hub.")
    ] = "main"
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model repository's own code.")
    ] = False

    def __post_init__(self) -> None:
        if not (self.num_train_epochs > 0 and math.isfinite(self.num_train_epochs)):
            raise TrainingError(f"--epochs {self.num_train_epochs}: must be a number above 0")
        if not (self.learning_rate >= 0 and math.isfinite(self.learning_rate)):
            raise TrainingError(f"--learning-rate {self.learning_rate}: must be a number above 0, such as 2e-4")
        if not (0 <= self.warmup_steps < 1 or (self.warmup_steps >= 1 and self.warmup_steps % 1 == 0)):
            raise TrainingError(
                f"--warmup {self.warmup_steps}: must be a share of the steps, from 0 to below 1, or a whole number of steps"
            )
        if self.dtype not in DTYPES:
            raise TrainingError(f"--dtype {self.dtype!r} is unknown, valid: {', '.join(DTYPES)}")
        if self.device not in ("", "cpu", "cuda"):
            raise TrainingError(
                f"--device {self.device!r} is unknown, valid: cpu, cuda (choose one of several GPUs "
                "with CUDA_VISIBLE_DEVICES)"
            )

    @property
    def rate(self) -> float:
        """The learning rate, the default's value where none is given."""
        return self.learning_rate or LEARNING_RATES["full" if self.full else "adapter"]

    @property
    def alpha(self) -> int:
        """LoRA's alpha, the default's value where none is given."""
        return self.lora_alpha or 2 * self.lora_r

    def codes(self) -> list[str]:
        """The languages to train on."""
        return ["en"]

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse to evaluate on what is trained on.

        Raises:
            DataError: a task is made of the method's training data.
        """

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on from."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_IDENTITY}
        return {"method": self.method, **values, "learning_rate": self.rate, "lora_alpha": self.alpha}

    @classmethod
    @cache
    def options(cls) -> dict[str, tuple[Any, Any]]:
        """Field: its annotation, which holds its option, and its default (`inspect.Parameter.empty` where required)."""
        hints = get_type_hints(cls, include_extras=True)
        empty: Any = inspect.Parameter.empty
        return {f.name: (hints[f.name], empty if f.default is MISSING else f.default) for f in fields(cls)}

    @classmethod
    def flags(cls, name: str) -> list[str]:
        """The names of a field's option, the short one first."""
        option = get_args(cls.options()[name][0])[1]
        # In an annotation, typer takes the first name for a default, and corrects that later.
        names = [text for text in (option.default, *(option.param_decls or ())) if str(text).startswith("--")]
        return names or [f"--{name.replace('_', '-')}"]

    @classmethod
    def recorded(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The identity of a run, as this release writes it, from the record of this release or an earlier one.

        Earlier releases named the fields after the short options (`batch_size`); a field that they did not have gets its
        default, which is what they did.

        Raises:
            TrainingError: a setting that this release does not have, or a value that it refuses.
        """
        names = {flag[2:].replace("-", "_"): name for name in cls.options() for flag in cls.flags(name)}
        names |= {name: name for name in cls.options()}
        values = {names.get(key, key): value for key, value in settings.items() if key != "method"}
        if unknown := [key for key in values if key not in cls.options()]:
            raise TrainingError(
                f"the run has the setting {unknown[0]!r}, which this version of lm_eval_ext does not have"
            )
        return cls(**{"output_dir": Path(), **values}).identity()


def codes_of(text: str) -> list[str]:
    """Language codes joined by commas as a list.

    Raises:
        LanguageError: an unknown language.
        TrainingError: none is named.
    """
    codes = list(dict.fromkeys(get(code).code for code in text.split(",") if code.strip()))
    if not codes:
        raise TrainingError(f"--languages {text!r} names none; valid: {', '.join(LANGUAGES)}")
    return codes
