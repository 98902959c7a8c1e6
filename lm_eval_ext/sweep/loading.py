"""The model and the prompts of a sweep, of `tune` and of `gap`: from the settings that they have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_ext.data.task_questions import Rendering
from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from lm_eval_ext.backends.base import SteeredBackend


def rendering(
    model: str,
    *,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
) -> Rendering:
    """How questions are asked, with the model's tokenizer where a chat template is applied.

    Args:
        model: name or folder; the embedded model where empty.
        num_fewshot, apply_chat_template, system_instruction: see `Rendering`.
    """
    from lm_eval_ext.models import embedded
    from lm_eval_ext.models.loading import load_tokenizer

    return Rendering(
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        tokenizer=load_tokenizer(model or str(embedded.path())) if apply_chat_template else None,
    )


def load_backend(
    model: str,
    model_args: str,
    device: str,
    *,
    refused: tuple[str, ...],
    because: str,
    engine: str = "hf",
    **arguments: Any,
) -> SteeredBackend:
    """A steered model of the harness without a plan.

    Args:
        model: name or folder; the embedded model where empty.
        model_args: as for the harness.
        device: where it runs; by the engine where empty.
        refused: arguments that may not stand in `model_args`, since the caller decides on them.
        because: what the caller has instead, for the message, after the names of those that stand there.
        engine: `hf` or `vllm`.
        arguments: more of the model's.

    Raises:
        UserError: an argument that is refused, or a model that cannot be loaded.
    """
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_ext import backends

    given = dict(simple_parse_args_string(model_args))
    if conflicting := [name for name in sorted(refused) if name in given]:
        raise UserError(because.format(", ".join(conflicting)))
    if device:
        given["device"] = device
    return backends.load(f"steered-{engine}", model or None, **given, **arguments)
