"""What the import hook (`lm_eval_ext_autoload`) calls once a module of the harness has been executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext import harness

if TYPE_CHECKING:
    from types import ModuleType


def extend(module: ModuleType) -> None:
    """Add this package to one module of the harness: its models, its task manager or its command line."""
    match module.__name__:
        case "lm_eval.models":
            harness.register_models()
        case "lm_eval.tasks" | "lm_eval.tasks.manager":
            harness.extend_task_manager(module.TaskManager)
        case "lm_eval._cli.harness":
            harness.report_user_errors(module.HarnessCLI)
