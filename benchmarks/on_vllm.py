"""`steered-vllm` against the harness's own `vllm` and against `steered-hf`, on the same requests, answers compared.

    python benchmarks/on_vllm.py                            # in an environment with vLLM; the embedded model
    python benchmarks/on_vllm.py --model NAME_OR_FOLDER --engine-args tensor_parallel_size=4
    python benchmarks/on_vllm.py --case letters --rounds 1 --questions 20

Letters are four options of one token, texts are options of several. One engine answers the harness's `vllm` and ours,
steered and unsteered, in turn; `steered-hf` runs in a process of its own; the ratio is the median of the rounds' ratios. All
run in eager mode (`--engine-args enforce_eager=False` compiles), and on CPUs on one thread unless OMP_NUM_THREADS says
otherwise, in the process that asks, so that its processor time is measured as well.

The file is not named vllm.py: as a script's neighbour that name would hide the package `vllm`.
"""

from __future__ import annotations

import argparse
import copy
import os
from typing import TYPE_CHECKING, Any

import bench
import scoring
from bench import Child, Measured, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the table calls a case -> the case of `scoring`.
CASES = {"letters": "letters", "texts": "cloze"}
MODELS = ("steered-vllm", "steered-hf")
MIN_AGAINST_VLLM, MAX_STEERED = 2.0, 1.03

#: Of every child, where the user says nothing else.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """The ratios of each case."""
    args = args or parser().parse_args([])
    from lm_eval_ext.backends.vllm import release

    if problem := release.problem():
        yield Row("steered-vllm", f">= {MIN_AGAINST_VLLM}", "not run", problem)
        return
    runs = bench.in_turn(
        {name: lambda name=name: Child(__file__, *passed_on(args), "--child", name) for name in MODELS}, args.rounds
    )
    for case in cases(args):
        what, measured = f"{case}, {args.dtype}", {name: [run[case] for run in runs[name]] for name in MODELS}
        measured["vllm"] = [run[f"{case} harness"] for run in runs["steered-vllm"]]
        ours = measured["steered-vllm"]
        for name, target in (("vllm", MIN_AGAINST_VLLM), ("steered-hf", None)):
            value, detail = bench.ratio(measured[name], ours)
            same = [a == b for a, b in zip(measured[name][0]["answers"], ours[0]["answers"], strict=True)]
            detail += f"; answers equal {sum(same)} of {len(same)}"
            text = f"{what}: throughput / {name}"
            yield (
                Row(text, "", f"{value:.2f} times", detail)
                if target is None
                else Row.at_least(text, target, value, detail)
            )
        value, detail = bench.ratio([run[f"{case} steered"] for run in runs["steered-vllm"]], ours)
        yield Row.at_most(f"{what}: time steered / unsteered", MAX_STEERED, value, detail)


def cases(args: argparse.Namespace) -> list[str]:
    """The cases that are asked for."""
    return [args.case] if args.case else list(CASES)


def passed_on(args: argparse.Namespace) -> list[str]:
    """Arguments of a child."""
    given = {"--model": args.model, "--dtype": args.dtype, "--engine-args": args.engine_args, "--case": args.case}
    return [*(part for pair in given.items() if pair[1] for part in pair), "--questions", str(args.questions)]


def child(args: argparse.Namespace) -> None:
    """Load, warm up, and measure on demand."""
    asked = {case: scoring.pairs(CASES[case])[1][: args.questions] for case in cases(args)}
    wanted = {case: scoring.instances(questions) for case, questions in asked.items()}
    model = load(args)
    models = {"": model}
    if args.child == "steered-vllm":
        models |= {" steered": model, " harness": _harness(model)}
        plans = _plans(args)
    for case, instances in wanted.items():
        for of_case in models.values():
            if args.child == "steered-hf":
                scoring.warm_up(of_case, instances)
            else:
                scoring.timed(of_case, instances[: len(asked[case][0])], "cpu")

    def measure() -> Measured:
        measured = {}
        for case, instances in wanted.items():
            for name, of_case in models.items():
                if args.child == "steered-vllm":
                    model.steer(*plans[name == " steered"])
                    model.model.reset_prefix_cache()  # every round computes the same
                times, scores = scoring.timed(of_case, instances, "cpu")
                measured[case + name] = {**times, "answers": scoring.chosen(scores, len(asked[case][0]))}
        return measured

    bench.serve(measure)


def _harness(model: Any) -> Any:
    """The harness's own `vllm` on the engine of ours."""
    from lm_eval.models.vllm_causallms import VLLM

    plain = copy.copy(model)
    plain.__class__ = VLLM
    return plain


def _plans(args: argparse.Namespace) -> list[Any]:
    """No plan, and one that steers the middle layer: arguments of `steer`."""

    from lm_eval_ext.models import embedded
    from lm_eval_ext.steering.plan import Plan

    path = args.model or str(embedded.path())
    vectors = bench.random_vectors(path)
    return [(Plan(), vectors), (Plan.parse(f"loc@{vectors.model.n_layers // 2}:2"), vectors)]


def load(args: argparse.Namespace) -> Any:
    """A model, unsteered."""
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_ext import backends
    from lm_eval_ext.models import embedded

    path = args.model or str(embedded.path())
    if args.child == "steered-hf":
        return backends.load("steered-hf", path, dtype=args.dtype, batch_size="auto")
    # The harness asks for log-probabilities of whole prompts: logits of a step are this many times the vocabulary.
    engine = {"dtype": args.dtype, "max_model_len": 1024, "max_num_batched_tokens": 512, "enforce_eager": True}
    if _has_gpu():
        del engine["max_num_batched_tokens"]
    return backends.load("steered-vllm", path, **engine | simple_parse_args_string(args.engine_args))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    made.add_argument("--case", choices=list(CASES), help="one case only")
    made.add_argument("--dtype", default="float32" if not _has_gpu() else "bfloat16")
    made.add_argument("--engine-args", default="", help="more arguments of vLLM: tensor_parallel_size=4,...")
    made.add_argument("--questions", type=int, default=80, help="questions of each case (default 80)")
    made.add_argument("--rounds", type=int, default=3, help="measurements of each model (default 3)")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def main() -> None:
    args = parser().parse_args()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    bench.measure_or_show(args, child, rows)


if __name__ == "__main__":
    main()
