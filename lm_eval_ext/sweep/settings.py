"""What a sweep is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the user asked for; see `lm-eval-ext sweep --help`. `memory` is in bytes; 0 `pair_layers` means no pairs."""

    vectors: Path
    tasks: tuple[str, ...]
    out: Path
    kinds: tuple[str, ...]
    layers: str
    gammas: tuple[str, ...]
    positions: tuple[str, ...]
    pair_layers: int
    n_random: int
    controls: bool
    control_gammas: tuple[str, ...]
    languages: tuple[str, ...]
    limit: int | None
    num_fewshot: int | None
    metric: str
    prior: bool
    lang: str | None
    model: str
    model_args: str
    device: str
    memory: int
    max_tokens: int | None
    likelihoods: bool
    resamples: int
    restart: bool

    @property
    def has_pairs(self) -> bool:
        """Whether the best layers of both kinds are combined."""
        return self.pair_layers > 0 and {"en", "loc"} <= set(self.kinds)

    @property
    def cells(self) -> Path:
        """The folder of what has been computed."""
        return self.out / "cells"
