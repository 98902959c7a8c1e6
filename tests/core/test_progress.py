"""Long work says how long it will take, early, and how long it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import tiny

from lm_eval_ext import console
from lm_eval_ext.console import Progress, duration
from lm_eval_ext.models import speed

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time on."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that are not of the bar."""
    lines = capfd.readouterr().err.replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if " about " in line or " in " in line]


def test_an_estimate_is_made_from_the_first_units(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "Extracting", "text") as bar:
        clock(0.5)
        bar.update(5)
        assert not told(capfd)  # too early
        clock(1.5)
        bar.update(5)
        assert told(capfd) == ["Extracting: 90 texts left, about 18 s"]
        clock(20)
        bar.update(90)
    assert told(capfd) == ["Extracting: 100 texts in 22 s"]


def test_an_estimate_that_is_known_is_told_first(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with Progress(3, "Sweeping", "cell", initial=2, seconds=7200) as bar:
        assert told(capfd) == ["Sweeping: 1 cell, about 2.0 h"]
        clock(100)
        bar.update(1)
    assert told(capfd) == ["Sweeping: 1 cell in 2 min"]


def test_short_hidden_and_quiet_work_tells_nothing(
    clock: Callable[[float], None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress(10, "Measuring", "text") as bar:
        clock(2)
        bar.update(10)
    with Progress(10, "Measuring", "text", seconds=60, hidden=True) as bar:
        clock(60)
        bar.update(10)
    monkeypatch.setenv(console.QUIET, "1")
    with Progress(10, "Measuring", "text", seconds=60) as bar:
        clock(60)
        bar.update(10)
    assert not told(capfd)


def test_what_fails_is_not_told_as_finished(clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with Progress(10, "Measuring", "text"):
            clock(60)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert not told(capfd)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5, 89, 120, 5399, 9000)] == ["5 s", "89 s", "2 min", "90 min", "2.5 h"]


def test_shared_beginnings_are_counted_once() -> None:
    assert speed.distinct_tokens([(1, 2, 3), (1, 2), (1, 2, 4, 5), (7,)]) == 6


def test_an_evaluation_is_estimated_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two operations for each weight and token; the head once for a prompt and once for each token fed of an option."""
    model = tiny.steered("llama")
    asked = tiny.requests("loglikelihood", [("a b", " one two"), ("a b", " two")], ["en", "en"])
    requests = model.encode(asked)
    assert requests[0].prompt == requests[1].prompt
    body, head = speed.weights(model.model)
    assert body + head < model.model.num_parameters() <= body + 2 * head
    fed = sum(len(request.continuation) - 1 for request in requests)
    operations = 2 * (body * (len(requests[0].prompt) + fed) + head * (1 + fed))
    monkeypatch.setattr(speed, "matrix_speed", lambda *_: operations / 60 / speed.SHARE)
    model.loglikelihood(asked)
    assert "Running loglikelihood requests: 2 requests, about 60 s" in told(capfd)
