"""Extraction of 100 pairs at all layers against plain forward passes of the same texts, in turn within one process.

    python benchmarks/extraction.py                       # the embedded model, our own pairs
    python benchmarks/extraction.py --model NAME_OR_FOLDER --device cuda --dtype bfloat16 --rounds 5

The plain passes are the cheapest there are: the same batches of texts of like length, tokenised before, no head, no hooks.
Extraction includes the tokeniser, the pooling and the means. The share of the matrix peak counts the operations that the
texts' own tokens need (2 for each weight of the decoder layers and token), over a square product measured right before.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import bench
from bench import Child, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_RATIO = 1.1
N_PAIRS = 100
POOLINGS = ("mean", "last")


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """Time of extraction over plain passes for both poolings, and its share of the matrix peak."""
    args = args or parser().parse_args([])
    options = ["--device", args.device, "--dtype", args.dtype, "--batch-size", str(args.batch_size)]
    child = Child(__file__, *options, *(["--model", args.model] if args.model else []), "--child")
    try:
        runs = [child.measure() for _ in range(args.rounds)]
    finally:
        child.close()
    for pooling in POOLINGS:
        value, detail = bench.ratio(*([run[name] for run in runs] for name in (pooling, "plain")))
        what = f"extraction, {N_PAIRS} pairs, all layers, {pooling}, {args.dtype}"
        yield Row.at_most(f"{what}: time / plain passes", MAX_RATIO, value, f"{runs[0]['tokens']} tokens; {detail}")
    best = max(runs, key=lambda run: run["gflop"] / run["mean"]["seconds"] / run["peak_gflops"])
    reached = best["gflop"] / best["mean"]["seconds"]
    detail = f"{reached:.0f} of {best['peak_gflops']:.0f} GFLOP/s, best round"
    yield Row(f"extraction, {args.dtype}: share of matrix peak", "-", f"{reached / best['peak_gflops']:.1%}", detail)


# In the child ---------------------------------------------------------------------------------------------------------


def loaded(args: argparse.Namespace) -> Callable[[], bench.Measured]:
    """The measurement, after loading and warming up."""
    import torch

    from lm_eval_ext.data import pairs
    from lm_eval_ext.data.pairs import PairSet
    from lm_eval_ext.models import embedded
    from lm_eval_ext.models.loading import load_model
    from lm_eval_ext.steering.decoder import decoder_layers, layer_count
    from lm_eval_ext.steering.extraction import extract

    model, tokenizer = load_model(args.model or str(embedded.path()), dtype=args.dtype, device=args.device)
    every = [pair for found in pairs.load_pairs("en", "mini", ["ko", "es"]) for pair in found.pairs]
    chosen = PairSet("en", "ko", "mini", tuple(every[:N_PAIRS]))
    assert len(chosen.pairs) == N_PAIRS
    texts = [text for pair in chosen.pairs for text in (pair.positive, pair.negative)]
    encoded = sorted(tokenizer(texts)["input_ids"], key=len)
    groups = [encoded[at : at + args.batch_size] for at in range(0, len(encoded), args.batch_size)]
    batches = [torch.tensor([ids + [0] * (len(group[-1]) - len(ids)) for ids in group]) for group in groups]
    tokens = sum(map(len, encoded))
    weights = sum(p.numel() for p in decoder_layers(model).parameters())
    layers = range(layer_count(model.config))

    def plain() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.base_model(input_ids=batch.to(args.device), use_cache=False)

    works: dict[str, Callable[[], Any]] = {"plain": plain}
    for pooling in POOLINGS:
        works[pooling] = lambda p=pooling: extract(
            model, tokenizer, chosen, layers=layers, pooling=p, batch_size=args.batch_size
        )

    def measure() -> bench.Measured:
        found: bench.Measured = {"gflop": 2 * weights * tokens / 1e9, "tokens": tokens}
        found["peak_gflops"] = bench.matrix_peak(args.dtype, args.device)
        for name, work in works.items():
            start, processor = time.perf_counter(), time.process_time()
            work()
            bench.synchronise(args.device)
            found[name] = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        return found

    measure()
    return measure


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", default=bench.quick_dtype())
    found.add_argument("--batch-size", type=int, default=16)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return found


def main() -> None:
    args = parser().parse_args()
    bench.measure_or_show(args, lambda given: bench.serve(loaded(given)), rows)


if __name__ == "__main__":
    main()
