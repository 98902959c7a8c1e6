"""What the benchmarks share: rows of the one table, processes that measure in turn, the machine's matrix peak.

A benchmark is a module of this folder with `rows() -> Iterable[Row]`, named in `run.MODULES`. What it times runs in
processes of their own (`Child`, whose other side is `serve`), in turn, round after round, so that what else the machine does
falls on all of them alike; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lm_eval_ext.steering.vectors import VectorSet

Measured = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured, in a few words.
        target: what it should be, `>= 3.0`.
        measured: what it is, with its unit.
        detail: from what: seconds, range over rounds, settings.
        met: whether the target is met; None where there is none, or nothing could be measured.
    """

    what: str
    target: str
    measured: str
    detail: str = ""
    met: bool | None = None

    @classmethod
    def at_least(cls, what: str, target: float, value: float, detail: str = "", unit: str = " times") -> Row:
        """A row whose value should not be smaller than its target; both are shares where the unit is %."""
        return cls(what, f">= {_number(target, unit)}", _number(value, unit), detail, value >= target)

    @classmethod
    def at_most(cls, what: str, target: float, value: float, detail: str = "", unit: str = " times") -> Row:
        """A row whose value should not be larger than its target; both are shares where the unit is %."""
        return cls(what, f"<= {_number(target, unit)}", _number(value, unit), detail, value <= target)


