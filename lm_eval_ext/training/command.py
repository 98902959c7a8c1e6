"""The commands of `lm-eval-ext train`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from lm_eval_ext.training.settings import Clo, Midalign, Mist, Settings, SftEn

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    help="Train aligned models: MIST, MIDALIGN, CLO, and the English control.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXAMPLES = {
    Mist: """Multilingual instruction tuning: loss on the responses alone, in all languages.

    Examples:

      lm-eval-ext train mist --out runs/mist

      lm-eval-ext train mist --model google/gemma-3-4b-pt --data oasst.jsonl --out runs/mist

      accelerate launch -m lm_eval_ext.training mist --out runs/mist
    """,
    SftEn: """The recipe of mist on English alone: the control that separates tuning from alignment.

    Example:

      lm-eval-ext train sft-en --out runs/sft-en
    """,
    Midalign: """MIST's loss alternating with (or added to) a contrastive loss on parallel sentences at a middle layer.

    Sentences that are evaluated must not be among them: train on ntrex, evaluate on flores.

    Examples:

      lm-eval-ext train midalign --out runs/midalign --pairs ntrex --layer 50%

      lm-eval-ext train midalign --out runs/midalign --mode sum --temperature 1 --direction forward
    """,
    Clo: """A preference, both ways, for answering in the language of the prompt, and the response loss beside it.

    Examples:

      lm-eval-ext train clo --out runs/clo

      lm-eval-ext train clo --data tuples.jsonl --beta 0.1 --lambda 0.5 --out runs/clo
    """,
}


def _add(kind: type[Settings]) -> Callable[..., None]:
    """The command of a method: an option for each field of its settings."""

    def run(**given: Any) -> None:
        settings = kind(**given)
        _check_installed()
        from lm_eval_ext.training.run import train

        train(settings)

    hints = get_type_hints(kind, include_extras=True)
    options = [option for option in fields(kind) if option.name in hints]
    run.__doc__ = _EXAMPLES[kind]
    run.__annotations__ = {option.name: hints[option.name] for option in options}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if option.default is MISSING else option.default,
                annotation=hints[option.name],
            )
            for option in options
        ]
    )
    return app.command(kind.method)(run)


def _check_installed() -> None:
    from lm_eval_ext.errors import TrainingError

    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"{error.name} is missing: pip install 'lm_eval_ext[train]'") from None


for _kind in _EXAMPLES:
    _add(_kind)
