"""The files that a sweep writes, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import __version__
from lm_eval_ext.io import write_file
from lm_eval_ext.sweep import page
from lm_eval_ext.sweep.choice import Axes, choose
from lm_eval_ext.sweep.figures import charts
from lm_eval_ext.viz.chart import write_charts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from rich.console import Console

    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.grid import Condition
    from lm_eval_ext.sweep.questions import Questions
    from lm_eval_ext.sweep.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """A finished sweep: what was asked, with which vectors, and the frames of `summary`."""

    settings: Settings
    vectors: VectorSet
    questions: Questions
    conditions: Sequence[Condition]
    items: pd.DataFrame
    summary: pd.DataFrame

    def write(self, seconds: float, console: Console) -> None:
        """Write everything to the settings' folder; print the largest effects, and notes to `console`.

        Raises:
            OutputError: the folder cannot be written.
        """
        out = self.settings.out
        write_file(out / "items.parquet", self.items.to_parquet(index=False, compression="zstd"))
        write_file(out / "summary.csv", self.summary.to_csv(index=False, float_format="%.5f"))
        write_file(out / "sweep.html", page.page(self.summary, self._description(seconds)))
        write_charts(charts(self.summary), out / "figures", ("csv",))
        write_file(out / "sweep.json", json.dumps(self._record(seconds), indent=1) + "\n")
        chosen = self._write_plan(console)
        self._print(chosen)

    def _write_plan(self, console: Console) -> bool:
        import yaml

        path = self.settings.out / "plan.yaml"
        path.unlink(missing_ok=True)
        axes = Axes.of(self.questions.questions, set(self.summary["family"]))
        if axes.transfer is None or axes.localization is None:
            console.print(
                "note: no plan is chosen: that takes a development split of a transfer task and of a localization task, "
                "such as bmlama_dev and blend_decon_dev_cloze, or tasks of your own whose metadata says axis and "
                "split: dev; test questions choose nothing",
                style="yellow",
            )
            return False
        plan = choose(self.summary, axes) if self.settings.has_pairs else None
        if plan is None:
            console.print("note: no plan is chosen: no pair of en and loc was evaluated", style="yellow")
            return False
        record = {**plan, "vectors": {"sha256": self.vectors.sha256}, "model": self.vectors.model.name}
        write_file(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120))
        return True

    def _print(self, chosen: bool) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title="Largest effects (average over all languages but English)")
        for number, column in enumerate(page.HEADER):
            table.add_column(column, justify="left" if number < 2 else "right")
        for row in page.top_rows(self.summary):
            table.add_row(*row)
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console.width = max(console.width, 160)  # a log should not fold the table
        console.print(table)
        for sentence in page.findings(self.summary):
            console.print(f"• {sentence}", soft_wrap=True)
        files = f"items.parquet, summary.csv, sweep.html, figures/{' and plan.yaml' if chosen else ''}"
        console.print(f"\nwrote {files} to {self.settings.out}", soft_wrap=True)

    def _description(self, seconds: float) -> list[str]:
        asked = self.settings
        return [
            f"{len(self.conditions)} conditions on {len(self.questions.questions)} questions of "
            f"{', '.join(asked.tasks)} ({', '.join(self.questions.languages)}); score: {asked.metric}.",
            f"Model {self.vectors.model.name}, vectors {self.vectors.sha256[:12]}; {seconds / 60:.1f} minutes.",
        ]

    def _record(self, seconds: float) -> dict[str, Any]:
        asked = {
            name: str(value.name if isinstance(value, Path) else value)
            for name, value in vars(self.settings).items()
            if name not in ("out", "restart")
        }
        return {
            "created_by": f"lm_eval_ext {__version__}",
            "settings": asked,
            "conditions": len(self.conditions),
            "questions": len(self.questions.questions),
            "vectors_sha256": self.vectors.sha256,
            "seconds": round(seconds, 1),
        }
