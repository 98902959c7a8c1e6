"""The reference of the command line, as Markdown, from the options that typer knows."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTRODUCTION = """# Command line

`lm-eval-ext COMMAND --help` prints the same. Generated from the program, so that it cannot differ from it.

`lm-eval-ext --install-completion` teaches your shell to complete commands and options. `NO_COLOR=1` turns colours off; they
are off anyway where the output is no terminal. What each exit status means: [Exit status](exit-codes.md).
"""


def page() -> str:
    """All commands with their options."""
    from lm_eval_ext import cli
    from lm_eval_ext.commands.table import COMMANDS, subcommand

    summary = "\n".join(f"| [`{name}`](#{_anchor(name)}) | {text} |" for name, (_, text) in COMMANDS.items())
    parts = [
        _INTRODUCTION,
        f"| command | what it does |\n|---|---|\n| [`eval`](#{_anchor('eval')}) | Run the harness. |\n{summary}\n",
        "## lm-eval-ext eval\n\nEverything after `eval` goes to `lm_eval` as it is: "
        "`lm-eval-ext eval --help` prints the harness's own options.\n",
        _options((app := _root(cli)).context_class(app, info_name="lm-eval-ext"), app),
    ]
    for name in COMMANDS:
        parts += list(_command(subcommand(name), f"lm-eval-ext {name}", 2))
    return "\n".join(parts)


def _root(cli: Any) -> Any:
    import typer

    return typer.main.get_command(cli.app)


def _anchor(name: str) -> str:
    return f"lm-eval-ext-{name}"


def _command(command: Any, name: str, depth: int) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"{'#' * depth} {name}\n"
    yield _prose(command.help or "")
    children = getattr(command, "commands", None)
    if children:
        for child_name, child in children.items():
            yield from _command(child, f"{name} {child_name}", depth + 1)
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{name} {usage}\n```\n"
    yield _options(context, command)


def _prose(text: str) -> str:
    """Help as Markdown: examples and indented lines as blocks."""
    lines, block = [], []
    text = inspect.cleandoc(text).replace("\b", "")
    for line in [*text.splitlines(), ""]:
        if line.startswith("  ") or (block and not line.strip()):
            block.append(line[2:])
            continue
        lines += _block(block)
        block = []
        lines.append(line)
    return "\n".join([*lines, *_block(block)]) + "\n"


def _block(block: list[str]) -> list[str]:
    content = "\n".join(block).strip("\n")
    if not content:
        return []
    is_command = content.startswith(("lm-eval-ext", "lm_eval", "accelerate"))
    return [f"```{'console' if is_command else 'yaml'}", content, "```", ""]


def _options(context: Any, command: Any) -> str:
    rows = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            names = f"`{(parameter.metavar or parameter.name).upper()}`"
        else:
            names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        rows.append(f"| {names} | {_type(parameter)} | {_help(parameter)} | {_default(parameter)} |")
    if not rows:
        return ""
    return "\n".join(["| option | value | meaning | default |", "|---|---|---|---|", *rows, ""])


def _type(parameter: Any) -> str:
    """What an option takes, from typer's own help (its releases keep it in different attributes)."""
    if getattr(parameter, "is_flag", False) or parameter.param_type_name == "argument":
        return ""
    if parameter.metavar:
        return f"`{parameter.metavar}`"
    kind = getattr(parameter, "type", None) or getattr(parameter, "type_descriptor", None)
    name = str(getattr(kind, "name", kind)).lower()
    words = {"int": "integer", "float": "number", "path": "path", "directory": "path", "choice": "choice"}
    return next((word for part, word in words.items() if part in name), "text")


def _help(parameter: Any) -> str:
    text = re.sub(r"\s+", " ", (parameter.help or "").replace("\\[", "[")).strip()
    return text.replace("|", "\\|").replace("*", "\\*")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value in (None, "", False, ()) or callable(value) or type(value).__name__ == "Sentinel":
        return ""
    return f"`{value}`"
