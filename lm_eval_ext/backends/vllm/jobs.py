"""The fewest prefills that score some requests.

Letters of a prompt are one job: the prompt, and the log-probabilities of all of them at its last token. Options of several
tokens are a job each, prompt plus option without its last token: vLLM's prefix cache holds the prompt after the first. The
LM head is computed only where a token is scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lm_eval_ext.backends.vllm.rows import Steering
from lm_eval_ext.scoring.requests import Request, Score, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Tokens = tuple[int, ...]
    #: Number of the prompt, and the tokens of a continuation before the one that is scored.
    Place = tuple[int, Tokens]


@dataclass(frozen=True)
class Job:
    """One request to vLLM.

    Attributes:
        tokens: all tokens that are run.
        steering: row and prompt length.
        wanted: index of a token, and the tokens whose log-probabilities after it are wanted.
        places: what each of those is for.
    """

    tokens: Tokens
    steering: Steering
    wanted: tuple[tuple[int, Tokens], ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class After:
    """What may follow some token: log-probabilities of the wanted tokens, and the most probable token of all."""

    log_probabilities: dict[int, float]
    best: int


@dataclass
class Jobs:
    """The jobs of some requests, and the scores from their results.

    Args:
        requests: distinct.
        max_tokens: most tokens of a job; longer prompts are truncated from the left.

    Raises:
        ModelError: a continuation longer than that.
    """

    requests: Sequence[Request]
    max_tokens: int
    jobs: list[Job] = field(init=False, default_factory=list)
    _paths: dict[Request, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for number, row in enumerate(rows_of(self.requests, self.max_tokens, shares=True)):
            of_row = [request for request, _ in row.targets]
            self._paths.update(dict.fromkeys(of_row, number))
            wanted: dict[Tokens, dict[int, None]] = {}
            for request in of_row:
                for length, token in enumerate(request.continuation):
                    wanted.setdefault(request.continuation[:length], {})[token] = None
            prompt = row.tokens[: row.prompt_length - of_row[0].lead]  # what leads the options is steered with it
            steering = Steering(row.row, row.prompt_length)
            asked: set[Tokens] = set()
            for path in _longest(wanted):
                new = [path[:n] for n in range(len(path) + 1) if path[:n] not in asked]
                asked.update(new)
                self.jobs.append(
                    Job(
                        prompt + path,
                        steering,
                        tuple((len(prompt) - 1 + len(before), tuple(wanted[before])) for before in new),
                        tuple((number, before) for before in new),
                    )
                )

    def scores(self, after: dict[Place, After]) -> dict[Request, Score]:
        """The score of each request whose places are all known."""
        scores = {}
        for request, number in self._paths.items():
            tokens = [
                (after[place].log_probabilities[token], after[place].best == token)
                for length, token in enumerate(request.continuation)
                if (place := (number, request.continuation[:length])) in after
            ]
            if len(tokens) == len(request.continuation):
                scores[request] = Score.of(tokens)
        return scores


def in_parts(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Distinct requests in parts of about `size`, ordered so that what shares a beginning is together.

    The requests of one prompt are never in two parts.
    """
    ordered = sorted(set(requests), key=lambda request: (request.row, request.prompt))
    part: list[Request] = []
    for request in ordered:
        if len(part) >= size and request[::2] != part[-1][::2]:
            yield part
            part = []
        part.append(request)
    if part:
        yield part


def _longest(paths: Iterable[Tokens]) -> Iterator[Tokens]:
    """The paths that no other continues."""
    ordered = sorted(paths)
    for path, following in zip(ordered, [*ordered[1:], None], strict=True):
        if following is None or following[: len(path)] != path:
            yield path
