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
scored, score = [], model._scorer.score
model._scorer.score = lambda requests, *rest: scored.extend(requests) or score(requests, *rest)
results = tiny.evaluate(model, "tiny_letters", limit=5, log_samples=True)
prompts = {request.prompt for request in scored}
print("processes:", model.rank, model.world_size, len(scored), len(prompts), sum(map(len, prompts)))
if results is not None:
    answers = {sample["doc_id"]: sample["resps"] for sample in results["samples"]["tiny_letters"]}
    print("answers:", json.dumps(answers, sort_keys=True))
"""


@pytest.mark.slow
def test_torchrun_divides_the_documents_by_their_tokens() -> None:
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
    numbers = [list(map(int, line.split()[1:])) for line in said]
    assert [number[:2] for number in numbers] == [[0, 2], [1, 2]]
    assert sum(n_requests for _, _, n_requests, *_ in numbers) == 20  # each question once, with its four letters
    assert sum(n_prompts for *_, n_prompts, _ in numbers) == 5
    tokens = [n_tokens for *_, n_tokens in numbers]
    assert abs(tokens[0] - tokens[1]) <= max(tokens) / 2  # two of the five prompts against three, by their lengths
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
