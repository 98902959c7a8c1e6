"""Steering plans: what the grammar says, what it refuses and where it points, how depths become layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_ext.errors import PlanError
from lm_eval_ext.steering.plan import POSITIONS, Gamma, Intervention, Layer, Plan, is_kind, parse_position

pytestmark = pytest.mark.transformers4

numbers = st.floats(0, 100).map(lambda value: Layer(value, is_depth=True))
layers = st.integers(0, 10**6).map(lambda value: Layer(value, is_depth=False)) | numbers
gammas = st.builds(Gamma, st.floats(allow_nan=False, allow_infinity=False), st.booleans())
words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
controls = st.none() | st.from_regex(r"random[0-9]{0,4}|[a-z]{2,3}", fullmatch=True)
positions = st.sampled_from([*POSITIONS, "last2", "last12", "first1", "first30"])
interventions = st.builds(Intervention, words, layers, layers, gammas, controls, st.none() | positions)


@given(st.lists(interventions, min_size=1, max_size=4))
def test_a_plan_reads_back_what_it_writes(terms: list[Intervention]) -> None:
    plan = Plan(tuple(terms))
    assert Plan.parse(str(plan)) == plan


@given(st.text(alphabet='enloc~randomkz@0123456789.-:%/+plastprompt ,\n"é', max_size=24))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = Plan.parse(text)
    except PlanError:
        return
    assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("en@20:2+loc@28:2", "en@20:2+loc@28:2"),
        ("loc@28", "loc@28:2"),
        ("en@42%:2+loc@58%:.5", "en@42%:2+loc@58%:0.5"),
        ("loc@18-22:-1.50/last", "loc@18-22:-1.5/last"),
        ("loc~random7@58%:5%/all", "loc~random7@58%:5%/all"),
        ("loc~zh@40%-60%:1e-2", "loc~zh@40%-60%:0.01"),
        ("loc@3-3:2", "loc@3:2"),
        ("my_kind2@0:0", "my_kind2@0:0"),
        ("en@42.5%:1e20", "en@42.5%:100000000000000000000"),
    ],
)
def test_examples(text: str, written: str) -> None:
    assert str(Plan.parse(text)) == written


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_plan_is_false(nothing: str | None) -> None:
    plan = Plan.parse(nothing)
    assert not plan
    assert str(plan) == ""


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        ("20:2", 1, "a kind of vector"),
        ("en", 3, "'@' and a layer"),
        ("en@", 4, "a layer"),
        ("en@x", 4, "a layer"),
        ("en@-3", 4, "a layer"),
        ("en@5.5", 4, "whole number"),
        ("en@101%", 4, "at most 100%"),
        ("en@5:", 6, "a strength"),
        ("en@5:two", 6, "a strength"),
        ("en@5:1e999", 6, "finite"),
        ("en@5:nan", 6, "a strength"),
        ("en@5:2 ", 7, "the end"),
        ("en@5:2+", 8, "a kind of vector"),
        ("en@5:2++loc@6", 8, "a kind of vector"),
        ("en@5:2,loc@6", 7, "expected '+'"),
        ("en@5:2/first", 8, "prompt, last, all"),
        ("en~@5", 4, "random"),
        ("en@5-", 6, "a layer"),
        ("loc@58 %", 7, "expected '+'"),
        ("en@٣", 4, "a layer"),
    ],
)
def test_an_error_points_at_the_character(text: str, at: int, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(text)
    first, shown, pointer, *_ = str(caught.value).splitlines()
    assert f"character {at}:" in first
    assert expected in first
    assert shown == f"  {text}"
    assert pointer == f"  {' ' * (at - 1)}^"


@pytest.mark.parametrize(
    ("depth", "n_layers", "layer"),
    [
        ("42%", 48, 20),
        ("58%", 48, 28),
        ("42%", 18, 8),
        ("58%", 18, 10),
        ("0%", 18, 0),
        ("100%", 18, 17),
        ("50%", 5, 3),  # half rounds up
        ("99.9%", 4, 3),
        ("42%", 1, 0),
    ],
)
def test_depths_become_layers(depth: str, n_layers: int, layer: int) -> None:
    (term,) = Plan.parse(f"en@{depth}").interventions
    assert list(term.layers(n_layers)) == [layer]


@given(st.floats(0, 100), st.integers(1, 200))
def test_a_depth_is_always_a_layer_of_the_model(depth: float, n_layers: int) -> None:
    assert 0 <= Layer(depth, is_depth=True).resolve(n_layers) < n_layers


def test_ranges() -> None:
    (term,) = Plan.parse("loc@18-22").interventions
    assert list(term.layers(48)) == [18, 19, 20, 21, 22]
    (term,) = Plan.parse("loc@40%-7").interventions
    assert list(term.layers(10)) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("en@4", "valid: 0-3"), ("en@2-9", "layer 9 does not exist"), ("en@3-1", "runs backwards (3 to 1)")],
)
def test_layers_the_model_lacks(text: str, expected: str) -> None:
    (term,) = Plan.parse(text).interventions
    with pytest.raises(PlanError, match="layer") as caught:
        term.layers(4)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("control", "seed", "language"),
    [("random", 0, None), ("random7", 7, None), ("zh", None, "zh"), ("randomly", None, "randomly")],
)
def test_controls(control: str, seed: int | None, language: str | None) -> None:
    (term,) = Plan.parse(f"loc~{control}@5").interventions
    assert (term.random_seed, term.fixed_language) == (seed, language)


def test_default_position_is_checked() -> None:
    assert [parse_position(position) for position in POSITIONS] == list(POSITIONS)
    with pytest.raises(PlanError, match="positions='middle' is unknown, valid: prompt, last, all"):
        parse_position("middle")


@given(st.text(max_size=6))
def test_a_kind_is_what_a_plan_can_name(text: str) -> None:
    try:
        (term,) = Plan.parse(f"{text}@1").interventions
        can = term.kind == text
    except (PlanError, ValueError):
        can = False
    assert is_kind(text) == can


def test_positions_with_a_count() -> None:
    parsed = [parse_position(text) for text in ("last1", "last03", "first1", "generated")]
    assert parsed == ["last", "last3", "first1", "generated"]
    assert Plan.parse("loc@1:2/last1") == Plan.parse("loc@1:2/last")
    for text in ("last0", "first", "first0", "mean", "last3x"):
        with pytest.raises(PlanError, match="or with a count last3, first2"):
            parse_position(text)


def test_the_position_after_is_for_extraction() -> None:
    with pytest.raises(PlanError, match=r"character 9: 'after' .* is for extraction only"):
        Plan.parse("loc@1:2/after")
