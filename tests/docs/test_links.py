"""Links: of the Markdown in the repository, which GitHub shows as it is, and the check of the built site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from support.snippets import ROOT, pages

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The places in a page that a link may lead to, as GitHub and mkdocs name them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_readme_and_its_kin_lead_somewhere() -> None:
    generated = {f"docs/{name}" for name in re.findall(r'"([\w/-]+\.md)"', (ROOT / "docs" / "hooks.py").read_text())}
    checked = 0
    for page in pages():
        if page.parent.name == "_parts":
            continue
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, place = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            name = str(target.relative_to(ROOT))
            checked += 1
            if name in generated or name.startswith(("docs/live/", "docs/assets/")):
                continue
            assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
            assert not place or place in anchors(target), f"{page.relative_to(ROOT)}: {link}"
    assert checked > 100


def test_every_page_has_its_place() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda *_: None)
    navigation = str(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"])
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name.startswith("_parts/") or f"'{name}'" in navigation, name


def test_the_check_of_the_site_sees_what_is_wrong(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "docs" / "check_site.py")
    assert spec
    assert spec.loader
    check_site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_site)
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there">b</a> <a href="#here">a</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="https://example.org">elsewhere</a>')
    assert check_site.problems(tmp_path) == []
    (tmp_path / "b.html").write_text('<a href="c.html">c</a><script src="https://example.org/x.js"></script>')
    assert check_site.problems(tmp_path) == [
        "a.html: b.html#there has no such place",
        "b.html: loads https://example.org/x.js",
        "b.html: c.html does not exist",
    ]


@pytest.mark.parametrize("name", ["mkdocs.yml"])
def test_the_site_asks_no_one_else(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "font: false" in text
    assert not re.findall(r"https?://", text)
