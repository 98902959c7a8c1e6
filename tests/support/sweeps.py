"""Small sweeps of tiny models: their settings, and how they are run."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pandas as pd

from lm_eval_ext.sweep.run import Sweep
from lm_eval_ext.sweep.settings import Settings
from support import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TASKS = ("tiny_cloze", "tiny_letters")


def given_settings(family: str, out: Path, **changes: Any) -> Settings:
    """A small sweep of a tiny model."""
    default = Settings(
        vectors=tiny.vector_file(family),
        tasks=TASKS,
        out=out,
        kinds=("en", "loc"),
        layers="1",
        gammas=("1",),
        positions=("prompt",),
        pair_layers=0,
        n_random=0,
        controls=False,
        control_gammas=(),
        languages=(),
        limit=3,
        num_fewshot=None,
        metric="acc",
        prior=True,
        lang=None,
        model=str(tiny.folder(family)),
        model_args="dtype=float32",
        device="cpu",
        memory=2**24,
        max_tokens=1024,
        likelihoods=True,
        resamples=200,
        restart=False,
    )
    return replace(default, **changes)


@contextmanager
def tiny_tasks() -> Iterator[None]:
    """The harness knows the tiny tasks only."""
    with mock.patch("lm_eval.tasks.TaskManager", tiny.task_manager):
        yield


def sweep(asked: Settings, *, drawn: bool = False) -> pd.DataFrame:
    """Run a sweep; its items. Its page and figures take longer than its forwards and are made where asked for."""
    with ExitStack() as stack:
        stack.enter_context(tiny_tasks())
        if not drawn:
            stack.enter_context(mock.patch("lm_eval_ext.sweep.result.charts", return_value=[]))
            stack.enter_context(mock.patch("lm_eval_ext.sweep.page.page", return_value=""))
        Sweep(asked).run()
    return pd.read_parquet(asked.out / "items.parquet")
