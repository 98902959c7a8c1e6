"""How time and memory grow with what is asked, from tiny random models: exponents, and a figure of each curve.

    python benchmarks/growth.py                      # all axes, full sizes (some minutes)
    python benchmarks/growth.py questions prompt     # some
    python benchmarks/growth.py --quick --figures results/growth

Each point runs in a process of its own, forked after everything is imported: seconds of the processor, and the most memory
held above what the process began with. The exponent of an axis is the slope of the logarithms over its larger half, where
fixed costs no longer count: 1 is linear. Nothing may grow faster than linear but attention over longer prompts.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from bench import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

#: Largest exponent that counts as linear; that of attention, whose work for a token grows with the tokens before it.
LINEAR, QUADRATIC = 1.15, 2.1

#: Axis: what grows, its sizes, the sizes with --quick.
AXES = {
    "questions": ([10, 100, 1000, 10_000], [10, 100, 1000]),
    "options": ([2, 4, 8, 16, 32], [2, 8, 32]),
    "prompt": ([64, 256, 1024, 4096, 8192], [64, 256, 1024]),
    "layers": ([2, 4, 8, 16, 32], [2, 8, 32]),
    "languages": ([1, 2, 4, 8, 16], [1, 4, 16]),
    "conditions": ([4, 16, 64, 256], [4, 16, 64]),
    "runs": ([2, 4, 8, 16, 32, 64], [2, 8, 32]),
}
TITLES = {
    "questions": "scoring, number of questions of four letters",
    "options": "scoring, option texts of a question",
    "prompt": "scoring, tokens of a prompt",
    "layers": "scoring, decoder layers",
    "languages": "extraction, languages of eight pairs",
    "conditions": "sweep, conditions",
    "runs": "plane, runs of two tasks in seven languages",
}
VOCABULARY = 1000


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """The exponents of time and memory of every axis."""
    args = args or parser().parse_args(["--quick"])
    import torch

    torch.set_num_threads(1)  # a fork does not take threads along
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for axis in args.axes or AXES:
        curves[axis] = [(n, *measured(axis, n)) for n in AXES[axis][1 if args.quick else 0]]
        limit = QUADRATIC if axis == "prompt" else LINEAR
        for place, (what, unit) in enumerate((("time", "s"), ("memory", "MiB")), start=1):
            points = [(point[0], point[place]) for point in curves[axis]]
            slope = exponent(points)
            detail = ", ".join(f"{n}: {value:.3g} {unit}" for n, value in points)
            shown = "flat" if slope is None else f"n^{slope:.2f}"
            yield Row(f"{TITLES[axis]}: {what}", f"<= n^{limit}", shown, detail, slope is None or slope <= limit)
    if args.figures:
        draw(curves, args.figures)


def exponent(points: list[tuple[int, float]]) -> float | None:
    """The slope of the logarithms over the larger half of the points; None where they hardly grow."""
    half = points[len(points) // 2 - (len(points) % 2 == 0) :]
    if len(half) < 2 or min(value for _, value in half) <= 0 or points[-1][1] < 1.3 * points[0][1]:
        return None
    (n_first, first), (n_last, last) = half[0], half[-1]
    return math.log(last / first) / math.log(n_last / n_first)


def measured(axis: str, n: int) -> tuple[float, float]:
    """Seconds of the processor and MiB that were added, of one point in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_point, args=(axis, n, there))
    process.start()
    there.close()
    try:
        seconds, added = here.recv()
    except EOFError:
        raise RuntimeError(f"{axis}={n} failed") from None
    finally:
        process.join()
    return float(seconds), float(added)


