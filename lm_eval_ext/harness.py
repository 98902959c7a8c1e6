"""The only module that changes lm-evaluation-harness: model registry, task manager, command line.

Each change is a `Patch` of its own, which says what is lost without it. A release of the harness that one of them does not
fit costs that one, with a warning, and leaves the others at work.

Everything here may be called any number of times. It runs while the harness is being imported, so nothing beyond the
standard library is imported at module level, and a patch that does not fit raises before it changes anything.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval_ext.paths import tasks_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

log = logging.getLogger("lm_eval.ext")

#: The class of each model type (the name given to `--model`); the same as the entry points in pyproject.toml.
MODELS = {
    "steered-hf": "lm_eval_ext.backends.hf.model:SteeredHFLM",
    "steered-vllm": "lm_eval_ext.backends.vllm.model:SteeredVLLM",
}

_task_metadata: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Patch:
    """One change of the harness.

    Attributes:
        name: what is changed, in a few words.
        lost: what does not work without it, and what to do then.
        modules: the harness's modules that bring what is changed.
        apply: changes what one of these modules brings; raises where it is not what this patch expects.
    """

    name: str
    lost: str
    modules: tuple[str, ...]
    apply: Callable[[ModuleType], None]


def install() -> None:
    """Make models, tasks and task metadata known to the harness in this process, with or without the import hook."""
    for name in ("lm_eval.models", "lm_eval.tasks"):
        extend(importlib.import_module(name))


def task_manager(names: Sequence[str], include_path: Path | str | None = None, manager: Any = None) -> Any:
    """The harness's `TaskManager`, which knows all of some tasks.

    Args:
        names: tasks or groups.
        include_path: folder with task files of the user's own.
        manager: one that exists already; else a new one, which takes some seconds.

    Raises:
        UserError: there is no such folder, or a name is neither task nor group.
    """
    from lm_eval.tasks import TaskManager

    from lm_eval_ext.errors import UserError

    install()
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(
            f"include_path: {include_path} is not a folder; give the folder that holds your task files (YAML)"
        )
    if manager is None:
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        own = f"in {include_path}" if include_path is not None else "by include_path, or `lm-eval-ext data import`"
        raise UserError(
            f"unknown task {', '.join(unknown)}; `lm-eval-ext eval ls tasks` lists what there is, task files of your own "
            f"are found {own}"
        )
    return manager


def extend(module: ModuleType) -> None:
    """Apply the patches of one module of the harness; one that fails is warned of, once per process."""
    for patch in PATCHES:
        if module.__name__ in patch.modules:
            try:
                patch.apply(module)
            except Exception as error:  # the harness must run whatever a release has changed
                _warn_once(patch, error)


def examine() -> Iterator[tuple[Patch, Exception | None]]:
    """Apply every patch in this process; each with what failed, None where it works."""
    for patch in PATCHES:
        failed = None
        for name in patch.modules:
            try:
                patch.apply(importlib.import_module(name))
            except Exception as error:  # see `extend`
                failed = error
        yield patch, failed


def loads_entry_points() -> bool:
    """Whether this release of the harness finds models by their entry points (0.4.13 does not)."""
    from lm_eval.api import registry

    return hasattr(registry, "load_plugins")


def task_metadata(task_name: str) -> dict[str, Any] | None:
    """The metadata of a task this process has loaded, None for another.

    The harness merges `--model_args` and `--metadata` into it; a key of the task's own file keeps the file's value.
    """
    return _task_metadata.get(task_name)


# The patches ----------------------------------------------------------------------------------------------------------


def chat_template(tokenizer: Any) -> Callable[..., str]:
    """The harness's own rendering of a conversation with a tokenizer's chat template.

    Args:
        tokenizer: of transformers, with a chat template.
    """
    from lm_eval.models.huggingface import HFLM

    # The harness's method needs no more of its model than this.
    return functools.partial(HFLM.apply_chat_template, SimpleNamespace(tokenizer=tokenizer, chat_template_args={}))


def _register_models(module: ModuleType) -> None:
    """Register `MODELS` by name; the classes are imported when one is asked for.

    Does nothing for a harness that reads entry points. Must run after `lm_eval.models`: while the registry is empty the
    harness fills it with its own models, and only then.
    """
    from lm_eval.api import registry

    if loads_entry_points():
        return
    for name, target in MODELS.items():
        if name not in registry.model_registry:
            registry.model_registry.register(name, target=target)


def _search_task_folder(module: ModuleType) -> None:
    """Make `TaskManager` search our task folder too.

    It comes before the paths the user includes, so that theirs win, and is left out with the harness's own tasks
    (`include_defaults=False`).
    """
    task_manager = module.TaskManager
    init = task_manager.__init__
    signature = inspect.signature(init)
    missing = {"include_path", "include_defaults"} - set(signature.parameters)
    if missing:
        raise TypeError(f"this release's TaskManager does not take {', '.join(sorted(missing))}")
    if not tasks_dir().is_dir():
        raise FileNotFoundError(f"the task folder {tasks_dir()} is missing")

    def init_with_our_tasks(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            call.arguments["include_path"] = _search_paths(given)
        init(*call.args, **call.kwargs)
        self.include_path = given

    _replace(task_manager, "__init__", init_with_our_tasks)


def _note_task_metadata(module: ModuleType) -> None:
    """Make `TaskManager` keep the metadata of the tasks it loads for `task_metadata`."""
    task_manager = module.TaskManager
    load = task_manager.load

    def load_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = load(self, *args, **kwargs)
        try:
            _note_metadata(self, loaded["tasks"])
        except (AttributeError, KeyError, TypeError) as error:  # another release's TaskManager
            _warn_once(TASK_METADATA, error)
        return loaded

    _replace(task_manager, "load", load_and_note)


def _report_user_errors(module: ModuleType) -> None:
    """Make the harness's command line end with one message, and status 2, on a mistake our code reports."""
    command_line = module.HarnessCLI
    execute = command_line.execute

    def execute_and_report(self: Any, *args: Any, **kwargs: Any) -> Any:
        from lm_eval_ext.console import user_errors

        with user_errors():
            return execute(self, *args, **kwargs)

    _replace(command_line, "execute", execute_and_report)


