"""Verdicts as output: terminal, picture, JSON, JUnit XML, Markdown, GitHub annotations.

Names of tasks, models and runs come from files that others wrote: every format escapes them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rich import box
from rich.table import Table
from rich.text import Text

from lm_eval_ext.console import picture, xml_text
from lm_eval_ext.gate.markdown import escape as _markdown
from lm_eval_ext.gate.measuring import dtype_notes
from lm_eval_ext.gate.verdicts import STATUS, points
from lm_eval_ext.results.run import some
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval_ext.gate.measuring import Side
    from lm_eval_ext.gate.noise import NoiseFloor
    from lm_eval_ext.gate.verdicts import Check, GateResult, PooledResult, Verdict

GLYPHS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
_COLOURS: dict[Verdict, str] = {"pass": "green", "fail": "red", "inconclusive": "yellow"}

#: GitHub's limits: of each kind of annotation a step, and of a step's summary, where other steps' text is not counted.
_MAX_ANNOTATIONS = 10
_MAX_SUMMARY = 1_000_000  # bytes; 1 MiB is refused whole

#: Undecided answers of a check that Markdown names; the JSON has all.
_MAX_UNDECIDED = 20


def worst_first(result: GateResult) -> list[Check]:
    """The checks, failures at the top."""
    return sorted(result.checks, key=lambda check: (not check.decides, list(STATUS).index(check.verdict)))


def table(result: GateResult) -> Table:
    """One line per check for the terminal."""
    shown = Table(box=box.SIMPLE, title=Text("Gate"), caption=Text(LEGEND), caption_justify="left")
    for title in ("", "axis", "language", "baseline", "candidate", "rule", "result"):
        is_number = title in ("baseline", "candidate")
        shown.add_column(Text(title), justify="right" if is_number else "left", overflow="fold")
    for check in worst_first(result):
        measured = check.measured
        style = _COLOURS[check.verdict if check.decides else "inconclusive"]
        shown.add_row(
            Text(f"{GLYPHS[check.verdict]} {check.label}", style=style),
            Text(f"{measured.rule.axis} {measured.rule.metric}"),
            Text(measured.language),
            *map(Text, check.levels),
            Text(measured.rule.text),
            Text(detail(check)),
        )
    return shown


LEGEND = (
    "changes in percentage points, positive is better, with one-sided bounds at the rule's alpha; p values by sign flips "
    "(in one language the exact McNemar test), corrected over all checks (Holm)"
)


def detail(check: Check) -> str:
    """Why, and until when a broken rule is waived."""
    if check.decides or check.waiver is None:
        return check.detail
    return f"{check.detail}; waived until {check.waiver.until}: {check.waiver.reason}"


def pooled_lines(result: GateResult) -> list[str]:
    """The pooled test: what it can show, then what it shows; and the drift since the frozen baseline."""
    lines = []
    if (pooled := result.pooled) is not None:
        name = "all items together" if pooled.asked.decides else "all items together (reported only)"
        lines = [f"{name}: {pooled.sensitivity}", f"{name}: {pooled.detail}"]
        if (drift := result.drift) is not None:
            since = next(check.measured.rule.since for check in result.checks if check.measured.rule.since)
            now = f"against the baseline {points(pooled.suite.change, 2)} points"
            lines.append(f"drift since {since} (reported only): {drift.detail}; {now}")
    return lines


def noise_table(floor: NoiseFloor) -> Table:
    """One line per axis and language, and one for all items together."""
    shown = Table(title=Text(f"Noise of {floor.model}, {floor.runs} evaluations"), box=None, pad_edge=False)
    for title in ("axis", "language", "items", "flips", "at most", "score moves", "95% of margins move"):
        shown.add_column(title, justify="left" if title in ("axis", "language") else "right", overflow="fold")
    named = [(f"{one.axis} {one.metric}", one.language, one, one.margin) for one in floor.noise]
    for axis, language, flips, margin in [*named, ("all items together", "", floor.pooled, None)]:
        shares = (f"{share:.1%}" for share in (flips.flips, flips.most_flips))
        cells = (axis, language, str(flips.n), *shares, f"{100 * flips.shift:.2f} points")
        shown.add_row(*map(Text, (*cells, "" if margin is None else f"{margin:.3f} nats")))
    return shown


def undecided_fold(result: GateResult, escape: Callable[[str], str]) -> list[str]:
    """Lines of Markdown that fold the answers within the noise, by check, the closest first; none where there are none."""
    checks = [check for check in worst_first(result) if check.measured.undecided]
    if not checks:
        return []
    rows = [
        f"| {escape(check.name)} | {len(check.measured.undecided or ())} of {check.measured.n} "
        f"| {escape(some(check.measured.undecided or (), _MAX_UNDECIDED))} |"
        for check in checks
    ]
    return [
        "<details><summary>? Undecided answers: margins within the noise of the same model</summary>",
        "",
        "| check | answers | items, the closest first |",
        "|---|---:|---|",
        *rows,
        "",
        "</details>",
        "",
    ]


def to_svg(result: GateResult) -> str:
    """The terminal as a picture."""
    return picture([table(result), *pooled_lines(result), result.detail], "lm-eval-ext gate")


def to_json(result: GateResult, baseline: Side, candidate: Side) -> str:
    """Everything as JSON; what has no value (no test, no bound) is null."""
    content = {
        "verdict": result.verdict,
        "status": STATUS[result.verdict],
        "detail": result.detail,
        "lm_eval_ext": __version__,
        **{
            side.role: {"run": side.run.name, "model": side.run.model, "plan": side.run.plan, "date": side.run.date}
            | {"evaluations": 1 + len(side.reruns)}
            for side in (baseline, candidate)
        },
        "pooled": _pooled_record(result.pooled),
        "drift": _pooled_record(result.drift),
        "checks": [_record(check) for check in result.checks],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _pooled_record(pooled: PooledResult | None) -> dict[str, Any] | None:
    if pooled is None:
        return None
    return {
        "verdict": pooled.verdict,
        **asdict(pooled.asked),
        "smallest": pooled.smallest if math.isfinite(pooled.smallest) else None,
        "noise": pooled.noise,
        "detail": pooled.detail,
        "tests": [asdict(test) for test in (pooled.suite, *pooled.parts)],
    }


def _record(check: Check) -> dict[str, Any]:
    measured, rule = check.measured, check.measured.rule
    figures = ("baseline", "candidate", "n", "questions", "gains", "losses", "change", "low", "high", "smallest")
    record = {
        "verdict": check.verdict,
        "axis": rule.axis,
        "metric": rule.metric,
        "language": measured.language,
        "rule": rule.kind,
        "bound": rule.bound if rule.kind == "side-effect" else None,
        **{key: getattr(rule, key) for key in ("limit", "margin", "alpha", "power")},
        **{key: getattr(measured, key) for key in figures},
        "p": measured.p,
        "p_holm": check.p,
        "detail": check.detail,
        "items": list(measured.items),
        **{key: getattr(measured, key) for key in ("noise", "noise_flips")},
        "undecided": None if measured.undecided is None else len(measured.undecided),
        "undecided_items": list(measured.undecided or ()),
        "severity": rule.severity,
        "since": rule.since or None,
        "waived": {"until": str(check.waiver.until), "reason": check.waiver.reason} if check.waiver else None,
    }
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def to_junit(result: GateResult) -> str:
    """JUnit XML: a failure for fail, an error of type inconclusive for inconclusive."""
    counts = {"failures": result.count("fail"), "errors": result.count("inconclusive"), "tests": len(result.checks)}
    attributes = {"name": "gate", **{key: str(count) for key, count in counts.items()}}
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    for check in result.checks:
        rule = check.measured.rule
        of_axis = {"classname": xml_text(f"{rule.axis}.{rule.metric}"), "time": "0"}
        case = ElementTree.SubElement(
            suite, "testcase", {**of_axis, "name": xml_text(f"{check.measured.language}: {rule.text}")}
        )
        if check.verdict != "pass" and check.decides:
            tag = "failure" if check.verdict == "fail" else "error"
            problem = ElementTree.SubElement(case, tag, {"type": check.verdict, "message": xml_text(check.detail)})
            problem.text = xml_text(f"{check.name}: {check.detail}")
        else:
            ElementTree.SubElement(case, "system-out").text = xml_text(
                f"{'' if check.decides else f'{check.label}: '}{detail(check)}"
            )
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def to_markdown(result: GateResult, baseline: Side, candidate: Side, *, written: int = 0) -> str:
    """For the step summary of GitHub Actions, or a comment.

    GitHub takes no summary above 1 MiB: checks that do not fit are counted instead.

    Args:
        result, baseline, candidate: what was judged.
        written: bytes that the summary has already.
    """
    lines = [
        f"## {GLYPHS[result.verdict]} Gate: {result.verdict}",
        "",
        f"Candidate **{_markdown(candidate.title)}** against **{_markdown(baseline.title)}**: "
        f"{_markdown(result.detail)}.",
        *(f"\n{_markdown(line)}." for line in pooled_lines(result)),
        "",
        "| | axis | language | baseline | candidate | rule | result |",
        "|---|---|---|---:|---:|---|---|",
    ]
    notes = [f"> {_markdown(note)}\n" for note in dtype_notes(baseline, candidate)]
    end = ["", *undecided_fold(result, _markdown), *notes, f"<sub>{LEGEND}</sub>", ""]
    if sum(len(line.encode()) + 1 for line in end) > _MAX_SUMMARY // 4:
        end = ["", *notes, f"<sub>{LEGEND}</sub>", ""]  # hundreds of checks; the JSON has them all
    size = sum(len(line.encode()) + 1 for line in (*lines, *end)) + 200
    ordered = worst_first(result)
    for number, check in enumerate(ordered):
        measured = check.measured
        cells = (
            f"{GLYPHS[check.verdict]} {check.label}",
            _markdown(f"{measured.rule.axis} {measured.rule.metric}"),
            _markdown(measured.language),
            *check.levels,
            _markdown(measured.rule.text),
            _markdown(detail(check)),
        )
        line = "| " + " | ".join(cells) + " |"
        size += len(line.encode()) + 1
        if size > _MAX_SUMMARY - written:
            left = f"{len(ordered) - number} of {len(ordered)} checks are left out here, the worst stand above"
            end = ["", f"**{left}; all stand in the step's log.**", *end]
            break
        lines.append(line)
    return "\n".join([*lines, *end])


def github_annotations(result: GateResult) -> list[str]:
    """GitHub workflow commands: an error per failed check, a warning per inconclusive one.

    GitHub shows the first ten errors and the first ten warnings of a step: where there are more, the first says how many.
    """
    level: dict[Verdict, str] = {"fail": "error", "inconclusive": "warning"}
    lines = []
    pooled = result.pooled
    if pooled is not None and pooled.asked.decides and pooled.verdict != "pass":
        lines.append(f"::{level[pooled.verdict]} title=gate%3A all items together::{_command(pooled.detail)}")
    by_command: dict[str, list[Check]] = {"error": [], "warning": []}
    for check in worst_first(result):
        if check.verdict != "pass":
            by_command[level[check.verdict] if check.decides else "warning"].append(check)
    for command, checks in by_command.items():
        shown = checks
        most = _MAX_ANNOTATIONS - sum(line.startswith(f"::{command} ") for line in lines)
        if len(checks) > most:
            shown = checks[: most - 1]
            verdict = " or ".join(dict.fromkeys(check.verdict for check in checks))
            text = f"{result.detail}; {len(shown)} of {len(checks)} are annotated, all stand in the step's log"
            lines.append(f"::{command} title={_property(f'gate: {len(checks)} checks {verdict}')}::{_command(text)}")
        lines += [f"::{command} title={_property(f'gate: {check.name}')}::{_command(detail(check))}" for check in shown]
    return lines


def misuse_annotation(message: str) -> str:
    """The same for a gate that could not be judged."""
    return f"::error title=gate misused::{_command(message)}"


def _command(text: str) -> str:
    """The text of a workflow command: nothing in it may end the line or start another command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")
