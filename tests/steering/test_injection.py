"""Injection: which vector each row of a batch gets, at which tokens and layers, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from lm_eval_ext.errors import LanguageError, ModelError, PlanError, UserError, VectorFileError
from lm_eval_ext.steering import decoder
from lm_eval_ext.steering.injection import Injector
from lm_eval_ext.steering.plan import Plan, Position
from lm_eval_ext.steering.table import UNSTEERED_ROW, Addition, SteeringTable, random_direction
from lm_eval_ext.steering.tokens import GeneratedTokens, OptionTokens, ScoredTokens

pytestmark = pytest.mark.transformers4

IDS = torch.tensor([[5, 9, 30, 31, 7, 40], [6, 8, 44, 3, 90, 2], [5, 9, 30, 31, 7, 40]])
WHOLE = ScoredTokens(torch.tensor([0, 0, 0]), torch.tensor([6, 6, 6]))
POSITIONS: tuple[Position, ...] = ("prompt", "last", "all")


def table(family: str, plan: str, **options: Any) -> SteeringTable:
    return SteeringTable.build(Plan.parse(plan), tiny.vector_set(family), tiny.LAYERS, **options)


def added(steering: SteeringTable, layer: int, position: Position) -> torch.Tensor:
    """[rows + 1, hidden] what is added after a layer at a position."""
    (matrix,) = (
        step.matrix for step in steering.steps[layer] if isinstance(step, Addition) and step.position == position
    )
    return matrix


def residuals(model: Any, ids: torch.Tensor = IDS, **inputs: Any) -> list[torch.Tensor]:
    """The residual stream after each layer, read by hooks of our own, after those of the injector."""
    states: list[torch.Tensor] = []
    layers = decoder.decoder_layers(model)
    handles = [
        layer.register_forward_hook(lambda _, __, out: states.append(decoder.residual(out).clone())) for layer in layers
    ]
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False, **inputs)
    for handle in handles:
        handle.remove()
    return states


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


# What is added --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_row_gets_its_own_vector_at_its_layer(family: str) -> None:
    model = tiny.load(family)
    plain = residuals(model)
    steering = table(family, "loc@2:1.5/all")
    injector = Injector(model, steering)
    rows = [steering.row("ko"), UNSTEERED_ROW, steering.row("zh")]
    with injector.batch(rows, WHOLE):
        steered = residuals(model)
    for before in (0, 1):
        assert torch.equal(steered[before], plain[before])
    vectors = tiny.vector_set(family).vectors
    for row, language in ((0, "ko"), (2, "zh")):
        expected = plain[2][row] + 1.5 * vectors["loc", language].artifact(2)["vector"]
        torch.testing.assert_close(steered[2][row], expected, rtol=0, atol=1e-5)
        assert not torch.allclose(steered[3][row], plain[3][row], atol=1e-3)
    for layer in range(tiny.LAYERS):  # a zero row is exact identity, whatever the other rows get
        assert torch.equal(steered[layer][1], plain[layer][1])
    for layer, state in enumerate(residuals(model)):  # and nothing is left over
        assert torch.equal(state, plain[layer])


@pytest.mark.parametrize("gamma", ["0", "2"])
def test_a_batch_of_zero_rows_is_exact_identity(gamma: str) -> None:
    model = tiny.load("llama")
    plain = model(IDS).logits
    steering = table("llama", f"en@1:{gamma}+loc@2:{gamma}/last")
    injector = Injector(model, steering)
    rows = [steering.row("ko")] * 3 if gamma == "0" else [UNSTEERED_ROW] * 3
    with injector.batch(rows, WHOLE):
        assert torch.equal(model(IDS).logits, plain)


def test_terms_layers_and_relative_strengths_add_up() -> None:
    vectors = tiny.vector_set("llama").vectors
    steering = table("llama", "en@1:2+loc@1:-0.5+loc@2-3:10%/last")
    assert {layer: [step.position for step in steps] for layer, steps in steering.steps.items()} == {
        1: ["prompt"],
        2: ["last"],
        3: ["last"],
    }
    row = steering.row("ko")
    en, loc = vectors["en", "ko"], vectors["loc", "ko"]
    torch.testing.assert_close(
        added(steering, 1, "prompt")[row], 2 * en.artifact(1)["vector"] - 0.5 * loc.artifact(1)["vector"]
    )
    for layer in (2, 3):  # the file says that the residual norm is 4
        loc_added = added(steering, layer, "last")[row]
        assert float(loc_added.norm()) == pytest.approx(0.4, rel=1e-5)
        assert torch.cosine_similarity(loc_added, loc.artifact(layer)["vector"], dim=0) == pytest.approx(1, abs=1e-5)
    for layer, position in ((1, "prompt"), (2, "last"), (3, "last")):
        assert not added(steering, layer, position)[UNSTEERED_ROW].any()


def test_several_positions_at_one_layer() -> None:
    model = tiny.load("llama")
    plain = residuals(model)
    steering = table("llama", "en@1:1/prompt+loc@1:1/last+loc@1:1/all")
    row = steering.row("ko")
    injector = Injector(model, steering)
    with injector.batch([row] * 3, ScoredTokens(torch.tensor([0, 1, 0]), torch.tensor([4, 5, 6]))):
        added = residuals(model)[1] - plain[1]
    vectors = tiny.vector_set("llama").vectors
    en, loc = vectors["en", "ko"].artifact(1)["vector"], vectors["loc", "ko"].artifact(1)["vector"]
    for i, (start, end) in enumerate([(0, 4), (1, 5), (0, 6)]):
        for t in range(6):
            expected = loc + en * (start <= t < end) + loc * (t == end - 1)
            torch.testing.assert_close(added[i, t], expected, rtol=0, atol=1e-5)


# Languages ------------------------------------------------------------------------------------------------------------


def test_languages_find_their_rows() -> None:
    steering = table("llama", "en@1+loc@2")
    assert sorted(steering.rows) == ["en", "es", "ko", "zh"]
    assert len({steering.row(language) for language in steering.rows}) == 4
    with pytest.raises(LanguageError, match="cannot steer language 'fr'; it has vectors for: "):
        steering.row("fr")
    with pytest.raises(LanguageError, match="the language is not known; the plan has vectors for: "):
        steering.row(None)


def test_english_under_the_english_vector_is_unsteered() -> None:
    alone = table("llama", "en@1:2")
    assert not added(alone, 1, "prompt")[alone.row("en")].any()
    both = table("llama", "en@1:2+loc@1:3")
    expected = 3 * tiny.vector_set("llama").vectors["loc", "en"].artifact(1)["vector"]
    torch.testing.assert_close(added(both, 1, "prompt")[both.row("en")], expected)
    fixed = table("llama", "en~ko@1:2")
    assert added(fixed, 1, "prompt")[fixed.row("en")].any()


def test_a_language_that_lacks_a_kind_is_named_with_the_kind() -> None:
    vectors = tiny.vector_set("llama")
    del vectors.vectors["loc", "zh"]
    steering = SteeringTable.build(Plan.parse("en@1+loc@2"), vectors, tiny.LAYERS)
    with pytest.raises(LanguageError, match=r"'zh' \(no vectors of kind loc\); it has vectors for: "):
        steering.row("zh")
    assert steering.row("ko")
    del vectors.vectors["loc", "ko"], vectors.vectors["loc", "es"], vectors.vectors["loc", "en"]
    with pytest.raises(VectorFileError, match="no vectors of kind 'loc'"):
        SteeringTable.build(Plan.parse("en@1+loc@2"), vectors, tiny.LAYERS)


def test_no_language_has_every_kind() -> None:
    vectors = tiny.vector_set("llama", ("a", "b"))
    for language in tiny.LANGUAGES:
        del vectors.vectors["a" if language in ("ko", "en") else "b", language]
    with pytest.raises(LanguageError, match=r"no language has vectors of every kind .*a has es, zh; b has en, ko"):
        SteeringTable.build(Plan.parse("a@1+b@1"), vectors, tiny.LAYERS)


def test_vectors_for_any_language() -> None:
    vectors = tiny.vector_set("llama", ("loc", "style"), ("ko", "any"))
    steering = SteeringTable.build(Plan.parse("style@1:1"), vectors, tiny.LAYERS)
    fallback = vectors.vectors["style", "any"].artifact(1)["vector"]
    for language in (None, "fr", "en"):
        assert torch.equal(added(steering, 1, "prompt")[steering.row(language)], fallback)
    own = added(steering, 1, "prompt")[steering.row("ko")]
    assert torch.equal(own, vectors.vectors["style", "ko"].artifact(1)["vector"])


def test_a_fixed_language_is_used_for_every_request() -> None:
    steering = table("llama", "loc~zh@1:1")
    for language in ("ko", "zh", "en", "fr", None):
        vector = added(steering, 1, "prompt")[steering.row(language)]
        assert torch.equal(vector, tiny.vector_set("llama").vectors["loc", "zh"].artifact(1)["vector"])
    mixed = table("llama", "loc~zh@1:1+loc@2:1")
    assert torch.equal(
        added(mixed, 1, "prompt")[mixed.row("ko")],
        tiny.vector_set("llama").vectors["loc", "zh"].artifact(1)["vector"],
    )
    with pytest.raises(LanguageError):
        mixed.row("fr")


def test_a_random_control_has_the_norm_and_nothing_else_of_the_vector() -> None:
    steering, again = table("llama", "loc~random7@1:2"), table("llama", "loc~random7@1:2")
    other = table("llama", "loc~random8@1:2")
    for language in ("ko", "zh"):
        row = steering.row(language)
        random, vector = (
            added(steering, 1, "prompt")[row],
            tiny.vector_set("llama").vectors["loc", language].artifact(1)["vector"],
        )
        assert float(random.norm()) == pytest.approx(2 * float(vector.norm()), rel=1e-5)
        assert abs(float(torch.cosine_similarity(random, vector, dim=0))) < 0.6
        assert torch.equal(random, added(again, 1, "prompt")[row])
        assert not torch.allclose(random, added(other, 1, "prompt")[row])
    korean, chinese = (added(steering, 1, "prompt")[steering.row(language)] for language in ("ko", "zh"))
    assert abs(float(torch.cosine_similarity(korean, chinese, dim=0))) < 0.6


def test_a_random_direction_is_the_same_on_every_machine() -> None:
    direction = random_direction(1, "loc/ko/13", torch.ones(4))
    expected = torch.tensor([0.618923, 0.358263, 1.446832, 1.181211])
    torch.testing.assert_close(direction, expected, rtol=1e-4, atol=1e-5)
    assert float(random_direction(1, "x", torch.zeros(4)).norm()) == 0


@pytest.mark.parametrize(
    ("plan", "error", "expected"),
    [
        ("style@1", VectorFileError, "no vectors of kind 'style'; kinds: en, loc"),
        ("en@4", PlanError, "the model has 4 decoder layers, valid: 0-3"),
        ("loc@3-1", PlanError, "runs backwards"),
        ("loc~fr@1", PlanError, "no 'loc' vectors of language 'fr'; languages in the file: en, ko, es, zh"),
        ("en@1:1e38+en@1:3e38+en@1:3e38", PlanError, "more than a float32 number can hold"),
        ("en@2", VectorFileError, "for layer 2; layers in the file: 0-1"),
    ],
)
def test_plans_that_do_not_fit(plan: str, error: type[UserError], expected: str) -> None:
    vectors = tiny.vector_set("llama", layers=(0, 1))
    with pytest.raises(error) as caught:
        SteeringTable.build(Plan.parse(plan), vectors, tiny.LAYERS)
    assert expected in str(caught.value)


def test_a_plan_needs_vectors_and_no_plan_needs_none() -> None:
    with pytest.raises(PlanError, match="needs vectors: pass vectors=FILE"):
        SteeringTable.build(Plan.parse("en@1"), None, tiny.LAYERS)
    empty = SteeringTable.build(Plan(), None, tiny.LAYERS)
    assert empty.row(None) == empty.row("fr") == UNSTEERED_ROW
    model = tiny.load("llama")
    Injector(model, empty)
    assert hooks(model) == 0


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_tokens_of_a_forward_that_scores() -> None:
    tokens = ScoredTokens(torch.tensor([0, 2]), torch.tensor([3, 5]))  # the second row is padded on the left
    assert tokens.mask("all", 0, 6) is True
    assert tokens.mask("prompt", 0, 6).int().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]]
    assert tokens.mask("last", 0, 6).int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert tokens.mask("last2", 0, 6).int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert tokens.mask("last9", 0, 6).int().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]]
    assert tokens.mask("first2", 0, 6).int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert tokens.mask("generated", 0, 6).int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]


def test_the_first_tokens_of_a_prompt_that_goes_on_from_a_cache() -> None:
    tokens = ScoredTokens(torch.tensor([-1, -5]), torch.tensor([2, 2]))
    assert tokens.mask("first2", 0, 3).int().tolist() == [[1, 0, 0], [0, 0, 0]]


def test_tokens_of_options() -> None:
    assert [OptionTokens().mask(position, 0, 3) for position in POSITIONS] == [False, False, True]
    assert [OptionTokens().mask(position, 0, 3) for position in ("last3", "first9", "generated")] == [
        False,
        False,
        True,
    ]


def test_tokens_of_a_generation() -> None:
    tokens = GeneratedTokens(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert tokens.mask("prompt", 0, 3).int().tolist() == [[0, 1, 1], [1, 1, 1]]
    assert tokens.mask("last", 0, 3).int().tolist() == [[0, 0, 1], [0, 0, 1]]
    assert [tokens.mask(position, 3, 1) for position in POSITIONS] == [False, True, True]  # generated, with a cache
    assert tokens.mask("prompt", 0, 5).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]  # without one
    assert tokens.mask("last", 0, 5).int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert tokens.mask("last3", 0, 5).int().tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert tokens.mask("first1", 0, 5).int().tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert tokens.mask("generated", 0, 5).int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert [tokens.mask(position, 3, 1) for position in ("last3", "first1", "generated")] == [True, False, True]


def test_tokens_of_a_generation_padded_on_the_right() -> None:
    tokens = GeneratedTokens(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert tokens.mask("last2", 0, 3).int().tolist() == [[1, 1, 0], [0, 1, 1]]
    assert tokens.mask("first1", 0, 3).int().tolist() == [[1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
@pytest.mark.parametrize("position", POSITIONS)
def test_generation_may_send_all_tokens_again(family: str, position: Position) -> None:
    """Without a cache every forward starts at the first token; the steered tokens are the same."""
    model = tiny.load(family)
    steering = table(family, f"loc@1:2/{position}")
    injector = Injector(model, steering)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])
    found = []
    for use_cache in (True, False):
        with injector.batch([steering.row("ko"), UNSTEERED_ROW, steering.row("zh")], GeneratedTokens(mask)):
            found.append(
                model.generate(IDS, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=use_cache)
            )
    assert torch.equal(*found)
    plain = model.generate(IDS, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(found[0][1], plain[1])
    assert not torch.equal(found[0][[0, 2]], plain[[0, 2]])


# Hooks ----------------------------------------------------------------------------------------------------------------


def test_hooks_are_registered_once_and_removed() -> None:
    model = tiny.load("llama")
    modules = list(model.modules())
    injector = Injector(model, table("llama", "en@1+loc@1-3/all"))
    assert hooks(model) == 3  # one per layer, however many terms
    for _ in range(5):
        with injector.batch([1, 2, 0], WHOLE):
            model(IDS)
    assert hooks(model) == 3
    assert list(model.modules()) == modules
    injector.remove()
    assert hooks(model) == 0


def test_an_error_inside_a_batch_ends_the_steering() -> None:
    model = tiny.load("llama")
    plain = model(IDS).logits
    injector = Injector(model, table("llama", "loc@1"))
    with pytest.raises(ZeroDivisionError), injector.batch([1, 1, 1], WHOLE):
        raise ZeroDivisionError
    assert torch.equal(model(IDS).logits, plain)


class Block(nn.Module):
    """A decoder layer that returns a tuple, as in transformers 4, or a tensor, as in 5."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden: torch.Tensor) -> Any:
        out = hidden * 2
        return (out, "attention") if self.as_tuple else out


