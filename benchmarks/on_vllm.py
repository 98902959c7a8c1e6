"""`steered-vllm` against the harness's own `vllm` and against `steered-hf`, on the same requests, answers compared.

    python benchmarks/on_vllm.py                            # in an environment with vLLM; the embedded model
    python benchmarks/on_vllm.py --model NAME_OR_FOLDER --engine-args tensor_parallel_size=4
    python benchmarks/on_vllm.py --case letters --rounds 1 --questions 20

Letters are four options of one token, texts are options of several. Every model runs in a process of its own, in turn, and
the ratio is the median of the rounds' ratios. (A file vllm.py here would hide the package from its neighbours.)
All run in eager mode, `--engine-args enforce_eager=False` lets the harness's `vllm` and the unsteered model compile.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

import bench
import scoring
from bench import Child, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = {"letters": "letters", "texts": "cloze"}
MIN_AGAINST_VLLM, MAX_STEERED = 2.0, 1.03


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """The ratios of each case."""
    args = args or parser().parse_args([])
    from lm_eval_ext.backends.vllm import release

    if problem := release.problem():
        yield Row("steered-vllm", f">= {MIN_AGAINST_VLLM}", "not run", problem)
        return
    for case in [args.case] if args.case else CASES:
        runs = bench.in_turn(
            {
                name: lambda name=name, case=case: Child(__file__, *passed_on(args, case), "--child", name)
                for name in MODELS
            },
            args.rounds,
        )
        what, ours = f"{case}, {args.dtype}", runs["steered-vllm"]
        for name, target in (("vllm", MIN_AGAINST_VLLM), ("steered-hf", None)):
            value, detail = bench.ratio(runs[name], ours)
            same = sum(a == b for a, b in zip(runs[name][0]["answers"], ours[0]["answers"], strict=True))
            detail += f"; answers equal {same} of {len(ours[0]['answers'])}"
            text = f"{what}: throughput / {name}"
            yield (
                Row(text, "", f"{value:.2f} times", detail)
                if target is None
                else Row.at_least(text, target, value, detail)
            )
        value, detail = bench.ratio(runs["steered-vllm with a plan"], ours)
        yield Row.at_most(f"{what}: time steered / unsteered", MAX_STEERED, value, detail)


MODELS = ("vllm", "steered-hf", "steered-vllm", "steered-vllm with a plan")


def passed_on(args: argparse.Namespace, case: str) -> list[str]:
    """Arguments of a child."""
    given = {"--model": args.model, "--dtype": args.dtype, "--engine-args": args.engine_args, "--case": case}
    return [*(part for pair in given.items() if pair[1] for part in pair), "--questions", str(args.questions)]


def child(args: argparse.Namespace) -> None:
    """Load, warm up, and measure on demand."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    _, asked = scoring.pairs(CASES[args.case])
    asked = asked[: args.questions]
    wanted = scoring.instances(asked)
    model = load(args)
    scoring.timed(model, wanted[: 2 * len(asked[0])], "cpu")

    def measure() -> bench.Measured:
        forget(model)
        times, scores = scoring.timed(model, wanted, "cpu")
        return {"seconds": times["seconds"], "answers": scoring.chosen(scores, len(asked[0]))}

    bench.serve(measure)


def forget(model: Any) -> None:
    """Empty the prefix cache, so that every round computes the same."""
    if hasattr(getattr(model, "model", None), "reset_prefix_cache"):
        model.model.reset_prefix_cache()


def load(args: argparse.Namespace) -> Any:
    """A model of the harness, or ours with a plan."""
    import torch
    from lm_eval.utils import simple_parse_args_string
    from transformers import AutoConfig

    from lm_eval_ext import backends
    from lm_eval_ext.models import embedded
    from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet

    path = args.model or str(embedded.path())
    if args.child == "steered-hf":
        return backends.load("steered-hf", path, dtype=args.dtype, batch_size="auto")
    engine = {"dtype": args.dtype, "max_model_len": 2048, "enforce_eager": True}
    engine |= simple_parse_args_string(args.engine_args)
    if args.child == "vllm":
        from lm_eval.models.vllm_causallms import VLLM

        import lm_eval_ext.backends.vllm.model  # noqa: F401 - lets the harness find the CPU build

        return VLLM(path, **engine)
    if args.child == "steered-vllm":
        return backends.load("steered-vllm", path, **engine)
    identity = ModelIdentity.of(path, AutoConfig.from_pretrained(path))
    layers = tuple(range(identity.n_layers))
    info = VectorInfo("loc", "en", layers, "last", 9, "bench", "0" * 64, "float32", (4.0,) * len(layers))
    values = torch.randn(len(layers), identity.hidden_size, generator=torch.Generator().manual_seed(0))
    vectors = VectorSet(identity, {("loc", "en"): SteeringVectors(info, {"vector": values})})
    return backends.load("steered-vllm", path, vectors=vectors, steer=f"loc@{len(layers) // 2}:2", **engine)


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
    if args.child:
        child(args)
        return
    import run

    run.show(list(rows(args)))


if __name__ == "__main__":
    main()
