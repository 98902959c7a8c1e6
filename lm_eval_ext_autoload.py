"""Lets the plain `lm_eval` command see this package; `lm_eval_ext_autoload.pth` imports it at every interpreter start.

Harness 0.4.13 looks for no plugins and no release looks for task files, so this installs an import hook that sleeps
until one of the harness's modules in `SEAMS` (those of `lm_eval_ext.harness.PATCHES`) has been executed. Every Python
process pays for what stands here: standard library only, and only the modules that are loaded anyway.
`LM_EVAL_EXT_AUTOLOAD=0` switches it off.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SEAMS = frozenset(
    {
        "lm_eval.models",
        "lm_eval.tasks",
        "lm_eval.tasks.manager",
        "lm_eval.api.model",
        "lm_eval.api.task",
        "lm_eval._cli.harness",
    }
)

_warned = False


class Finder:
    """A `sys.meta_path` finder that lets the others find a seam and adds to what its loader does."""

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec the other finders give for a seam, its loader told to call the plugin; None for anything else."""
        if name not in SEAMS:
            return None
        for finder in tuple(sys.meta_path):
            if finder is not cls and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    _call_plugin_after(spec.loader)
                    return spec
        return None


def install() -> None:
    """Put the finder first, in place of one an earlier load of this module left."""
    sys.meta_path[:] = [Finder, *(finder for finder in sys.meta_path if getattr(finder, "__module__", "") != __name__)]


def extend(module: "ModuleType") -> None:
    """Let the plugin add to a module of the harness, which must run whatever is wrong with the plugin."""
    try:
        from lm_eval_ext import harness

        harness.extend(module)
    except Exception as error:
        warn_once(error)


def warn_once(error: Exception) -> None:
    """Say why the plugin is not available, in one line and once per process."""
    global _warned
    if not _warned:
        _warned = True
        import logging

        logging.getLogger("lm_eval.ext").warning(
            "lm_eval_ext: its models and tasks are not available (%s: %s). `lm-eval-ext doctor` tells more; "
            "LM_EVAL_EXT_AUTOLOAD=0 silences this.",
            type(error).__name__,
            str(error).partition("\n")[0],
        )


def _call_plugin_after(loader: "Any") -> None:
    def exec_module(module: "ModuleType") -> None:
        del loader.exec_module  # the class's own again
        loader.exec_module(module)
        extend(module)

    # On the instance: the module keeps its own loader, which others inspect.
    try:
        loader.exec_module = exec_module
    except AttributeError as error:
        warn_once(error)


if os.environ.get("LM_EVAL_EXT_AUTOLOAD") != "0":
    install()
