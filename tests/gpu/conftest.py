"""The device of these tests: the first CUDA device, or the one that LM_EVAL_EXT_TEST_DEVICE names.

`LM_EVAL_EXT_TEST_DEVICE=cpu pytest tests/gpu` runs the same code on the CPU, which shows that the tests themselves work.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    name = os.environ.get("LM_EVAL_EXT_TEST_DEVICE", "cuda:0")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(
            f"needs a CUDA device, and PyTorch {torch.__version__} sees none (torch.cuda.is_available() is false)"
        )
    return name