def _point(axis: str, n: int, answer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = WORKS[axis](n, Path(folder))
        before = bench.memory("cpu")
        bench.forget_peak_memory("cpu")
        started = time.process_time()
        work()
        seconds = time.process_time() - started
        answer.send((seconds, max(0, bench.peak_memory("cpu") - before) / 2**20))


# What grows ------------------------------------------------------------------------------------------------------------


def model_of(layers: int = 4, positions: int = 16_384) -> Any:
    """A random model of the Llama kind."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
    )
    return LlamaForCausalLM(config).eval()


def _scoring(n_questions: int, length: int = 64, options: int = 4, fed: int = 1, layers: int = 4) -> Work:
    """Scoring questions of random tokens, whose options have `fed` tokens."""
    import torch

    from lm_eval_ext.scoring.requests import Request
    from lm_eval_ext.scoring.scorer import Scorer
    from lm_eval_ext.steering.injection import Injector
    from lm_eval_ext.steering.table import SteeringTable

    model = model_of(layers)
    draw = torch.Generator().manual_seed(1)
    scorer = Scorer(model, Injector(model, SteeringTable()), max_length=16_384)
    requests = [
        Request(tuple(prompt), tuple(option), 0)
        for prompt in torch.randint(1, VOCABULARY, (n_questions, length), generator=draw).tolist()
        for option in torch.randint(1, VOCABULARY, (options, fed), generator=draw).tolist()
    ]
    scorer.check(requests)  # once for a model, whatever is asked
    return lambda: scorer.score(requests)


def _extraction(n_languages: int, folder: Path) -> Work:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from lm_eval_ext.data.pairs import Pair, PairSet
    from lm_eval_ext.languages import KNOWN
    from lm_eval_ext.steering.extraction import extract

    model = model_of()
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")
    texts = [" ".join(f"w{1 + (7 * row + 3 * column) % 999}" for column in range(64)) for row in range(16)]
    sets = [
        PairSet("loc", code, "growth", tuple(Pair(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)))
        for code in list(KNOWN)[:n_languages]
    ]
    return lambda: extract(model, tokenizer, sets)


def _sweep(n_conditions: int, folder: Path) -> Work:
    import torch

    from lm_eval_ext.scoring.batching import Budget
    from lm_eval_ext.scoring.shared_forward import SweepModel
    from lm_eval_ext.scoring.token_trees import Tree
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet
    from lm_eval_ext.sweep.engine import MAX_TOKENS, SharedEngine
    from lm_eval_ext.sweep.grid import Condition
    from lm_eval_ext.sweep.questions import ScoredTree
    from lm_eval_ext.sweep.store import Store

    model, layers = model_of(), tuple(range(4))
    draw = torch.Generator().manual_seed(1)
    trees = [
        ScoredTree(Tree.grow(tuple(prompt), [(1,), (2,), (3,), (4,)], 0), "en", True, ((0,),) * 4, f"tree{number}")
        for number, prompt in enumerate(torch.randint(1, VOCABULARY, (20, 64), generator=draw).tolist())
    ]
    info = VectorInfo("loc", "en", layers, "last", 1, "random", "0" * 64, "float32", (1.0,) * 4)
    vectors = VectorSet(
        ModelIdentity.of("random", model.config),
        {("loc", "en"): SteeringVectors(info, {"vector": torch.randn(4, 64, generator=draw)})},
    )
    plans = [f"loc@{number % 4}:{1 + number // 4}/prompt" for number in range(n_conditions)]
    conditions = [Condition(Plan()), *(Condition(Plan.parse(plan)) for plan in plans)]
    engine = SharedEngine(SweepModel(model), vectors, 4, Budget(MAX_TOKENS["cpu"], 2**30))

    def work() -> None:
        with torch.inference_mode():
            store = Store(folder, {"model": "growth"})
            engine.run(trees, conditions, store, lambda done: None)
            store.close()

    return work


def _plane(n_runs: int, folder: Path) -> Work:
    import report

    from lm_eval_ext.plane.shifts import measure

    report.generate(folder, n_runs, 100)
    return lambda: measure(folder, "model-000", x="gmmlu", y="blend_decon", resamples=200)


WORKS: dict[str, Callable[[int, Path], Work]] = {
    "questions": lambda n, folder: _scoring(n),
    "options": lambda n, folder: _scoring(20, options=n, fed=4),
    "prompt": lambda n, folder: _scoring(4, length=n),
    "layers": lambda n, folder: _scoring(40, layers=n),
    "languages": _extraction,
    "conditions": _sweep,
    "runs": _plane,
}


def draw(curves: dict[str, list[tuple[int, float, float]]], folder: Path) -> None:
    """A figure of time and one of memory, all axes in each, as SVG."""
    import plotly.graph_objects as go

    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, title) in enumerate((("time", "seconds of the processor"), ("memory", "MiB added")), start=1):
        figure = go.Figure()
        for axis, points in curves.items():
            first = points[0][0]
            x, y = [point[0] / first for point in points], [point[place] for point in points]
            figure.add_scatter(x=x, y=y, name=TITLES[axis], mode="lines+markers")
        figure.update_xaxes(type="log", title="times the smallest size")
        figure.update_yaxes(type="log", title=title)
        figure.update_layout(template="simple_white", legend={"orientation": "h", "y": -0.25}, width=900, height=600)
        (folder / f"growth-{name}.html").write_text(figure.to_html(include_plotlyjs="cdn"), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("axes", nargs="*", choices=[*AXES, []], help="of these (default all)")
    made.add_argument("--quick", action="store_true", help="smaller sizes, as in `make bench`")
    made.add_argument("--figures", type=Path, help="folder for a figure of time and one of memory")
    return made


def main() -> None:
    import run

    run.show(list(rows(parser().parse_args())))


if __name__ == "__main__":
    main()
