"""Steering a model by hand: `with vectors.apply(model, plan, language=...)`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny

from lm_eval_ext.errors import LanguageError, ModelError, PlanError, VectorFileError

pytestmark = pytest.mark.transformers4

FAMILIES = ["llama", "gemma3", "gpt2"]
PLAN = "en@1:2+loc@2:3"
GENERATION: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
PROMPTS = {code: tiny.TEXTS[code][:24] for code in ("ko", "zh")}


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def padded(family: str, texts: list[str]) -> dict[str, torch.Tensor]:
    """A batch padded on the left."""
    tokenizer = tiny.load_tokenizer(family)
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def by_the_harness(family: str, plan: str, position: str, **options: Any) -> list[list[int]]:
    """The tokens that `steered-hf` generates, each prompt with its own language's vectors."""
    from lm_eval_ext.steering.injection import Injector
    from lm_eval_ext.steering.plan import Plan, parse_position
    from lm_eval_ext.steering.table import SteeringTable
    from lm_eval_ext.steering.tokens import GeneratedTokens

    model = tiny.load(family)
    table = SteeringTable.build(Plan.parse(plan), tiny.vector_set(family), tiny.LAYERS, parse_position(position))
    injector = Injector(model, table)
    inputs = padded(family, list(PROMPTS.values()))
    rows = [table.row(code) for code in PROMPTS]
    with injector.batch(rows, GeneratedTokens(inputs["attention_mask"])):
        tokens: list[list[int]] = model.generate(**inputs, **GENERATION, **options).tolist()
    return tokens


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=["cache", "no cache", "beams"])
@pytest.mark.parametrize("position", ["prompt", "last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_that_of_the_harness_model(family: str, position: Any, options: dict[str, Any]) -> None:
    model, vectors = tiny.load(family), tiny.vector_set(family)
    inputs = padded(family, list(PROMPTS.values()))
    plain = model.generate(**inputs, **GENERATION, **options).tolist()
    with vectors.apply(model, PLAN, language=list(PROMPTS), position=position):
        steered = model.generate(**inputs, **GENERATION, **options).tolist()
    assert steered == by_the_harness(family, PLAN, position, **options)
    assert steered != plain
    assert model.generate(**inputs, **GENERATION, **options).tolist() == plain
    assert hooks(model) == 0


def test_a_plain_forward_is_a_prompt() -> None:
    """Padded on the right, each row's last token is its own."""
    model, vectors = tiny.load("llama"), tiny.vector_set("llama")
    tokenizer = tiny.load_tokenizer("llama")
    rows = [tokenizer(text)["input_ids"] for text in (PROMPTS["ko"], PROMPTS["ko"][:9])]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    for position in ("prompt", "last", "all"):
        with vectors.apply(model, PLAN, language="ko", position=position), torch.inference_mode():
            together = model(input_ids=ids, attention_mask=mask).logits
            for number, row in enumerate(rows):
                alone = model(input_ids=torch.tensor([row])).logits[0]
                torch.testing.assert_close(together[number, : len(row)], alone, rtol=0, atol=1e-4)


def test_a_model_wrapped_by_peft() -> None:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(tiny.load("llama"), tiny.adapter("llama")).eval()
    merged = PeftModel.from_pretrained(tiny.load("llama"), tiny.adapter("llama")).merge_and_unload().eval()
    vectors, inputs = tiny.vector_set("llama"), padded("llama", list(PROMPTS.values()))
    plain = adapted.generate(**inputs, **GENERATION).tolist()
    found = []
    for model in (adapted, merged):
        with vectors.apply(model, PLAN, language=list(PROMPTS)):
            found.append((model.generate(**inputs, **GENERATION).tolist(), model(**inputs).logits))
        assert hooks(model) == 0
    assert found[0][0] == found[1][0] != plain
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-3)


def test_a_call_past_the_models_forward_is_refused() -> None:
    model, vectors = tiny.load("llama"), tiny.vector_set("llama")
    with vectors.apply(model, PLAN, language="ko"), pytest.raises(ModelError, match="were called past its forward"):
        model.model(torch.tensor([[5, 9]]))
    assert hooks(model) == 0


def test_it_may_be_entered_again_and_adds_up() -> None:
    model, vectors = tiny.load("llama"), tiny.vector_set("llama")
    ids = torch.tensor([[5, 9, 30, 31]])

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(input_ids=ids).logits
        return found

    plain = logits()
    steering = vectors.apply(model, "loc@2:1", language="ko")
    once = logits()
    assert not torch.allclose(once, plain, atol=1e-3)
    with steering:
        with steering:
            assert torch.equal(logits(), once)
        assert torch.equal(logits(), once)  # the outer one still holds
        with vectors.apply(model, "loc@2:1", language="ko"):
            twice = logits()
        assert torch.equal(logits(), once)
    assert torch.equal(logits(), plain)
    with vectors.apply(model, "loc@2:2", language="ko"):
        torch.testing.assert_close(logits(), twice, rtol=0, atol=1e-4)
    with steering:
        assert torch.equal(logits(), once)
    steering.attach()
    steering.remove()
    steering.remove()
    assert torch.equal(logits(), plain)
    assert hooks(model) == 0


def test_an_exception_leaves_nothing_behind() -> None:
    model, vectors = tiny.load("llama"), tiny.vector_set("llama")
    plain = model(torch.tensor([[5, 9]])).logits
    with pytest.raises(IndexError), vectors.apply(model, PLAN, language="ko"):
        model(torch.tensor([[5, 10**6]]))
    assert hooks(model) == 0
    steering = vectors.apply(model, PLAN, language="ko")
    with pytest.raises(IndexError):
        model(torch.tensor([[5, 10**6]]))
    steered = model(torch.tensor([[5, 9]])).logits
    assert not torch.allclose(steered, plain, atol=1e-3)  # the forward that failed did not end the steering
    steering.remove()


def test_mistakes() -> None:
    model, vectors = tiny.load("llama"), tiny.vector_set("llama")
    with pytest.raises(PlanError, match="layer 9 does not exist"):
        vectors.apply(model, "loc@9:1", language="ko")
    with pytest.raises(LanguageError, match="cannot steer language 'fr'"):
        vectors.apply(model, "loc@1:1", language="fr")
    with pytest.raises(LanguageError, match="the language is not known"):
        vectors.apply(model, "loc@1:1")
    with pytest.raises(VectorFileError, match="made for 'tiny-gemma3'"):
        tiny.vector_set("gemma3").apply(model, "loc@1:1", language="ko")
    steering = vectors.apply(model, "loc@1:1", language=["ko", "zh"])
    with pytest.raises(LanguageError, match="names 2 languages, but the batch has 3 examples"):
        model(torch.tensor([[5, 9]] * 3))
    steering.remove()
    assert hooks(model) == 0
