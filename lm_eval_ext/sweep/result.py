"""The result of a sweep, and the files that it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.io import write_file
from lm_eval_ext.redaction import redact_text
from lm_eval_ext.spreadsheets import frame_to_csv
from lm_eval_ext.sweep import page
from lm_eval_ext.sweep.choice import Axes, choose
from lm_eval_ext.sweep.figures import charts
from lm_eval_ext.version import __version__
from lm_eval_ext.viz.chart import write_charts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.sweep.grid import Condition
    from lm_eval_ext.sweep.questions import Questions
    from lm_eval_ext.sweep.settings import Settings


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: its settings, a table of items, and a table of effects.

    Attributes:
        settings: of the sweep.
        vectors: the steering vectors.
        questions: of the tasks.
        conditions: every plan with its controls, and the unsteered model.
        items: one row per condition and question (`summary.items`).
        summary: changes with their paired intervals and their rank among the controls (`summary.summarise`).
        seconds: run time.
        dtype: in which the model ran, and why (`models.precision.Precision.record`).

    Example:
        >>> best = lx.sweep(
        ...     ["localization_mini_ko_cloze"], "v.safetensors", "sweep", kinds=["loc"], layers="58%", gammas=["2"],
        ...     n_random=0, controls=False, limit=2, model=folder, model_args="dtype=float32",
        ... )
        >>> best.summary.query("language == 'ko'")["condition"].tolist()
        ['', 'loc@2:2/prompt']
        >>> best.plan is None  # test questions choose no plan
        True
    """

    settings: Settings
    vectors: VectorSet
    questions: Questions
    conditions: Sequence[Condition]
    items: pd.DataFrame = field(repr=False)
    summary: pd.DataFrame = field(repr=False)
    seconds: float
    dtype: dict[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> str | None:
        """The chosen plan; None unless there are development splits of both axes."""
        chosen = self.choice()
        return None if chosen is None else str(chosen["steer"])

    def choice(self) -> dict[str, Any] | None:
        """The chosen plan with the rule that chose it and its changes, as `plan.yaml` has it."""
        axes = Axes.of(self.questions.questions, set(self.summary["family"]))
        if axes.transfer is None or axes.localization is None or not self.settings.has_pairs:
            return None
        return choose(self.summary, axes)

    def why_no_plan(self) -> str:
        """The reason why no plan is chosen, and what is needed to choose one."""
        axes = Axes.of(self.questions.questions, set(self.summary["family"]))
        if axes.transfer is None or axes.localization is None:
            return (
                "no plan is chosen: this needs a development split of a transfer task and of a localization task, "
                "such as bmlama_dev and blend_decon_dev_cloze, or tasks of your own whose metadata says axis and "
                "split: dev; plans are never chosen on test questions"
            )
        return "no plan is chosen: no pair of en and loc was evaluated"

    def write(self) -> None:
        """Write everything to the settings' folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        import yaml

        out = self.settings.out
        write_file(out / "items.parquet", self.items.to_parquet(index=False, compression="zstd"))
        write_file(out / "summary.csv", frame_to_csv(self.summary, "%.5f"))
        write_file(out / "sweep.html", page.page(self.summary, self._description()))
        write_charts(charts(self.summary), out / "figures", ("csv",))
        write_file(out / "sweep.json", json.dumps(self._record(), indent=1) + "\n")
        chosen = self.choice()
        if chosen is None:
            (out / "plan.yaml").unlink(missing_ok=True)
        else:
            record = {**chosen, "vectors": self._vectors_record(), "model": self.vectors.model.name}
            write_file(out / "plan.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120))

    def _vectors_record(self) -> dict[str, Any]:
        """The vector file, and which tasks its kinds were made from, where it says so."""
        made_from: dict[str, list[str]] = {}
        for (kind, _), entry in self.vectors.vectors.items():
            if kind in self.vectors.kinds and (families := entry.info.made_from.get("families")):
                made_from[kind] = list(families)
        return {"sha256": self.vectors.digest, **({"made_from": made_from} if made_from else {})}

    def _description(self) -> list[str]:
        settings = self.settings
        return [
            f"{len(self.conditions)} conditions on {len(self.questions.questions)} questions of "
            f"{', '.join(settings.tasks)} ({', '.join(self.questions.languages)}); score: {settings.metric}.",
            f"Model {self.vectors.model.name}{f' in {used}' if (used := self.dtype.get('used')) else ''}, vectors "
            f"{self.vectors.digest[:12]}; {self.seconds / 60:.1f} minutes.",
        ]

    def _vectors_name(self) -> str:
        return self.vectors.path.name if self.vectors.path else "in memory"

    def _record(self) -> dict[str, Any]:
        asked = {
            name: str(value.name if isinstance(value, Path) else value) if name != "vectors" else self._vectors_name()
            for name, value in vars(self.settings).items()
            if name not in ("out", "restart")
        }
        return {
            "created_by": f"lm_eval_ext {__version__}",
            "settings": {**asked, "model_args": redact_text(self.settings.model_args)},
            "conditions": len(self.conditions),
            "questions": len(self.questions.questions),
            "vectors_sha256": self.vectors.digest,
            "dtype": self.dtype,
            "seconds": round(self.seconds, 1),
        }
