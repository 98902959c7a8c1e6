"""Tests that run vLLM: skipped where it is not installed, and where this CPU cannot run its build."""

from __future__ import annotations

import os

import pytest

from lm_eval_ext.backends.vllm import release

#: One process for all, small caches, no compilation of helpers.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    problem = release.problem()
    if not problem:  # read when vLLM is imported
        os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    for item in items:
        if item.get_closest_marker("vllm") and problem:
            item.add_marker(pytest.mark.skip(reason=problem))
