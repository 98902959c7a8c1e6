"""Throughput and peak memory of `steered-hf` against the harness's `hf` on four-option letter questions.

    python benchmarks/scoring.py                      # embedded model, our own questions
    python benchmarks/scoring.py --questions gmmlu    # Global-MMLU dev questions (needs the mirror or the hub)
    python benchmarks/scoring.py --dtype float32 --model NAME_OR_FOLDER

Each model runs in a process of its own, in turn (hf, steered-hf, hf, ...), after a warm-up; the ratio is of the medians.
Also printed: whether all answers agree, and the share of the machine's measured matrix peak that `steered-hf` reaches.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import islice
from typing import Any

N_LETTERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    parser.add_argument("--questions", choices=["mini", "gmmlu"], default="mini")
    parser.add_argument("--n", type=int, default=160, help="questions (default 160)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3, help="runs of each model (default 3)")
    parser.add_argument("--child", choices=["hf", "steered-hf"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    runs: dict[str, list[dict[str, Any]]] = {"hf": [], "steered-hf": []}
    for number in range(args.runs):
        for name, found in runs.items():
            print(f"run {number + 1} of {args.runs}: {name}", file=sys.stderr)
            child = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            found.append(
                json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            )
    report(args, runs)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One model in this process: seconds, peak memory in MiB, the letter chosen for each question."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from lm_eval_ext import harness
    from lm_eval_ext.models import embedded

    harness.install()
    prompts = questions(args.questions, args.n)
    model = get_model(args.child)(
        pretrained=args.model or str(embedded.path()), dtype=args.dtype, device=args.device, batch_size=args.batch_size
    )
    requests = [
        Instance("loglikelihood", {}, (prompt, f" {letter}"), i, ("letters", number, 1))
        for number, prompt in enumerate(prompts)
        for i, letter in enumerate("ABCD")
    ]
    model.loglikelihood(requests[: N_LETTERS * args.batch_size], disable_tqdm=True)
    start = time.perf_counter()
    scores = [score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]
    seconds = time.perf_counter() - start
    rows = [scores[at : at + N_LETTERS] for at in range(0, len(scores), N_LETTERS)]
    tokens = sum(len(model.tok_encode(prompt)) for prompt in prompts)
    weights = sum(p.numel() for p in model.model.parameters())
    head = model.model.get_output_embeddings().weight.numel()
    tied = model.model.get_input_embeddings().weight is model.model.get_output_embeddings().weight
    body = weights - head * (1 if tied else 2)
    memory = torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else _peak_rss()
    return {
        "seconds": seconds,
        "mib": memory / 2**20,
        "answers": [row.index(max(row)) for row in rows],
        "tokens": tokens,
        # 2 operations per weight and token; the head once per question.
        "gflop": 2 * (body * tokens + head * len(prompts)) / 1e9,
        "peak_gflops": matrix_peak(args.dtype, args.device),
    }


def questions(source: str, n: int) -> list[str]:
    """Prompts in the harness's Global-MMLU template."""
    from lm_eval_ext.data import gmmlu, mini
    from lm_eval_ext.languages import LANGUAGES

    if source == "gmmlu":
        rows = gmmlu.documents("en", "dev")
        found = ((row["question"].strip(), [row[f"option_{letter}"] for letter in "abcd"]) for row in rows)
    else:
        found = ((d["question"], d["options"]) for code in LANGUAGES for d in mini.transfer(code)["test"])
    lettered = "\n".join(f"{letter}. {{}}" for letter in "ABCD")
    return [f"{question}\n{lettered.format(*options)}\nAnswer:" for question, options in islice(found, n)]


def matrix_peak(dtype: str, device: str, size: int = 2048, repeats: int = 8) -> float:
    """Measured GFLOP/s of a square matrix product, the best of `repeats`."""
    import torch

    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product = a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    assert product.shape == a.shape
    return 2 * size**3 / best / 1e9


def _peak_rss() -> int:
    """Peak resident memory of this process in bytes (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(args: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{args.n} {args.questions} questions, batch {args.batch_size}, {args.dtype}, {args.device}")
    for column in ("model", "seconds (min / median / max)", "questions/s", "peak memory MiB", "share of matrix peak"):
        table.add_column(column, justify="right" if column != "model" else "left")
    median = {}
    for name, found in runs.items():
        seconds = sorted(run["seconds"] for run in found)
        median[name] = statistics.median(seconds)
        peak = statistics.median(run["peak_gflops"] for run in found)
        table.add_row(
            name,
            f"{seconds[0]:.2f} / {median[name]:.2f} / {seconds[-1]:.2f}",
            f"{args.n / median[name]:.1f}",
            f"{statistics.median(run['mib'] for run in found):.0f}",
            # hf computes the head at every position: only the work that is needed counts, for both.
            f"{found[0]['gflop'] / median[name] / peak:.0%} of {peak:.0f} GFLOP/s",
        )
    Console().print(table)
    pairs = list(zip(runs["hf"][0]["answers"], runs["steered-hf"][0]["answers"], strict=True))
    memory = {name: statistics.median(run["mib"] for run in found) for name, found in runs.items()}
    print(
        f"ratio to hf: {median['hf'] / median['steered-hf']:.2f} times the throughput, "
        f"{memory['steered-hf'] / memory['hf']:.2f} of the peak memory"
    )
    print(f"answers equal: {sum(a == b for a, b in pairs)} of {len(pairs)}")


if __name__ == "__main__":
    main()
