"""The settings of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.steering.vectors import VectorSet

#: Layers of each kind that are combined (our default).
PAIR_LAYERS = 4

#: Random directions for each condition (our default). The band of 5 covers 67%, of 39 it would cover 95%.
N_RANDOM = 5

GIB = 2**30

#: What runs the model: transformers, which shares what conditions have in common, or vLLM, condition by condition.
ENGINES = ("hf", "vllm")


@dataclass(frozen=True)
class Settings:
    """The settings of a sweep.

    Attributes:
        vectors: vector file or set.
        tasks: multiple-choice tasks or groups of the harness.
        out: folder for what is computed, and for the results.
        kinds: of vectors.
        layers: `all`, or layers as in a plan: `5,8-10,42%`.
        gammas: strengths as in a plan.
        positions: tokens to steer, as in a plan: `prompt`, `last`, `last3`, ...
        pair_layers: layers of each kind that are combined; 0 for no pairs.
        n_random: random directions of the same norm for each plan.
        controls: whether another language's vector and the negated one are tried for each plan.
        control_gammas: only plans of these strengths get controls, and the best plans; all where empty.
        include_path: folder with task files of your own.
        languages: only questions in these; all where empty.
        limit: documents of each task.
        num_fewshot: examples before each question; the task's own number where left out.
        apply_chat_template: ask in the chat template of the model's tokenizer.
        system_instruction: a text before every question.
        metric: the score that is compared.
        prior: score the options without a question too, under the same steering (mutual information).
        lang: language of questions that name none.
        model: name or folder; the embedded model where empty.
        model_args: more of `lm_eval --model_args`.
        engine: what runs the model, one of `ENGINES`.
        device: where the model runs; a GPU if there is one where empty.
        memory: bytes for what is kept of unsteered forwards, which conditions share.
        max_tokens: of one forward.
        likelihoods: normalise over the vocabulary even where only differences between options matter.
        resamples: of the bootstrap of each interval.
        restart: discard the results of earlier runs.
    """

    vectors: Path | VectorSet
    tasks: tuple[str, ...]
    out: Path
    kinds: tuple[str, ...] = ("en", "loc")
    layers: str = "all"
    gammas: tuple[str, ...] = ("0.5", "1", "2", "4")
    positions: tuple[str, ...] = ("prompt",)
    pair_layers: int = PAIR_LAYERS
    n_random: int = N_RANDOM
    controls: bool = True
    control_gammas: tuple[str, ...] = ()
    include_path: Path | None = None
    languages: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    metric: str = "acc"
    prior: bool = True
    lang: str | None = None
    model: str = ""
    model_args: str = ""
    engine: str = "hf"
    device: str = ""
    memory: int = 2 * GIB
    max_tokens: int | None = None
    likelihoods: bool = False
    resamples: int = 2_000
    restart: bool = False

    @property
    def has_pairs(self) -> bool:
        """Whether the best layers of both kinds are combined."""
        return self.pair_layers > 0 and {"en", "loc"} <= set(self.kinds)

    @property
    def cells(self) -> Path:
        """The folder of the cells that have been computed."""
        return self.out / "cells"
