"""Verdicts as one comment on a pull request: the worst first, what passes and examples of lost items folded.

The comment begins with a line that nobody sees (`marker`): whoever posts it finds an earlier comment by it, and updates that
one. Texts come from files that others wrote: they are escaped, mention nobody, and hold no credentials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_ext.gate.markdown import escape_references
from lm_eval_ext.gate.marker import MAX_WRITTEN, marker
from lm_eval_ext.gate.measuring import dtype_notes
from lm_eval_ext.gate.outputs import GLYPHS, LEGEND, detail, pooled_lines, undecided_fold, worst_first
from lm_eval_ext.redaction import redact_text
from lm_eval_ext.results.answers import chosen, expected, question
from lm_eval_ext.results.pairing import NO_LANGUAGE
from lm_eval_ext.results.samples import read_documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from lm_eval_ext.gate.measuring import RulePair, Side
    from lm_eval_ext.gate.verdicts import Check, GateResult

#: Checks with examples, examples of each, characters of a question and of an answer.
_MAX_CHECKS, _MAX_EXAMPLES, _MAX_QUESTION, _MAX_ANSWER = 12, 5, 300, 100
#: Share of the comment that rows of the table may take, so that examples have room.
_ROWS = 0.6

_TABLE = ("| | axis | language | baseline | candidate | rule | result |", "|---|---|---|---:|---:|---|---|")
_EXAMPLES = (
    "| item | question | expected | the baseline's answer | the candidate's answer |",
    "|---|---|---|---|---|",
)


def to_comment(
    result: GateResult, baseline: Side, candidate: Side, paired: Sequence[RulePair], *, name: str = "gate"
) -> str:
    """The comment, within GitHub's limit: what does not fit is counted.

    Args:
        result: the verdicts.
        baseline, candidate: what was judged.
        paired: the scores that the verdicts are from.
        name: of the gate.

    Raises:
        GateError: a name that is not valid.
        ResultsError: damaged samples.
    """
    ordered = worst_first(result)
    broken = [check for check in ordered if check.verdict != "pass"]
    head = [
        marker(name),
        f"## {GLYPHS[result.verdict]} Gate: {result.verdict}",
        "",
        f"Candidate **{_text(candidate.title)}** against **{_text(baseline.title)}**: {_text(result.detail)}.",
        *(f"\n{_text(line)}." for line in pooled_lines(result)),
        "",
    ]
    end = [*(f"> {_text(note)}\n" for note in dtype_notes(baseline, candidate)), f"<sub>{LEGEND}</sub>", ""]
    room = _Room(MAX_WRITTEN - _length([*head, *end]))
    rows = _table(broken, room.part(_ROWS)) if broken else []
    room.take(rows)
    examples = _examples(broken, paired, baseline, candidate, room)
    undecided = undecided_fold(result, lambda text: _text(text, 1_000))
    if not room.take(undecided):
        undecided = []
    passing = _folded_table([check for check in ordered if check.verdict == "pass"], room)
    return "\n".join([*head, *rows, *examples, *undecided, *passing, *end])


class _Room:
    """How many characters are left, counted as GitHub may count them: in UTF-16."""

    def __init__(self, characters: int) -> None:
        self.left = characters

    def part(self, share: float) -> _Room:
        """A part of it, whose use is not counted here."""
        return _Room(int(share * self.left))

    def take(self, lines: Iterable[str]) -> bool:
        """Take the room of some lines, if there is enough."""
        length = _length(lines)
        if length > self.left:
            return False
        self.left -= length
        return True


def _length(lines: Iterable[str]) -> int:
    return sum(len(line.encode("utf-16-le")) // 2 + 1 for line in lines)


def _text(text: str, most: int = 2_000) -> str:
    plain = redact_text(text)
    return escape_references(plain if len(plain) <= most else f"{plain[: most - 1]}…")


def _row(check: Check) -> str:
    measured = check.measured
    cells = (
        f"{GLYPHS[check.verdict]} {check.label}",
        _text(f"{measured.rule.axis} {measured.rule.metric}", 200),
        _text(measured.language, 50),
        *check.levels,
        _text(measured.rule.text, 300),
        _text(detail(check), 500),
    )
    return f"| {' | '.join(cells)} |"


def _table(checks: Sequence[Check], room: _Room) -> list[str]:
    """A row per check; those that do not fit are counted."""
    left_out = f"\n**{len(checks)} of {len(checks)} more stand in the step's log.**"
    room.take([*_TABLE, left_out, ""])
    rows: list[str] = []
    for number, check in enumerate(checks):
        row = _row(check)
        if not room.take([row]):
            return [*_TABLE, *rows, f"\n**{len(checks) - number} of {len(checks)} more stand in the step's log.**", ""]
        rows.append(row)
    return [*_TABLE, *rows, ""]


def _folded_table(checks: Sequence[Check], room: _Room) -> list[str]:
    if not checks:
        return []
    summary = f"{len(checks)} check{'s pass' if len(checks) > 1 else ' passes'}"
    head = [f"<details><summary>✓ {summary}</summary>", ""]
    end = ["</details>", ""]
    if not room.take([*head, *end, *_TABLE, " " * 100]):
        return [f"✓ {summary}", ""]
    return [*head, *_table(checks, room), *end]


def _examples(
    checks: Sequence[Check], paired: Sequence[RulePair], baseline: Side, candidate: Side, room: _Room
) -> list[str]:
    """Items behind the worst checks, folded, each item once."""
    by_rule = {one.rule: one for one in paired}
    lines: list[str] = []
    shown: set[tuple[str, str]] = set()
    for check in checks[:_MAX_CHECKS]:
        one = by_rule.get(check.measured.rule)
        if one is None:
            continue
        items = _items(check, one)
        first = [
            (task, doc_hash)
            for task, doc_hash in zip(items["task"], items["doc_hash"], strict=True)
            if (task, doc_hash) not in shown
        ][:_MAX_EXAMPLES]
        rows = _example_rows(items, first, one, baseline, candidate)
        if not rows:
            continue
        summary = f"{_text(check.name, 200)}: {len(rows)} of {len(items)} items"
        block = [f"<details><summary>{summary}</summary>", "", *_EXAMPLES, *rows, "", "</details>", ""]
        if not room.take(block):
            break
        shown.update(first)
        lines += block
    return lines


def _items(check: Check, one: RulePair) -> pd.DataFrame:
    """The documents that speak for a verdict: those that were lost, or are wrong, or changed."""
    rows, kind = one.pair.frame, check.measured.rule.kind
    if kind != "must-pass":
        codes = set(one.averaged if check.measured.language == "average" else (check.measured.language,))
        rows = rows[rows["language"].isin(one.pair.strata(sorted(codes)))]
    if kind == "must-pass":
        meant = rows["after"] < 1
    elif kind == "unchanged":
        meant = rows["change"] != 0
    else:
        meant = rows["change"] > 0 if kind == "max-gain" else rows["change"] < 0
    chosen_rows: pd.DataFrame = rows[meant]
    return chosen_rows


def _example_rows(
    items: pd.DataFrame, wanted: Sequence[tuple[str, str]], one: RulePair, baseline: Side, candidate: Side
) -> list[str]:
    """A row per item, for those whose samples hold a text."""
    samples = [_samples(side, wanted, one) for side in (candidate, baseline)]
    by_key = {(row.task, row.doc_hash): row for row in items.itertuples()}
    rows = []
    for key in wanted:
        after, before = (of_side.get(key) for of_side in samples)
        text = next((asked for sample in (after, before) if sample and (asked := question(sample))), "")
        if not text:
            continue
        row: Any = by_key[key]
        language = "" if row.language == NO_LANGUAGE else f" ({row.language})"
        cells = (
            _text(f"{row.question.partition('/')[2][:60]}{language}"),
            _text(text, _MAX_QUESTION),
            _text(expected(after or before or {}), _MAX_ANSWER),
            _answer(before, one, row.before),
            _answer(after, one, row.after),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _samples(side: Side, wanted: Sequence[tuple[str, str]], one: RulePair) -> dict[tuple[str, str], dict[str, Any]]:
    """Whole samples by task and document."""
    return {
        (task, str(sample["doc_hash"])): sample
        for task in dict.fromkeys(task for task, _ in wanted)
        for sample in read_documents(side.run, task, {doc_hash for of, doc_hash in wanted if of == task})
        if sample.get("filter") == one.axis.filter
    }


def _answer(sample: dict[str, Any] | None, one: RulePair, score: float) -> str:
    """Whether an answer is right, and the answer where samples hold it."""
    given = _text(chosen(sample, one.axis.metric), _MAX_ANSWER) if sample else ""
    word = "✓" if score == 1 else "✗" if score == 0 else f"{score:.2f}"
    return f"{word} {given}".strip()
