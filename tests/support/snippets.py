"""What the documentation says to type: its code blocks, and whether the programs would take them.

Nothing is run: commands are parsed by the programs' own parsers, Python is compiled and its imports looked up.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SHELLS = {"console", "bash", "sh", "shell"}

_ASSIGNMENT = re.compile(r"[A-Z_0-9]+=\S*")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: from the root of the repository.
        line: where it begins, counted from 1.
        language: "" where none is given.
        is_run: whether it says that it can be run.
    """

    page: str
    line: int
    language: str
    is_run: bool
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page of the documentation, generated ones by their source."""
    found = [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        ROOT / "examples" / "README.md",
    ]
    for pattern in ("docs/**/*.md", "tasks/*/README.md", "results/*/README.md", "lm_eval_ext/data/*/README.md"):
        found += sorted(ROOT.glob(pattern))
    return found


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page; an indented one counts as commands where it begins with one."""
    yield from blocks_of(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))


def blocks_of(text: str, name: str) -> Iterator[Block]:
    """The code blocks of a page's text."""
    for token in MarkdownIt().parse(text):
        if token.type not in ("fence", "code_block") or token.map is None:
            continue
        info = token.info.strip().strip("{}").strip()
        language = re.split(r"[\s{]", info, maxsplit=1)[0].lstrip(".")
        yield Block(name, token.map[0] + 1, language, ".run" in info, token.content)


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words: continued lines joined, comments, prompts and assignments left out."""
    if block.language not in SHELLS | {""}:
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if block.language == "" and not line.startswith(("lm-eval-ext ", "lm_eval ", "make ")):
            continue
        for part in re.split(r"\s+(?:&&|\|\||;|\|)\s+", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError as error:
                raise AssertionError(f"{block.where}: {line!r}: {error}") from None
            while words and _ASSIGNMENT.fullmatch(words[0]):
                words = words[1:]
            if words:
                yield words


def problem(words: list[str]) -> str:
    """Why a command would be refused, or ""."""
    if ">" in words:
        words = words[: words.index(">")]
    head, *rest = words
    if head == "accelerate" and "lm_eval_ext" in rest:
        head, rest = "lm-eval-ext", rest[rest.index("lm_eval_ext") + 1 :]
    if head == "python" and rest[:2] == ["-m", "lm_eval_ext"]:
        head, rest = "lm-eval-ext", rest[2:]
    if head == "lm-eval-ext":
        return _problem_of_ours(rest)
    if head == "lm_eval":
        return _problem_of_the_harness(rest)
    if head == "make":
        return "" if rest and rest[0] in _make_targets() else f"the Makefile has no target {rest[:1]}"
    if head == "python":
        return "" if (ROOT / rest[0]).is_file() or rest[0].startswith("-") else f"there is no file {rest[0]}"
    return f"there is no command {head}" if head.startswith(("lm-", "lm_")) else ""


def _problem_of_ours(arguments: list[str]) -> str:
    from lm_eval_ext import cli
    from lm_eval_ext.commands.table import COMMANDS, subcommand

    options = {word for parameter in _root(cli).params for word in parameter.opts} | {"--help"}
    while arguments and arguments[0] in options:
        arguments = arguments[1:]
        if not arguments:
            return ""
    name, *rest = arguments or [""]
    if name == "eval":
        return _problem_of_the_harness(rest)
    if name not in COMMANDS:
        return f"there is no command lm-eval-ext {name}"
    command: Any = subcommand(name)
    while hasattr(command, "commands"):
        if rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        elif name == "gate" and rest and rest[0] != "--help":  # whose first command may be left out
            command = command.commands["check"]
        else:
            return "" if rest in ([], ["--help"]) else f"lm-eval-ext {name} has no command {rest[0]}"
    return _problem_of_options(command, rest)


@cache
def _root(cli: Any) -> Any:
    import typer

    return typer.main.get_command(cli.app)


def _problem_of_options(command: Any, arguments: list[str]) -> str:
    if "--help" in arguments:
        return ""
    context = command.context_class(command, info_name=command.name, resilient_parsing=True)
    try:
        values, extra, _ = command.make_parser(context).parse_args(list(arguments))
    except Exception as error:  # of click, which typer may carry under a name of its own
        return f"lm-eval-ext {command.name}: {getattr(error, 'message', error)}"
    if extra:
        return f"lm-eval-ext {command.name}: too many arguments: {extra}"
    missing = [
        parameter.opts[0] for parameter in command.params if parameter.required and not values.get(parameter.name)
    ]
    return f"lm-eval-ext {command.name}: {', '.join(missing)} is missing" if missing else ""


@cache
def _harness() -> Any:
    from lm_eval._cli.harness import HarnessCLI

    return HarnessCLI()


def _problem_of_the_harness(arguments: list[str]) -> str:
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_ext.errors import UserError
    from lm_eval_ext.steering.plan import Plan

    cli = _harness()
    if arguments[:1] == ["--help"]:
        return ""
    if not arguments or arguments[0] not in cli._subparsers.choices:
        arguments = ["run", *arguments]
    if "..." in arguments:
        arguments.remove("...")
    try:
        parsed = cli._parser.parse_args(arguments)
    except SystemExit:
        return f"lm_eval refuses {shlex.join(arguments)}"
    texts = getattr(parsed, "model_args", None) or {}
    steer = (simple_parse_args_string(texts) if isinstance(texts, str) else texts).get("steer", "")
    try:
        if steer and not steer.endswith(".yaml"):
            Plan.parse(steer)
    except UserError as error:
        return str(error)
    return ""


@cache
def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def imports(block: Block) -> Iterator[str]:
    """Names of a Python block that it imports, or takes of `lx`, and that do not exist."""
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if not _is_installed(node.module):
                continue
            module = importlib.import_module(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name))
        elif isinstance(node, ast.Import):
            for alias in filter(lambda alias: _is_installed(alias.name), node.names):
                importlib.import_module(alias.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lx" and node.attr not in _public():
            yield f"lx.{node.attr}"


def _is_installed(module: str) -> bool:
    """Whether the package of a module is here: engines that need a GPU, for one, need not be."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


@cache
def _public() -> frozenset[str]:
    import lm_eval_ext

    return frozenset(lm_eval_ext.__all__)
