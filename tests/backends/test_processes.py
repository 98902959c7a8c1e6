"""Several processes on CPUs: each evaluates a share of the documents, and the results are those of one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import tiny
from support.processes import HUNG, environment

from lm_eval_ext.models import launch

EVALUATE = """
import json
from support import tiny
model = tiny.steered("llama", "loc@1:3")
n_scored, score = [], model.score
model.score = lambda requests, *rest: n_scored.append(len(requests)) or score(requests, *rest)
results = tiny.evaluate(model, "tiny_letters", limit=5, log_samples=True)
print("processes:", model.rank, model.world_size, sum(n_scored))
if results is not None:
    answers = {sample["doc_id"]: sample["resps"] for sample in results["samples"]["tiny_letters"]}
    print("answers:", json.dumps(answers, sort_keys=True))
"""


@pytest.mark.slow
def test_torchrun_divides_the_documents() -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    # Without the variable of `accelerate launch --cpu`.
    done = subprocess.run(
        [*run, sys.executable, "-c", EVALUATE],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=HUNG,
    )
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("processes:"))
    assert said == ["processes: 0 2 12", "processes: 1 2 12"]  # of 20: one of the two has a document twice
    (found,) = (line.removeprefix("answers: ") for line in done.stdout.splitlines() if line.startswith("answers:"))
    results = tiny.evaluate(tiny.steered("llama", "loc@1:3"), "tiny_letters", limit=5, log_samples=True)
    for sample in results["samples"]["tiny_letters"]:
        values = [response[0][0] for response in json.loads(found)[str(sample["doc_id"])]]
        assert values == pytest.approx([response[0][0] for response in sample["resps"]])
    assert len(json.loads(found)) == 5


def test_a_launch_that_starts_one_process_only_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in launch._COUNTS:
        monkeypatch.delenv(name, raising=False)
    assert not launch.is_launched_alone()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.setenv("MASTER_PORT", "29500")
    tiny.steered("llama")
    assert "torchrun --nproc_per_node" in caplog.text
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.is_launched_alone()
