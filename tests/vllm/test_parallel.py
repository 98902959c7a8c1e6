"""`steered-vllm` over several worker processes on the CPU: the answers of `steered-hf`."""

from __future__ import annotations

import os

import pytest
from support import tiny, vllm_models
from support.scores import PAIRS, ask, assert_same

from lm_eval_ext.steering.plan import Plan

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-3


@pytest.mark.parametrize("parallel", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_workers(parallel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with half of every layer, or with half of the layers; prompts are prefilled in chunks of 48 tokens."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("vLLM binds each worker to cores of its own, and this process may use one only")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{first}|{second}")
    both = vllm_models.pair(vllm_models.folder("llama"), max_num_batched_tokens=48, **{parallel: 2})
    pairs = PAIRS["letters"] + PAIRS["options"]
    languages = [tiny.LANGUAGES[number % 4] for number in range(len(pairs))]
    try:
        for model in both:
            model.steer(Plan.parse("en@1:2/last+loc@3:3/prompt"), model._vectors)
        on_vllm, on_hf = (ask(model, pairs, languages) for model in both)
        assert_same(on_vllm, on_hf, TOLERANCE)
    finally:
        both[0].close()
