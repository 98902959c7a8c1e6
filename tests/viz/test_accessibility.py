"""The pages for people who use a keyboard, a screen reader, high contrast or less motion: axe-core finds nothing serious.

axe-core is no part of this repository. The test finds it at `AXE_CORE` (its `axe.min.js`), or fetches it with npm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from support.browser import CHROMIUM, chromium, new_tab
from support.processes import HUNG
from support.reports import write_tree
from support.snippets import ROOT

from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.site import write_site
from lm_eval_ext.plane.page import page as plane_page
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.report.build import Report
from lm_eval_ext.results.runs import load
from lm_eval_ext.sweep.page import page as sweep_page
from lm_eval_ext.viz.page import render

pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on PATH"),
]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    if given := os.environ.get("AXE_CORE"):
        return Path(given).read_text(encoding="utf-8")
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("needs axe-core: set AXE_CORE to its axe.min.js, or install npm")
    command = [npm, "pack", "axe-core@4", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=HUNG)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"axe-core cannot be fetched ({error}): set AXE_CORE to its axe.min.js")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        source = files.extractfile("package/axe.min.js")
        assert source
        return source.read().decode("utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind of page."""
    folder = tmp_path_factory.mktemp("pages")
    runs = load(write_tree(folder / "tree", n=8))
    plane = measure(runs, "unsteered", x="transfer_mini_cloze", y="localization_mini_cloze", resamples=100)
    summary = pd.read_csv(ROOT / "tests" / "viz" / "sweep_summary.csv").fillna({"condition": ""})
    texts = {
        "plane": plane_page(plane),
        "report": Report(plane).html(),
        "sweep": sweep_page(summary, ["a small sweep"]),
        "geometry": render(
            "geometry.html",
            title="Geometry",
            charts=[],
            folder=ROOT / "lm_eval_ext" / "geometry" / "templates",
            parts_of_charts=[],
            description=["a small one"],
            findings=["Nothing."],
            tables=[(["layer", "value"], [["1", "0.5"]], "Norms")],
        ),
    }
    paths = {name: folder / f"{name}.html" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text, encoding="utf-8")
    paths["leaderboard"] = write_site(collect([folder / "tree"], resamples=100), folder / "site")[0]
    return paths


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def serious(tab, axe: str, rules: str = "") -> list[str]:
    tab.evaluate(axe)
    only = f", runOnly: {{type: 'rule', values: ['{rules}']}}" if rules else ""
    found = tab.evaluate(f"axe.run({{resultTypes: ['violations']{only}}})")["violations"]
    return [
        f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:160]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("scheme", "rules"), [("light", ""), ("dark", "color-contrast")])
def test_axe_finds_nothing_serious(browser, axe, pages, scheme, rules):
    """All rules once; in the other scheme the one that looks at colours."""
    problems = {}
    for name, path in pages.items():
        tab = new_tab(browser, color_scheme=scheme, reduced_motion="reduce")
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        problems[name] = serious(tab, axe, rules)
        tab.context.close()
    assert problems == {name: [] for name in pages}


def test_axe_finds_nothing_serious_in_the_browser_of_items(browser, axe, shared_data, monkeypatch, tmp_path):
    from lm_eval_ext.data import browse

    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    text = browse.page("el")
    start, end = text.index("<article"), text.rindex("</article>")
    few = text[start:end].split("</article>")[:3]
    (tmp_path / "el.html").write_text(f"{text[:start]}{'</article>'.join(few)}{text[end:]}", encoding="utf-8")
    for scheme in ("light", "dark"):
        tab = new_tab(browser, color_scheme=scheme)
        tab.goto((tmp_path / "el.html").as_uri())
        assert serious(tab, axe) == [], scheme
        tab.context.close()


def test_axe_would_find_something(browser, axe, tmp_path):
    (tmp_path / "bad.html").write_text(
        '<html lang="en"><title>t</title><img src="a.png"><p style="color:#ddd">pale</p>'
    )
    tab = new_tab(browser)
    tab.goto((tmp_path / "bad.html").as_uri())
    assert {line.partition(":")[0] for line in serious(tab, axe)} == {"image-alt", "color-contrast"}


def test_menus_of_figures_are_reached_and_used_by_keys(browser, pages):
    tab = new_tab(browser)
    tab.goto(pages["plane"].as_uri())
    tab.wait_for_selector("html[data-ready]", state="attached")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"
    for _ in range(6):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "SELECT":
            break
    menu = tab.locator(".keyboard select:focus")
    assert menu.bounding_box()["x"] >= 0  # seen once a key reaches it
    before = tab.evaluate("document.querySelector('.plot').data.at(-1).x[0]")
    tab.keyboard.press("ArrowDown")
    tab.wait_for_timeout(100)
    assert tab.evaluate("document.querySelector('.plot').data.at(-1).x[0]") != before
