"""`lm-eval-ext data`: check, audit, card, show; the page to browse items, in a browser."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from support.browser import CHROMIUM
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.data import blend, browse, card
from lm_eval_ext.data.blend import report
from lm_eval_ext.data.blend.source import Problem
from lm_eval_ext.languages import LANGUAGES
from lm_eval_ext.paths import tasks_dir

CARD = tasks_dir() / "blend_decon" / "README.md"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


@pytest.fixture
def mirror(upstream_data: Path) -> Path:
    """The real data, or where there is none the small mirror."""
    return upstream_data


def data(runner: CliRunner, *arguments: str, status: int = 0) -> str:
    result = runner.invoke(cli.app, ["data", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def row(output: str, name: str) -> list[int]:
    (line,) = re.findall(rf"^ *{re.escape(name)} +([\d ]+)$", output, re.MULTILINE)
    return [int(number) for number in line.split()]


# --- check, audit, card -----------------------------------------------------------------------------------------------


def test_help_names_every_command(runner: CliRunner) -> None:
    output = data(runner, "--help")
    assert all(name in output for name in ("check", "audit", "card", "show", "export", "import"))


@pytest.mark.usefixtures("shared_data", "mirror")
def test_check_says_how_many_ids_apply_drop_and_fail_and_what_comes_of_them(runner: CliRunner) -> None:
    output = data(runner, "check", "blend")
    applied, dropped, failed = (row(output, name) for name in ("apply", "drop", "fail"))
    assert [a + d + f for a, d, f in zip(applied, dropped, failed, strict=True)] == [500] * 7
    assert failed == [0] * 7
    assert row(output, "items") == [count.items for count in blend.counts()]
    assert row(output, "of them in the core") == [count.core for count in blend.counts()]
    reasons = {reason for count in blend.counts() for reason in count.reasons}
    found = {reason: row(output, reason) for reason in reasons}
    assert [sum(numbers) for numbers in zip(row(output, "items"), *found.values(), strict=True)] == [500] * 7


@pytest.mark.usefixtures("mirror")
def test_check_names_what_fails_and_ends_with_status_1(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = report.Check(
        "el", 499, {}, {"Al-en-01": "'στην Ελλάδα' is found 2 times"}, (Problem("Greece", "x", "bad"),)
    )
    monkeypatch.setattr(blend, "check", lambda: [broken])
    output = data(runner, "check", status=1)
    assert "el Al-en-01: 'στην Ελλάδα' is found 2 times" in output
    assert "el x: bad" in output


@pytest.mark.usefixtures("shared_data", "mirror")
def test_audit_is_silent_on_what_is_built_and_prints_the_allow_list_with_reasons(runner: CliRunner) -> None:
    output = data(runner, "audit", "blend")
    assert output.startswith("0 findings that are not on the allow-list")
    assert "'Mexico City': name of a city" in output


@pytest.mark.usefixtures("mirror")
def test_audit_ends_with_status_1_on_a_leak(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    leak = report.Finding("ko", "Al-en-01", "option 2", "country", "대한민국")
    monkeypatch.setattr(blend, "audit", lambda: [leak])
    output = data(runner, "audit", status=1)
    assert "ko Al-en-01, option 2: '대한민국' (country)\n1 findings that are not on the allow-list" in output


@pytest.mark.usefixtures("shared_data", "mirror")
def test_the_data_card_has_the_numbers_of_what_is_built(runner: CliRunner) -> None:
    numbers = data(runner, "card", "blend").rstrip("\n")
    assert card.written(CARD) == numbers, f"stale: run `lm-eval-ext data card blend --write {CARD.name}`"
    for count in blend.counts():
        column = list(LANGUAGES).index(count.language) + 2
        (line,) = re.findall(r"^\| both \|.*$", numbers, re.MULTILINE)
        assert int(line.split("|")[column]) == count.items


@pytest.mark.usefixtures("mirror")
def test_the_numbers_of_a_card_are_replaced_and_nothing_else(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n\n{card.BEGIN}\nold\n{card.END}\n\nafter\n", "utf-8")
    data(runner, "card", "--write", str(file))
    text = file.read_text("utf-8")
    assert text.startswith(f"before\n\n{card.BEGIN}\n\nSHA-256")
    assert text.endswith(f"{card.END}\n\nafter\n")
    assert "\nold\n" not in text
    file.write_text("no markers", "utf-8")
    assert "no markers for the numbers" in data(runner, "card", "--write", str(file), status=2)


def test_the_card_says_all_that_a_data_card_must() -> None:
    text = CARD.read_text("utf-8")
    parts = ("CC-BY-SA-4.0", "What was edited", "By what rule", "| topic |", "| format of the options |", "| gold is |")
    parts += ("share of items with an option taken for", "Known weaknesses", "How to cite", "Changelog", "Splits")
    assert [part for part in parts if part not in text] == []


# --- show -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mirror")
def test_items_are_shown_as_the_model_sees_them(runner: CliRunner) -> None:
    shown = data(runner, "show", "blend", "--lang", "el", "--n", "3")
    for document in blend.documents("el")[:3]:
        a, b, c, d = document["options"]
        assert f"{document['question']}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:\n" in shown
        assert f"  → ' {'ABCD'[document['gold']]}'  Greece" in shown
    assert shown.count("→") == shown.count("── blend_decon_el") == 3


@pytest.mark.usefixtures("mirror")
def test_other_families_and_cloze_prompts_are_shown_too(runner: CliRunner) -> None:
    shown = data(runner, "show", "blend_ctx", "--lang", "zh", "-n", "1", "--cloze")
    (document,) = blend.documents("zh", "ctx")[:1]
    assert f"问题：{document['question']}\n答案：\n" in shown
    assert f"  → '{document['options'][document['gold']]}'  China" in shown
    assert "___" not in (shown := data(runner, "show", "bmlama", "--lang", "ko", "-n", "1"))
    assert "→ ' " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "blend", "--lang", "fr"], "no task 'blend_decon_fr' in this package"),
        (["show", "blond"], "no task 'blond_en' in this package"),
        (["show", "gmmlu", "--html", "x.html"], "unknown data set 'gmmlu'; valid: blend"),
        (["show", "blend", "--lang", "fr", "--html", "x.html"], "unknown language 'fr'"),
        (["check", "flores"], "unknown data set 'flores'; valid: blend"),
        (["audit", "flores"], "valid: blend"),
        (["card", "flores"], "valid: blend"),
        (["export", "flores", "--out", "x"], "valid: blend"),
        (["export", "blend", "--format", "xml", "--out", "x"], "unknown format 'xml'; valid: parquet, jsonl, hub"),
        (["import", "nowhere.jsonl", "--name", "mine", "--out", "x"], "cannot read nowhere.jsonl"),
    ],
)
@pytest.mark.usefixtures("mirror")
def test_a_mistake_is_one_message_and_status_2(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = data(runner, *arguments, status=2)
    assert message in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_without_data_the_mirror_variable_is_named(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path / "none"))
    for command in ("check", "audit", "card"):
        assert "LM_EVAL_EXT_DATA" in data(runner, command, status=2)


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser shows: text of the visible articles, the counter, tags and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.visible: list[str] = []
        self.hidden = 0
        self.count = ""
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._where = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag == "article":
            self._where = "hidden" if "hidden" in dict(attrs) else "visible"
            self.hidden += self._where == "hidden"
            self.visible += [""] if self._where == "visible" else []
        elif tag == "output":
            self._where = "output"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("article", "output"):
            self._where = ""

    def handle_data(self, data: str) -> None:
        if self._where == "visible":
            self.visible[-1] += data
        elif self._where == "output":
            self.count += data


def in_browser(file: Path, profile: Path, search: str = "") -> Page:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom"]
    address = file.as_uri() + (f"#{quote(search)}" if search else "")
    done = subprocess.run([CHROMIUM, *options, address], capture_output=True, timeout=900, check=True)
    return Page(done.stdout.decode("utf-8"))


@pytest.fixture(scope="module")
def greek(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "el.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
        assert (
            CliRunner().invoke(cli.app, ["data", "show", "blend", "--lang", "el", "--html", str(file)]).exit_code == 0
        )
    return file


@pytest.mark.usefixtures("mirror")
def test_the_page_shows_every_question_beside_its_source(greek: Path, tmp_path: Path) -> None:
    page = in_browser(greek, tmp_path)
    every, first = blend.documents("el", split="all", repeats=3), blend.documents("el", split="all")
    assert len(page.visible) == len(first)
    assert len(page.visible) + page.hidden == len(every)
    assert page.count == f"{len(first)} of {len(every)} items"
    named = {document["id"]: document["question"] for document in blend.documents("el", "ctx", split="all")}
    for text, document in zip(page.visible, first, strict=True):
        assert all(option in text for option in document["options"])
        assert document["question"] in text
        assert named[document["id"]] in text
        assert all(country.replace("_", " ") in text for countries in document["countries"] for country in countries)
    assert page.addresses == []  # nothing is loaded from anywhere


@pytest.mark.usefixtures("shared_data", "mirror")
def test_a_search_finds_words_without_their_accents(greek: Path, tmp_path: Path) -> None:
    wanted = [document for document in blend.documents("el", split="all") if "γιορτή" in document["question"]]
    page = in_browser(greek, tmp_path, "γιορτη ΕΛΛΑΔΑ")
    assert 0 < len(wanted) <= len(page.visible) < 20
    assert all("γιορτή" in text.lower() for text in page.visible)


def test_what_a_question_holds_is_text_and_never_markup(
    monkeypatch: pytest.MonkeyPatch, mirror: Path, tmp_path: Path
) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>{{ 7 * 7 }}"
    )
    rows = blend.documents("ar", split="all")[:2]
    for document in rows:
        document |= {"question": hostile, "question_ctx": hostile, "options": [hostile] * 4, "topic": hostile}
    monkeypatch.setattr(browse, "_rows", lambda code: rows)
    file = tmp_path / "page.html"
    file.write_text(browse.page("ar"), "utf-8")
    page = in_browser(file, tmp_path / "profile")
    assert len(page.visible) == 2
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert "owned'\"></script>" in page.visible[0]
    assert "{{ 7 * 7 }}" in page.visible[0]


def test_arabic_runs_from_right_to_left(mirror: Path) -> None:
    assert 'lang="ar" dir="rtl"' in browse.page("ar")
    assert 'lang="ko" dir="ltr"' in browse.page("ko")


def test_pages_and_cards_are_never_left_half_written(
    runner: CliRunner, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "el.html"
    file.write_text("the old page")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left" in data(runner, "show", "blend", "--lang", "el", "--html", str(file), status=2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old page"]