def _number(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "%" else f"{value:.2f}{unit}"


class Child:
    """A process that loads once and measures whenever it is asked."""

    def __init__(self, script: str, *arguments: str, python: str = sys.executable) -> None:
        self.command = [python, script, *arguments]
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()  # ready

    def measure(self) -> Measured:
        """One measurement, made now."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def profile(self) -> str:
        """Where the time of one more measurement goes."""
        assert self._process.stdin is not None
        self._process.stdin.write("profile\n")
        self._process.stdin.flush()
        return str(self._read()["profile"])

    def _read(self) -> Measured:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                found: Measured = json.loads(line.removeprefix(_MARK))
                return found
        raise RuntimeError(f"{' '.join(self.command)} ended with status {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


_MARK = "measured: "


def serve(measure: Callable[[], Measured], ours: Callable[[], object] | None = None) -> None:
    """In the child: after loading and warming up, answer `Child.measure` until the parent is gone.

    Args:
        measure: one measurement.
        ours: the part of it that a profile is of; all of it where left out.
    """
    print(_MARK + "{}", flush=True)
    for line in sys.stdin:
        found = {"profile": profiled(ours or measure)} if line == "profile\n" else measure()
        print(_MARK + json.dumps(found), flush=True)


#: Share of a profile -> the operators of PyTorch that are part of it.
_OPERATORS = {
    "matrix products": re.compile(r"mm$|matmul|linear"),
    "attention": re.compile(r"attention"),
    "log-softmax": re.compile(r"softmax|logsumexp|::exp_?$|::amax|::max"),
    "copies": re.compile(r"copy|cat$|stack|index|gather|scatter|clone|embedding|fill|zero|pad"),
    "element by element": re.compile(r"add|mul|sub|div|gelu|silu|rsqrt|pow|mean|sum|neg|tanh|where|norm|cos|sin"),
}


def profiled(work: Callable[[], object]) -> str:
    """Shares of the time of some work, by what PyTorch spends it on; the rest is Python's, or the system's."""
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
        seconds = time.perf_counter() - start
    shares = dict.fromkeys(_OPERATORS, 0.0)
    other = 0.0
    for event in found.key_averages():
        kind = next((name for name, operators in _OPERATORS.items() if operators.search(event.key)), None)
        if kind:
            shares[kind] += event.self_cpu_time_total / 1e6
        else:
            other += event.self_cpu_time_total / 1e6
    shares |= {"other operators": other, "Python": seconds - other - sum(shares.values())}
    return ", ".join(f"{name} {value / seconds:.0%}" for name, value in shares.items() if value >= 0.005 * seconds)


def in_turn(
    children: dict[str, Callable[[], Child]],
    rounds: int,
    profile_of: str = "",
    when: Callable[[dict[str, list[Measured]]], bool] = lambda found: False,
) -> dict[str, list[Measured]]:
    """Measurements of each child, all of them once per round.

    Args:
        children: start each.
        rounds: how often each measures.
        profile_of: the child whose last measurement gets a `profile` ...
        when: ... if this holds of what was found: a missed target is profiled.
    """
    started: dict[str, Child] = {}
    found: dict[str, list[Measured]] = {name: [] for name in children}
    try:
        for name, start in children.items():
            started[name] = start()
        for number in range(rounds):
            for name, child in started.items():
                print(f"  round {number + 1} of {rounds}: {name}", file=sys.stderr)
                found[name].append(child.measure())
        if profile_of and when(found):
            found[profile_of][-1]["profile"] = started[profile_of].profile()
    finally:
        for child in started.values():
            child.close()
    return found


def ratio(over: list[Measured], under: list[Measured], key: str = "seconds") -> tuple[float, str]:
    """The median of the rounds' ratios over / under, and how they spread."""
    ratios = sorted(a[key] / b[key] for a, b in zip(over, under, strict=True))
    middle = " and ".join(f"{statistics.median(run[key] for run in runs):.2f}" for runs in (over, under))
    detail = f"{middle} s; rounds {ratios[0]:.2f} to {ratios[-1]:.2f}"
    if all("processor" in run for run in (*over, *under)):
        busy = statistics.median(a["processor"] / b["processor"] for a, b in zip(over, under, strict=True))
        detail += f"; of processor time {busy:.2f}"
    return statistics.median(ratios), detail


def missed_profile(runs: list[Measured]) -> str:
    """The profile of a child that missed its target, as the end of a row's detail; empty where none was made."""
    profile = runs[-1].get("profile")
    return f"; profile: {profile}" if profile else ""


def quick_dtype() -> str:
    """`bfloat16` where this machine has a GPU or a CPU with products in it, else `float32`: what is worth measuring here."""
    import torch

    from lm_eval_ext.models import precision

    return "bfloat16" if torch.cuda.is_available() or precision.support("bfloat16")[0] else "float32"


def instruction_set() -> str:
    """What rows depend on besides the dtype: the widest vector instructions of this CPU, and bfloat16 products."""
    from lm_eval_ext.models import precision

    flags = precision.this_cpu_flags()
    widest = next((name for flag, name in _VECTORS.items() if flag in flags), "no known vector instructions")
    return widest + (" with bfloat16" if precision.support("bfloat16")[0] else "")


_VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


def matrix_peak(dtype: str, device: str, size: int = 2048, repeats: int = 8) -> float:
    """GFLOP/s of a square matrix product on this machine, now: the best of `repeats`."""
    import torch

    from lm_eval_ext.scoring.products import fast_products

    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    with torch.inference_mode(), fast_products(a):  # whichever library is quicker
        for _ in range(repeats):
            start = time.perf_counter()
            product = torch.nn.functional.linear(a, a)
            synchronise(device)
            best = min(best, time.perf_counter() - start)
    assert product.shape == a.shape
    return 2 * size**3 / best / 1e9


def weights(model: Any) -> tuple[int, int]:
    """Weights that a token is multiplied with: those of the layers, and those of the head where it is scored."""
    head = model.get_output_embeddings().weight
    ends = {table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(p.numel() for p in model.parameters()) - sum(table.numel() for table in ends), head.numel()


def synchronise(device: str) -> None:
    """Wait for the device."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def forget_peak_memory(device: str) -> None:
    """Let `peak_memory` begin anew, where the system can: what loading took is over."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5", encoding="utf-8")


def peak_memory(device: str) -> int:
    """Most bytes that this process held: on the device, or resident on the CPU."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    if (status := Path("/proc/self/status")).exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory(device: str) -> int:
    """Bytes that this process holds now: on the device, or resident on the CPU."""
    import psutil
    import torch

    return int(torch.cuda.memory_allocated() if device.startswith("cuda") else psutil.Process().memory_info().rss)


def data_root() -> Path | None:
    """The mirror of the upstream data, where there is one."""
    if given := os.environ.get("LM_EVAL_EXT_DATA"):
        return Path(given)
    beside = Path(__file__).parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def random_vectors(path: str) -> VectorSet:
    """A random English `loc` vector for every layer of a model, of no meaning."""
    import torch
    from transformers import AutoConfig

    from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet

    identity = ModelIdentity.of(path, AutoConfig.from_pretrained(path))
    layers = tuple(range(identity.n_layers))
    info = VectorInfo("loc", "en", layers, "last", 9, "bench", "0" * 64, "float32", (4.0,) * len(layers))
    values = torch.randn(len(layers), identity.hidden_size, generator=torch.Generator().manual_seed(0))
    return VectorSet(identity, {("loc", "en"): SteeringVectors(info, {"vector": values})})


def measure_or_show(args: Any, child: Callable[[Any], object], rows: Callable[[Any], Iterable[Row]]) -> None:
    """What `main` of a benchmark does: measure in a process of its own, or show the rows.

    Args:
        args: of the command line; `child` says which.
        child: measures.
        rows: the table.
    """
    if args.child:
        child(args)
        return
    import run

    run.show(list(rows(args)))
