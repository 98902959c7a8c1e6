"""Pages of the documentation that are made when it is built, from the one place where their content is kept.

The command line from its own options, the library from the package's public names, data cards from `tasks/*/README.md`,
measured tables from `results/*/README.md`, the changelog, and the live pages from measured results.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]

#: Pages that are files of the repository, by their place in the site.
PAGES = {
    "data/gmmlu.md": "tasks/gmmlu/README.md",
    "data/blend_decon.md": "tasks/blend_decon/README.md",
    "data/blend_tables.md": "lm_eval_ext/data/blend_tables/README.md",
    "data/english_bias.md": "tasks/english_bias/README.md",
    "data/localization_gap.md": "tasks/localization_gap/README.md",
    "data/transfer_mini.md": "tasks/transfer_mini/README.md",
    "data/localization_mini.md": "tasks/localization_mini/README.md",
    "data/bmlama.md": "tasks/bmlama/README.md",
    "data/instruct_mini.md": "lm_eval_ext/data/instruct_mini/README.md",
    "benchmarks/demo.md": "results/demo-gemma3-270m/README.md",
    "benchmarks/blend.md": "results/blend-gemma3-270m/README.md",
    "benchmarks/localization-gap.md": "results/localization-gap-gemma3-270m/README.md",
    "benchmarks/gap-screen.md": "results/gap-screen/README.md",
    "benchmarks/tune.md": "results/tune-gemma3-270m/README.md",
    "benchmarks/tune-qwen.md": "results/tune-qwen2.5-coder-0.5b/README.md",
    "benchmarks/steering-questions.md": "results/steering-questions-gemma3-270m/README.md",
    "benchmarks/sweep.md": "results/sweep-gemma3-270m/README.md",
    "benchmarks/geometry.md": "results/geometry-gemma3-270m/README.md",
    "benchmarks/training.md": "results/training-gemma3-270m/README.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/architecture.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
}

#: Measured tables that go below the page of their folder.
TABLES = {"benchmarks/blend.md": ["results/blend-gemma3-270m/scores.md"]}

#: What a block of commands begins with.
_COMMANDS = {"lm-eval-ext", "lm_eval", "make", "export", "pip", "python", "OMP_NUM_THREADS=1"}
_IMAGE = re.compile(r"(!\[[^\]]*\]\()([^)\s]+\.(?:png|svg))(\))")
#: Paths in backquotes that have a page of their own.
_README = re.compile(r"`tasks/(\w+)/README\.md`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one
    import api_page
    import cli_page
    import estimators_page
    import live_pages

    for place, source in PAGES.items():
        folder = (ROOT / source).parent
        prefix = place.rpartition("/")[2].removesuffix(".md")
        text = _IMAGE.sub(rf"\1{prefix}/\2\3", (ROOT / source).read_text(encoding="utf-8"))
        for image in _images(text, prefix):
            if files.get_file_from_path(target := f"{place.rpartition('/')[0]}/{prefix}/{image}") is None:
                files.append(File.generated(config, target, abs_src_path=str(folder / image)))
        text = "\n\n".join([text, *((ROOT / table).read_text(encoding="utf-8") for table in TABLES.get(place, []))])
        files.append(File.generated(config, place, content=_fenced(_linked(text, place))))
    files.append(File.generated(config, "reference/cli.md", content=cli_page.page()))
    files.append(File.generated(config, "reference/api.md", content=api_page.page()))
    files.append(File.generated(config, "reference/estimators.md", content=estimators_page.page()))
    for place, content in live_pages.pages():
        files.append(File.generated(config, place, content=content))
    for place, source in _pictures():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def _pictures() -> Iterator[tuple[str, str]]:
    """Our figures that other pages show, by their place in the site."""
    yield "assets/layers.png", "results/sweep-gemma3-270m/figures/layer_curves_blend_decon_dev_cloze_prompt.png"
    for name in ("plane.png", "gate.svg", "leaderboard.png"):
        yield f"assets/{name}", f"results/demo-gemma3-270m/{name}"


def _images(text: str, prefix: str) -> Iterator[str]:
    for match in _IMAGE.finditer(text):
        if match[2].startswith(f"{prefix}/"):
            yield match[2].removeprefix(f"{prefix}/")


def _linked(text: str, place: str) -> str:
    """The text with links to the cards that it names."""
    up = "../" * place.count("/")

    def link(match: re.Match[str]) -> str:
        target = f"data/{match[1]}.md"
        return f"[{match[0]}]({up}{target})" if target in PAGES and target != place else match[0]

    return _README.sub(link, text)


def _fenced(text: str) -> str:
    """Indented blocks as blocks with a language."""
    lines: list[str] = []
    block: list[str] = []
    in_fence = False

    def close() -> None:
        while block and not block[-1]:
            block.pop()
        if block:
            language = "console" if block[0].split()[0] in _COMMANDS else "text"
            lines.extend([f"```{language}", *(line[4:] for line in block), "```", ""])
            block.clear()

    previous = ""
    for line in text.splitlines():
        if line.startswith("```"):
            in_fence = not in_fence
        starts = line.startswith("    ") and not previous.strip() and not in_fence
        if starts or (block and (line.startswith("    ") or not line)):
            block.append(line)
        else:
            close()
            lines.append(line)
        previous = line
    close()
    return "\n".join(lines) + "\n"
