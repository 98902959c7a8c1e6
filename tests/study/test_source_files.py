"""Which code a stage of a study depends on: what its command can run, and nothing else."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support.studies import MODULES, Commands, start, study

from lm_eval_ext.paths import PACKAGE, tasks_dir
from lm_eval_ext.study import run as running
from lm_eval_ext.study.run import EVAL_MODULE
from lm_eval_ext.study.source_files import SourceFiles

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that a test may edit."""
    copy = tmp_path / "copy" / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def edit(package: Path, name: str) -> None:
    file = package / name
    assert file.is_file()
    file.write_text(file.read_text() + "\n# edited\n")


def changed(package: Path, edited: str) -> set[str]:
    """The subcommands whose code is another one after an edit."""
    modules = {"eval": EVAL_MODULE, **{name: MODULES[name] for name in ("data", "train", "extract", "sweep", "plane")}}
    before, after = SourceFiles(package, tasks_dir()), SourceFiles(package, tasks_dir())
    hashes = {name: before.hashes(module) for name, module in modules.items()}
    edit(package, edited)
    return {name for name, module in modules.items() if after.hashes(module) != hashes[name]}


@pytest.mark.parametrize(
    ("edited", "subcommands"),
    [
        ("training/losses.py", {"train"}),
        ("training/methods/clo.py", {"train"}),  # imported by its name alone
        ("viz/theme.py", {"sweep", "plane"}),
        ("plane/page.py", {"plane"}),
        ("steering/extraction.py", {"train", "extract", "sweep"}),
        ("data/metrics.py", {"eval", "sweep"}),  # named in task files
        ("backends/hf/model.py", {"eval", "sweep"}),  # named in a text
        ("commands/doctor.py", set()),
    ],
)
def test_an_edit_concerns_the_commands_that_can_run_it(package: Path, edited: str, subcommands: set[str]) -> None:
    assert subcommands <= changed(package, edited)


@pytest.mark.parametrize(
    ("edited", "others"),
    [
        ("training/losses.py", {"eval", "extract", "plane", "sweep"}),
        ("viz/theme.py", {"train", "extract", "eval", "data"}),
        ("commands/doctor.py", {"train", "extract", "eval", "data", "plane", "sweep"}),
    ],
)
def test_an_edit_concerns_no_others(package: Path, edited: str, others: set[str]) -> None:
    assert not others & changed(package, edited)


def test_imports_are_found_in_every_form(tmp_path: Path) -> None:
    package = tmp_path / "toy"
    sources = {
        "__init__.py": "NAMES = {'unused': 'toy.unused'}\nfrom toy import start\n",
        "start.py": (
            "from __future__ import annotations\nimport os, toy.plain\nfrom typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import toy.annotation\nelse:\n    import toy.otherwise\n"
            "def run():\n    from toy.inner import lazy\n    try:\n        from .near import x\n"
            "    except ImportError:\n        return 'toy.named:function'\n"
        ),
        **{f"{name}.py": "" for name in ("plain", "annotation", "otherwise", "near", "named", "unused")},
        "inner/__init__.py": "import pkgutil\nnames = pkgutil.iter_modules(__path__)\n",
        "inner/lazy.py": "from .. import plain\n",
        "inner/found.py": "from toy import start\n",
    }
    for name, content in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    found = SourceFiles(package, tmp_path).hashes("toy.start")
    assert set(found) == {f"toy/{name}" for name in sources} - {"toy/__init__.py", "toy/annotation.py", "toy/unused.py"}


def test_edited_code_runs_its_stages_again(
    tmp_path: Path, package: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SourceFiles", lambda: SourceFiles(package, tasks_dir()))
    asked = study(tmp_path)
    start(asked)
    commands.names()
    edit(package, "training/losses.py")
    said = start(asked)
    # What they train is the same again, so nothing after them runs.
    assert commands.names() == ["train", "train"]
    assert any("train/mist: the code that it runs changed (lm_eval_ext/training/losses.py)" in line for line in said)
    edit(package, "steering/vectors.py")
    start(asked)
    assert "extract" in commands.names()
    edit(package, "viz/theme.py")
    start(asked)
    assert set(commands.names()) == {"sweep", "plane"}
    start(asked)
    assert commands.names() == []


def test_a_study_of_an_earlier_release_runs_again(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    start(asked)
    commands.names()
    file = asked.out / "study.json"
    state = json.loads(file.read_text())
    del state["stages"]["plane"]["made_from"]["code"]
    file.write_text(json.dumps(state))
    assert any("plane: the code that it ran is not recorded" in line for line in start(asked))
    assert commands.names() == ["plane"]
