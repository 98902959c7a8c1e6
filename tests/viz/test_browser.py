"""The pages in a real browser: they draw, sort, filter, switch and link, and run nothing that came from results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.browser import CHROMIUM, chromium, new_tab
from support.reports import sample, write_results, write_tree
from support.runs import random_scores, write_demo, write_run

from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.site import write_site
from lm_eval_ext.plane.page import page
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.report.build import Report
from lm_eval_ext.results.runs import load

pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on PATH")

OWNED = "document.title='owned';globalThis.owned=1"
HOSTILE = f'</script><img src=x onerror="{OWNED}"><script>{OWNED}</script><b onmouseover={OWNED}>x'


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser):
    """Opens a file; the test fails if the page reports any error."""
    contexts, errors = [], []

    def opener(path: Path, fragment: str = "", *, width: int = 1200, scheme: str = "light", drawn: bool = False):
        tab = new_tab(browser, viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
        contexts.append(tab.context)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on(
            "request",
            lambda request: (
                errors.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None
            ),
        )
        tab.goto(path.as_uri() + fragment)
        tab.wait_for_selector("html[data-ready]" if drawn else "html[data-interactive]", state="attached")
        return tab

    yield opener
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), n=16)


@pytest.fixture(scope="module")
def report(results, tmp_path_factory) -> Path:
    plane = measure(load(results), "unsteered", x="transfer_mini_cloze", y="localization_mini_cloze", resamples=200)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(Report(plane).html())
    return path


@pytest.fixture(scope="module")
def site(results, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    return write_site(collect([results], resamples=100), folder)[0]


@pytest.fixture(scope="module")
def plane_page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("plane")
    (root / "plane.html").write_text(page(measure(load(write_demo(root / "tree")), "unsteered", resamples=200)))
    return root / "plane.html"


def until(tab, expression: str) -> None:
    """Wait for an expression; playwright's own way needs eval, which the pages forbid."""
    for _ in range(100):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(expression)


def fits(tab) -> bool:
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- the plane -------------------------------------------------------------------------------------------------------


def test_hovering_a_point_tells_run_interval_and_n(plane_page, open_page):
    tab = open_page(plane_page, drawn=True)
    points = tab.locator("#figure-plane .scatterlayer .trace .points path.point")
    boxes = [points.nth(number).bounding_box() for number in range(points.count())]
    for box in filter(None, boxes):
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tab.wait_for_timeout(120)
        told = " ".join(tab.locator(".hoverlayer .hovertext").all_text_contents())
        if "loc" in told:
            break
    assert re.search(r"localization .*\[.*\] points", told)
    assert "n = 360 on 60 questions" in told


def test_the_menus_switch_language_and_regions(plane_page, open_page):
    tab = open_page(plane_page, drawn=True)

    def choose(entry: str) -> None:
        for header in tab.locator(".updatemenu-header").all():
            header.click()
            item = tab.locator(".updatemenu-dropdown-button", has_text=entry)
            if item.count():
                item.first.click()
                return
            header.click()
        raise AssertionError(entry)

    state = "document.querySelector('#figure-plane .plot')"
    before = tab.evaluate(f"{state}.data.at(-1).x[0]")
    choose("Korean")
    assert tab.evaluate(f"{state}.data.at(-1).x[0]") != before
    assert tab.locator(".updatemenu-header").first.text_content().startswith("Korean")
    drawn = "#figure-plane .scatterlayer .js-fill"
    hidden = tab.locator(drawn).count()
    choose("Intervals and 95% regions")
    assert tab.locator(drawn).count() > hidden
    assert tab.evaluate(f"{state}.data.filter((trace) => trace.fill === 'toself' && trace.visible).length") == 5


def test_the_theme_follows_the_system_until_it_is_chosen(plane_page, open_page):
    paper = "getComputedStyle(document.body).backgroundColor"
    plotted = "document.querySelector('.plot').layout.paper_bgcolor"
    tab = open_page(plane_page, scheme="dark", drawn=True)
    assert (tab.evaluate(paper), tab.evaluate(plotted)) == ("rgb(19, 23, 28)", "#13171c")
    tab.click("#theme")
    until(tab, f"{plotted} === '#ffffff'")
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    ink = "document.querySelector('.plot').data.at(-5).marker.color"  # the baseline's
    assert tab.evaluate(ink) == "#1b1f24"
    tab.click("#theme")
    until(tab, f"{plotted} === '#13171c'")
    assert tab.evaluate(ink) == "#e8ecf0"


def test_figures_are_saved_as_svg_and_as_csv_of_what_is_drawn(plane_page, open_page):
    tab = open_page(plane_page, drawn=True)
    for form, start in (("csv", "run,model,plan,language"), ("svg", "<svg"), ("png", "\x89PNG")):
        with tab.expect_download() as saved:
            tab.click(f'#figure-plane [data-save="{form}"]')
        assert saved.value.suggested_filename == f"plane.{form}"
        assert Path(saved.value.path()).read_bytes().decode("latin-1").startswith(start)


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_and_draws_every_figure(report, open_page, width, scheme):
    tab = open_page(report, width=width, scheme=scheme, drawn=True)
    assert fits(tab)
    assert tab.locator(".plot .main-svg").first.is_visible()
    assert tab.locator(".plot:has(.scatterlayer, .barlayer)").count() == 9
    assert tab.locator("#figure-language_changes .heatmaplayer .hm").count() == 2
    assert tab.locator("#theme").is_visible()


