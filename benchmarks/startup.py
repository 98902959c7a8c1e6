"""Start-up: to the first forward of a short run, `lm_eval ls tasks` and `doctor`, against the harness alone.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 1 --case evaluation

Every measurement is a process of its own, in turn; compared are seconds of the processor of it and its children, since what
starts up is bound by one core. `hf` and `steered-hf` answer ten questions of our own with the embedded model; the harness
alone is `lm_eval` with this package kept out (`LM_EVAL_EXT_AUTOLOAD=0`). Of `doctor`, a harness alone is its import with its
list of tasks, which is what `doctor` examines.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from bench import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FIRST_FORWARD, MAX_COMMAND = 0.6, 1.2

#: Ends the process after its first forward of ten questions.
FIRST_FORWARD = """
import os, sys
sys.path.insert(0, sys.argv[2])
from lm_eval.api.registry import get_model
import lm_eval.models
from lm_eval.api.instance import Instance
name, model = sys.argv[1], sys.argv[3]
lm = get_model(name)(pretrained=model, device="cpu", dtype="float32", batch_size=10)
asked = [Instance("loglikelihood", {}, (f"Question {n}?\\nAnswer:", " A"), 0, ("start", n, 1)) for n in range(10)]
lm.loglikelihood(asked, disable_tqdm=True)
"""

_LS = [sys.executable, "-m", "lm_eval", "ls", "tasks"]
_HARNESS = [sys.executable, "-c", "import lm_eval.models, lm_eval.evaluator, lm_eval.tasks as t; t.TaskManager()"]


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """The three ratios."""
    args = args or parser().parse_args([])
    from lm_eval_ext.models import embedded

    first = [sys.executable, "-c", FIRST_FORWARD]
    end = [str(Path(__file__).parent), str(embedded.path())]
    cases = {
        "evaluation": (
            ([*first, "steered-hf", *end], True),
            ([*first, "hf", *end], False),
            ("start to first forward of 10 questions: time / hf", MAX_FIRST_FORWARD),
        ),
        "ls": ((_LS, True), (_LS, False), ("lm_eval ls tasks: time / the harness alone", MAX_COMMAND)),
        "doctor": (
            ([sys.executable, "-m", "lm_eval_ext", "doctor"], True),
            (_HARNESS, False),
            ("lm-eval-ext doctor: time / the harness alone", MAX_COMMAND),
        ),
    }
    for case in [args.case] if args.case else cases:
        ours, theirs, (what, target) = cases[case]
        found: dict[bool, list[bench.Measured]] = {True: [], False: []}
        for _ in range(args.rounds):
            for command, with_plugin in (theirs, ours):
                found[with_plugin].append(_run(command, with_plugin=with_plugin))
        value, detail = bench.ratio(found[True], found[False], "processor")
        if value > target:
            detail += f"; profile, seconds of importing: {_imports(ours[0])}"
        yield Row.at_most(what, target, value, f"of processor time; {detail}")


def _imports(command: list[str], n: int = 6) -> str:
    """The packages whose modules take longest to import in a command, each without what it imports of others."""
    python, *rest = command
    done = subprocess.run([python, "-X", "importtime", *rest], capture_output=True, text=True, check=False)
    seconds: dict[str, float] = defaultdict(float)
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE):
        seconds[name.partition(".")[0]] += int(own) / 1e6
    longest = sorted(seconds, key=lambda name: -seconds[name])[:n]
    return f"{sum(seconds.values()):.1f} in all, " + ", ".join(f"{name} {seconds[name]:.1f}" for name in longest)


def _run(command: list[str], *, with_plugin: bool) -> bench.Measured:
    """Seconds of a command, and of the processor in it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    environment = {**os.environ, "LM_EVAL_EXT_AUTOLOAD": "1" if with_plugin else "0", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):  # 1: doctor found something broken
        raise RuntimeError(f"{' '.join(command)[:80]}: {done.stderr.decode()[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - started, "processor": processor}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--case", choices=("evaluation", "ls", "doctor"))
    return made


def main() -> None:
    import run

    run.show(list(rows(parser().parse_args())))


if __name__ == "__main__":
    main()
