"""Greedy generation under a plan: rows that leave the batch when they stop, against the harness's `hf` with the same hooks.

    python benchmarks/generation.py                        # 64 prompts, up to 64 tokens each, batches of 16
    python benchmarks/generation.py --prompts 16 --tokens 32 --rounds 1
    python benchmarks/generation.py --model NAME_OR_FOLDER --device cuda --batch-size 64

Two cases: texts that end at a line break, as most tasks of the harness ask for, and, with fewer prompts, texts that all run
to the last token. In these no row stops before another, so that both sides do the same work.
`hf` itself cannot be steered: its side is `HFLM.generate_until` of the harness with our hooks on the model, so that
texts can be compared. They are equal where no two tokens are as likely as each other up to rounding.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import bench
from bench import Child, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIN_RATIO = 1.5
#: Case: stop sequence.
CASES = {"lines": "\n", "whole": "<never>"}
NAMES = {"lines": "answers of one line", "whole": "texts to the last token"}


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """Throughput over that of the harness's generation, for both cases."""
    args = args or parser().parse_args([])
    options = [
        f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("model", "device", "dtype", "batch-size")
    ]
    options += [f"--tokens={args.tokens}"]
    for case, prompts in {"lines": args.prompts, "whole": min(args.prompts, args.batch_size)}.items():
        asked = [*options, f"--prompts={prompts}", "--case", case]
        runs = bench.in_turn(
            {
                side: lambda side=side, asked=asked: Child(__file__, *asked, "--child", side)
                for side in ("hf", "steered-hf")
            },
            args.rounds,
            profile_of="steered-hf",
            when=lambda found: bench.ratio(found["hf"], found["steered-hf"])[0] < MIN_RATIO,
        )
        value, detail = bench.ratio(runs["hf"], runs["steered-hf"])
        texts = [runs[side][0]["texts"] for side in ("hf", "steered-hf")]
        same = sum(a == b for a, b in zip(*texts, strict=True))
        detail += f"; texts equal {same} of {len(texts[0])}; batch size {args.batch_size}"
        what = f"generation, steered, {prompts} x {args.tokens} tokens, {NAMES[case]}, {args.dtype}: throughput / hf"
        yield Row.at_least(what, MIN_RATIO, value, detail + bench.missed_profile(runs["steered-hf"]))


def loaded(args: argparse.Namespace) -> Callable[[], bench.Measured]:
    """The measurement, after loading and warming up."""
    from lm_eval.api.instance import Instance

    from lm_eval_ext import backends
    from lm_eval_ext.data import mini
    from lm_eval_ext.languages import LANGUAGES
    from lm_eval_ext.models import embedded

    path = args.model or str(embedded.path())
    vectors = bench.random_vectors(path)
    lm = backends.load(
        "steered-hf", path, vectors=vectors, steer=f"loc@{vectors.model.n_layers // 2}:2/all", lang="en",
        dtype=args.dtype, device=args.device, batch_size=args.batch_size,
    )  # fmt: skip
    if args.child == "hf":
        lm._can_continue = lambda requests: False  # type: ignore[attr-defined]
    asked = [row["question"] for code in LANGUAGES for row in mini.transfer(code)["test"]]
    asked = asked[:: max(1, len(asked) // args.prompts)][: args.prompts]
    arguments = {"until": [CASES[args.case]], "max_gen_toks": args.tokens}

    def requests(texts: list[str]) -> list[Any]:
        return [
            Instance("generate_until", {"language": "en"}, (f"{text}\nAnswer:", arguments), 0, ("bench", number, 1))
            for number, text in enumerate(texts)
        ]

    def measure() -> bench.Measured:
        start, used = time.perf_counter(), time.process_time()
        texts = lm.generate_until(requests(asked), disable_tqdm=True)
        bench.synchronise(args.device)
        return {"seconds": time.perf_counter() - start, "processor": time.process_time() - used, "texts": texts}

    lm._can_continue(requests(asked))  # type: ignore[attr-defined]  # measures what rows may share, once for all
    lm.generate_until(requests(asked[:4]), disable_tqdm=True)
    return measure


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--batch-size", type=int, default=16, help="rows of both sides (default 16)")
    made.add_argument("--prompts", type=int, default=64)
    made.add_argument("--tokens", type=int, default=64, help="most generated for each prompt")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--case", choices=CASES, default="lines", help=argparse.SUPPRESS)
    made.add_argument("--child", choices=("hf", "steered-hf"), help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    bench.measure_or_show(args, lambda given: bench.serve(loaded(given)), rows)


if __name__ == "__main__":
    main()
