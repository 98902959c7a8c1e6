"""Fixtures of the tests of studies."""

from __future__ import annotations

import pytest
from support.studies import Commands

from lm_eval_ext.study import run as running


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Stand-ins for the commands that a study runs."""
    stand_in = Commands()
    monkeypatch.setattr(running, "launch", stand_in.run)
    return stand_in
