"""Estimators and transforms: what they are given, what they must return, who brings them, and what a plan does with them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from lm_eval_ext.data.pairs import Pair, PairSet
from lm_eval_ext.errors import EstimatorError, PlanError, VectorFileError
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.estimators import Estimator, PairStates, StateBatch
from lm_eval_ext.steering.estimators.mean_difference import MeanDifference
from lm_eval_ext.steering.extraction import extract
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.table import Addition, Change, SteeringTable
from lm_eval_ext.steering.tokens import ScoredTokens
from lm_eval_ext.steering.transforms import Transform
from lm_eval_ext.steering.vectors import SteeringVectors, VectorSet

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = [
    PairSet("loc", code, "test", tuple(Pair(text[:20], text[3 : 12 + n]) for n in range(4)))
    for code, text in (("ko", tiny.TEXTS["ko"]), ("zh", tiny.TEXTS["zh"]))
]


class Affine(Transform):
    """h + s (h A B + b): a map of low rank with an offset, so that the state, its width and a size of its own matter."""

    name: ClassVar[str] = "test_affine"
    shapes: ClassVar[dict[str, tuple[str, ...]]] = {
        "left": ("hidden", "rank"),
        "right": ("rank", "hidden"),
        "offset": ("hidden",),
    }

    def apply(self, residual: Any, artifact: Any, strength: float) -> Any:
        return residual + strength * (residual @ artifact["left"] @ artifact["right"] + artifact["offset"])


@dataclass(frozen=True)
class LowRank(Estimator):
    """The first directions of the differences, scaled: not meant to be sensible, but to depend on everything it is given."""

    name: ClassVar[str] = "test_low_rank"
    transform: ClassVar[type[Transform]] = Affine
    rank: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1")

    def fit(self, states: PairStates) -> dict[str, torch.Tensor]:
        positive, negative = states.collect()
        right = torch.linalg.svd(positive - negative, full_matrices=False).Vh[:, : self.rank]
        return {"left": 0.3 * right.transpose(1, 2), "right": right, "offset": (positive - negative).mean(1)}


@pytest.fixture
def low_rank() -> Iterator[type[Estimator]]:
    registry.register_estimator(LowRank)
    yield LowRank
    registry._registered.pop("test_low_rank")


def vectors(estimator: Any = "test_low_rank", **options: Any) -> VectorSet:
    return extract(tiny.load("llama"), tiny.load_tokenizer("llama"), PAIRS, estimator, **options)


# Estimators -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n_pairs=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_the_mean_difference_does_not_depend_on_batches_or_order(n_pairs: int, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, 3, n_pairs, 5, generator=generator)
    order = data.draw(st.permutations(range(2 * n_pairs)))
    size = data.draw(st.integers(1, 2 * n_pairs))
    batches = []
    for start in range(0, len(order), size):
        text = torch.tensor(order[start : start + size])
        states = torch.stack([sides[int(t) % 2, :, int(t) // 2] for t in text], dim=1)
        batches.append(StateBatch(states, text // 2, text % 2 == 0))
    sizes = {"n_pairs": n_pairs, "n_layers": 3, "hidden_size": 5}
    fitted = MeanDifference().fit(PairStates(batches, **sizes))["vector"]
    torch.testing.assert_close(fitted, (sides[0] - sides[1]).mean(1), atol=1e-5, rtol=1e-5)
    collected = PairStates(batches, **sizes).collect()
    assert torch.equal(torch.stack(collected), sides)


def test_an_estimator_by_name_by_text_by_object_and_by_kind(low_rank: type[Estimator]) -> None:
    by_text = vectors("test_low_rank:rank=3")
    entry = by_text.vectors["loc", "ko"]
    assert (entry.info.estimator, entry.info.transform, entry.info.parameters) == (
        "test_low_rank",
        "test_affine",
        {"rank": 3},
    )
    assert {name: tuple(tensor.shape) for name, tensor in entry.tensors.items()} == {
        "left": (tiny.LAYERS, tiny.HIDDEN, 3),
        "right": (tiny.LAYERS, 3, tiny.HIDDEN),
        "offset": (tiny.LAYERS, tiny.HIDDEN),
    }
    for asked in (LowRank(rank=3), {"loc": "test_low_rank:rank=3", "other": "mean_difference"}):
        again = vectors(asked).vectors["loc", "ko"]
        assert again.info == entry.info
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in entry.tensors.items())
    assert vectors({"other": LowRank()}).vectors["loc", "ko"].info.estimator == "mean_difference"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense", "there is no estimator 'nonsense'; valid: mean_difference, "),
        ("test_low_rank:depth=3", "'depth'; its parameters: rank"),
        ("mean_difference:rank=3", "'rank'; its parameters: none"),
        ("test_low_rank:rank=0", "rank 0 must be at least 1"),
        ("test_low_rank:rank", "expected NAME:field=value,field=value, got 'rank'"),
    ],
)
def test_mistakes_in_what_is_asked_for(text: str, expected: str, low_rank: type[Estimator]) -> None:
    with pytest.raises(EstimatorError) as caught:
        vectors(text)
    assert expected in str(caught.value)


class Lazy(MeanDifference):
    """Reads one batch only."""

    def fit(self, states: PairStates) -> dict[str, torch.Tensor]:
        next(iter(states))
        return {"vector": torch.ones(states.n_layers, states.hidden_size)}


class Narrow(MeanDifference):
    """Returns vectors of another width."""

    def fit(self, states: PairStates) -> dict[str, torch.Tensor]:
        return {"vector": super().fit(states)["vector"][:, :-1]}


class Misnamed(MeanDifference):
    """Returns a tensor that its transform does not know."""

    def fit(self, states: PairStates) -> dict[str, torch.Tensor]:
        return {"direction": super().fit(states)["vector"]}


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (Lazy(), "read 2 of 8 texts of loc/ko (test); `fit` must read all batches of a language"),
        (Narrow(), "has shape [4, 31], expected [4, 32] (layers, hidden size)"),
        (Misnamed(), "has the tensors direction, expected vector (transform 'add')"),
    ],
)
def test_an_estimator_that_violates_its_interface(estimator: Estimator, expected: str) -> None:
    with pytest.raises(EstimatorError) as caught:
        vectors(estimator, batch_size=2)
    assert expected in str(caught.value)


# The registry ---------------------------------------------------------------------------------------------------------


def test_duplicates_are_refused(low_rank: type[Estimator], monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(MeanDifference):
        name: ClassVar[str] = "test_low_rank"

    class BuiltIn(MeanDifference):
        pass

    for estimator in (Another, BuiltIn):
        with pytest.raises(EstimatorError, match=f"there is an estimator '{estimator.name}' already"):
            registry.register_estimator(estimator)
    assert registry.register_estimator(LowRank) is LowRank  # the same once more
    points = (EntryPoint("mean_difference", "other_package.module:Mean", registry.GROUP),)
    monkeypatch.setattr(registry, "_points", lambda: points)
    with pytest.raises(EstimatorError, match="'mean_difference' is defined by lm_eval_ext and other_package"):
        registry.estimator_class("mean_difference")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("no_such_package.module:Name", "cannot be imported (ModuleNotFoundError"),
        ("json:dumps", "must lead to a subclass of lm_eval_ext.Estimator"),
        ("lm_eval_ext.steering.estimators.mean_difference:MeanDifference", "with name = 'outside'"),
    ],
)
def test_a_package_that_cannot_bring_what_it_says(target: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_points", lambda: (EntryPoint("outside", target, registry.GROUP),))
    assert "outside" in registry.names()
    with pytest.raises(EstimatorError) as caught:
        registry.make_estimator("outside")
    assert expected in str(caught.value)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_records_the_method_and_needs_it_again(low_rank: type[Estimator], tmp_path: Path) -> None:
    saved = vectors()
    saved.save(tmp_path / "v.safetensors")
    loaded = VectorSet.load(tmp_path / "v.safetensors")
    for key, entry in saved.vectors.items():
        assert loaded.vectors[key].info == entry.info
        assert all(torch.equal(loaded.vectors[key].tensors[name], tensor) for name, tensor in entry.tensors.items())
        torch.testing.assert_close(loaded.vectors[key].displacement(2), entry.displacement(2))
    assert loaded.sha256 == saved.digest
    registry._registered.pop("test_low_rank")
    with pytest.raises(
        EstimatorError, match="'test_affine' comes with the estimator 'test_low_rank', which is not available"
    ):
        VectorSet.load(tmp_path / "v.safetensors")
    registry.register_estimator(LowRank)


def test_sizes_of_an_artifact_must_agree(low_rank: type[Estimator], tmp_path: Path) -> None:
    saved = vectors()
    entry = saved.vectors["loc", "ko"]
    entry.tensors["right"] = torch.zeros(tiny.LAYERS, 3, tiny.HIDDEN)
    saved.save(tmp_path / "v.safetensors")
    with pytest.raises(
        VectorFileError, match=r"tensor 'right' has shape \[4, 3, 32\], expected \[4, 2, 32\] \(layers, rank"
    ):
        VectorSet.load(tmp_path / "v.safetensors")


# What a plan does -----------------------------------------------------------------------------------------------------


IDS = torch.tensor([[5, 9, 30, 31, 7, 40], [6, 8, 44, 3, 90, 2], [5, 9, 30, 31, 7, 40]])


def streams(model: Any) -> list[torch.Tensor]:
    from lm_eval_ext.steering.decoder import decoder_layers, residual

    states: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: states.append(residual(out).clone()))
        for layer in decoder_layers(model)
    ]
    with torch.inference_mode():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("position", ["prompt", "last", "all"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_transform_of_the_state_reaches_the_tokens_of_its_row(
    family: str, position: str, low_rank: type[Estimator]
) -> None:
    model = tiny.load(family)
    plain = streams(model)
    found = extract(model, tiny.load_tokenizer(family), PAIRS, "test_low_rank")
    table = SteeringTable.build(Plan.parse(f"loc@1:0.7/{position}"), found, tiny.LAYERS)
    injector = Injector(model, table)
    starts, ends = torch.tensor([0, 1, 0]), torch.tensor([4, 5, 6])
    with injector.batch([table.row("ko"), 0, table.row("zh")], ScoredTokens(starts, ends)):
        steered = streams(model)
    injector.remove()
    assert torch.equal(steered[0], plain[0])
    for row, language in ((0, "ko"), (1, None), (2, "zh")):
        expected = plain[1][row].clone()
        if language:
            start, end = int(starts[row]), int(ends[row])
            tokens = {"prompt": slice(start, end), "last": slice(end - 1, end), "all": slice(None)}[position]
            artifact = found.vectors["loc", language].artifact(1)
            moved = expected[tokens] @ artifact["left"] @ artifact["right"] + artifact["offset"]
            expected[tokens] = expected[tokens] + 0.7 * moved
        torch.testing.assert_close(steered[1][row], expected, rtol=1e-5, atol=1e-5)


def test_terms_of_a_layer_run_in_the_order_of_the_plan(low_rank: type[Estimator]) -> None:
    both = vectors()
    mean = vectors("mean_difference").vectors
    both.vectors.update(
        {("mean", code): SteeringVectors(entry.info, entry.tensors) for (_, code), entry in mean.items()}
    )

    def steps(plan: str) -> list[type]:
        return [type(step) for step in SteeringTable.build(Plan.parse(plan), both, tiny.LAYERS).steps[1]]

    assert steps("mean@1:1+loc@1:1+mean@1:2") == [Addition, Change, Addition]
    assert steps("mean@1:1+mean@1:2/last+mean@1:3+loc@1:1") == [Addition, Addition, Change]


def test_a_share_of_the_norm_is_refused_where_it_means_nothing(low_rank: type[Estimator]) -> None:
    with pytest.raises(PlanError, match="means nothing to the transform 'test_affine'; give a number"):
        SteeringTable.build(Plan.parse("loc@1:5%"), vectors(), tiny.LAYERS)


def test_random_controls_of_an_artifact_keep_the_norm_of_every_tensor(low_rank: type[Estimator]) -> None:
    found = vectors()

    def artifacts(plan: str) -> dict[str, torch.Tensor]:
        (step,) = SteeringTable.build(Plan.parse(plan), found, tiny.LAYERS).steps[2]
        assert isinstance(step, Change)
        return dict(step.artifacts[1][0])

    own, random, again = artifacts("loc@2:1"), artifacts("loc~random3@2:1"), artifacts("loc~random3@2:1")
    for name, tensor in own.items():
        assert float(random[name].norm()) == pytest.approx(float(tensor.norm()), rel=1e-5)
        assert not torch.allclose(random[name], tensor, atol=1e-2)
        assert torch.equal(random[name], again[name])
    assert not torch.allclose(random["left"].flatten(), random["right"].flatten(), atol=1e-2)


@pytest.mark.parametrize("position", ["prompt", "last", "all"])
def test_stacked_plans_equal_one_plan_at_a_time(position: str, low_rank: type[Estimator]) -> None:
    model = tiny.load("llama")
    found = extract(model, tiny.load_tokenizer("llama"), PAIRS, "test_low_rank")
    mean = vectors("mean_difference").vectors
    found.vectors.update({("mean", code): entry for (_, code), entry in mean.items()})
    plans = [f"loc@1:0.5/{position}", f"mean@1:2/{position}+loc@2:0.3/all", "mean~other@2:1+loc~random@2:0.2/last"]
    tables = [SteeringTable.build(Plan.parse(plan), found, tiny.LAYERS) for plan in plans]
    languages = ["ko", "zh", "ko"]
    tokens = ScoredTokens(torch.tensor([0, 1, 0]), torch.tensor([4, 5, 6]))
    expected = []
    for table in tables:
        injector = Injector(model, table)
        with injector.batch([table.row(code) for code in languages], tokens):
            expected.append(streams(model)[-1])
        injector.remove()
    stacked, rows = SteeringTable.stack(tables, languages)
    for plan_rows, by_itself in zip(rows.tolist(), expected, strict=True):
        injector = Injector(model, stacked)
        with injector.batch(plan_rows, tokens):
            torch.testing.assert_close(streams(model)[-1], by_itself, rtol=0, atol=1e-6)
        injector.remove()
