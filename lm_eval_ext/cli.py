"""The `lm-eval-ext` command. Each subcommand is a plain function beside its subject, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from lm_eval_ext import __version__, harness
from lm_eval_ext.console import user_errors

if TYPE_CHECKING:
    from collections.abc import Callable

#: Subcommand: its function, or a group of them; what it does.
COMMANDS = {
    "extract": ("lm_eval_ext.commands.extract:extract", "Extract steering vectors from pairs of prompts into a file."),
    "sweep": (
        "lm_eval_ext.commands.sweep:sweep",
        "Evaluate a grid of layers and strengths for little more than one evaluation.",
    ),
    "geometry": ("lm_eval_ext.commands.geometry:geometry", "Measure how languages lie in a model, layer by layer."),
    "plane": ("lm_eval_ext.commands.plane:plane", "Draw the transfer-localization plane from result files."),
    "breakdown": (
        "lm_eval_ext.commands.breakdown:breakdown",
        "Break a score down by subject, category, topic or language.",
    ),
    "report": ("lm_eval_ext.commands.report:report", "Report what results show, and what not, as one page."),
    "study": (
        "lm_eval_ext.commands.study:study",
        "Run a whole experiment from one file: train, steer, evaluate, draw.",
    ),
    "leaderboard": ("lm_eval_ext.commands.leaderboard:leaderboard", "Make a static leaderboard of result trees."),
    "data": ("lm_eval_ext.commands.data:app", "Check, count, show, export and import what is asked."),
    "train": ("lm_eval_ext.commands.train:app", "Train aligned models: MIST, MIDALIGN, CLO."),
    "gate": ("lm_eval_ext.commands.gate:gate", "Pass or fail a candidate against a baseline, item by item."),
    "demo": ("lm_eval_ext.commands.demo:demo", "Measure and steer the embedded model, from extraction to the plane."),
    "model": ("lm_eval_ext.commands.model:model", "Prepare the embedded model and print where it is."),
    "doctor": (
        "lm_eval_ext.commands.doctor:doctor",
        "Check the installation and say what to do about what is missing.",
    ),
}

VERBATIM = {"allow_extra_args": True, "allow_interspersed_args": False, "ignore_unknown_options": True}

EPILOG = """Examples:

lm-eval-ext eval --model steered-hf --tasks transfer_mini_cloze,localization_mini_cloze

lm-eval-ext extract --help

lm-eval-ext plane results/ --baseline unsteered --out plane.html"""


class _Commands(TyperGroup):
    """Ends every subcommand the same way: a user's mistake with status 2, an interruption with status 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with user_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


app = typer.Typer(
    cls=_Commands,
    name="lm-eval-ext",
    help="Measure, and repair, what cross-lingual alignment does to a language model: a plugin for lm_eval.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of `lm-eval-ext` and `python -m lm_eval_ext`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lm_eval_ext {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


@app.command(
    "eval",
    help="Run the harness: everything after `eval` goes to `lm_eval` as it is (`eval --help`, `eval ls tasks`, ...).",
    context_settings=VERBATIM,
    add_help_option=False,
)
def _eval(ctx: typer.Context) -> None:
    from lm_eval.__main__ import cli_evaluate

    harness.install()
    sys.argv = ["lm_eval", *ctx.args]
    cli_evaluate()


def subcommand(name: str) -> Any:
    """The click command, or group of commands, behind the name of a subcommand."""
    target, _ = COMMANDS[name]
    return typer.main.get_command(_single(name, _function(target)))


def _add(name: str, summary: str) -> None:
    @app.command(name, help=summary, context_settings=VERBATIM, add_help_option=False)
    def run(ctx: typer.Context) -> None:
        command = subcommand(name)
        with command.make_context(name, ctx.args, parent=ctx.parent) as context:
            command.invoke(context)


def _function(target: str) -> Callable[..., None] | typer.Typer:
    module, _, name = target.partition(":")
    function: Callable[..., None] | typer.Typer = getattr(importlib.import_module(module), name)
    return function


def _single(name: str, function: Callable[..., None] | typer.Typer) -> typer.Typer:
    if isinstance(function, typer.Typer):
        return function
    single = typer.Typer(add_completion=False)
    single.command(name)(function)
    return single


for _name, (_, _summary) in COMMANDS.items():
    _add(_name, _summary)
