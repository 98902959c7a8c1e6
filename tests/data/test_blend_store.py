"""Built BLEnD items are kept by content: built once, never out of date, never trusted when damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lm_eval_ext.data.blend import store

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"id": "a", "question": "¿?"}]


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "annotations.json"
    file.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(store, "files", lambda: {"Greece": file})
    return file


def _counted(calls: list[int]) -> list[dict[str, str]]:
    calls.append(1)
    return ROWS


def test_items_are_built_once_for_the_same_content_and_arguments(upstream: Path) -> None:
    calls: list[int] = []
    for arguments in (("el", 0), ("el", 0), ("el", 1)):
        assert store.rows(arguments, lambda: _counted(calls)) == ROWS
    assert len(calls) == 2


def test_changed_upstream_content_is_built_again(upstream: Path) -> None:
    calls: list[int] = []
    store.rows(("el",), lambda: _counted(calls))
    upstream.write_text('{"changed": 1}', encoding="utf-8")
    store.rows(("el",), lambda: _counted(calls))
    assert len(calls) == 2


def test_a_damaged_file_is_built_again(upstream: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    store.rows(("el",), lambda: _counted(calls))
    (kept,) = (tmp_path / "cache" / "blend").iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    assert store.rows(("el",), lambda: _counted(calls)) == ROWS
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "a file"))
    assert store.rows(("el",), lambda: ROWS) == ROWS
    assert "cannot write" in caplog.text