class Stack(nn.Module):
    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.config = tiny.config("llama")
        self.layers = nn.ModuleList(Block(as_tuple) for _ in range(tiny.LAYERS))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            output = layer(hidden)
            if isinstance(output, tuple):
                assert output[1] == "attention"
            hidden = decoder.residual(output)
        return hidden


@pytest.mark.parametrize("as_tuple", [True, False])
def test_tensors_and_tuples(as_tuple: bool) -> None:
    model: Any = Stack(as_tuple)
    steering = table("llama", "loc@1:1/all")
    injector = Injector(model, steering)
    hidden = torch.randn(3, 6, tiny.HIDDEN)
    given = hidden.clone()
    with injector.batch([steering.row("ko")] * 3, WHOLE):
        added = model(hidden) - hidden * 16
    assert torch.equal(hidden, given)  # never edited in place
    expected = 4 * tiny.vector_set("llama").vectors["loc", "ko"].artifact(1)["vector"]
    torch.testing.assert_close(added, expected.expand_as(added), rtol=0, atol=1e-4)


def test_a_stream_that_is_not_one_is_refused() -> None:
    with pytest.raises(ModelError, match="can be evaluated, but not steered"):
        decoder.residual(torch.zeros(4, 2, 6, tiny.HIDDEN))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_same_table_on_a_model_wrapped_by_peft(family: str) -> None:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(tiny.load(family), tiny.adapter(family)).eval()
    merged = PeftModel.from_pretrained(tiny.load(family), tiny.adapter(family)).merge_and_unload().eval()
    steering = table(family, "loc@1:1/all+en@3:1/last")
    logits = []
    for model in (adapted, merged):
        with Injector(model, steering).batch([1, 2, 0], WHOLE), torch.inference_mode():
            logits.append(model(input_ids=IDS).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[0], adapted(input_ids=IDS).logits, atol=1e-2)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto"])
