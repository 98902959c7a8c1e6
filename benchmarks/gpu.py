"""Everything that the GPU column of the table asks, on random weights, in under eight minutes; writes one JSON.

    python benchmarks/gpu.py --out results/gpu/h200.json            # Gemma 3 shapes of 270M, 4B and 12B in bfloat16
    python benchmarks/gpu.py --shapes 270M --out gpu.json
    python benchmarks/gpu.py --device cpu --smoke --out smoke.json    # the same code on tiny shapes, to test it

No weights, tokenizer or data are fetched: a model is a config with random weights, a text is words `w17`, one token each.
Measured for every shape: scoring of letters and of option texts against the harness's `hf` with answers compared, the share
of the matrix peak, steered against unsteered, a sweep of 60 conditions against one pass, extraction against plain forwards,
generation against `hf`, and memory; compiled layers for the smallest shape. What the time does not allow any more is left
out and named. Cases are run in the order of the shapes, the short ones first.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from roofline import SHAPES, Shape

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after which no case is begun.
TIME = 440.0

TINY = {"tiny": Shape(4, 64, 128, 4, 1, 16, 2000)}


@dataclass
class Session:
    """What all cases share."""

    args: argparse.Namespace
    started: float = field(default_factory=time.monotonic)
    results: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def case(self, shape: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one case, unless the time is over; one that fails costs the others nothing."""
        if time.monotonic() - self.started > self.args.seconds:
            self.left_out.append(f"{shape}: {name}")
            return
        began = time.monotonic()
        try:
            found = measure()
        except Exception as error:  # the JSON is of what could be measured
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        entry = {"shape": shape, "case": name, **found, "case_seconds": round(time.monotonic() - began, 1)}
        self.results.append(entry)
        print(json.dumps(entry), file=sys.stderr, flush=True)

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """The least seconds of some runs after one to warm up."""
        work()
        found = []
        for _ in range(1 if self.args.smoke else repeats):
            bench.synchronise(self.args.device)
            began = time.perf_counter()
            work()
            bench.synchronise(self.args.device)
            found.append(time.perf_counter() - began)
        return min(found)


