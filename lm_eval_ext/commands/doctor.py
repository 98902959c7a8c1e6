"""The command `lm-eval-ext doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from lm_eval_ext import doctor as checks
from lm_eval_ext.doctor import ABSENT, BROKEN, OK, Finding


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as a JSON list.")] = False,
) -> None:
    """Check versions, discovery by the harness, data, models and devices. Takes about ten seconds.

    Exits with status 1 if something that is needed does not work.
    """
    findings = []
    for finding in checks.examine():
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.status == BROKEN for finding in findings):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    colour = {OK: typer.colors.GREEN, ABSENT: typer.colors.YELLOW, BROKEN: typer.colors.RED}[finding.status]
    typer.echo(f"{typer.style(f'{finding.status:<7}', fg=colour)} {finding.subject:<20} {finding.detail}")
    if finding.remedy:
        typer.echo(f"{'':<28} -> {finding.remedy}")
