"""What the harness works out anew in each process, once per session: the index of its 14,000 task files, its report on the
machine. Reading all files takes longer than most tests; what the harness gets from here is what it would read.

The tests' conftest imports this module and puts its folder on `PYTHONPATH`, so that every Python process that a test starts
imports it too (an environment of `support.installed` does not: it is as a user's). Files of this package, and files that
a test writes, are read as ever.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec

#: Names the folder that keeps both; nothing is kept where it is not set.
VARIABLE = "LM_EVAL_EXT_TEST_CACHE"


def kept(name: str, compute: Callable[[], Any]) -> Any:
    """What `compute` returned to the first process of the session that asked, as JSON."""
    if VARIABLE not in os.environ:
        return compute()
    from filelock import FileLock

    file = Path(os.environ[VARIABLE]) / f"{name}.json"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(json.dumps(compute()), encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))


def as_json(content: Any) -> str | None:
    """A file's content as JSON; None where JSON would change it, such as numbers for keys."""
    try:
        text = json.dumps(content)
    except (TypeError, ValueError):
        return None
    return text if repr(json.loads(text)) == repr(content) else None


def keep_task_index(module: Any) -> None:
    """Let `lm_eval.tasks._index` take the content of the harness's own task files from the cache."""
    if not {"load_yaml", "TaskIndex"} <= vars(module).keys():
        return  # another release of the harness
    folder = Path(module.__file__).parent
    load_yaml, iterate = module.load_yaml, module.TaskIndex._iter_yaml_files

    def read() -> dict[str, str | None]:
        contents: dict[str, str | None] = {}
        for file in iterate(folder):
            try:
                contents[str(file)] = as_json(load_yaml(file, resolve_func=False, recursive=True))
            except Exception:  # the harness skips what it cannot read
                contents[str(file)] = None
        return contents

    @functools.cache
    def files() -> dict[Path, str | None]:
        contents: dict[str, str | None] = kept("task_index", read)
        return {Path(file): content for file, content in contents.items()}

    def cached_load_yaml(path: Path, **options: Any) -> Any:
        if options == {"resolve_func": False, "recursive": True} and str(path).startswith(f"{folder}/"):
            content = files().get(path)
            if content is not None:
                return json.loads(content)
        return load_yaml(path, **options)

    def cached_iterate(root: Path) -> Iterator[Path]:
        return iter(files()) if root == folder else iterate(root)

    module.load_yaml, module.TaskIndex._iter_yaml_files = cached_load_yaml, staticmethod(cached_iterate)


def keep_machine(module: Any) -> None:
    """Let `torch.utils.collect_env` examine the machine once."""
    module.get_pretty_env_info = functools.partial(kept, "machine", module.get_pretty_env_info)


CHANGES = {"lm_eval.tasks._index": keep_task_index, "torch.utils.collect_env": keep_machine}


class Finder(MetaPathFinder):
    """Applies the changes when their modules are imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in CHANGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_change(module: Any) -> None:
                execute(module)
                CHANGES[name](module)

            spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
