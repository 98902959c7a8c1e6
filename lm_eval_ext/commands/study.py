"""The command `lm-eval-ext study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def study(
    file: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Output folder, instead of the one in the file.")] = None,
    stages: Annotated[str, typer.Option(help="Only these, joined by commas: train, evaluate/mist*, plane.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Print the plan with estimated times; run nothing.")] = False,
) -> None:
    """Run a whole experiment from one file.

    Trains the models, extracts vectors on each, chooses layers on development
    splits, evaluates every model unsteered and steered, and draws the plane.
    Each stage is a command of this package. It runs if it never ran, or if its
    options, its code, anything that it reads or what it wrote has changed; else
    it is skipped. What was interrupted is resumed where that is possible.

    The keys of the file are described in lm_eval_ext/study/config.py; the
    folder studies/ has three studies.

    Examples:

      lm-eval-ext study studies/gemma3-270m-smoke.yaml --dry-run

      lm-eval-ext study studies/gemma3-270m-cpu.yaml

      lm-eval-ext study studies/gemma3-270m-cpu.yaml --stages train,extract
    """
    from lm_eval_ext.commands.table import COMMANDS, subcommand
    from lm_eval_ext.study import config
    from lm_eval_ext.study.estimate import Guess
    from lm_eval_ext.study.options import CommandLines
    from lm_eval_ext.study.run import Runner
    from lm_eval_ext.study.stages import check_tasks, plan

    settings = config.read(file, out)
    modules = {name: target.partition(":")[0] for name, (target, _) in COMMANDS.items()}
    runner = Runner(plan(settings, CommandLines(subcommand)), settings.out, modules, say=typer.echo)
    check_tasks(settings)
    selected = [word.strip() for word in stages.split(",") if word.strip()]
    lines = list(Guess(settings).lines(runner.steps(selected)))
    if dry_run:
        typer.echo("\n".join(lines))
        return
    typer.echo(lines[-1])
    runner.run(selected)
    typer.echo(f"done: {settings.out}")
