"""One sweep from its settings to its files."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import __version__
from lm_eval_ext.errors import PlanError, UserError
from lm_eval_ext.steering.plan import Gamma, Plan, parse_position
from lm_eval_ext.sweep.grid import Condition, Grid, problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd
    from rich.console import Console

    from lm_eval_ext.models.steered_hf import SteeredHFLM
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.engine import Engine
    from lm_eval_ext.sweep.questions import Questions, ScoredTree
    from lm_eval_ext.sweep.store import Store

log = logging.getLogger(__name__)


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


class Sweep:
    """A sweep; everything that can be found wrong without the model's weights is found before they are loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def vectors(self) -> VectorSet:
        """The vector file."""
        from lm_eval_ext.steering.vectors import VectorSet

        return VectorSet.load(self.settings.vectors.expanduser())

    @cached_property
    def n_layers(self) -> int:
        """Of the model that the vectors are for."""
        return self.vectors.model.n_layers

    @cached_property
    def questions(self) -> Questions:
        """What is asked."""
        from lm_eval_ext.sweep.questions import Questions

        asked = self.settings
        return Questions(
            asked.tasks,
            limit=asked.limit,
            num_fewshot=asked.num_fewshot,
            languages=asked.languages,
            with_prior=asked.prior,
            default_language=asked.lang,
        )

    def grid(self) -> tuple[Grid, list[str]]:
        """The plans of one vector, and what of them cannot be read or does not exist."""
        from lm_eval_ext.steering.extraction import parse_layers

        asked, found_wrong = self.settings, list[str]()

        def read(parse: Callable[[str], Any], texts: Iterable[str]) -> tuple[Any, ...]:
            found = []
            for text in texts:
                try:
                    found.append(parse(text))
                except UserError as error:
                    found_wrong.append(str(error))
            return tuple(found)

        layers = [
            layer for part in read(lambda text: parse_layers(text, self.n_layers), [asked.layers]) for layer in part
        ]
        grid = Grid(
            kinds=tuple(kind for kind in asked.kinds if kind in self.vectors.kinds),
            layers=tuple(layers),
            gammas=read(_gamma, asked.gammas),
            positions=read(parse_position, asked.positions),
            n_random=asked.n_random,
            with_controls=asked.controls,
            control_gammas=read(_gamma, asked.control_gammas),
        )
        unknown = [kind for kind in asked.kinds if kind not in self.vectors.kinds]
        if unknown:
            found_wrong.append(
                f"{self.vectors.where} has no kind {', '.join(unknown)}; kinds: {', '.join(self.vectors.kinds)}"
            )
        return grid, found_wrong

    def _check(self) -> list[Condition]:
        """The conditions of one vector, if all of them can run.

        Raises:
            UserError: what cannot, all together.
        """
        grid, found = self.grid()
        languages = self.questions.languages
        if not grid.layers:  # the languages can be checked all the same
            some = self.vectors.vectors[next(iter(self.vectors.vectors))].info.layers[:1]
            found += problems(replace(grid, layers=some).singles(), self.vectors, self.n_layers, languages)
        singles = grid.singles()
        found += problems(singles, self.vectors, self.n_layers, languages)
        if found:
            raise UserError("the grid cannot work:\n" + "\n".join(f"  {problem}" for problem in found))
        return [Condition(Plan()), *singles]

    def run(self, *, dry_run: bool = False) -> None:
        """Check, compute, and write the results; every process of a launch computes its share, the first one writes.

        Raises:
            UserError: whatever the user can mend.
        """
        from rich.console import Console

        console = Console(stderr=True, markup=False, highlight=False)
        singles = self._check()
        console.print(
            f"{len(singles)} conditions on {len(self.questions.questions)} questions in "
            f"{', '.join(self.questions.languages)}" + (", then pairs of the best" if self._has_pairs else "")
        )
        if dry_run:
            return
        self._prepare_folder()
        started = time.monotonic()
        model = self._load()
        with _Processes() as processes:
            found = self._compute(model, singles, processes, console)
        if found is None:
            return
        conditions, trees, store = found
        self._write(conditions, trees, store, time.monotonic() - started, console)

    @property
    def _has_pairs(self) -> bool:
        return self.settings.pair_layers > 0 and {"en", "loc"} <= set(self.settings.kinds)

    def _prepare_folder(self) -> None:
        try:
            if self.settings.restart:
                shutil.rmtree(self._cells, ignore_errors=True)
            self._cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.settings.out}: cannot write there ({error.strerror})") from None

    @property
    def _cells(self) -> Path:
        return self.settings.out / "cells"

    def _load(self) -> SteeredHFLM:
        from lm_eval.utils import simple_parse_args_string

        from lm_eval_ext.models.steered_hf import SteeredHFLM

        asked = self.settings
        arguments = dict(simple_parse_args_string(asked.model_args))
        wrong = sorted({"vectors", "steer", "positions"} & arguments.keys())
        if wrong:
            raise UserError(f"--model_args {', '.join(wrong)}: a sweep has --vectors, --positions and a grid of plans")
        if asked.device:
            arguments["device"] = asked.device
        # Read and checked with the model, though no plan is set.
        return SteeredHFLM(asked.model or None, vectors=str(asked.vectors), lang=asked.lang, **arguments)

    def _engine(self, model: SteeredHFLM, tree: ScoredTree, console: Console) -> Engine:
        from lm_eval_ext.sweep.engine import MAX_TOKENS, Budget, SeparateEngine, SharedEngine
        from lm_eval_ext.sweep.forward import TreeModel

        asked = self.settings
        trees = TreeModel(model.model)
        if reason := trees.check(tree.tree):
            console.print(f"note: {reason}; every condition is computed in full", style="yellow")
            return SeparateEngine(model.model, self.vectors, self.n_layers, max_length=model.max_length)
        tokens = asked.max_tokens or MAX_TOKENS.get(model.device.type, MAX_TOKENS["cuda"])
        return SharedEngine(trees, self.vectors, self.n_layers, Budget(tokens, asked.memory))

    def _compute(
        self, model: SteeredHFLM, singles: list[Condition], processes: _Processes, console: Console
    ) -> tuple[list[Condition], list[ScoredTree], Store] | None:
        """All conditions and trees in the store of the first process; None in the others."""
        from lm_eval_ext.sweep.store import Store

        requests = model.encode(self.questions.instances)
        trees = self.questions.trees(requests, model.max_length, likelihoods=self.settings.likelihoods)
        if self.questions.n_truncated:
            console.print(
                f"note: {self.questions.n_truncated} prompts lose their beginning: they are longer than the model's "
                f"{model.max_length} tokens",
                style="yellow",
            )
        store = Store(self._cells, self._identity(model), processes.rank)
        known = store.trees()
        if known and processes.is_first:
            asked = {tree.key for tree in trees}
            console.print(
                f"{self._cells}: {len(known & asked)} of {len(asked)} prompts were begun before"
                + (f", {len(known - asked)} others are not asked now" if known - asked else "")
            )
        engine = self._engine(model, min(trees, key=lambda tree: len(tree.tree)), console)
        conditions = singles
        self._run(engine, trees, conditions, store, processes, "Sweeping")
        if self._has_pairs:
            conditions = [*singles, *self._pairs(trees, singles, store)]
            self._run(engine, trees, conditions, store, processes, "Pairs")
        return (conditions, trees, store) if processes.is_first else None

    def _run(
        self,
        engine: Engine,
        trees: list[ScoredTree],
        conditions: Sequence[Condition],
        store: Store,
        processes: _Processes,
        title: str,
    ) -> None:
        from tqdm import tqdm

        own = sorted(trees, key=lambda tree: (-len(tree.tree), tree.key))[processes.rank :: processes.count]
        done = sum(store.get(condition.name, tree.key) is not None for condition in conditions for tree in own)
        total = len(own) * len(conditions)
        with tqdm(total=total, initial=done, desc=title, unit="cell", disable=not processes.is_first) as bar:
            engine.run(own, conditions, store, bar.update)
        processes.wait()
        if processes.count > 1:
            store.refresh()

    def _pairs(self, trees: list[ScoredTree], singles: list[Condition], store: Store) -> list[Condition]:
        """The two-layer conditions: the best layers of both kinds, by the axis of each."""
        from lm_eval_ext.sweep.choice import SURGICAL, best_by_layer

        summary = self._summary(self._items(trees, [c for c in singles if c.control is None], store), singles)
        axes = self._axes(summary)
        families = {kind: axes[subject] or summary["family"].iloc[0] for kind, subject in SURGICAL.items()}
        best = {
            kind: best_by_layer(summary, kind, family, self.settings.pair_layers) for kind, family in families.items()
        }
        return self.grid()[0].pairs(best["en"], best["loc"])

    def _items(self, trees: list[ScoredTree], conditions: Sequence[Condition], store: Store) -> pd.DataFrame:
        from tqdm import tqdm

        from lm_eval_ext.sweep.summary import items

        with tqdm(total=len(conditions), desc="Scoring", unit="condition") as bar:
            return items(self.questions, trees, conditions, store, bar.update)

    def _summary(self, frame: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
        from lm_eval_ext.sweep.summary import summarise

        summary = summarise(frame, conditions, metric=self.settings.metric, resamples=self.settings.resamples)
        if summary.empty:
            known = [name for name in frame if frame[name].dtype == float and name != "margin"]
            raise UserError(f"--metric {self.settings.metric!r}: the tasks score {', '.join(map(str, known))}")
        return summary

    def _axes(self, summary: pd.DataFrame) -> Any:
        from lm_eval_ext.sweep.choice import Axes

        return Axes.of(summary["family"].unique().tolist())

    def _identity(self, model: SteeredHFLM) -> dict[str, str]:
        return {
            "model": weights_fingerprint(model.model),
            "vector file": self.vectors.sha256[:16],
            "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        }

    def _write(
        self, conditions: list[Condition], trees: list[ScoredTree], store: Store, seconds: float, console: Console
    ) -> None:
        from rich.table import Table

        from lm_eval_ext.plane.figures import write_charts
        from lm_eval_ext.plane.figures.chart import write_whole
        from lm_eval_ext.sweep import page
        from lm_eval_ext.sweep.choice import choose
        from lm_eval_ext.sweep.figures import charts

        out = self.settings.out
        frame = self._items(trees, conditions, store)
        summary = self._summary(frame, conditions)
        write_whole(out / "items.parquet", frame.to_parquet(index=False, compression="zstd"))
        write_whole(out / "summary.csv", summary.to_csv(index=False, float_format="%.5f").encode())
        description = self._description(conditions, seconds)
        write_whole(out / "sweep.html", page.page(summary, description).encode())
        write_charts(charts(summary), out / "figures", ("csv",))
        chosen = self._choose(choose, summary, console)
        write_whole(out / "sweep.json", (json.dumps(self._record(conditions, seconds), indent=1) + "\n").encode())

        table = Table(title="Largest effects (average over all languages but English)")
        for number, column in enumerate(page.HEADER):
            table.add_column(column, justify="left" if number < 2 else "right")
        for row in page.top_rows(summary):
            table.add_row(*row)
        shown = _console()
        shown.print(table)
        for sentence in page.findings(summary):
            shown.print(f"• {sentence}", soft_wrap=True)
        shown.print(
            f"\nwrote items.parquet, summary.csv, sweep.html, figures/{' and plan.yaml' if chosen else ''} to {out}",
            soft_wrap=True,
        )

    def _choose(self, choose: Any, summary: pd.DataFrame, console: Console) -> bool:
        import yaml

        from lm_eval_ext.plane.figures.chart import write_whole

        path = self.settings.out / "plan.yaml"
        axes = self._axes(summary)
        if axes.transfer is None or axes.localization is None:
            console.print(
                "note: no plan is chosen: that takes a development split of a transfer task and of a localization task "
                "(bmlama_dev and blend_decon_dev_cloze, say); test questions choose nothing",
                style="yellow",
            )
            path.unlink(missing_ok=True)
            return False
        if not self._has_pairs or (plan := choose(summary, axes)) is None:
            console.print("note: no plan is chosen: no pair of en and loc was evaluated", style="yellow")
            path.unlink(missing_ok=True)
            return False
        record = {**plan, "vectors": {"sha256": self.vectors.sha256}, "model": self.vectors.model.name}
        write_whole(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120).encode())
        return True

    def _description(self, conditions: list[Condition], seconds: float) -> list[str]:
        asked = self.settings
        return [
            f"{len(conditions)} conditions on {len(self.questions.questions)} questions of {', '.join(asked.tasks)} "
            f"({', '.join(self.questions.languages)}); score: {asked.metric}.",
            f"Model {self.vectors.model.name}, vectors {self.vectors.sha256[:12]}; {seconds / 60:.1f} minutes.",
        ]

    def _record(self, conditions: list[Condition], seconds: float) -> dict[str, Any]:
        asked = {
            name: str(value.name if isinstance(value, Path) else value)
            for name, value in vars(self.settings).items()
            if name not in ("out", "restart")
        }
        return {
            "created_by": f"lm_eval_ext {__version__}",
            "settings": asked,
            "conditions": len(conditions),
            "questions": len(self.questions.questions),
            "vectors_sha256": self.vectors.sha256,
            "seconds": round(seconds, 1),
        }


class _Processes:
    """This process among those of `accelerate launch`; one where there was no launch."""

    def __init__(self) -> None:
        from accelerate import PartialState

        self._state = PartialState()
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.is_first = self.rank == 0

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self.count > 1:
            self._state.destroy_process_group()

    def wait(self) -> None:
        """Until all have come here."""
        self._state.wait_for_everyone()


def weights_fingerprint(model: Any) -> str:
    """A hash of every weight's name, shape, sum and some of its values: changes with any training step, reads all once."""
    import torch

    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            flat = weight.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64].float()
            total = flat.sum(dtype=torch.float64 if flat.device.type == "cpu" else torch.float32)
            digest.update(f"{name} {tuple(weight.shape)} {float(total)!r} {some.tolist()}".encode())
    return digest.hexdigest()[:16]


def _gamma(text: str) -> Gamma:
    try:
        return Plan.parse(f"x@0:{text}").interventions[0].gamma
    except PlanError:
        raise PlanError(f"gamma {text!r} is not a strength such as 2, 0.5 or 5%") from None


def _console() -> Console:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a log should not fold the table
    return console
