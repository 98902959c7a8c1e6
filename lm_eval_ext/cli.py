"""The `lm-eval-ext` command. Subcommands (`commands.table`) are imported when they are asked for."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from lm_eval_ext import harness
from lm_eval_ext.commands.table import COMMANDS, subcommand
from lm_eval_ext.console import set_up_progress, user_errors
from lm_eval_ext.version import __version__

VERBATIM = {"allow_extra_args": True, "allow_interspersed_args": False, "ignore_unknown_options": True}

EPILOG = """Examples:

lm-eval-ext eval --model steered-hf --tasks transfer_mini_cloze,localization_mini_cloze

lm-eval-ext extract --help

lm-eval-ext plane results/ --baseline unsteered --out plane.html"""


class _Commands(TyperGroup):
    """Ends every subcommand the same way: a user's mistake with status 2, an interruption with status 130."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The subcommand; its own options only where a shell completes them, as they take an import."""
        if ctx.resilient_parsing and args and args[0] in COMMANDS:
            return args[0], subcommand(args[0]), args[1:]
        return super().resolve_command(ctx, args)

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
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No notes and no progress: only results and errors."),
) -> None:
    set_up_progress(quiet=quiet)


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


def _add(name: str, summary: str) -> None:
    @app.command(name, help=summary, context_settings=VERBATIM, add_help_option=False)
    def run(ctx: typer.Context) -> None:
        command = subcommand(name)
        with command.make_context(name, ctx.args, parent=ctx.parent, token_normalize_func=_hyphenated) as context:
            command.invoke(context)


def _hyphenated(name: str) -> str:
    """`--model_args` is `--model-args`: the harness writes its options with underscores."""
    return name.replace("_", "-")


for _name, (_, _summary) in COMMANDS.items():
    _add(_name, _summary)
