"""What a training run is asked to do: one field per option of its command, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from lm_eval_ext.data.pairs import SOURCES
from lm_eval_ext.errors import TrainingError
from lm_eval_ext.languages import LANGUAGES, NON_ENGLISH, get

MODES = ("alternate", "sum")
DTYPES = ("auto", "bfloat16", "float32")

#: Learning rates (our defaults): with an adapter, and of the whole model. The paper's are not known.
LEARNING_RATES = {"adapter": 2e-4, "full": 1e-5}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods share. Where nothing else is said, a default is ours."""

    method: ClassVar[str] = ""
    #: Whether the adapter sits on attention and MLP, or on attention alone.
    mlp: ClassVar[bool] = True

    out: Annotated[Path, typer.Option(help="Folder for the adapter (or model), its card and the checkpoints.")]
    model: Annotated[str, typer.Option(help="Base model, name or folder; the embedded model where left out.")] = ""
    data: Annotated[str, typer.Option(help="What to train on: mini (in the package) or a JSONL file.")] = "mini"
    epochs: Annotated[float, typer.Option(help="Passes through the data.")] = 1.0
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps, instead of --epochs.")] = 0
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward and process.")] = 8
    accumulation: Annotated[int, typer.Option(min=1, help="Batches per optimiser step.")] = 1
    learning_rate: Annotated[float, typer.Option(help="Default: 2e-4, with --full 1e-5.")] = 0.0
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.03
    max_length: Annotated[int, typer.Option(min=2, help="Rows with more tokens are left out, and counted.")] = 512
    template: Annotated[
        str, typer.Option(help="Text with {prompt}; default: the tokenizer's chat template, else a plain one.")
    ] = ""
    full: Annotated[bool, typer.Option("--full", help="Train the whole model instead of a LoRA adapter.")] = False
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA matrices; their scale is 2.")] = 16
    dtype: Annotated[str, typer.Option(help="auto (the model's own), bfloat16 or float32.")] = "auto"
    device: Annotated[str, typer.Option(help="cpu or cuda; a GPU if there is one where left out.")] = ""
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, about a quarter more time.")
    ] = False
    packing: Annotated[bool, typer.Option("--packing", help="Put the rows of a batch into one, unpadded.")] = False
    seed: Annotated[int, typer.Option(min=0, help="Of the adapter's start and of the order of rows.")] = 0
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")] = 2
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False
    report_to: Annotated[str, typer.Option(help="none, or what transformers offers: tensorboard, wandb, ...")] = "none"
    log_every: Annotated[int, typer.Option(min=1, help="Steps between entries of the log.")] = 10
    revision: Annotated[str, typer.Option(help="Revision of the model on the hub.")] = "main"
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model repository's own code.")
    ] = False

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise TrainingError(f"--epochs {self.epochs}: must be a number above 0")
        if not (self.learning_rate >= 0 and math.isfinite(self.learning_rate)):
            raise TrainingError(f"--learning-rate {self.learning_rate}: must be a number above 0, such as 2e-4")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"--warmup {self.warmup}: must be a share of the steps, from 0 to below 1")
        if self.dtype not in DTYPES:
            raise TrainingError(f"--dtype {self.dtype!r} is unknown, valid: {', '.join(DTYPES)}")
        if self.device not in ("", "cpu", "cuda"):
            raise TrainingError(
                f"--device {self.device!r} is unknown, valid: cpu, cuda (choose one of several GPUs "
                "with CUDA_VISIBLE_DEVICES)"
            )

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or LEARNING_RATES["full" if self.full else "adapter"]

    def codes(self) -> list[str]:
        """The languages to train on."""
        return ["en"]

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on from."""
        elsewhere = ("out", "resume", "report_to", "log_every", "save_every", "keep", "device")
        values = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        return {"method": self.method, **values, "learning_rate": self.rate}


@dataclass(frozen=True, kw_only=True)
class SftEn(Settings):
    """English instruction tuning."""

    method = "sft-en"


@dataclass(frozen=True, kw_only=True)
class Mist(Settings):
    """Multilingual instruction tuning."""

    method = "mist"
    languages: Annotated[str, typer.Option(help="Language codes, joined by commas.")] = ",".join(LANGUAGES)

    def codes(self) -> list[str]:
        """The languages to train on."""
        return _codes(self.languages)


@dataclass(frozen=True, kw_only=True)
class Midalign(Mist):
    """MIST and the contrastive loss."""

    method = "midalign"
    pairs: Annotated[
        str, typer.Option(help=f"Parallel sentences: {', '.join(SOURCES['en'])} or FILE.tsv; never what is evaluated.")
    ] = "ntrex"
    max_pairs: Annotated[int, typer.Option(min=0, help="The first so many of each language; 0: all.")] = 0
    layer: Annotated[str, typer.Option(help="Decoder layer, from 0, or depth.")] = "50%"
    temperature: Annotated[float, typer.Option(help="0.1 as in mid-align; 1 is the paper's formula.")] = 0.1
    direction: Annotated[str, typer.Option(help="forward (English asks), backward or both.")] = "both"
    mode: Annotated[str, typer.Option(help="alternate optimiser steps, or sum the losses of each.")] = "alternate"
    contrastive_steps: Annotated[
        int, typer.Option(help="How many of the steps are contrastive; -1: half of them. Alternate mode only.")
    ] = -1
    contrastive_batch_size: Annotated[
        int, typer.Option(min=0, help="Pairs per forward and process, a multiple of --batch-size; 0: as many.")
    ] = 0
    contrastive_weight: Annotated[
        float, typer.Option(help="Factor of the contrastive loss; raise it where that loss does not fall.")
    ] = 1.0
    pool_special: Annotated[
        bool, typer.Option("--pool-special", help="Special tokens count in the mean of a sentence, too.")
    ] = False

    def __post_init__(self) -> None:
        from lm_eval_ext.training.losses import DIRECTIONS  # torch, which `--help` does without

        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise TrainingError(f"--temperature {self.temperature}: must be above 0, such as 0.1")
        if not (self.contrastive_weight >= 0 and math.isfinite(self.contrastive_weight)):
            raise TrainingError(f"--contrastive-weight {self.contrastive_weight}: must be 0 or above")
        for name, value, valid in (("direction", self.direction, DIRECTIONS), ("mode", self.mode, MODES)):
            if value not in valid:
                raise TrainingError(f"--{name} {value!r} is unknown, valid: {', '.join(valid)}")
        if self.mode == "sum" and self.contrastive_steps != -1:
            raise TrainingError("--contrastive-steps: with --mode sum every step has both losses; leave it out")
        if self.contrastive_steps < -1:
            raise TrainingError(f"--contrastive-steps {self.contrastive_steps}: must be 0 or above, or -1 for half")
        if self.steps and self.contrastive_steps > self.steps:
            raise TrainingError(f"--contrastive-steps {self.contrastive_steps} are more than --steps {self.steps}")
        if self.contrastive_batch_size % self.batch_size:
            raise TrainingError(
                f"--contrastive-batch-size {self.contrastive_batch_size}: must be a multiple of --batch-size, which is "
                f"{self.batch_size}"
            )

    @property
    def group(self) -> int:
        """Pairs in each place of a contrastive batch."""
        return max(1, self.contrastive_batch_size // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Clo(Settings):
    """CLO."""

    method = "clo"
    mlp = False
    languages: Annotated[str, typer.Option(help="Language codes besides English, joined by commas.")] = ",".join(
        NON_ENGLISH
    )
    beta: Annotated[float, typer.Option(help="Strength of the preference.")] = 0.1
    response_weight: Annotated[float, typer.Option("--lambda", help="Weight of the response loss, 0 to 1.")] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            raise TrainingError(f"--beta {self.beta}: must be 0 or above, such as 0.1")
        if not 0 <= self.response_weight <= 1:
            raise TrainingError(f"--lambda {self.response_weight}: must lie between 0 and 1")

    def codes(self) -> list[str]:
        """The languages besides English."""
        if not (codes := [code for code in _codes(self.languages) if code != "en"]):
            raise TrainingError("--languages en: a tuple sets another language beside English; name that one")
        return codes


def _codes(text: str) -> list[str]:
    codes = list(dict.fromkeys(get(code).code for code in text.split(",") if code.strip()))
    if not codes:
        raise TrainingError(f"--languages {text!r} names none; valid: {', '.join(LANGUAGES)}")
    return codes
