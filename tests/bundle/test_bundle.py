"""Bundles: what is in one, that it is the same whenever it is written, that any change is seen, and what makes it again."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from support.gates import NEWER, answers, write_gate, write_pair
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.bundle.rerun import check_files, rerun_command
from lm_eval_ext.bundle.verify import verify_bundle
from lm_eval_ext.bundle.write import write_bundle
from lm_eval_ext.errors import ArchiveError
from lm_eval_ext.fingerprints import hash_file
from lm_eval_ext.results.runs import load

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.bundle.manifest import Manifest

SECRET = "s3cr3tValue9"


def run(*arguments: object):
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def steered(tmp_path) -> Path:
    """Results of a steered run with a vector file and a token."""
    vectors = tmp_path / "v.safetensors"
    vectors.write_bytes(b"vectors")
    path = write_run(tmp_path / "results", answers(6), model="org/model", plan="loc@58%:2", limit=6)
    content = json.loads(path.read_text())
    content["config"]["model_args"] |= {"token": SECRET, "vectors": str(vectors), "dtype": "float32"}
    content["config"]["steering"]["vectors"] = {"path": str(vectors), "sha256": hash_file(vectors)}
    content["config"] |= {"random_seed": 0, "numpy_seed": 1, "torch_seed": 2, "fewshot_seed": 3, "batch_size": 4}
    content["configs"]["qa_el"]["metadata"] |= {"token": SECRET, "config_source": f"{tmp_path}/qa.yaml"}
    content |= {"lm_eval_version": "0.4.13", "task_hashes": {"qa_el": "ab" * 32}, "tokenizer_pad_token": ["<pad>", "0"]}
    path.write_text(json.dumps(content))
    return tmp_path / "results"


def whole(file: Path) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [True, False])
def test_a_bundle_is_results_that_a_gate_reads(tmp_path, samples):
    base, new = write_pair(tmp_path, answers(60), answers(60, lose={"el": 0.4}))
    for folder in (base, new):
        manifest = write_bundle(load(folder).runs[0], tmp_path / f"{folder.name}.zip", samples=samples)
        assert manifest.samples == ("included" if samples else "hashes")
        with zipfile.ZipFile(tmp_path / f"{folder.name}.zip") as archive:
            archive.extractall(tmp_path / f"{folder.name}-unpacked")
        shutil.rmtree(folder)
    text = whole(tmp_path / "new.zip")
    assert (b'"question"' in text) == samples
    rules = write_gate(tmp_path, "axis: qa, margin: 0.1")
    candidate = tmp_path / "new-unpacked" / "results"
    assert run("gate", rules, "--baseline", tmp_path / "base-unpacked", "--candidate", candidate).exit_code == 1


def test_it_says_what_was_run(tmp_path, steered):
    write_bundle(load(steered).runs[0], tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        lock = archive.read("environment.txt").decode().splitlines()
        results = json.loads(next(archive.read(name) for name in archive.namelist() if "/results_" in name))
    assert (manifest["plan"], manifest["model"], manifest["left_out"]) == ("loc@58%:2", "org/model", ["token"])
    assert manifest["vectors_sha256"] == hash_file(tmp_path / "v.safetensors")
    assert manifest["software"] == {"lm_eval": "0.4.13"}
    task = manifest["tasks"]["qa_el"]
    assert (task["documents"], task["harness_sha256"], task["version"]) == (6, "ab" * 32, "1.0")
    assert len(task["documents_sha256"]) == len(task["prompts_sha256"]) == 64
    assert any(line.startswith("lm_eval==") for line in lock)
    assert "vectors=v.safetensors" in " ".join(manifest["command"])
    # No credential, no folder of this machine, wherever the harness wrote them; what only looks like one stays.
    text = whole(tmp_path / "run.zip").decode()
    assert SECRET not in text
    assert str(tmp_path) not in text
    assert results["tokenizer_pad_token"] == ["<pad>", "0"]


def test_samples_that_hold_a_credential_are_refused(tmp_path, steered):
    samples = next(steered.rglob("samples_qa_el_*"))
    samples.write_text(samples.read_text().replace("qa_el 0", SECRET))
    with pytest.raises(ArchiveError, match=r"samples_qa_el_.* holds a credential.*--no-samples"):
        write_bundle(load(steered).runs[0], tmp_path / "run.zip")
    write_bundle(load(steered).runs[0], tmp_path / "run.zip", samples=False)
    assert SECRET.encode() not in whole(tmp_path / "run.zip")


def test_the_same_run_makes_the_same_bytes(tmp_path, steered):
    write_bundle(load(steered).runs[0], tmp_path / "a.zip")
    for file in steered.rglob("*"):
        file.touch()
    write_bundle(load(steered).runs[0], tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


# --- verified --------------------------------------------------------------------------------------------------------


def test_verify_shows_what_it_is(tmp_path, steered):
    made = run("bundle", steered, "-o", tmp_path / "run.zip")
    assert made.exit_code == 0, made.output
    digest = made.stdout.split()[-1]
    told = run("verify", tmp_path / "run.zip", "--hash", digest[:16])
    assert told.exit_code == 0, told.output
    assert "undamaged" in told.stdout
    assert f"hash:      {digest}" in told.stdout
    assert "left out:  token" in told.stdout


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_canonical_hash_is_what_others_compute(tmp_path, steered):
    content = json.loads(next(steered.rglob("results_*.json")).read_text())
    digest = write_bundle(load(steered).runs[0], tmp_path / "run.zip").sha256
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        archive.extract("manifest.json", tmp_path)
    script = "jq -cSj 'del(.sha256)' manifest.json | sha256sum"
    told = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert content
    assert told.stdout.split()[0] == digest


def test_every_changed_byte_is_seen(tmp_path, steered):
    """Content, names and order of members, whatever is changed in a rewritten archive."""
    write_bundle(load(steered).runs[0], tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    seen = 0
    for name, content in members.items():
        for place in (0, len(content) // 2, len(content) - 1):
            changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
                for other, same in members.items():
                    archive.writestr(other, changed if other == name else same)
            with pytest.raises(ArchiveError):
                verify_bundle(tmp_path / "changed.zip")
            seen += 1
    assert seen == 3 * len(members) > 12


# --- made again ------------------------------------------------------------------------------------------------------


def changed(manifest: Manifest, **words: Any) -> Manifest:
    """The manifest with other options in its command."""
    command = list(manifest.command)
    for option, value in words.items():
        command[command.index(f"--{option}") + 1] = value
    return manifest.model_copy(update={"command": command})


def test_the_command_is_the_run_s(tmp_path, steered):
    write_bundle(load(steered).runs[0], tmp_path / "run.zip")
    told = run("rerun", tmp_path / "run.zip", "--out", "again")
    assert told.stdout.rstrip() == (
        "lm_eval --model steered-hf --model_args "
        "pretrained=org/model,steer=loc@58%:2,vectors=v.safetensors,dtype=float32 --tasks qa_en,qa_es,qa_el "
        "--limit 6 --batch_size 4 --seed 0,1,2,3 --log_samples --output_path again"
    )
    assert "token was left out of the bundle: give it with --model_args token=..." in told.stderr
    given = run("rerun", tmp_path / "run.zip", "--model_args", f"token={SECRET},vectors=mine.safetensors")
    assert "vectors=mine.safetensors" in given.stdout
    assert SECRET not in given.output


def test_a_run_is_made_again(tmp_path):
    """The harness evaluates what the bundle says."""
    task = "transfer_mini_ko_cloze"
    write_run(tmp_path / "first", {task: {"acc": [1.0, 0.0, 1.0]}}, model="dummy", model_type="dummy", limit=3)
    assert run("bundle", tmp_path / "first", "-o", tmp_path / "run.zip").exit_code == 0
    assert run("rerun", tmp_path / "run.zip", "--run", "-o", tmp_path / "again").exit_code == 0
    (again,) = load(tmp_path / "again").runs
    assert again.config["limit"] == again.tasks[task].n_documents == 3
    assert again.tasks[task].samples is not None


def test_files_are_those_of_the_run(tmp_path, steered, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = write_bundle(load(steered).runs[0], tmp_path / "run.zip")
    check_files(manifest, rerun_command(manifest, {"token": SECRET}, tmp_path / "again"))
    (tmp_path / "other.safetensors").write_bytes(b"others")
    for given, message in (
        ({}, "token was left out"),
        ({"token": SECRET, "vectors": "none.safetensors"}, "the vector file none.safetensors is not here"),
        ({"token": SECRET, "vectors": "other.safetensors"}, "other.safetensors is another vector file"),
    ):
        with pytest.raises(ArchiveError, match=message):
            check_files(manifest, rerun_command(manifest, given, tmp_path / "again"))


def test_a_bundle_s_command_is_an_evaluation_and_nothing_else(tmp_path):
    write_run(tmp_path / "r", answers(2), model="org/model", date=NEWER)
    manifest = write_bundle(load(tmp_path / "r").runs[0], tmp_path / "run.zip")
    for command, message in (
        (changed(manifest, model_args="pretrained=x,trust_remote_code=True"), "runs code of the model's repository"),
        (changed(manifest, tasks="../evil.yaml"), "names '../evil.yaml' for a task"),
        (changed(manifest, model="a;b"), "names no model type, but 'a;b'"),
        (manifest.model_copy(update={"command": [*manifest.command, "--include_path", "x"]}), "has '--include_path'"),
        (manifest.model_copy(update={"command": ["sh", "-c", "x"]}), "begins with 'sh'"),
        (manifest.model_copy(update={"command": []}), "begins with 'nothing'"),
    ):
        with pytest.raises(ArchiveError, match=message):
            rerun_command(command, {}, tmp_path / "again")
    trusting = changed(manifest, model_args="pretrained=x,trust_remote_code=True")
    words = rerun_command(trusting, {"trust_remote_code": "True"}, tmp_path / "again").words
    assert "pretrained=x,trust_remote_code=True" in words
