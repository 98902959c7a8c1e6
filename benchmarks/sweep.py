"""A sweep of 60 single-layer conditions against passes of `steered-hf`'s own scorer over the same questions, in one process.

    python benchmarks/sweep.py                     # the embedded model, our own questions
    python benchmarks/sweep.py --model NAME_OR_FOLDER --device cuda --rounds 5

Letters, position `last`: the whole sweep against ONE unsteered pass. Option texts, position `prompt`: against 60 separate
steered passes, of which a few are run (at layers spread over the depth) and the rest counted as their mean.
The 60 conditions are 15 layers spread evenly over the depth, from the first to the last, with 4 strengths each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from bench import Child, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LAST, MAX_PROMPT = 2.0, 0.4
N_LAYERS, GAMMAS = 15, ("0.5", "1", "2", "4")
N_CONDITIONS = N_LAYERS * len(GAMMAS)

#: Case: tasks, position.
CASES = {
    "letters": ("transfer_mini,localization_mini", "last"),
    "texts": ("transfer_mini_cloze,localization_mini_cloze", "prompt"),
}


def rows(args: argparse.Namespace | None = None) -> Iterator[Row]:
    """Time of a sweep over that of passes, for both cases."""
    args = args or parser().parse_args([])
    options = ["--device", args.device, "--dtype", args.dtype, "--limit", str(args.limit)]
    options += ["--model", args.model] if args.model else []
    for case, (_, position) in CASES.items():
        target = MAX_LAST if case == "letters" else MAX_PROMPT
        runs = bench.in_turn(
            {"sweep": lambda case=case: Child(__file__, *options, "--case", case, "--child")},
            args.rounds,
            profile_of="sweep",
            when=lambda found, target=target: ratio(found["sweep"])[0] > target,
        )["sweep"]
        value, detail = ratio(runs)
        detail = f"{runs[0]['questions']} questions; {detail}"
        what = f"sweep, {N_CONDITIONS} conditions, `{position}`, {case}, {args.dtype}"
        if case == "letters":
            yield Row.at_most(f"{what}: time / one unsteered pass", target, value, detail + bench.missed_profile(runs))
        else:
            each = statistics.median(run["each"] for run in runs)
            detail += f"; one pass {each:.2f} s (mean of {runs[0]['measured_passes']})"
            detail += f"; of the multiplications {runs[0]['work']:.2f}"
            detail += bench.missed_profile(runs)
            yield Row.at_most(f"{what}: time / {N_CONDITIONS} passes", target, value, detail)


def ratio(runs: list[bench.Measured]) -> tuple[float, str]:
    """Time of the sweep over that of the passes."""
    return bench.ratio(*([{"seconds": run[key]} for run in runs] for key in ("sweep", "passes")))


# In the child ---------------------------------------------------------------------------------------------------------


def loaded(args: argparse.Namespace) -> tuple[Callable[[], bench.Measured], Callable[[], float]]:
    """The measurement, after loading and warming up; the sweep that is part of it."""
    import torch

    from lm_eval_ext import backends
    from lm_eval_ext.scoring.batching import Budget
    from lm_eval_ext.scoring.scorer import Scorer
    from lm_eval_ext.scoring.shared_forward import SweepModel
    from lm_eval_ext.steering.decoder import layer_count
    from lm_eval_ext.steering.injection import Injector
    from lm_eval_ext.steering.plan import Plan
    from lm_eval_ext.steering.table import SteeringTable
    from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet
    from lm_eval_ext.sweep.engine import MAX_TOKENS, MEMORY_GIB, SharedEngine
    from lm_eval_ext.sweep.grid import Condition
    from lm_eval_ext.sweep.questions import Questions
    from lm_eval_ext.sweep.store import Store

    tasks, position = CASES[args.case]
    # The prior would be the same work for both sides.
    limit = args.limit if args.case == "letters" else max(1, args.limit // 4)  # 60 passes over texts are long
    questions = Questions(tasks.split(","), limit=limit, with_prior=False)
    lm = backends.load("steered-hf", args.model or None, dtype=args.dtype, device=args.device)
    n_layers, width = layer_count(lm.model.config), lm.model.config.get_text_config().hidden_size
    torch.manual_seed(0)
    layers = tuple(range(n_layers))
    vectors = {
        ("loc", code): SteeringVectors(
            VectorInfo("loc", code, layers, "last", 1, "random", "0" * 64, args.dtype, (1.0,) * n_layers),
            {"vector": torch.randn(n_layers, width)},
        )
        for code in questions.languages
    }
    vector_set = VectorSet(ModelIdentity.of("random", lm.model.config), vectors)
    steered = sorted({round(i * (n_layers - 1) / (N_LAYERS - 1)) for i in range(N_LAYERS)})
    names = [f"loc@{layer}:{gamma}/{position}" for layer in steered for gamma in GAMMAS]
    requests = lm.encode(questions.instances)
    trees = questions.trees(requests, lm.max_length)
    budget = Budget(MAX_TOKENS.get(lm.device.type, MAX_TOKENS["cuda"]), int(MEMORY_GIB * 2**30))
    languages = [question.language for question in questions.questions for _ in question.instances]

    def sweep() -> float:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder), {"model": "benchmark"})
            engine = SharedEngine(SweepModel(lm.model), vector_set, n_layers, budget)
            start = time.perf_counter()
            conditions = [Condition(Plan()), *(Condition(Plan.parse(name)) for name in names)]
            engine.run(trees, conditions, store, lambda done: None)
            bench.synchronise(args.device)
            seconds = time.perf_counter() - start
            store.close()
        return seconds * N_CONDITIONS / len(names)  # a shallow model has fewer layers than asked for

    def one_pass(plan: str) -> float:
        table = SteeringTable.build(Plan.parse(plan), vector_set, n_layers)
        injector = Injector(lm.model, table)
        scorer = Scorer(lm.model, injector, max_length=lm.max_length)
        asked = [
            request._replace(row=table.row(language)) for request, language in zip(requests, languages, strict=True)
        ]
        start = time.perf_counter()
        scorer.score(asked)
        bench.synchronise(args.device)
        seconds = time.perf_counter() - start
        injector.remove()
        return seconds

    spread = [names[(2 * i + 1) * len(names) // 6] for i in range(3)] if args.case == "texts" else [""]

    def measure() -> bench.Measured:
        passes = [one_pass(plan) for plan in spread[:2]]
        taken = sweep()
        passes += [one_pass(plan) for plan in spread[2:]]
        each = statistics.fmean(passes)
        return {
            "sweep": taken,
            "passes": each * (N_CONDITIONS if args.case == "texts" else 1),
            "each": each,
            "measured_passes": len(passes),
            "questions": len(questions.questions),
            "work": work(lm.model, trees, steered, n_layers),
        }

    one_pass("")
    return measure, sweep


def work(model: Any, trees: Any, steered: list[int], n_layers: int) -> float:
    """Share of the passes' multiplications that a sweep of whole prompts makes: the layers above, and the head again."""
    body, head = bench.weights(model)
    layers = body * sum(len(scored.tree) for scored in trees)
    heads = head * sum(len(scored.tree.scored) for scored in trees)
    above = [(n_layers - 1 - layer) / n_layers for layer in steered]
    once = layers + heads
    return float((once + sum(layers * share + heads for share in above) * len(GAMMAS)) / (once * N_CONDITIONS))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="", help="name or folder; the embedded model where left out")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", default=bench.quick_dtype())
    found.add_argument(
        "--limit", type=int, default=20, help="questions of each language and task (default 20; a quarter for texts)"
    )
    found.add_argument("--rounds", type=int, default=2, help="measurements (default 2)")
    found.add_argument("--case", choices=CASES, default="letters", help=argparse.SUPPRESS)
    found.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return found


def main() -> None:
    args: Any = parser().parse_args()
    bench.measure_or_show(args, lambda given: bench.serve(*loaded(given)), rows)


if __name__ == "__main__":
    main()
