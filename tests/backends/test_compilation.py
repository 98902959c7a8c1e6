"""`torch_compile=True`: the same answers as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny
from support.scores import ALL, FEW_SHOT, ask, assert_same

from lm_eval_ext.backends.hf import compilation
from lm_eval_ext.errors import ModelError

pytestmark = pytest.mark.transformers4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_compiled_equals_eager(family: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    steer = "en@1:2/last+loc@2:3+loc@0:1/all"
    pairs = [*ALL, *FEW_SHOT]
    languages = [tiny.LANGUAGES[i % 4] for i in range(len(pairs))]
    expected = ask(tiny.steered(family, steer, batch_size="auto"), pairs, languages)
    compiled = tiny.steered(family, steer, batch_size="auto", torch_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same(ask(compiled, pairs, languages), expected)
    generation: Any = [(pair[0], {"until": ["\n\n"], "max_gen_toks": 5}) for pair in FEW_SHOT[:2]]
    requests = tiny.requests("generate_until", generation, ["ko", "zh"])
    assert compiled.generate_until(requests) == tiny.steered(family, steer).generate_until(requests)


def test_a_model_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(*args: Any, **options: Any) -> Any:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("No working C++ compiler found\nand more")

        return fail

    monkeypatch.setattr(compilation.torch, "compile", compiler)
    with pytest.raises(ModelError, match=r"torch_compile=True: .*No working C\+\+ compiler found\); leave it out"):
        tiny.steered("llama", torch_compile=True)