def test_the_same_table_under_a_device_map(device_map: Any) -> None:
    steering = table("llama", "loc@1:1/all")
    logits = []
    for options in ({}, {"device_map": device_map}):
        model = tiny.load("llama", **options)
        with Injector(model, steering).batch([1, 2, 0], WHOLE), torch.inference_mode():
            logits.append(model(input_ids=IDS).logits)
    assert torch.equal(*logits)


def test_the_dtype_of_the_model_is_kept() -> None:
    model = tiny.load("llama").to(torch.bfloat16)
    with Injector(model, table("llama", "loc@1:1/prompt")).batch([1, 2, 0], WHOLE):
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16


# Decoder layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_decoder_layers_are_found(family: str) -> None:
    model = tiny.load(family)
    layers = decoder.decoder_layers(model)
    assert len(layers) == decoder.layer_count(model.config) == tiny.LAYERS
    assert decoder.hidden_size(model.config) == tiny.HIDDEN
    assert layers is (model.transformer.h if family == "gpt2" else model.model.layers)


def test_decoder_layers_of_a_multimodal_model() -> None:
    model = tiny.multimodal()
    assert decoder.decoder_layers(model) is model.model.language_model.layers
    assert decoder.hidden_size(model.config) == tiny.HIDDEN
    assert decoder.fingerprint(model.config) == decoder.fingerprint(tiny.config("gemma3"))
    plain = residuals(model)
    steering = table("gemma3", "loc@2:1/all")
    with Injector(model, steering).batch([1, 2, 0], WHOLE):
        steered = residuals(model)
    assert torch.equal(steered[1], plain[1])
    assert not torch.allclose(steered[2][0], plain[2][0])
    assert torch.equal(steered[3][2], plain[3][2])


def test_an_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(d_model=32, num_layers=4, num_heads=4, d_kv=8, d_ff=64, vocab_size=384))
    with pytest.raises(ModelError, match="t5 is an encoder-decoder; steering needs a decoder-only model"):
        decoder.decoder_layers(model)


def test_a_model_whose_layers_cannot_be_told_is_refused() -> None:
    model: Any = Stack(as_tuple=False)
    model.other = nn.ModuleList(nn.Linear(2, 2) for _ in range(tiny.LAYERS))
    with pytest.raises(ModelError, match=r"which module list of llama holds its 4 decoder layers: layers, other"):
        decoder.decoder_layers(model)
    del model.other, model.layers
    with pytest.raises(ModelError, match="decoder layers: none"):
        decoder.decoder_layers(model)