def test_items_are_filtered_by_language_topic_change_and_country(report, open_page):
    tab = open_page(report)
    data = json.loads(tab.locator("#items-data").text_content())
    entries = [(item, int(run), answer) for item in data["items"] for run, answer in item["r"].items()]

    def count() -> int:
        return int(re.match(r"([\d,]+)", tab.locator("#count").inner_text())[1].replace(",", ""))

    assert count() == len(entries)

    tab.select_option('#filters [name="language"]', "ko")
    assert count() == sum(item["l"] == "ko" for item, _, _ in entries)
    tab.select_option('#filters [name="change"]', "loss")
    lost = [item for item, _, answer in entries if item["l"] == "ko" and item["b"][1] and not answer[1]]
    assert count() == len(lost) > 0
    topic = lost[0]["t"]
    tab.select_option('#filters [name="topic"]', topic)
    assert count() == sum(item["t"] == topic for item in lost)
    tab.click('#filters [type="reset"]')
    until(tab, f"document.getElementById('count').textContent.startsWith('{len(entries):,} ')")

    chosen = [
        item["c"][answer[0]][0]
        for item, _, answer in entries
        if item["c"] and answer[0] is not None and item["c"][answer[0]]
    ]
    tab.select_option('#filters [name="country"]', "South Korea")
    assert count() == chosen.count("South Korea") > 0
    tab.select_option('#filters [name="run"]', "0")
    assert "now: en" in tab.locator("#list").inner_text()
    assert "now: loc" not in tab.locator("#list").inner_text()
    tab.fill('#filters [name="search"]', "no such words")
    assert tab.locator("#count").inner_text() == "No changed answer matches."
    assert tab.locator("#list > li").count() == 0


def test_runs_are_sorted_by_a_column(report, open_page):
    tab = open_page(report)
    tab.click("#runs th:nth-child(3) button")
    keys = "[...document.querySelectorAll('#runs tbody tr')].map((row) => Number(row.children[2].dataset.key))"
    down = tab.evaluate(keys)
    assert down == sorted(down, reverse=True)
    tab.click("#runs th:nth-child(3) button")
    assert tab.evaluate(keys) == sorted(down)


def test_any_two_runs_are_compared_item_by_item(report, open_page):
    """The diff of two steered runs, of which the page holds only how each differs from the baseline."""
    tab = open_page(report)
    runs = tab.evaluate("read('items-data').runs")
    items = tab.evaluate("read('items-data').items")
    one, other = runs.index("en"), runs.index("loc")
    sides = [[item["r"].get(str(run), item["b"])[:2] for run in (one, other)] for item in items]
    differing = [(before, after) for before, after in sides if before != after]
    tab.select_option("[name=from]", label="en")
    tab.select_option("[name=run]", label="loc")
    tab.select_option("[name=view]", "table")
    lost = sum(before[1] > after[1] for before, after in differing)
    text = tab.inner_text("#count")
    assert f"{len(differing)} changed answers on {len(differing)} questions" in text
    assert f"({lost} right → wrong" in text
    heads = tab.evaluate("[...document.querySelectorAll('#diff th')].map((head) => head.textContent)")
    assert heads[3:8] == ["en", "margin", "to", "answer", "margin"]
    assert tab.locator("#diff tbody tr").count() == min(30, len(differing))
    assert not tab.locator("#list li").count()


def test_more_items_are_shown_when_asked_for(report, open_page):
    tab = open_page(report)
    assert tab.locator("#list > li").count() == 30
    tab.click("#more")
    assert tab.locator("#list > li").count() == 60


def test_arabic_runs_from_the_right_and_marks_what_is_right(report, open_page):
    tab = open_page(report)
    tab.select_option('#filters [name="language"]', "ar")
    question = tab.locator(".question").first
    assert question.get_attribute("lang") == "ar"
    assert question.evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert tab.locator(".options").first.locator("li.gold").count() == 1
    assert "✓ right" in tab.locator(".options li.gold").first.inner_text()


# --- the leaderboard -------------------------------------------------------------------------------------------------


def names(tab) -> list[str]:
    return tab.locator("#board .run-name").all_inner_texts()


def column(tab, number: int) -> list[float]:
    return [
        float(text.replace("−", "-"))
        for text in tab.locator(f"#board tbody tr:not(.details) td:nth-child({number}) .value").all_inner_texts()
    ]


