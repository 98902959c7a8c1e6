"""Shared fixtures: where the real data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test measures time: a loaded machine must not fail.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

# What a contributor has set for work of their own must not decide a test: one that needs the mirror sets it.
for variable in ("LM_EVAL_EXT_DATA", "LM_EVAL_EXT_CPU_BFLOAT16"):
    os.environ.pop(variable, None)


def _shared_data() -> Path | None:
    for candidate in (os.environ.get("LM_EVAL_EXT_TEST_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if candidate and (Path(candidate) / "blend").is_dir():
            return Path(candidate).resolve()
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real upstream data; the test is skipped where there is none (a public clone ships none)."""
    found = _shared_data()
    if found is None:
        pytest.skip("needs the upstream data: set LM_EVAL_EXT_TEST_DATA to a mirror (see docs/how-to/offline.md)")
    return found
