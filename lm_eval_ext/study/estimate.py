"""What a study will do, with times: as measured the last time, else estimated from the model's size and the machine's speed.

An estimate counts floating-point operations, 2 per parameter and token forward and 6 in training, at a share of the speed
that a matrix product reaches here. It is right within a factor of two or three; what cannot be found out is left out.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.console import duration
from lm_eval_ext.errors import UserError
from lm_eval_ext.models.speed import SHARE, operations_per_second
from lm_eval_ext.study.stages import swept_tasks
from lm_eval_ext.training.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval_ext.study.config import Study
    from lm_eval_ext.study.run import Step

#: Tokens of a row of instructions, of a sentence, and of a question with its options (our guesses).
_ROW, _SENTENCE, _QUESTION = 60, 40, 60
#: Seconds in which a process starts and loads its model.
_START = 20.0
#: Rows of the shipped instructions.
_ROWS = 588


@dataclass(frozen=True)
class Guess:
    """Estimates of a study's stages."""

    study: Study

    def lines(self, steps: Sequence[Step]) -> Iterator[str]:
        """The plan, as lines to print."""
        total, unknown = 0.0, False
        for number, step in enumerate(steps, start=1):
            label = f"[{number}/{len(steps)}] {step.stage.name}"
            if not step.why:
                yield f"{label}: done"
                continue
            measured = step.seconds is not None
            seconds = step.seconds if measured else self.seconds(step)
            total += seconds or 0.0
            unknown = unknown or seconds is None
            time = "?" if seconds is None else duration(seconds)
            yield f"{label}: {step.why}, {'as before ' if measured else 'about '}{time}"
            yield f"  lm-eval-ext {' '.join(step.stage.arguments)}"
        n = sum(bool(step.why) for step in steps)
        yield f"{n} of {len(steps)} stages to run, {'more than ' if unknown else 'about '}{duration(total)}"

    def seconds(self, step: Step) -> float | None:
        """Estimated time of a stage; None where something that it depends on cannot be found out."""
        arguments = _options(step.stage.arguments)
        kind = step.stage.name.partition("/")[0]
        if kind in ("plane", "report", "data"):
            return None if arguments.get("--translate") else _START
        try:
            whole, body, _ = self._size
            if kind == "train":
                return _START + 6 * whole * self._trained(step, arguments) / (SHARE * self.speed)
            # Scores need the embedding's rows and the head's columns of a few tokens only.
            return _START + 2 * body * self._read(kind, arguments) / (SHARE * self.speed)
        except UserError:
            return None

    @cached_property
    def _size(self) -> tuple[int, int, int]:
        """Parameters of the model, those without embeddings, and its layers."""
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        from lm_eval_ext.models import embedded
        from lm_eval_ext.models.loading import load_config, loading
        from lm_eval_ext.steering.decoder import layer_count

        name = self.study.model or str(embedded.path())
        config = load_config(name)
        with loading(name), init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
        whole = int(model.num_parameters())
        return whole, whole - int(model.get_input_embeddings().weight.numel()), layer_count(config)

    def _trained(self, step: Step, arguments: dict[str, str]) -> float:
        """Tokens of a training run."""
        steps = int(arguments.get("--steps", 0))
        batch = int(arguments.get("--batch-size", 8)) * int(arguments.get("--accumulation", 1))
        rows = steps * batch if steps else float(arguments.get("--epochs", 1)) * _rows(arguments.get("--data", ""))
        return rows * _ROW * METHODS[step.stage.arguments[1]].config_class.passes_per_row

    def _read(self, kind: str, arguments: dict[str, str]) -> float:
        """Tokens that are read in extraction, a sweep or an evaluation."""
        if kind == "extract":
            return 4 * len(self.study.languages) * int(arguments.get("--max-pairs", 100)) * _SENTENCE
        if kind == "sweep":
            return self._swept * _QUESTION * self._conditions(arguments)
        return self._asked * _QUESTION

    @cached_property
    def speed(self) -> float:
        """Floating-point operations a second that a matrix product reaches here, in the dtype models are loaded in."""
        import torch

        from lm_eval_ext.models import precision

        if torch.cuda.is_available():
            return operations_per_second("bfloat16", "cuda")
        return operations_per_second("bfloat16" if precision.support("bfloat16")[0] else "float32", "cpu")

    def _conditions(self, arguments: dict[str, str]) -> float:
        """The passes that a sweep's conditions cost: each computes the layers above its own, half of them on average."""
        from lm_eval_ext.steering.extraction import parse_layers

        layers = len(parse_layers(arguments.get("--layers", "all"), self._size[2]))
        gammas = len(arguments.get("--gammas", "0.5,1,2,4").split(","))
        controlled = len(arguments.get("--control-gammas", arguments.get("--gammas", "0.5,1,2,4")).split(","))
        return layers * (gammas + controlled * (2 + int(arguments.get("--random", 5)))) * 2 / 2

    @cached_property
    def _asked(self) -> int:
        return _count(self.study.evaluate.tasks, self.study.evaluate.options.get("limit"))

    @cached_property
    def _swept(self) -> int:
        return _count(swept_tasks(self.study), (self.study.sweep or {}).get("limit"))


def _count(tasks: Sequence[str], limit: Any) -> int:
    import logging

    from lm_eval_ext.sweep.questions import Questions

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with redirect_stderr(StringIO()):  # a progress bar for each task
        return len(Questions(tasks, limit=int(limit) if limit else None).questions)


def _options(arguments: Sequence[str]) -> dict[str, str]:
    return {a: b for a, b in pairwise(arguments) if a.startswith("--")}


def _rows(data: str) -> int:
    file = Path(data)
    return sum(1 for _ in file.open("rb")) if file.is_file() else _ROWS
