"""The built numbers of a data card: Markdown tables that a command writes and a test compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.data import blend, sources
from lm_eval_ext.data.blend import shortcuts
from lm_eval_ext.errors import DataError
from lm_eval_ext.io import write_file
from lm_eval_ext.languages import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lm_eval_ext.data.blend.report import Counts

BEGIN, END = "<!-- begin: lm-eval-ext data card blend -->", "<!-- end: lm-eval-ext data card blend -->"


def numbers() -> str:
    """The numbers of the BLEnD items, in Markdown, between the markers of the data card.

    Raises:
        DataError: BLEnD is missing, unreachable or changed.
    """
    counts = blend.counts()
    parts = [
        f"SHA-256 of all items: `{blend.fingerprint()}`",
        _table(
            "items",
            counts,
            {
                "`blend_decon` (test)": lambda c: c.splits["test"],
                "`blend_decon_dev` (dev2)": lambda c: c.splits["dev2"],
                "both": lambda c: c.items,
                "of them in the core": lambda c: c.core,
                "with up to three items of a question": lambda c: c.repeats,
                "gold is also an answer of the US or UK": lambda c: c.shared_gold,
                "firm: gold has three votes or more (`blend_decon_firm` and its dev questions)": lambda c: c.flags[
                    "firm"
                ],
                "universal: gold is an answer of eight countries or more": lambda c: c.flags["universal"],
                "us_uk_shared: three other countries give the option of the US or UK": lambda c: c.flags[
                    "us_uk_shared"
                ],
                "numeric": lambda c: c.flags["numeric"],
            },
        ),
        _counted("topic", counts, lambda c: c.topics),
        _counted("format of the options", counts, lambda c: c.forms),
        _table(
            "gold is", counts, {letter: lambda c, place=place: c.letters[place] for place, letter in enumerate("ABCD")}
        ),
        _table(
            "the option of the US or UK is",
            counts,
            {letter: lambda c, place=place: c.english_letters[place] for place, letter in enumerate("ABCD")},
        ),
        _table(
            "gold found from the options alone, in percent (chance 25)",
            counts,
            {rule: lambda c, rule=rule: f"{c.shortcuts[rule]:.1f}" for rule in shortcuts.RULES},
        ),
        _share("share of items with an option taken for", counts),
        _counted("why the other questions yield no item", counts, lambda c: c.reasons),
        _counted("verdicts of the review", counts, lambda c: c.verdicts),
        _counted("what the review found", counts, lambda c: c.classes),
    ]
    return "\n".join([BEGIN, "", "\n\n".join(parts), "", END])


def update(file: Path) -> None:
    """Put the numbers between the markers of a data card.

    Raises:
        DataError: the file has no such markers, or cannot be read.
        OutputError: it cannot be written.
    """
    before, begin, rest = sources.read_text(file).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{file} has no markers for the numbers: it needs the lines\n{BEGIN}\n{END}")
    write_file(file, before + numbers() + after)


def written(file: Path) -> str:
    """The numbers in a data card, with their markers."""
    text = sources.read_text(file)
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def _counted(title: str, counts: Sequence[Counts], of: Callable[[Counts], dict[str, int]]) -> str:
    """A row per key, the most frequent first."""
    totals: dict[str, int] = {}
    for count in counts:
        for key, number in of(count).items():
            totals[key] = totals.get(key, 0) + number
    keys = sorted(totals, key=lambda key: (-totals[key], key))
    return _table(title, counts, {key: lambda c, key=key: of(c).get(key, 0) for key in keys})


def _share(title: str, counts: Sequence[Counts]) -> str:
    countries = sorted({country for count in counts for country in count.taken_for})
    rows = {
        country.replace("_", " "): lambda c, country=country: f"{c.taken_for[country] / max(c.items, 1):.0%}"
        for country in countries
    }
    return _table(title, counts, rows)


def _table(title: str, counts: Sequence[Counts], rows: Mapping[str, Callable[..., object]]) -> str:
    by_language = {count.language: count for count in counts}
    lines = [f"| {title} | {' | '.join(LANGUAGES)} |", "|---|" + "---:|" * len(LANGUAGES)]
    for name, cell in rows.items():
        lines.append(f"| {name} | {' | '.join(str(cell(by_language[code])) for code in LANGUAGES)} |")
    return "\n".join(lines)
