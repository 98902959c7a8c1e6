"""What travels with a request to vLLM's workers (`SamplingParams.extra_args`): its steering, and what is to be scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_ext.backends.vllm.rows import Steering

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Key of a request's `extra_args`.
KEY = "lm_eval_ext"

#: What is scored in one request: index of a token, log-probabilities of the tokens that it asks for, and the best token.
Scored = tuple[int, list[float], int]


def extra_args(steering: Steering, number: int | None = None, wanted: Sequence[tuple[int, Sequence[int]]] = ()) -> Any:
    """The `extra_args` of a request: how it is steered, and under which number what is to be scored."""
    return {KEY: [*steering, number, [[index, list(tokens)] for index, tokens in wanted]]}


@dataclass
class RequestArgs:
    """A request's `extra_args`, read.

    Attributes:
        steering: row and prompt length.
        number: under which its scores are kept; None where nothing is scored.
        wanted: index of a token, and the tokens whose log-probabilities after it are wanted.
    """

    steering: Steering
    number: int | None
    wanted: list[tuple[int, list[int]]]

    @classmethod
    def of(cls, sampling_params: Any) -> RequestArgs | None:
        """Those of a request; None for someone else's."""
        given = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
        if given is None:
            return None
        row, prompt_length, generates, number, wanted = given
        return cls(Steering(row, prompt_length, generates), number, [(index, tokens) for index, tokens in wanted])