_MANAGER = ("lm_eval.tasks", "lm_eval.tasks.manager")
_USE_CLASS = "build the class yourself (lm_eval_ext.backends.load) and give it to lm_eval.simple_evaluate"

TASK_METADATA = Patch(
    "task metadata",
    "the language that a task's metadata names is not known: documents need a column language or lang, or pass "
    "--model_args lang=CODE",
    _MANAGER,
    _note_task_metadata,
)
PATCHES = (
    Patch("models", f"--model {', '.join(MODELS)} is not known: {_USE_CLASS}", ("lm_eval.models",), _register_models),
    Patch(
        "task folder",
        f"tasks of lm_eval_ext are not found by name: pass --include_path {tasks_dir()}",
        _MANAGER,
        _search_task_folder,
    ),
    TASK_METADATA,
    Patch(
        "user errors",
        "a mistake in the input ends lm_eval with a traceback; its last line is the message",
        ("lm_eval._cli.harness",),
        _report_user_errors,
    ),
)

_PATCHED = "_patched_by_lm_eval_ext"
_warned: set[str] = set()


def _replace(owner: type[Any], name: str, replacement: Callable[..., Any]) -> None:
    """Put `replacement` in place of a method, once."""
    method = getattr(owner, name)
    if not hasattr(method, _PATCHED):
        patched = functools.wraps(method)(replacement)
        setattr(patched, _PATCHED, True)
        setattr(owner, name, patched)


def _warn_once(patch: Patch, error: Exception) -> None:
    """Say in one line, once per process, what is lost with a patch that failed."""
    if patch.name not in _warned:
        _warned.add(patch.name)
        log.warning(
            "lm_eval_ext: %s. (%s: %s: %s; `lm-eval-ext doctor` tells more, LM_EVAL_EXT_AUTOLOAD=0 silences this.)",
            *(patch.lost, patch.name, type(error).__name__, str(error).partition("\n")[0]),
        )


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
        in_file = ((entry and entry.cfg) or {}).get("metadata")
        if isinstance(in_file, dict):
            metadata |= {key: value for key, value in in_file.items() if key in run_keys}
        _task_metadata[name] = metadata