def build(shape: Shape, args: argparse.Namespace) -> tuple[Any, Any]:
    """A Gemma 3 text model with random weights on the device, and a tokenizer whose words are tokens."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    config = Gemma3TextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_pre_attn_scalar=shape.head_dim,
        max_position_embeddings=8192,
        sliding_window=1024,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    try:
        with torch.device(args.device):
            model = Gemma3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    # Special tokens are found within words too, so that none may be the beginning of one.
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    vocabulary = {word: number for number, word in enumerate(special)}
    vocabulary |= {f"w{number}": number for number in range(len(special), shape.vocabulary)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    return model, tokenizer


def measure(session: Session, name: str, shape: Shape) -> None:
    """All cases of one shape."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lm_eval_ext import backends
    from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet

    args = session.args
    model, tokenizer = build(shape, args)
    bench.synchronise(args.device)
    common = {"tokenizer": tokenizer, "device": args.device}
    hf = HFLM(pretrained=model, batch_size=64, **common)
    ours = backends.load("steered-hf", model, batch_size="auto", **common)
    layers = tuple(range(shape.layers))
    info = VectorInfo("loc", "en", layers, "last", 1, "random", "0" * 64, args.dtype, (1.0,) * len(layers))
    vectors = VectorSet(
        ModelIdentity.of("random", model.config),
        {("loc", "en"): SteeringVectors(info, {"vector": torch.randn(len(layers), shape.hidden)})},
    )
    draw = torch.Generator().manual_seed(1)
    n, length = (8, 24) if args.smoke else (args.questions, 160)
    prompts = torch.randint(10, shape.vocabulary, (n, length), generator=draw).tolist()
    texts = [" ".join(f"w{word}" for word in prompt) for prompt in prompts]
    letters = [[" w4", " w5", " w6", " w7"]] * n
    words = torch.randint(10, shape.vocabulary, (n, 4, 3), generator=draw).tolist()
    options = [[" " + " ".join(f"w{word}" for word in option) for option in of_one] for of_one in words]

    def requests(of_question: list[list[str]]) -> list[Any]:
        return [
            Instance("loglikelihood", {"language": "en"}, (text, option), k, ("gpu", number, 1))
            for number, (text, asked) in enumerate(zip(texts, of_question, strict=True))
            for k, option in enumerate(asked)
        ]

    def answers(lm: Any, asked: list[Any]) -> list[int]:
        values = [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]
        return [max(range(4), key=values[at : at + 4].__getitem__) for at in range(0, len(values), 4)]

    body, head = bench.weights(model)
    peak = bench.matrix_peak(args.dtype, args.device, 256 if args.smoke else 8192)

    def against_hf(of_question: list[list[str]], scored: int, fed: int) -> dict[str, Any]:
        asked = requests(of_question)
        same = sum(a == b for a, b in zip(answers(hf, asked), answers(ours, asked), strict=True))
        of_hf = session.seconds(lambda: hf.loglikelihood(asked, disable_tqdm=True), 1)
        peaks = {}
        for side, lm in (("hf", hf), ("ours", ours)):
            bench.forget_peak_memory(args.device)
            lm.loglikelihood(asked, disable_tqdm=True)
            peaks[f"peak_gib_{side}"] = bench.peak_memory(args.device) / 2**30
        taken = session.seconds(lambda: ours.loglikelihood(asked, disable_tqdm=True))
        gflop = 2 * n * (body * (length + fed) + head * scored) / 1e9
        return {
            "questions": n,
            "hf_seconds": of_hf,
            "seconds": taken,
            "ratio": of_hf / taken,
            "answers_equal": f"{same} of {n}",
            "gflops": gflop / taken,
            "peak_gflops": peak,
            "share_of_peak": gflop / taken / peak,
            **peaks,
        }

    def overhead() -> dict[str, Any]:
        steered = backends.load(
            "steered-hf", model, batch_size="auto", vectors=vectors, steer=f"loc@{shape.layers // 2}:2", **common
        )
        asked = requests(letters)
        with_plan = session.seconds(lambda: steered.loglikelihood(asked, disable_tqdm=True))
        steered.close()
        without = session.seconds(lambda: ours.loglikelihood(asked, disable_tqdm=True))
        return {"steered": with_plan, "unsteered": without, "ratio": with_plan / without}

    def sweep(position: str, of_question: list[list[str]]) -> dict[str, Any]:
        from lm_eval_ext.scoring.batching import Budget
        from lm_eval_ext.scoring.shared_forward import SweepModel
        from lm_eval_ext.scoring.token_trees import Tree
        from lm_eval_ext.steering.plan import Plan
        from lm_eval_ext.sweep.engine import MAX_TOKENS, SharedEngine
        from lm_eval_ext.sweep.grid import Condition
        from lm_eval_ext.sweep.questions import ScoredTree
        from lm_eval_ext.sweep.store import Store

        some = of_question[: max(2, n // 4)]
        encoded = ours.encode(requests(of_question)[: 4 * len(some)])
        trees = [
            ScoredTree(
                Tree.grow(encoded[at].prompt, [one.continuation for one in encoded[at : at + 4]], 0),
                *("en", True, ((0,),) * 4, f"tree{at}"),
            )
            for at in range(0, len(encoded), 4)
        ]
        steered = sorted({round(i * (shape.layers - 1) / 14) for i in range(15)})
        plans = [f"loc@{layer}:{gamma}/{position}" for layer in steered for gamma in ("0.5", "1", "2", "4")]
        conditions = [Condition(Plan()), *(Condition(Plan.parse(plan)) for plan in plans)]

        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                store = Store(Path(folder), {"model": "gpu"})
                budget = Budget(MAX_TOKENS.get(args.device.split(":")[0], MAX_TOKENS["cuda"]), 2**32)
                engine = SharedEngine(SweepModel(model), vectors, shape.layers, budget)
                engine.run(trees, conditions, store, lambda done: None)
                store.close()

        asked = requests(of_question)[: len(encoded)]
        whole = session.seconds(run, 1)
        once = session.seconds(lambda: ours.loglikelihood(asked, disable_tqdm=True))
        return {"conditions": len(plans), "seconds": whole, "one_pass": once, "passes": whole / once}

    def extraction() -> dict[str, Any]:
        from lm_eval_ext.data.pairs import Pair, PairSet
        from lm_eval_ext.steering.extraction import extract

        pairs = [Pair(a, b) for a, b in zip(texts[::2], texts[1::2], strict=False)][:100]
        chosen = PairSet("loc", "en", "random", tuple(pairs))
        ids = torch.tensor(tokenizer([text for pair in pairs for text in (pair.positive, pair.negative)]).input_ids)

        def plain() -> None:
            with torch.inference_mode():
                for batch in ids.split(16):
                    model.base_model(input_ids=batch.to(args.device), use_cache=False)

        without = session.seconds(plain)
        taken = session.seconds(lambda: extract(model, tokenizer, chosen, layers="all", batch_size=16))
        return {"pairs": len(pairs), "seconds": taken, "plain": without, "ratio": taken / without}

    def generation() -> dict[str, Any]:
        steered = backends.load(
            "steered-hf", model, batch_size=16, vectors=vectors, steer=f"loc@{shape.layers // 2}:2/all", **common
        )
        arguments = {"until": ["w9"], "max_gen_toks": 8 if args.smoke else 64}
        asked = [
            Instance("generate_until", {"language": "en"}, (text, arguments), 0, ("gpu", number, 1))
            for number, text in enumerate(texts[:64])
        ]
        taken = session.seconds(lambda: steered.generate_until(asked, disable_tqdm=True), 1)
        ours_texts = steered.generate_until(asked, disable_tqdm=True)
        steered._can_continue = lambda requests: False  # type: ignore[attr-defined]
        of_hf = session.seconds(lambda: steered.generate_until(asked, disable_tqdm=True), 1)
        same = sum(a == b for a, b in zip(ours_texts, steered.generate_until(asked, disable_tqdm=True), strict=True))
        steered.close()
        found = {"prompts": len(asked), "seconds": taken, "hf_seconds": of_hf, "ratio": of_hf / taken}
        return {**found, "texts_equal": f"{same} of {len(asked)}"}

    def compiled() -> dict[str, Any]:
        eager = session.seconds(lambda: ours.loglikelihood(requests(letters), disable_tqdm=True))
        lm = backends.load("steered-hf", model, batch_size="auto", torch_compile=True, **common)
        began = time.perf_counter()
        lm.loglikelihood(requests(letters), disable_tqdm=True)
        first = time.perf_counter() - began
        taken = session.seconds(lambda: lm.loglikelihood(requests(letters), disable_tqdm=True))
        return {"first": first, "seconds": taken, "eager": eager, "ratio": eager / taken}

    session.case(name, "letters against hf", lambda: against_hf(letters, 1, 0))
    session.case(name, "option texts against hf", lambda: against_hf(options, 9, 8))
    session.case(name, "steered against unsteered", overhead)
    session.case(name, "extraction against plain forwards", extraction)
    session.case(name, "sweep of letters, last token", lambda: sweep("last", letters))
    session.case(name, "sweep of option texts, prompt", lambda: sweep("prompt", options))
    session.case(name, "generation against hf", generation)
    if args.compile and name == next(iter(args.chosen)):
        session.case(name, "compiled against eager", compiled)  # last: it changes the model


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch
    import transformers

    on_cuda = args.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(args.device) if on_cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": args.dtype,
        "is_smoke_test": args.smoke,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("gpu.json"))
    made.add_argument("--device", default="cuda")
    made.add_argument("--dtype", default="", help="bfloat16, on a CPU float32, where left out")
    made.add_argument("--shapes", nargs="*", choices=[*SHAPES], default=[*SHAPES])
    made.add_argument("--questions", type=int, default=400)
    made.add_argument("--seconds", type=float, default=TIME, help=f"after which no case is begun (default {TIME:.0f})")
    made.add_argument("--smoke", action="store_true", help="tiny shapes, to test this file")
    made.add_argument("--no-compile", dest="compile", action="store_false")
    return made


def main() -> None:
    args = parser().parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.chosen = TINY if args.smoke else {name: SHAPES[name] for name in args.shapes}
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --device cpu --smoke runs the same code on tiny shapes, which measures nothing")
    session = Session(args)
    for name, shape in args.chosen.items():
        measure(session, name, shape)
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    content = {
        "environment": environment(args),
        "seconds": round(time.monotonic() - session.started, 1),
        "cases": session.results,
        "left_out": session.left_out,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    note = " (tiny shapes on a CPU: a test of the code, no measurement)" if args.smoke else ""
    print(f"{args.out}: {len(session.results)} cases in {content['seconds']} s{note}")
    if failed := [f"{entry['shape']}: {entry['case']}" for entry in session.results if "failed" in entry]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
