"""Loading models: what is left in memory afterwards."""

from __future__ import annotations

import platform

import psutil
import pytest

from lm_eval_ext.models.loading import return_freed_memory


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library returns memory, or keeps it, its own way"
)
def test_what_was_freed_is_given_back() -> None:
    resident = psutil.Process().memory_info
    pieces = [bytes(2_000) for _ in range(100_000)]  # 200 MB, each too large for Python's own pools
    last = bytes(2_000)  # keeps the heap from shrinking by itself
    del pieces
    before = resident().rss
    return_freed_memory()
    assert before - resident().rss > 100 * 2**20
    assert last
