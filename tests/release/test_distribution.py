"""What a release consists of: the wheel's files, the same from the sdist, and one version everywhere."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from support.installed import ROOT, build_wheel

from lm_eval_ext import __version__

#: Every kind of file in the wheel; what fits none of these is a mistake.
EXPECTED = (
    "lm_eval_ext/*.py",
    "lm_eval_ext/py.typed",
    "lm_eval_ext/data/axes.yaml",
    "lm_eval_ext/data/browse.html",
    "lm_eval_ext/data/registry.txt",
    "lm_eval_ext/data/localization_gap_splits.tsv",
    "lm_eval_ext/data/blend_tables/*.tsv",
    "lm_eval_ext/data/blend_tables/*.md",
    "lm_eval_ext/data/instruct_mini/*",
    "lm_eval_ext/data/mini/*.jsonl",
    "lm_eval_ext/*/templates/*",
    "lm_eval_ext/tasks/*",
    "lm_eval_ext_autoload.py",
    "lm_eval_ext_autoload.pth",
    "lm_eval_ext-*.dist-info/*",
)
#: Patterns above that would fit these too.
UNWANTED = ("*.pyc", "*__pycache__*", "*.ipynb", "tests/*", "docs/*", "results/*", "*.gguf", "*.safetensors")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and a wheel that was built of it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def files(wheel: Path) -> dict[str, int]:
    """The files of a wheel with the checksum of each; the list of them, which has times in it, left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist() if not entry.filename.endswith("RECORD")}


def test_the_wheel_has_these_files_and_no_others(wheel: Path) -> None:
    names = list(files(wheel))
    strangers = [name for name in names if not any(fnmatch(name, pattern) for pattern in EXPECTED)]
    strangers += [name for name in names if any(fnmatch(name, pattern) for pattern in UNWANTED)]
    assert not strangers
    unused = [pattern for pattern in EXPECTED if not any(fnmatch(name, pattern) for name in names)]
    assert not unused
    checked_in = subprocess.run(
        ["git", "ls-files", "lm_eval_ext"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if checked_in.returncode == 0 and checked_in.stdout:
        assert set(checked_in.stdout.splitlines()) <= set(names)


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(wheel: Path, dist: Path) -> None:
    (from_sdist,) = dist.glob("*.whl")
    assert files(from_sdist) == files(wheel)
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "CITATION.cff", "SECURITY.md", "docs/index.md", "tests/conftest.py"} <= names
    assert not {name for name in names if name.startswith(("results/demo", "site/", "shared/"))}


@pytest.mark.slow
def test_the_index_would_take_it(dist: Path) -> None:
    twine = pytest.importorskip("twine.commands.check", reason="needs twine (pip install twine)")
    assert not twine.check([str(path) for path in dist.iterdir()], strict=True)


def test_one_version_and_the_licences_of_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
        licences = [name for name in archive.namelist() if "/licenses/" in name]
    assert metadata["Version"] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-4.0 AND CC-BY-SA-4.0"
    assert {Path(name).name for name in licences} == {"LICENSE", "README.md", "LICENCE.md"}


def test_workflows_and_templates_are_yaml_and_pin_what_they_use() -> None:
    found = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(found) >= 5
    contents = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in found}
    for name in ("bug.yml", "number.yml"):
        assert "doctor --json" in str(contents[name])
    release = contents["release.yml"]["jobs"]
    assert release["try"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert release["publish"]["permissions"] == {"id-token": "write"}
    assert release["publish"]["needs"] == "try"
