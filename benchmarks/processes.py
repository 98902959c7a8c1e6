"""Two processes on two cores against one process with two threads: letters, the questions divided by their tokens.

    python benchmarks/processes.py
    python benchmarks/processes.py --questions 40 --rounds 1

Both answer the same questions with `steered-hf`; of two processes the time is that of the slower one. On a machine that does
other work too, the slower one is easily an unlucky one: the detail has the seconds of the processor as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import bench
from bench import Row

if TYPE_CHECKING:
    from collections.abc import Iterator


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """Time of two processes over that of one with two threads."""
    args = args or parser().parse_args([])
    own = [__file__, "--questions", str(args.questions), "--dtype", args.dtype, "--child"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found: dict[str, list[bench.Measured]] = {"one": [], "two": []}
    for _ in range(args.rounds):
        found["one"].append(_run([sys.executable, *own], threads=2))
        found["two"].append(_run([sys.executable, *launch, *own], threads=1))
    value, detail = bench.ratio(found["two"], found["one"])
    shares = found["two"][0]["tokens"]
    detail += f"; prompt tokens of the two: {shares[0]:,} and {shares[-1]:,}"
    what = f"letters, {args.questions} questions, {args.dtype}: time of two processes / one with two threads"
    yield Row.at_most(what, 1.0, value, detail)


def _run(command: list[str], *, threads: int) -> bench.Measured:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    parts = [json.loads(line.removeprefix(_MARK)) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not parts:
        raise RuntimeError(done.stderr[-800:])
    return {
        "seconds": max(part["seconds"] for part in parts),
        "processor": sum(part["processor"] for part in parts),
        "tokens": [part["tokens"] for part in parts],
    }


_MARK = "measured: "


def child(args: argparse.Namespace) -> None:
    """One of the processes, or the only one."""
    import scoring

    model = scoring.load("steered-hf", scoring.parser().parse_args(["--dtype", args.dtype]))
    questions = scoring.instances(scoring.pairs("letters")[1][: args.questions])
    by_rank = [
        instance
        for number in range(model.rank, len(questions) // 4, model.world_size)
        for instance in questions[4 * number : 4 * number + 4]
    ]
    scoring.warm_up(model, questions)
    scored, score = [], model._scorer.score

    def noted(requests, *rest):  # type: ignore[no-untyped-def]
        scored.extend({request.prompt for request in requests})
        return score(requests, *rest)

    model._scorer.score = noted
    started, processor = time.perf_counter(), time.process_time()
    model.loglikelihood(by_rank, disable_tqdm=True)
    found = {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - processor,
        "tokens": sum(map(len, scored)),
    }
    print(_MARK + json.dumps(found), flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--questions", type=int, default=80)
    made.add_argument("--dtype", default=bench.quick_dtype())
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    bench.measure_or_show(args, child, rows)


if __name__ == "__main__":
    main()