def test_columns_sort_both_ways_and_the_address_says_how(site, open_page):
    tab = open_page(site)
    tab.click('[data-sort="transfer_mini_cloze"]')
    scores = column(tab, 3)
    assert len(set(scores)) > 2
    assert scores == sorted(scores, reverse=True)
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.click('[data-sort="transfer_mini_cloze"]')
    assert column(tab, 3) == sorted(scores)
    assert "sort=transfer_mini_cloze" in tab.url
    assert "up=1" in tab.url
    tab.click('[data-sort="localization_mini_cloze:bias"]')  # less is better: the least stands first
    biases = column(tab, 5)
    assert len(set(biases)) > 2
    assert biases == sorted(biases)


def test_runs_are_filtered_and_languages_switched(site, open_page):
    tab = open_page(site)
    assert len(names(tab)) == 5
    tab.fill('#view [name="filter"]', "58%")
    assert set(names(tab)) == {"loc", "surgical", "random"}
    tab.select_option('#view [name="kind"]', "steered")
    assert set(names(tab)) == {"loc", "surgical"}
    before = column(tab, 4)
    tab.select_option('#view [name="language"]', "ko")
    assert column(tab, 4) != before
    assert tab.locator("#count").inner_text() == "2 of 5 runs"


def test_a_link_opens_the_same_view(site, open_page):
    first = open_page(site)
    first.select_option('#view [name="language"]', "ar")
    first.click("text=surgical")
    assert "asked" in first.locator(".details").inner_text()
    again = open_page(site, "#" + first.url.split("#")[1])
    assert again.locator('#view [name="language"]').input_value() == "ar"
    assert again.locator("tr.linked .run-name").inner_text() == "surgical"
    assert names(again) == names(first)
    assert "Arabic" in again.locator(".details").inner_text()


@pytest.mark.parametrize("width", [1200, 390])
def test_the_leaderboard_fits(site, open_page, width):
    tab = open_page(site, width=width, scheme="dark")
    assert fits(tab)
    assert tab.locator("#board").is_visible()


def test_what_was_asked_otherwise_is_marked_and_comes_last(tmp_path, open_page):
    for number, name in enumerate(("a", "b")):
        write_run(tmp_path / name, random_scores(number, n=8), model=f"org/{name}")
    write_run(tmp_path / "c", random_scores(2, {"transfer": 0.9, "localization": 0.9}, n=4), model="org/c")
    tab = open_page(write_site(collect([tmp_path], resamples=100), tmp_path / "site")[0])
    assert names(tab)[-1] == "c"
    assert tab.locator("tr.apart").inner_text().startswith("≠")
    tab.check('#view [name="comparable"]')
    assert set(names(tab)) == {"a", "b"}


# --- what came from results runs nothing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    document = {
        "question": HOSTILE,
        "options": [HOSTILE, "b"],
        "gold": 0,
        "topic": HOSTILE,
        "countries": [[HOSTILE], ["US"]],
    }
    for name, best in (("base", -1.0), (HOSTILE.replace("/", "_")[:120], -9.0)):
        lines = [sample(0, document, [(best, False), (-2.0, False)], {"acc": float(best == -1.0)})]
        plan = "" if name == "base" else HOSTILE
        write_results(root / "tree" / name, HOSTILE, plan, {"one": lines, HOSTILE.replace("/", "")[:60]: lines})
    return root


def test_hostile_names_questions_and_paths_run_nothing(hostile, open_page):
    family = next(task for task in load(hostile / "tree").runs[0].tasks if task != "one")
    plane = measure(load(hostile / "tree"), "base", x="one", y=family, resamples=100)
    board = collect([hostile / "tree"], resamples=100)
    (hostile / "report.html").write_text(Report(plane, title=HOSTILE).html())
    (hostile / "plane.html").write_text(page(plane))
    paths = [hostile / "report.html", hostile / "plane.html", write_site(board, hostile / "site", title=HOSTILE)[0]]
    for path in paths:
        tab = open_page(
            path, drawn=True, fragment="#run=" + HOSTILE.replace('"', "%22").replace("<", "%3C").replace(">", "%3E")
        )
        for control in tab.locator("select").all():
            if control.is_visible() and control.locator("option").count() > 1:
                control.select_option(index=1)
        for button in tab.locator("#board .run-name").all()[:1]:
            button.click()
        tab.mouse.move(600, 400)
        tab.wait_for_timeout(200)
        assert tab.evaluate("globalThis.owned") is None
        assert tab.title() != "owned"
        assert tab.locator("img").count() == 0
        assert tab.locator("b[onmouseover]").count() == 0


def test_a_script_that_slips_into_the_page_is_stopped_by_its_policy(plane_page, browser, tmp_path):
    path = tmp_path / "p.html"
    path.write_text(
        plane_page.read_text().replace("</main>", f'<script>{OWNED}</script><img src=x onerror="{OWNED}"></main>')
    )
    without = tmp_path / "without policy.html"
    without.write_text(path.read_text().replace('http-equiv="Content-Security-Policy"', 'name="none"'))
    for page_file, owned in ((path, None), (without, 1)):
        tab = new_tab(browser)
        tab.goto(page_file.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        assert tab.evaluate("globalThis.owned") == owned
        tab.close()
