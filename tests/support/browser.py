"""Chromium for the tests of pages, with limits that only a hang reaches."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.processes import HUNG

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; the test is skipped without playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=HUNG * 1000)
        yield running
        running.close()


def new_tab(browser: Any, **options: Any) -> Any:
    """A tab in a context of its own (`options`: of playwright's `new_context`)."""
    context = browser.new_context(**options)
    context.set_default_timeout(HUNG * 1000)
    return context.new_page()
