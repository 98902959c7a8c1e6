"""The localization gap: what naming the country adds to local answers, and so how much steering could bring back.

Where the gap is small or nobody can see it on so few questions, no result of steering there means anything. A screen over
languages, forms, prompts and few-shot examples finds where it is large (Veselovsky et al., arXiv 2504.10191, call it the
explicit-implicit localization gap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lm_eval_ext.errors import DataError, UserError
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.stats import cluster_bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

    from lm_eval_ext.backends.base import SteeredBackend
    from lm_eval_ext.data.task_questions import Rendering

COLUMNS = (
    "task",
    "named_task",
    "prompt",
    "language",
    "n",
    "questions",
    "chance",
    "score",
    "named",
    "gap",
    "low",
    "high",
)


@dataclass(frozen=True)
class Screen:
    """What is compared.

    Attributes:
        pairs: of each two tasks or groups that ask the same questions, the one without the country and the one with it.
        renderings: the prompts to try.
        languages: only these; all where empty.
        limit: documents of each task.
        metric: the score.
        include_path: folder with task files of the user's own.
    """

    pairs: tuple[tuple[str, str], ...]
    renderings: tuple[Rendering, ...]
    languages: tuple[str, ...] = ()
    limit: int | None = None
    metric: str = "acc"
    include_path: Path | None = None


def parse_pair(text: str) -> tuple[str, str]:
    """`blend_decon/blend_ctx`: the task without the country, and the one with it.

    Raises:
        UserError: it has another form.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(parts):
        raise UserError(f"{text!r}: write PLAIN/NAMED, two tasks or groups such as blend_decon_cloze/blend_ctx_cloze")
    return parts[0], parts[1]


def screen(model: SteeredBackend, wanted: Screen, folder: Path, console: Console) -> pd.DataFrame:
    """One row per pair of tasks, prompt and language (and the average over languages), with the columns `COLUMNS`.

    Scores are shares; the interval of the gap is of a bootstrap over questions. What is computed is kept in `folder`.

    Raises:
        UserError: unknown tasks, or a metric that they lack.
        DataError: no question in common.
    """
    frames = []
    for plain, named in wanted.pairs:
        for rendering in wanted.renderings:
            of_plain, of_named = (_scores(model, task, rendering, wanted, folder, console) for task in (plain, named))
            rows = _gaps(of_plain, of_named, f"{plain}/{named}")
            names = {"task": plain, "named_task": named, "prompt": prompt_name(rendering)}
            frames.append(pd.DataFrame([{**names, **row} for row in rows], columns=list(COLUMNS)))
    gaps: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return gaps


def prompt_name(rendering: Rendering) -> str:
    """`0-shot`, `2-shot, chat template`, ..."""
    parts = [
        f"{rendering.num_fewshot or 0}-shot",
        *(["chat template"] if rendering.apply_chat_template else []),
        *(["system instruction"] if rendering.system_instruction else []),
    ]
    return ", ".join(parts)


def _scores(
    model: SteeredBackend, task: str, rendering: Rendering, wanted: Screen, folder: Path, console: Console
) -> pd.DataFrame:
    """Language, question, number of options and score of each question of a task."""
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import ModelIdentity, VectorSet
    from lm_eval_ext.sweep.cells import Cells
    from lm_eval_ext.sweep.grid import Condition
    from lm_eval_ext.sweep.processes import Processes
    from lm_eval_ext.sweep.questions import Questions

    questions = Questions(
        [task],
        limit=wanted.limit,
        num_fewshot=rendering.num_fewshot,
        languages=wanted.languages,
        with_prior=False,
        include_path=wanted.include_path,
        rendering=rendering,
    )
    vectors = VectorSet(ModelIdentity.of(str(model.model.name_or_path), model.model.config), {})
    with Processes() as processes:
        cells = Cells(model, questions, vectors, folder, processes, console)
        unsteered = [Condition(Plan())]
        cells.compute(unsteered, f"{task}, {prompt_name(rendering)}")
        frame = cells.items(unsteered)
        cells.store.close()
    if wanted.metric not in frame:
        raise UserError(f"--metric {wanted.metric!r}: the task {task} scores {', '.join(map(str, frame.columns[8:]))}")
    scores: pd.DataFrame = pd.DataFrame(
        {
            "language": frame["language"].astype(str),
            "question": frame["question_id"].astype(str),
            "id": questions.ids(),
            "options": [question.n_options for question in questions.questions],
            "score": frame[wanted.metric].to_numpy(),
        }
    )
    return scores


def _gaps(plain: pd.DataFrame, named: pd.DataFrame, where: str) -> list[dict[str, Any]]:
    both = plain.merge(
        named.drop(columns="question"), on=["language", "id"], suffixes=("", "_named"), validate="one_to_one"
    )
    if both.empty:
        raise DataError(f"{where}: no question in common; both need the same ids and languages")
    drawn = cluster_bootstrap(both["score_named"] - both["score"], both["question"], both["language"])
    languages = list(dict.fromkeys(both["language"]))
    groups: Iterable[tuple[str, list[str]]] = [
        *([(AVERAGE, languages)] if len(languages) > 1 else []),
        *((code, [code]) for code in languages),
    ]
    return [_row(both, name, codes, drawn) for name, codes in groups]


def _row(both: pd.DataFrame, name: str, codes: Sequence[str], drawn: Any) -> dict[str, Any]:
    part = both[both["language"].isin(codes)]
    means = part.groupby("language")[["score", "score_named"]].mean().mean()
    gap = drawn.interval(list(codes))
    return {
        "language": name,
        "n": len(part),
        "questions": part["question"].nunique(),
        "chance": float(np.mean(1 / part["options"])),
        "score": means["score"],
        "named": means["score_named"],
        "gap": gap.value,
        "low": gap.low,
        "high": gap.high,
    }


def sentences(gaps: pd.DataFrame) -> list[str]:
    """Where there is room, and where none is seen."""
    seen = gaps[(gaps["low"] > 0) & (gaps["language"] != AVERAGE)].sort_values("gap", ascending=False)
    unseen = gaps[(gaps["low"] <= 0) & (gaps["language"] != AVERAGE)]
    lines = [
        f"{len(seen)} of {len(seen) + len(unseen)} settings have a gap whose interval is above zero"
        + (": " + "; ".join(_words(row) for row in seen.head(5).to_dict("records")) if len(seen) else ".")
    ]
    if len(unseen):
        widest = 100 * (unseen["high"] - unseen["low"]).max() / 2
        lines.append(
            f"In the other {len(unseen)} naming the country adds nothing that so many questions show (intervals up to "
            f"{widest:.0f} points either side): steering there cannot be judged."
        )
    return lines


def _words(row: dict[str, Any]) -> str:
    return (
        f"{row['language']}, {row['task']}, {row['prompt']}: {100 * row['score']:.0f}% to {100 * row['named']:.0f}% "
        f"(+{100 * row['gap']:.0f} points [{100 * row['low']:.0f}, {100 * row['high']:.0f}])"
    )
