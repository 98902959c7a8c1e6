"""sft-en: the recipe of MIST on English alone, our control."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_ext.training.config import TrainingConfig
from lm_eval_ext.training.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class SftEnConfig(TrainingConfig):
    """The recipe of mist on English alone: the control that separates tuning from alignment.

    Example:

      lm-eval-ext train sft-en --out runs/sft-en
    """

    method = "sft-en"


class SftEn(Method):
    """MIST's loss on English instructions."""

    config_class = SftEnConfig
    title = "English instruction tuning, loss on the responses only: the control that separates tuning from alignment"
