"""Self-contained pages: templates with every value escaped, plotly.js once, nothing loaded from anywhere.

The content security policy allows only the scripts that the page was written with, by their hashes: even a value that
slipped through the escaping would not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.version import __version__
from lm_eval_ext.viz import theme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lm_eval_ext.viz.chart import Chart

TEMPLATES = Path(__file__).parent / "templates"


def render(
    template: str,
    *,
    title: str,
    charts: Iterable[Chart] = (),
    scripts: Iterable[str] = (),
    data: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    **values: Any,
) -> str:
    """A page from a template that extends `base.html`.

    Args:
        template: its name.
        title: of the page.
        charts: figures; the template places each with `parts.chart(figure_part(chart))`.
        scripts: our own JavaScript of this page, run after `page.js`.
        data: JSON blocks by their ids, for the scripts.
        folder: where to look for templates and styles besides ours.
        values: for the template.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folders = [*([folder] if folder else []), TEMPLATES]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    charts = list(charts)
    sources = [*([_plotly()] if charts else []), (TEMPLATES / "page.js").read_text(encoding="utf-8"), *scripts]
    blocks = {"theme-colours": list(theme.PALETTE.values()), **(data or {})}
    blocks |= {
        f"chart-{chart.name}": {"name": chart.name, "figure": chart.json(), "csv": chart.csv()} for chart in charts
    }
    styles = [
        _variables(),
        *(path.read_text(encoding="utf-8") for folder in reversed(folders) for path in _css(folder)),
    ]
    return environment.get_template(template).render(
        title=title,
        policy=Markup(_policy(sources)),  # noqa: S704  # nothing but our own words and hashes
        version=__version__,
        style=Markup("\n".join(styles)),  # noqa: S704  # our own files
        scripts=[Markup(source) for source in sources],  # noqa: S704  # our own files and plotly.js
        data={name: Markup(_json(block)) for name, block in blocks.items()},  # noqa: S704  # `_json` leaves no markup
        **values,
    )


def figure_part(chart: Chart) -> dict[str, Any]:
    """What `parts.chart` needs of a figure."""
    entries = [trace.name or "" for trace in chart.figure.data if trace.showlegend is not False]
    shown = chart.figure.layout.showlegend is not False
    return {
        "name": chart.name,
        "title": chart.title,
        "caption": chart.caption,
        "height": chart.height,
        "min_width": chart.min_width,
        "narrow_rows": _legend_rows(entries, 300) if shown else 0,
    }


def sentence(text: str) -> str:
    """A line of text as a sentence."""
    return text[:1].upper() + text[1:] + "."


def _json(block: Any) -> str:
    """JSON that stands in HTML as it is: it holds no `<`, `>` or `&`."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(block, cls=PlotlyJSONEncoder, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    # Styles: plotly.js sets them on its elements.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # A script's hash is taken of what the browser reads: it has no carriage returns, and must not end early.
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _css(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.css"))


def _variables() -> str:
    light, dark = theme.css_variables(dark=False), theme.css_variables(dark=True)
    return (
        f":root {{ color-scheme: light; --font: {theme.FONT}; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {dark} }} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}"
    )


def _legend_rows(names: Iterable[str], width: int) -> int:
    """Rows that plotly's legend will need in a width in pixels: room that the plot should not lose."""
    n_rows, used = 1, 0
    for name in names:
        entry = 50 + 8 * len(name)
        n_rows, used = (n_rows + 1, entry) if used and used + entry > width else (n_rows, used + entry)
    return n_rows
