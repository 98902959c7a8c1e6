"""`lm-eval-ext doctor`: what it finds, what it advises, when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lm_eval_ext import cli, doctor, harness
from lm_eval_ext.doctor import ABSENT, BROKEN, OK, Finding
from lm_eval_ext.steering import registry

ALL_SEEN = {"models": {"steered-hf": None}, "tasks": 126, "unseen": [], "loads_entry_points": False}
NONE_SEEN = {
    "models": {"steered-hf": "ValueError: Attempted to load model 'steered-hf', but no model for this name found!"},
    "tasks": 126,
    "unseen": ["gmmlu", "gmmlu_ar", "gmmlu_el", "gmmlu_en"],
    "loads_entry_points": False,
}


def found_of(report: dict[str, Any], warning: str = "") -> list[Finding]:
    return list(doctor.discovery(doctor.Seen(report, warning)))


@pytest.mark.slow
def test_a_real_examination_with_discovery_switched_off() -> None:
    command = [sys.executable, "-m", "lm_eval_ext", "doctor", "--json"]
    env = {**os.environ, "LM_EVAL_EXT_AUTOLOAD": "0", "LM_EVAL_EXT_DATA": ""}
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    findings = {item["subject"]: item for item in json.loads(process.stdout)}
    assert {"python", "lm_eval", "torch", "transformers", "mirror", "embedded model", "cpu"} <= findings.keys()
    for subject in ("tasks", "model steered-hf"):
        assert findings[subject]["status"] == ABSENT
        assert "LM_EVAL_EXT_AUTOLOAD=0" in findings[subject]["detail"]
        assert "lm-eval-ext eval" in findings[subject]["remedy"]
    assert {name for name in findings if name.startswith("patch: ")} == {f"patch: {p.name}" for p in harness.PATCHES}
    assert all(item["status"] == OK for name, item in findings.items() if name.startswith("patch: "))
    broken = [item["subject"] for item in findings.values() if item["status"] == BROKEN]
    assert process.returncode == bool(broken), broken


def test_a_patch_that_does_not_fit_says_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("lm_eval._cli.harness.HarnessCLI.execute")
    found = {finding.subject: finding for finding in doctor.patches()}
    broken = found.pop("patch: user errors")
    assert broken.status == BROKEN
    assert "ends lm_eval with a traceback" in broken.detail
    assert "has no attribute 'execute'" in broken.detail
    assert {finding.status for finding in found.values()} == {OK}


def test_discovery_that_works_names_its_route() -> None:
    model, tasks = found_of(ALL_SEEN)
    assert (model.status, tasks.status) == (OK, OK)
    assert doctor.PTH in model.detail
    assert "126 names" in tasks.detail
    model, tasks = found_of({**ALL_SEEN, "loads_entry_points": True})
    assert "entry point" in model.detail
    assert doctor.PTH in tasks.detail


def test_discovery_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LM_EVAL_EXT_AUTOLOAD", raising=False)
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path))
    findings = found_of(NONE_SEEN)
    assert [finding.subject for finding in findings] == ["model steered-hf", "tasks"]
    for finding in findings:
        assert finding.status == BROKEN
        assert "not in site-packages" in finding.detail
        assert "pip install" in finding.remedy
    (tmp_path / doctor.PTH).touch()
    findings = found_of(NONE_SEEN, "lm_eval_ext: (ImportError: boom)")
    assert len(findings) == 2
    for finding in findings:
        assert finding.status == BROKEN
        assert "boom" in finding.detail


def test_model_that_is_found_but_cannot_be_imported() -> None:
    model, _ = found_of({**ALL_SEEN, "models": {"steered-hf": "ImportError: no torch"}})
    assert model.status == BROKEN
    assert "no torch" in model.detail


def test_a_harness_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE", "import sys; sys.exit('no such module')")
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["discovery"].status == BROKEN
    assert "no such module" in findings["discovery"].detail
    assert findings["cpu"].status == OK  # examined here then


def test_nothing_heavy_is_imported_twice() -> None:
    """The interpreter that shows what the harness finds examines what needs the harness and torch, too."""
    code = (
        "import sys; from lm_eval_ext import doctor; found = {f.subject for f in doctor.examine()}; "
        "assert {'tasks', 'patch: models', 'estimator lda', 'cpu'} <= found, found; "
        "assert not {'torch', 'transformers', 'lm_eval.tasks'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "pooch":
            raise metadata.PackageNotFoundError(name)
        return "4.0" if name == "transformers" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    broken = {finding.subject: finding for finding in doctor.versions() if finding.status == BROKEN}
    assert broken.keys() >= {"pooch", "transformers"}
    assert broken["pooch"].detail == "not installed"
    assert broken["transformers"].detail.startswith("4.0, needed: ")
    assert ">=4.5" in broken["transformers"].detail
    assert "pip install 'transformers" in broken["transformers"].remedy
    # Nothing that would import them is tried.
    monkeypatch.setattr(doctor, "_Probe", lambda: pytest.fail("the harness was imported"))
    assert {finding.subject for finding in doctor.examine()} & {"cache", "tasks", "mirror", "cpu"} == {"cache"}


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "new" / "cache"))
    assert doctor.cache().status == OK
    (tmp_path / "file").touch()
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "file" / "cache"))
    assert doctor.cache().status == BROKEN


def test_data_in_a_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "cache"))
    for name in ("gmmlu/ko/test.jsonl", "blend/annotations/UK_data.json"):
        file = tmp_path / "mirror" / name
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path / "mirror"))
    findings = {finding.subject: finding for finding in doctor.data()}
    assert findings["mini data"].status == OK
    assert findings["mirror"].status == OK
    assert findings["BLEnD"].status == ABSENT
    assert findings["BLEnD"].detail.startswith("1 of ")
    assert "mirror: ko" in findings["Global-MMLU"].detail
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path / "no mirror"))
    assert {finding.subject: finding.status for finding in doctor.data()}["mirror"] == BROKEN


def test_the_real_mirror_is_complete(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    findings = {finding.subject: finding.status for finding in doctor.data()}
    assert (findings["BLEnD"], findings["FLORES-200"], findings["NTREX-128"]) == (OK, OK, OK)
    assert findings["localization_gap"] == OK


@pytest.mark.parametrize(
    ("converted", "installed", "status", "words"),
    [(True, True, OK, "ready in"), (False, True, OK, "not yet converted"), (False, False, ABSENT, "not installed")],
)
def test_embedded_model(
    converted: bool, installed: bool, status: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lm_eval_ext.models.embedded.is_converted", lambda: converted)
    monkeypatch.setattr("lm_eval_ext.models.embedded.is_installed", lambda: installed)
    monkeypatch.setattr("lm_eval_ext.models.embedded.path", lambda: tmp_path)
    (finding,) = doctor.models()
    assert finding.status == status
    assert words in finding.detail


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (ABSENT, 0), (BROKEN, 1)])
def test_printed_findings_and_exit_status(status: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter([Finding("thing", status, "its state", "do this")]))
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == code
    assert result.output.split() == [status, "thing", "its", "state", "->", "do", "this"]


def test_estimators_of_other_packages_are_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (EntryPoint("outside", "no_such_package:Name", registry.GROUP),)
    monkeypatch.setattr(registry, "_points", lambda: points)
    findings = {finding.subject: finding for finding in doctor.estimators()}
    assert findings["estimator mean_difference"].status == OK
    assert findings["estimator outside"].status == BROKEN
    assert "ModuleNotFoundError" in findings["estimator outside"].detail
