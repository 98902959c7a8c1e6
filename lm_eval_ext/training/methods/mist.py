"""MIST (the paper): instruction tuning in many languages, loss on the responses alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from lm_eval_ext.languages import LANGUAGES
from lm_eval_ext.training.config import TrainingConfig, codes_of
from lm_eval_ext.training.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class MistConfig(TrainingConfig):
    """Multilingual instruction tuning: loss on the responses alone, in all languages.

    Examples:

      lm-eval-ext train mist --out runs/mist

      lm-eval-ext train mist --model google/gemma-3-4b-pt --data oasst.jsonl --out runs/mist

      accelerate launch -m lm_eval_ext train mist --out runs/mist
    """

    method = "mist"

    languages: Annotated[str, typer.Option(help="Language codes, joined by commas.")] = ",".join(LANGUAGES)

    def codes(self) -> list[str]:
        """The languages to train on."""
        return codes_of(self.languages)


class Mist(Method):
    """MIST: the response loss (`losses.response_loss`) in several languages."""

    config_class = MistConfig
    title = "MIST: instruction tuning in several languages, loss on the responses only"
