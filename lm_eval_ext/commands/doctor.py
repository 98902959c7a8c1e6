"""The command `lm-eval-ext doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lm_eval_ext import doctor as checks
from lm_eval_ext.console import output, print_json
from lm_eval_ext.doctor import ABSENT, BROKEN, OK, Finding


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as a JSON list.")] = False,
) -> None:
    """Check versions, discovery by the harness, data, models and devices. Takes about five seconds.

    Exits with status 1 if something that is needed does not work.
    """
    findings = []
    for finding in checks.examine():
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if any(finding.status == BROKEN for finding in findings):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    from rich.text import Text

    console = output()
    colour = {OK: "green", ABSENT: "yellow", BROKEN: "red"}[finding.status]
    line = Text.assemble((f"{finding.status:<7}", colour), f" {finding.subject:<20} {finding.detail}")
    console.print(line, soft_wrap=True)
    if finding.remedy:
        console.print(f"{'':<28} -> {finding.remedy}", soft_wrap=True)
