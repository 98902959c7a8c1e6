"""Cache salts: no block that was cached under one steering can be found by a request of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.backends.vllm.rows import Scheduled, Steering, token_rows
from lm_eval_ext.backends.vllm.salts import Salts

POSITIONS = ("prompt", "last", "all", "generated", "last3", "first2")
BLOCK = 2

# Few tokens, so that requests often share beginnings.
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=10).map(tuple)
requests = st.lists(
    st.tuples(tokens, st.integers(0, 2), st.integers(1, 10)).map(
        lambda t: (t[0], Steering(t[1], min(t[2], len(t[0]))))
    ),
    min_size=2,
    max_size=12,
)


@given(requests, st.sets(st.sampled_from(POSITIONS), min_size=1, max_size=2))
def test_what_shares_a_block_is_steered_alike(
    requests: list[tuple[tuple[int, ...], Steering]], positions: set[str]
) -> None:
    salts = Salts("plan", positions, BLOCK)
    cached: dict[tuple[str, tuple[int, ...]], list[list[int]]] = {}
    for ids, steering in requests:
        salt = salts.of(ids, steering)
        rows = token_rows([Scheduled(steering, 0, len(ids))], sorted(positions)).values()
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            of_block = [row[:end].tolist() for row in rows]
            assert cached.setdefault((salt, ids[:end]), of_block) == of_block


def test_prompts_of_other_lengths_share_their_beginning() -> None:
    salts = Salts("plan", {"prompt"}, BLOCK)
    shots = tuple(range(8))
    assert salts.of((*shots, 20, 21), Steering(1, 10)) == salts.of((*shots, 30), Steering(1, 9))
    assert salts.of((*shots, 30), Steering(2, 9)) != salts.of((*shots, 30), Steering(1, 9))
    # Where a prompt ends inside what another has as its prompt, they part.
    assert salts.of((*shots, 20, 21), Steering(1, 4)) != salts.of((*shots, 20, 21), Steering(1, 10))


def test_plans_and_generations_are_apart() -> None:
    ids, steering = tuple(range(6)), Steering(1, 6)
    assert Salts("one", {"prompt"}, BLOCK).of(ids, steering) != Salts("two", {"prompt"}, BLOCK).of(ids, steering)
    salts = Salts("one", {"last"}, BLOCK)
    assert salts.of(ids, steering) != salts.of(ids, steering._replace(generates=True))
    assert Salts("one", {"last"}, BLOCK).of(ids, Steering(0, 6)) == Salts("two", {"all"}, BLOCK).of(ids, Steering(0, 3))
