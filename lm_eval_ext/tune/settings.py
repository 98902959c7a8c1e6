"""The settings of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from pathlib import Path

#: Our defaults. The probability of the right option varies less than right or wrong on the same questions.
METRIC = "probability"
WEIGHT = 0.5
MAX_LOSS = 0.01
CELLS = 20_000
REDUCTION = 3
FINALISTS = 6
N_RANDOM = 19


@dataclass(frozen=True)
class Settings:
    """What is tried, on what, and by which rule the plan is chosen.

    Attributes:
        out: folder for everything.
        dev_tasks: multiple-choice tasks or groups of development splits, on which the plan is chosen.
        test_tasks: on which it is confirmed, once; none where empty.
        named_tasks: the test questions with the country named, the upper bound; none where empty.
        pairs: for each kind the sources of its pairs, as `extract --pairs` takes them.
        estimators: for each kind the estimators to try.
        poolings: tokens that vectors are read from; the kind's own where empty.
        max_pairs: pairs of each language.
        vectors: vector files whose kinds are tried too.
        layers: `all`, or layers as in a plan.
        gammas, positions: as in a plan.
        languages: of pairs and questions.
        weight: of localization; the rest is that of transfer.
        max_loss: of transfer, as a share; a plan that loses more is not chosen.
        metric: of the choice, `probability` (of the right option among the options) or `acc`.
        cells: how many prompts under plans may be computed for the choice.
        minutes: instead of `cells`: how long the choice may take here.
        reduction: of each rung the best 1 / `reduction` go on, with as many times the questions.
        finalists: plans of each kind that are combined.
        n_random, n_shuffled: controls of the chosen plan on the test split.
        compare: choose the best plan of every kind of vectors with an equal share of the cells, and confirm each of them.
        side_effects: parallel texts on which side effects of the chosen plan are measured (`mini`, `flores`, ...); not
            measured where empty.
        n_texts: of each language, for side effects.
        seed: of the order of questions and of the plans that are tried where not all can be.
        limit: documents of each task.
        num_fewshot, apply_chat_template, system_instruction: how questions, and pairs of tasks, are asked.
        include_path: folder with task files of the user's own.
        lang: language of questions that name none.
        model, model_args, device: as for `sweep`.
        resamples: of the bootstrap.
        restart: discard what earlier runs computed.
    """

    out: Path
    dev_tasks: tuple[str, ...]
    test_tasks: tuple[str, ...] = ()
    named_tasks: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    estimators: tuple[tuple[str, str], ...] = ()
    poolings: tuple[str, ...] = ()
    max_pairs: int | None = None
    vectors: tuple[Path, ...] = ()
    layers: str = "20%-80%"
    gammas: tuple[str, ...] = ("1", "2", "4")
    positions: tuple[str, ...] = ("prompt", "last")
    languages: tuple[str, ...] = tuple(LANGUAGES)
    weight: float = WEIGHT
    max_loss: float = MAX_LOSS
    metric: str = METRIC
    cells: int = CELLS
    minutes: float | None = None
    reduction: int = REDUCTION
    finalists: int = FINALISTS
    n_random: int = N_RANDOM
    n_shuffled: int = 5
    compare: bool = False
    side_effects: str = ""
    n_texts: int = 16
    seed: int = 0
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    include_path: Path | None = None
    lang: str | None = None
    model: str = ""
    model_args: str = ""
    device: str = ""
    resamples: int = 2_000
    restart: bool = False
