"""The fewest prefills that score some requests, and the scores from what they return."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.backends.vllm.jobs import After, Job, Jobs, in_parts
from lm_eval_ext.scoring.requests import Request, Score

if TYPE_CHECKING:
    from collections.abc import Iterable

VOCABULARY = 3
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(tuple)
#: The first tokens of a continuation may be steered as the prompt's end.
request = st.builds(Request, tokens, tokens, st.integers(0, 1), st.integers(0, 1)).filter(
    lambda r: r.lead < len(r.continuation)
)
requests = st.lists(request, min_size=1, max_size=10)


def probability(before: tuple[int, ...], row: int, token: int) -> float:
    """A model: any function of what comes before."""
    weights = [1 + (sum(before) * 7 + len(before) * 3 + row * 5 + option * 11) % 13 for option in range(VOCABULARY)]
    return math.log(weights[token] / sum(weights))


def run(jobs: Iterable[Job]) -> dict[tuple[int, tuple[int, ...]], After]:
    after = {}
    for job in jobs:
        for (index, wanted), place in zip(job.wanted, job.places, strict=True):
            values = [probability(job.tokens[: index + 1], job.steering.row, token) for token in range(VOCABULARY)]
            after[place] = After({token: values[token] for token in wanted}, values.index(max(values)))
    return after


def expected(request: Request) -> Score:
    pairs = []
    for length, token in enumerate(request.continuation):
        before = request.prompt + request.continuation[:length]
        values = [probability(before, request.row, option) for option in range(VOCABULARY)]
        pairs.append((values[token], values.index(max(values)) == token))
    return Score.of(pairs)


@given(requests)
def test_scores_are_those_of_the_model(requests: list[Request]) -> None:
    distinct = list(dict.fromkeys(requests))
    jobs = Jobs(distinct, 100)
    scores = jobs.scores(run(jobs.jobs))
    assert set(scores) == set(distinct)
    for request in distinct:
        assert math.isclose(scores[request].log_likelihood, expected(request).log_likelihood)
        assert scores[request].is_greedy == expected(request).is_greedy
    places = [place for job in jobs.jobs for place in job.places]
    assert len(places) == len(set(places))  # the LM head is computed once for each


def test_letters_are_one_prefill_and_options_one_each() -> None:
    letters = [Request((1, 2, 3), (letter,), 0) for letter in range(5)]
    (job,) = Jobs(letters, 100).jobs
    assert (job.tokens, job.wanted) == ((1, 2, 3), ((2, (0, 1, 2, 3, 4)),))
    options = [Request((1, 2, 3), option, 0) for option in [(5,), (5, 6), (5, 6, 7), (8, 9)]]
    assert sorted(job.tokens for job in Jobs(options, 100).jobs) == [(1, 2, 3, 5, 6), (1, 2, 3, 8)]


def test_what_is_not_returned_is_not_scored() -> None:
    """A scored token in the prefix cache has no hidden state; the caller runs its job again without the cache."""
    jobs = Jobs([Request((1,), (0, 2), 0), Request((2,), (0,), 0)], 100)
    after = run(jobs.jobs)
    del after[next(place for place in after if place[1] == (0,))]
    assert list(jobs.scores(after)) == [Request((2,), (0,), 0)]


def test_long_prompts_are_truncated_from_the_left() -> None:
    (job,) = Jobs([Request((1, 2, 3, 4), (0, 1), 0)], 3).jobs
    assert (job.tokens, job.steering.prompt_length, [index for index, _ in job.wanted]) == ((3, 4, 0), 2, [1, 2])


@given(requests, st.integers(1, 4))
def test_parts_keep_prompts_together(requests: list[Request], size: int) -> None:
    parts = list(in_parts(requests, size))
    assert sorted(request for part in parts for request in part) == sorted(set(requests))
    owners: dict[tuple[int, tuple[int, ...]], int] = {}
    for number, part in enumerate(parts):
        for request in part:
            assert owners.setdefault((request.row, request.prompt), number) == number
