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
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import lm_eval_ext_autoload
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
    """Make models, tasks and task metadata known to the harness in this process, also where the import hook was off.

    Modules of the harness that are not loaded yet are extended when they are.
    """
    lm_eval_ext_autoload.install()
    for name in lm_eval_ext_autoload.SEAMS & sys.modules.keys():
        extend(sys.modules[name])


def task_manager(names: Sequence[str], include_path: Path | str | None = None, manager: Any = None) -> Any:
    """The harness's `TaskManager`, which knows all of some tasks.

    A new one reads the harness's 14,000 task files, which takes most of a short command's time, only where one of the names
    is not in our folder or in the user's.

    Args:
        names: tasks or groups.
        include_path: folder with task files of the user's own.
        manager: one that exists already; else a new one.

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
        given = None if include_path is None else str(include_path)
        manager = TaskManager(include_path=tuple(_search_paths(given)), include_defaults=False)
        if not all(_is_complete(name, manager) for name in names):
            manager = TaskManager(include_path=given)
    if unknown := [name for name in names if not _is_known(name, manager)]:
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


def looks_up_by_row() -> bool:
    """Whether `--use_cache` asks the model before it reuses a response (`forget_other_rows`)."""
    from lm_eval.api.model import CachingLM

    return hasattr(CachingLM.__getattr__, _PATCHED)


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


def _look_up_by_row(module: ModuleType) -> None:
    """Make `CachingLM` ask a steered model before it looks responses up: their keys do not say what steered them."""
    caching = module.CachingLM
    get = caching.__getattr__

    def get_and_forget(self: Any, attr: str) -> Any:
        attribute = get(self, attr)
        forget = getattr(self.lm, "forget_other_rows", None)
        if forget is None or attr not in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            return attribute

        def look_up(requests: Any) -> Any:
            forget(attr, requests)
            return attribute(requests)

        return look_up

    _replace(caching, "__getattr__", get_and_forget)


def _ask_same_options(module: ModuleType) -> None:
    """Make tasks with mutual information ask an option alone with the white space that it has after the prompt.

    Release 0.5.0.dev1 leaves it out, and ends when it finds that the two differ. Earlier ones have no such class.
    """
    multiple_choice = getattr(module, "MultipleChoiceTask", None)
    if multiple_choice is None:
        return
    construct = multiple_choice.construct_requests

    def construct_with_same_options(self: Any, *args: Any, **kwargs: Any) -> Any:
        requests = construct(self, *args, **kwargs)
        alone = [request for request in requests or () if dict(request.metadata or {}).get("acc_mutual_info")]
        for request, after_prompt in zip(alone, requests or (), strict=False):
            request.arguments = (request.arguments[0], after_prompt.arguments[1])
        return requests

    _replace(multiple_choice, "construct_requests", construct_with_same_options)


def _report_user_errors(module: ModuleType) -> None:
    """Make the harness's command line end with one message, and status 2, on a mistake our code reports."""
    from lm_eval_ext.console import user_errors  # here: what is missing of us must not end a run of the harness

    command_line = module.HarnessCLI
    execute = command_line.execute

    def execute_and_report(self: Any, *args: Any, **kwargs: Any) -> Any:
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
        "response cache",
        "--use_cache computes the responses of steered requests again",
        ("lm_eval.api.model",),
        _look_up_by_row,
    ),
    Patch(
        "mutual information",
        "tasks with acc_mutual_info may end with `Conditional/unconditional choice order mismatch`",
        ("lm_eval.api.task",),
        _ask_same_options,
    ),
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


def _is_known(name: str, manager: Any) -> bool:
    """Whether a name or pattern is of a task or group.

    Releases from 0.5 on return a name that matches nothing as it is, and have names with a format (`arc_easy@cloze`) and of
    a group's members (`mmlu::stem`).
    """
    known = set(manager.all_tasks)
    return any(re.split("@|::", match)[0] in known for match in manager.match_tasks([name]))


def _is_complete(name: object, manager: Any) -> bool:
    """Whether a task is known, or a group with all its members. What is not a plain name, such as a pattern, is not."""
    entry = _index(manager).get(name) if isinstance(name, str) else None
    members = (entry.cfg or {}).get("task") if entry else None
    return entry is not None and (not isinstance(members, list) or all(_is_complete(it, manager) for it in members))


def _index(manager: Any) -> dict[str, Any]:
    """Name -> entry. Renamed in 0.5; empty in a release that has neither."""
    return getattr(manager, "task_index", None) or getattr(manager, "_task_index", None) or {}


def _note_metadata(manager: Any, tasks: dict[str, Any]) -> None:
    run_keys = manager.metadata or {}
    index = _index(manager)
    for name, task in tasks.items():
        metadata = dict(getattr(getattr(task, "config", None), "metadata", None) or {})
        own_name = getattr(getattr(task, "config", None), "task", None) or name  # requests name it so
        if not index:  # what the run says is not taken for what the task's file says
            metadata = {key: value for key, value in metadata.items() if key not in run_keys}
        else:
            entry = index.get(name) or index.get(own_name)
            in_file = ((entry and entry.cfg) or {}).get("metadata")
            if isinstance(in_file, dict):
                metadata |= {key: value for key, value in in_file.items() if key in run_keys}
        _task_metadata[name] = _task_metadata[own_name] = metadata
