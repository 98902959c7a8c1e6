"""Puts the report together."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.io import write_file
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.plane.figures import charts
from lm_eval_ext.plane.figures.context import context_gaps
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.plane.table import LEGEND, describe, header, rows
from lm_eval_ext.report import provenance
from lm_eval_ext.report.answers import answers, run_table, sentences
from lm_eval_ext.report.findings import findings, open_questions
from lm_eval_ext.report.items import changed_items
from lm_eval_ext.results.run import short_model
from lm_eval_ext.results.runs import Runs, load
from lm_eval_ext.stats import RESAMPLES
from lm_eval_ext.viz.page import figure_part, render, sentence

if TYPE_CHECKING:
    from lm_eval_ext.plane.shifts import Plane
    from lm_eval_ext.report.answers import Answer
    from lm_eval_ext.viz.chart import Chart

#: Of more runs each has fewer resamples: our default, so that 200 runs are reported in a minute.
MANY_RUNS, RESAMPLES_OF_MANY = 40, 1_000

_HERE = Path(__file__).parent / "templates"


def default_resamples(n_runs: int) -> int:
    """Bootstrap resamples for a number of runs."""
    return RESAMPLES if n_runs <= MANY_RUNS else RESAMPLES_OF_MANY


def report(
    results: Runs | Path | str,
    baseline: str,
    *,
    title: str = "",
    max_items: int = 5_000,
    resamples: int | None = None,
    **axes: Any,
) -> Report:
    """What results show, and what they do not, as one self-contained page.

    Args:
        results: of `load`, or a folder of result files.
        baseline: the run that all others are held against: its name, folder, label, plan or model.
        title: of the page; after the baseline if not given.
        max_items: in the browser of changed items; 0 for no browser.
        resamples: of the bootstrap; 10,000 for up to 40 runs, 1,000 for more, if not given.
        axes: what else `plane` takes: `x`, `y`, `x_metric`, `y_metric`, `runs`, `languages`, `level`, `seed`.

    Raises:
        ResultsError: as `plane`.

    Example:
        >>> page = lx.report(lx.load("results"), baseline="unsteered", resamples=200, max_items=20)
        >>> page.write("report.html").stat().st_size > 1_000_000  # plotly.js included: it needs no network
        True
    """
    loaded = results if isinstance(results, Runs) else load(results)
    n_runs = len(axes.get("runs") or loaded.runs)
    measured = measure(loaded, baseline, resamples=resamples or default_resamples(n_runs), **axes)
    return Report(measured, title=title, max_items=max_items)


class Report:
    """A measured plane as a page; made by `lm_eval_ext.report(...)`.

    Example:
        >>> page = lx.report("results", baseline="unsteered", resamples=200)
        >>> len(page.findings) > 0, [chart.name for chart in page.charts][:2]
        (True, ['plane', 'plane_by_language'])

    Args:
        plane: what was measured.
        title: of the page; after the baseline if not given.
        max_items: in the browser of changed items; 0 for no browser.
    """

    def __init__(self, plane: Plane, *, title: str = "", max_items: int = 5_000) -> None:
        self.plane = plane
        self.title = title or f"What changed against {plane.baseline.name}"
        self.max_items = max_items

    @cached_property
    def charts(self) -> list[Chart]:
        """Every figure: those of the plane, then those of the answers."""
        return [*charts(self.plane), *(answer.chart for answer in self.answers if answer.chart is not None)]

    @cached_property
    def answers(self) -> list[Answer]:
        """What a reader asks first, each with a sentence and a picture."""
        return answers(self.plane)

    @property
    def in_short(self) -> list[str]:
        """These questions and their answers as lines."""
        return sentences(self.answers)

    @cached_property
    def findings(self) -> list[str]:
        """What the intervals support, in sentences."""
        return findings(self.plane, context_gaps(self.plane))

    def write(self, path: Path | str) -> Path:
        """Write the page; its path.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(Path(path), self.html())
        return Path(path)

    def html(self) -> str:
        """The whole page. Every name and text in it is escaped."""
        plane = self.plane
        table = rows(plane)
        parts = {chart.name: figure_part(chart) for chart in self.charts}
        in_short = [
            (answer.question, answer.sentence, parts.pop(answer.chart.name) if answer.chart else None)
            for answer in self.answers
        ]
        browser = changed_items(plane, self.max_items) if self.max_items else None
        return render(
            "report.html",
            folder=_HERE,
            title=self.title,
            charts=self.charts,
            in_short=in_short,
            parts_of_charts=list(parts.values()),
            run_table=run_table(plane),
            scripts=[(_HERE / "report.js").read_text(encoding="utf-8")],
            data={"items-data": browser.data} if browser else {},
            plane=plane,
            model=short_model(plane.baseline.model),
            n_runs=len(plane.runs),
            description=[sentence(line) for line in describe(plane)],
            findings=self.findings,
            open_questions=open_questions(plane),
            legend=sentence(LEGEND),
            header=header(plane),
            averages=[row for row in table if row[1] == AVERAGE],
            languages=[row for row in table if row[1] != AVERAGE],
            browser=browser,
            runs=(provenance.RUN_TITLES, provenance.run_rows(plane)),
            tasks=(provenance.DATA_TITLES, provenance.data_rows(plane)),
            commands=provenance.commands(plane, self._arguments()),
        )

    def _arguments(self) -> list[str]:
        """Of the command that makes this page."""
        plane = self.plane
        words = ["RESULTS", "--baseline", plane.baseline.name, "--x", plane.x.name, "--y", plane.y.name]
        words += ["--x-metric", plane.x.score, "--y-metric", plane.y.score]
        words += ["--resamples", str(plane.resamples), "--seed", str(plane.seed), "--level", f"{plane.level:g}"]
        return [*words, "-o", "report.html"]
