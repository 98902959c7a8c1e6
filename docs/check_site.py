"""Links of the built documentation: every file and anchor that a page leads to exists, nothing is loaded from elsewhere.

python docs/check_site.py site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Tags that load something when a page is opened, and the attribute that says what.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


class _Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        target = values.get(_LOADED.get(tag, ""), "")
        if target and not (tag == "link" and values.get("rel") in ("canonical", "prev", "next", "alternate", "edit")):
            self.loaded.append(target)


def problems(site: Path) -> list[str]:
    """What is wrong, a line for each."""
    pages: dict[Path, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path.resolve()] = page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: loads {link}" for link in page.loaded if urlsplit(link).scheme not in ("", "data", "blob")]
        if name.parts[0] == "live" or name.name == "404.html":  # its links are made by its script; is shown anywhere
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name}: {link} does not exist")
            elif (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors | {"__top"}
            ):
                found.append(f"{name}: {link} has no such place")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    lines = problems(folder)
    print("\n".join(lines) or f"{len(list(folder.rglob('*.html')))} pages, no dead link")
    sys.exit(bool(lines))
