"""The only module that touches the insides of lm-evaluation-harness: model registry, task manager, command line.

Everything here may be called any number of times. It runs while the harness is being imported, so nothing beyond the
standard library is imported at module level, and a seam that has changed raises (the caller warns) before it alters
anything.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import lm_eval_ext_autoload
from lm_eval_ext.paths import tasks_dir

#: Model types, by the name given to `--model`; the same as the entry points in pyproject.toml.
MODELS = {"steered-hf": "lm_eval_ext.backends.hf.model:SteeredHFLM"}

_EXTENDED = "_extended_by_lm_eval_ext"
_task_metadata: dict[str, dict[str, Any]] = {}


def install() -> None:
    """Make models, tasks and task metadata known to the harness in this process, with or without the import hook."""
    for name in ("lm_eval.models", "lm_eval.tasks"):
        lm_eval_ext_autoload.extend(importlib.import_module(name))


def register_models() -> None:
    """Register `MODELS` by name; the classes are imported when one is asked for.

    Does nothing for a harness that reads entry points (it has `load_plugins`). Must run after `lm_eval.models`: while
    the registry is empty the harness fills it with its own models, and only then.
    """
    from lm_eval.api import registry

    if loads_entry_points():
        return
    for name, target in MODELS.items():
        if name not in registry.model_registry:
            registry.model_registry.register(name, target=target)


def loads_entry_points() -> bool:
    """Whether this release of the harness finds models by their entry points (0.4.13 does not)."""
    from lm_eval.api import registry

    return hasattr(registry, "load_plugins")


def task_metadata(task_name: str) -> dict[str, Any] | None:
    """The metadata of a task this process has loaded, None for another.

    The harness merges `--model_args` and `--metadata` into it; a key of the task's own file keeps the file's value.
    """
    return _task_metadata.get(task_name)


def extend_task_manager(task_manager: type[Any]) -> None:
    """Make a `TaskManager` class search our task folder too, and note the metadata of the tasks it loads.

    Our folder comes before the paths the user includes, so that theirs win, and is left out with the harness's own
    tasks (`include_defaults=False`).
    """
    if hasattr(task_manager, _EXTENDED):
        return
    init, load = task_manager.__init__, task_manager.load
    signature = inspect.signature(init)
    missing = {"include_path", "include_defaults"} - set(signature.parameters)
    if missing:
        raise TypeError(f"this release's TaskManager does not take {', '.join(sorted(missing))}")
    if not tasks_dir().is_dir():
        raise FileNotFoundError(f"the task folder {tasks_dir()} is missing")

    @functools.wraps(init)
    def init_with_our_tasks(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            call.arguments["include_path"] = _search_paths(given)
        init(*call.args, **call.kwargs)
        self.include_path = given

    @functools.wraps(load)
    def load_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = load(self, *args, **kwargs)
        try:
            _note_metadata(self, loaded["tasks"])
        except (AttributeError, KeyError, TypeError) as error:  # another release's TaskManager
            lm_eval_ext_autoload.warn_once(error)
        return loaded

    task_manager.__init__ = init_with_our_tasks
    task_manager.load = load_and_note
    setattr(task_manager, _EXTENDED, True)


def report_user_errors(command_line: type[Any]) -> None:
    """Make the harness's command line end with one message, and status 2, on a mistake our code reports."""
    if hasattr(command_line, _EXTENDED):
        return
    execute = command_line.execute

    @functools.wraps(execute)
    def execute_and_report(self: Any, *args: Any, **kwargs: Any) -> Any:
        from lm_eval_ext.console import user_errors

        with user_errors():
            return execute(self, *args, **kwargs)

    command_line.execute = execute_and_report
    setattr(command_line, _EXTENDED, True)


def _search_paths(given: Any) -> list[str | Path]:
    """The user's paths, ours before them unless one of them contains it."""
    paths: list[str | Path] = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
    ours = tasks_dir().resolve()
    if any(ours.is_relative_to(Path(path).resolve()) for path in paths):
        return paths
    return [ours, *paths]


def _note_metadata(manager: Any, tasks: dict[str, Any]) -> None:
    run_keys = manager.metadata or {}
    for name, task in tasks.items():
        metadata = dict(getattr(getattr(task, "config", None), "metadata", None) or {})
        entry = manager.task_index.get(name)
        own = ((entry and entry.cfg) or {}).get("metadata")
        if isinstance(own, dict):
            metadata |= {key: value for key, value in own.items() if key in run_keys}
        _task_metadata[name] = metadata
