"""Which source files a command can run, found without running it, and their hashes.

From the module of a command its imports are followed through the package, those inside functions too, and modules that are
named in a text, such as `"lm_eval_ext.commands.extract:extract"`; a package that looks through its own folder
(`__path__`), as that of the training methods does, counts as importing all its modules. So an edited loss runs a training
again, and an edited figure does not. What is imported for annotations alone (`if TYPE_CHECKING`) never runs and is left out,
and so is the package's own `__init__.py`, whose lazy names lead everywhere and are for users: modules do not import from it.
The code of other packages is not looked at, that of plug-ins among them.
"""

from __future__ import annotations

import ast
import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.paths import PACKAGE, tasks_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The module that gives our tasks to the harness: whatever imports it can run the functions that task files name.
HARNESS = "harness"
_PATH = "__path__"
_FUNCTION = re.compile(rb"!function\s+([\w.]+)")


class SourceFiles:
    """The source files of the package as they are now; each is read once.

    Args:
        package: folder of the package; its name is that of the package.
        tasks: folder of the task files.
    """

    def __init__(self, package: Path = PACKAGE, tasks: Path | None = None) -> None:
        self._package = package
        self._tasks = tasks or tasks_dir()
        self._imports: dict[Path, set[Path]] = {}
        self._hashes: dict[Path, str] = {}
        self._of_module: dict[str, dict[str, str]] = {}

    def hashes(self, module: str) -> dict[str, str]:
        """The hash of each source file that a module can run, by its path from the package's parent folder.

        Args:
            module: its dotted name, such as `lm_eval_ext.commands.train`.
        """
        if module not in self._of_module:
            reached: set[Path] = set()
            waiting = self._files(module)
            while waiting:
                file = waiting.pop()
                if file not in reached:
                    reached.add(file)
                    waiting |= self._imported(file)
            self._of_module[module] = {self._name(file): self._hash(file) for file in sorted(reached)}
        return self._of_module[module]

    def _name(self, file: Path) -> str:
        return file.relative_to(self._package.parent).as_posix()

    def _hash(self, file: Path) -> str:
        if file not in self._hashes:
            self._hashes[file] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        return self._hashes[file]

    def _imported(self, file: Path) -> set[Path]:
        """The files that a source file imports or names."""
        if file not in self._imports:
            names = set(_imported_names(ast.parse(file.read_bytes()), self._package_of(file)))
            self._imports[file] = {reached for name in names for reached in self._files(name)}
            if _PATH in names:
                self._imports[file] |= set(file.parent.glob("*.py"))
            if file == self._package / f"{HARNESS}.py":
                self._imports[file] |= self._of_tasks
        return self._imports[file]

    @cached_property
    def _of_tasks(self) -> set[Path]:
        """The files of the functions that task files name."""
        content = b"\n".join(path.read_bytes() for path in self._tasks.rglob("*") if path.is_file())
        return {file for name in _FUNCTION.findall(content) for file in self._files(name.decode())}

    def _package_of(self, file: Path) -> list[str]:
        return list(file.parent.relative_to(self._package.parent).parts)

    def _files(self, name: str) -> set[Path]:
        """The file of a dotted name, of a module or something in one, with those of the packages that it is in."""
        first, *parts = name.split(".")
        if first != self._package.name:
            return set()
        files: set[Path] = set()
        folder = self._package
        for part in parts:
            if (folder / f"{part}.py").is_file():
                files.add(folder / f"{part}.py")
                break
            folder /= part
            if not (folder / "__init__.py").is_file():
                break
            files.add(folder / "__init__.py")
        return files


def _imported_names(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """The dotted names that a module imports, texts that may be such names, and `__path__` where it uses that."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]
        elif isinstance(node, ast.Name) and node.id == _PATH:
            yield _PATH
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _imported_names(ast.Module(node.orelse, []), package)
        else:
            yield from _imported_names(node, package)
