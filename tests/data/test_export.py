"""The exported set: the same for ever, loaded by `datasets`, scored the same without this package."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from support import tiny

from lm_eval_ext.data import blend, export
from lm_eval_ext.errors import DataError
from lm_eval_ext.languages import LANGUAGES
from lm_eval_ext.paths import tasks_dir


@pytest.fixture(scope="session")
def exported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set in every format, each in a folder of that name."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
        for form in export.FORMATS:
            export.export(form, folder / form)
    return folder


@pytest.fixture(autouse=True)
def _mirror(shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("form", export.FORMATS)
def test_every_split_of_every_language_loads_and_says_what_the_tasks_say(exported: Path, form: str) -> None:
    folder = str(exported / form)
    assert datasets.get_dataset_config_names(folder) == [f"{code}{ctx}" for code in LANGUAGES for ctx in ("", "_ctx")]
    for code, suffix, wanted in (("ar", "", {}), ("zh", "_ctx", {"wording": "ctx"})):
        loaded = datasets.load_dataset(folder, code + suffix)
        assert loaded["test"].to_list() == blend.documents(code, **wanted)
        assert loaded["dev2"].to_list() == blend.documents(code, split="dev2", **wanted)
    repeats = datasets.load_dataset(folder, "ko", split="repeats")
    assert len(set(repeats["cluster"])) < len(repeats) == len(set(repeats["id"]))


def test_the_hash_of_the_data_card_is_that_of_the_json_lines(exported: Path) -> None:
    readme = (exported / "jsonl" / "README.md").read_text("utf-8")
    command = re.search(r"cat (.+) \| sha256sum", readme)
    assert command
    digest = hashlib.sha256()
    for name in command[1].split():
        digest.update((exported / "jsonl" / name).read_bytes())
    card = (tasks_dir() / "blend_decon" / "README.md").read_text("utf-8")
    assert digest.hexdigest() == blend.fingerprint()
    assert f"`{digest.hexdigest()}`" in readme
    assert f"SHA-256 of all items: `{digest.hexdigest()}`" in card


def test_another_process_with_other_hash_seed_locale_and_folder_writes_the_same_bytes(
    exported: Path, tmp_path: Path
) -> None:
    code = "import sys; from lm_eval_ext.cli import main; main()"
    command = [sys.executable, "-c", code, "data", "export", "--format", "jsonl", "--out", str(tmp_path / "again")]
    env = {**os.environ, "PYTHONHASHSEED": "4711", "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Asia/Seoul"}
    done = subprocess.run(
        command, env=env | {"PYTHONPATH": str(Path(__file__).parents[2])}, cwd=tmp_path, capture_output=True, check=True
    )
    assert blend.fingerprint() in done.stdout.decode()
    again, first = tmp_path / "again", exported / "jsonl"
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert len(names) == 7 * 5 + 1
    assert names == sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert all((again / name).read_bytes() == (first / name).read_bytes() for name in names)
    assert not any(b"\r" in (first / name).read_bytes() for name in names)


def scores(results: dict[str, Any] | None, task: str) -> list[tuple[float, ...]]:
    assert results is not None
    return [
        (sample["acc"], sample["acc_norm"], sample["acc_mutual_info"], *(resp[0][0] for resp in sample["resps"]))
        for sample in results["samples"][task]
    ]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_plain_task_of_the_readme_gives_the_same_scores(exported: Path, tmp_path: Path, form: str) -> None:
    readme = (exported / form / "README.md").read_text("utf-8")
    snippet = re.search(r"```yaml\n(.+?)```", readme, re.DOTALL)
    assert snippet
    assert (
        set(yaml.safe_load(snippet[1])) & {"include", "custom_dataset", "process_results"} == set()
    )  # nothing of ours
    (tmp_path / "blend_el_cloze.yaml").write_text(snippet[1].replace("FOLDER", str(exported / form)), "utf-8")
    model = tiny.hf("qwen2")
    options: dict[str, Any] = {"limit": 25, "bootstrap_iters": 0}
    plain = simple_evaluate(
        model,
        tasks=["blend_el_cloze"],
        task_manager=TaskManager(None, str(tmp_path), include_defaults=False),
        **options,
    )
    ours = simple_evaluate(
        model,
        tasks=["blend_decon_el_cloze"],
        task_manager=TaskManager(None, str(tasks_dir()), include_defaults=False),
        **options,
    )
    assert scores(plain, "blend_el_cloze") == scores(ours, "blend_decon_el_cloze")
    assert len({score[0] for score in scores(plain, "blend_el_cloze")}) == 2  # some right, some wrong


def test_the_hub_folder_carries_licence_languages_and_the_whole_data_card(exported: Path) -> None:
    head, _, body = (exported / "hub" / "README.md").read_text("utf-8").removeprefix("---\n").partition("\n---\n")
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "cc-by-sa-4.0"
    assert metadata["language"] == list(LANGUAGES)
    assert (tasks_dir() / "blend_decon" / "README.md").read_text("utf-8") in body


def test_an_export_is_written_again_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    export.export("jsonl", tmp_path / "set")
    (tmp_path / "set" / "el" / "test.jsonl").write_text("damaged")
    export.export("jsonl", tmp_path / "set")
    assert (tmp_path / "set" / "el" / "test.jsonl").stat().st_size > 1_000
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"other files, such as thesis\.tex"):
        export.export("jsonl", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="unknown format 'xlsx'; valid: parquet, jsonl, hub"):
        export.export("xlsx", tmp_path / "set")
