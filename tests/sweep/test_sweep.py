"""The sweep engine: every cell equals a run of its own, whatever was shared, interrupted or out of memory."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.processes import HUNG, environment
from support.sweeps import TASKS, given_settings, sweep, tiny_tasks
from typer.testing import CliRunner

from lm_eval_ext.cli import app
from lm_eval_ext.commands import sweep as command
from lm_eval_ext.errors import ModelError, ResultsError, UserError
from lm_eval_ext.fingerprints import weights_fingerprint
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.results import legacy_names
from lm_eval_ext.scoring.batching import Budget
from lm_eval_ext.scoring.shared_forward import SweepModel
from lm_eval_ext.scoring.token_trees import PROMPT, Aligned, Batch, Packed, Tree
from lm_eval_ext.scoring.tree_attention import SteeredTokens, TreeModel
from lm_eval_ext.steering.plan import Gamma, Plan
from lm_eval_ext.steering.table import Addition, SteeringTable
from lm_eval_ext.sweep import questions
from lm_eval_ext.sweep.choice import Axes, choose
from lm_eval_ext.sweep.engine import SharedEngine
from lm_eval_ext.sweep.grid import UNSTEERED, Condition, Grid
from lm_eval_ext.sweep.run import Sweep
from lm_eval_ext.sweep.store import Store

if TYPE_CHECKING:
    from lm_eval_ext.sweep.settings import Settings

FAMILIES = ("gemma3", "llama", "gpt2", "mistral", "qwen2")


def trees_of(family: str, seed: int = 0, n: int = 6) -> tuple[list[Tree], list[str]]:
    """Random trees: prompts of one token and more, options that share tokens, of one token and more; some with a lead."""
    draw = random.Random(seed)
    vocabulary = len(tiny.tokenizer(family))

    def some(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, vocabulary) for _ in range(length))

    found = []
    for _ in range(n):
        options = [some(draw.choice([1, 2, 4])) for _ in range(4)]
        options.append((*options[-1][:-1], 5))
        options.append((*options[0], 7))
        lead = some(draw.choice([0, 0, 1, 2]))
        found.append(Tree.grow(some(draw.choice([1, 3, 9, 20])), [(*lead, *option) for option in options], len(lead)))
    return found, [draw.choice(tiny.LANGUAGES) for _ in found]


# Exactness -----------------------------------------------------------------------------------------------------------


@pytest.mark.transformers4
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_cells_equal_runs_of_the_harness(family: str, tmp_path: Path):
    """The mini grid on real harness tasks, then the same plans one by one through `simple_evaluate`."""
    asked = given_settings(
        family,
        tmp_path,
        layers="0,2",
        positions=("prompt", "last", "all", "last3", "first2", "generated"),
        pair_layers=1,
        n_random=1,
        limit=None,
    )
    found = sweep(asked)
    names = sorted(name for name in found["condition"].unique() if name)
    draw = random.Random(family)
    chosen = [draw.choice([n for n in names if n.endswith(f"/{where}") and "+" not in n]) for where in asked.positions]
    chosen += [draw.choice([n for n in names if "+" in n]), draw.choice([n for n in names if "random" in n]), UNSTEERED]
    with tiny_tasks():
        store = Store(tmp_path / "cells", _identity(tmp_path))
        run = Sweep(asked)
        model = tiny.steered(family)
        trees = run.questions.trees(model.encode(run.questions.instances), model.max_length, likelihoods=True)
    for plan in chosen:
        results = tiny.evaluate(tiny.steered(family, plan), *TASKS)
        likelihoods = [math.nan] * len(run.questions.instances)
        for tree in trees:
            for indices, value in zip(tree.requests, store.get(plan, tree.key) or [], strict=True):
                for index in indices:
                    likelihoods[index] = value
        rows = found[found["condition"] == plan].set_index(["task", "doc_id"])
        assert len(rows) == len(run.questions.questions) == 16
        for question in run.questions.questions:
            sample = results["samples"][question.task][question.doc_id]
            ours = [likelihoods[index] for index in question.instances]
            theirs = [response[0][0] for response in sample["resps"]]
            assert ours == pytest.approx(theirs, abs=1e-4)
            assert rows.loc[(question.task, question.doc_id), "acc"] == sample["acc"]
    store.close()


def _identity(folder: Path) -> dict[str, str]:
    import sqlite3

    with sqlite3.connect(folder / "cells" / "cells-0.sqlite") as connection:
        return dict(connection.execute("select name, value from identity"))


@pytest.mark.transformers4
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["prompt", "last", "all", "last2", "last5", "first1", "first4", "generated"])
def test_trees_equal_plain_forwards(family: str, position: str):
    """Against one forward per continuation with the vector added to its hidden states by hand."""
    model, (trees, languages) = tiny.load(family), trees_of(family)
    vectors = tiny.vector_set(family)
    plans = [f"en@1:2/{position}", f"loc@1:-1/{position}+en@2:1/{position}", f"loc~other@1:1/{position}+loc@3:2/last"]
    tables = [SteeringTable.build(Plan.parse(plan), vectors, tiny.LAYERS) for plan in plans]
    shared = SweepModel(model)
    ends = position == "last"
    base = shared.base((Aligned if ends else Packed)(trees), [1], [True] * len(trees))
    run = shared.ends if ends else shared.whole
    found = run(base, 1, tables, languages, [True] * len(trees))
    for table, by_tree in zip(tables, found, strict=True):
        for tree, language, values in zip(trees, languages, by_tree, strict=True):
            for path, value in zip(tree.targets, values, strict=True):
                expected = _by_hand(model, table, language, tree, [token for _, token in path])
                assert value == pytest.approx(expected, abs=1e-4)


def _by_hand(model: Any, table: SteeringTable, language: str, tree: Tree, option: list[int]) -> float:
    from lm_eval_ext.steering.decoder import decoder_layers, residual, with_residual

    row, n = table.row(language), len(tree.prompt) + tree.lead

    def add(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            stream = residual(output).clone()
            for step in table.steps[layer]:
                word, count = step.position.rstrip("0123456789"), int(re.sub(r"\D", "", step.position) or 1)
                tokens = {
                    **{"prompt": slice(0, n), "last": slice(max(0, n - count), n), "all": slice(None)},
                    **{"first": slice(0, min(count, n)), "generated": slice(n, None)},
                }[word]
                assert isinstance(step, Addition)
                stream[:, tokens] += step.matrix[row]
            return with_residual(output, stream)

        return hook

    handles = [decoder_layers(model)[layer].register_forward_hook(add(layer)) for layer in table.steps]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*tree.prompt, *option]])).logits[0, len(tree.prompt) - 1 : -1]
    for handle in handles:
        handle.remove()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(option)[:, None]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_letters_differ_as_log_likelihoods_do(family: str):
    model, trees = SweepModel(tiny.load(family)), [Tree.grow((3, 4, 5, 6), [(7,), (8,), (9,)])]
    (normalised,) = model.base(Packed(trees), [], [True]).values
    (plain,) = model.base(Packed(trees), [], [False]).values
    assert [b - a for a, b in zip(plain, normalised, strict=True)] == pytest.approx([normalised[0] - plain[0]] * 3)


@settings(max_examples=25, deadline=None)
@given(
    prompt=st.lists(st.integers(2, 300), min_size=1, max_size=12),
    options=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=5), min_size=1, max_size=6),
)
def test_a_tree_holds_every_continuation(prompt: list[int], options: list[list[int]]):
    tree = Tree.grow(tuple(prompt), [tuple(option) for option in options])
    assert [[token for _, token in path] for path in tree.targets] == options
    assert len({tuple(option[:n]) for option in options for n in range(1, len(option))}) == len(tree.tokens)
    for path in tree.targets:
        nodes = [node for node, _ in path]
        assert nodes[0] == PROMPT
        for parent, child in pairwise(nodes[1:]):
            assert tree.parents[child] == parent
            assert bool(tree.ancestor_mask[child, parent])


SHAPES = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40)), max_size=40)


@pytest.mark.parametrize("form", [Aligned, Packed])
@given(shapes=SHAPES, budget=st.integers(1, 400))
def test_batches_keep_their_budget(form: type[Batch], shapes: list[tuple[int, int]], budget: int):
    trees = [Tree((2,) * prompt, (3,) * nodes, (PROMPT,) * nodes, ()) for prompt, nodes in shapes]
    found = form.divide(trees, budget)
    assert sorted(index for batch in found for index in batch) == list(range(len(trees)))
    for batch in found:
        own = [trees[index] for index in batch]
        tokens = Aligned(own).whole.ids.numel() if form is Aligned else sum(map(len, own))
        assert len(batch) == 1 or tokens <= budget


@given(shapes=SHAPES.filter(bool))
def test_packed_trees_share_rows_and_see_only_themselves(shapes: list[tuple[int, int]]):
    trees = [
        Tree((2 + k,) * prompt, (2 + k,) * nodes, (PROMPT, *range(nodes - 1))[:nodes], ())
        for k, (prompt, nodes) in enumerate(shapes)
    ]
    batch = Packed(trees)
    layout, length = batch.whole, max(len(tree) for tree in trees)
    held = layout.ids > 0
    assert int(held.sum()) == sum(len(tree) for tree in trees)
    assert torch.equal(layout.ids[held], 2 + batch.owner[held])
    assert layout.ids.shape[1] <= max(128, length)
    rows, queries, keys = layout.ancestor_mask.nonzero(as_tuple=True)
    assert torch.equal(layout.ids[rows, queries], layout.ids[rows, keys])
    # A chain after a prompt is a text: each token sees as many as its place says.
    assert torch.equal(layout.ancestor_mask.sum(-1)[held], layout.positions[held] + 1)
    masks = {name: SteeredTokens(*batch.spans).mask(name, 0, 0) & held for name in ("prompt", "last", "generated")}
    assert int(masks["prompt"].sum()) == sum(len(tree.prompt) for tree in trees)
    assert int(masks["last"].sum()) == len(trees)
    assert int(masks["generated"].sum()) == sum(len(tree.tokens) for tree in trees)
    if sum(len(tree) for tree in trees) > 4 * 128:
        assert int(held.sum()) > 0.6 * held.numel()


# Cost ----------------------------------------------------------------------------------------------------------------


def test_layers_below_are_not_run_again(tmp_path: Path):
    """Counted calls of each layer's attention: what lies below a steered layer runs once per batch, not per condition."""
    model, (trees, languages) = tiny.load("llama"), trees_of("llama", n=3)
    calls = [0] * tiny.LAYERS
    for layer, module in enumerate(model.model.layers):
        module.self_attn.register_forward_hook(lambda *_, at=layer: calls.__setitem__(at, calls[at] + 1))
    vectors = tiny.vector_set("llama")
    conditions = [Condition(Plan())] + [
        Condition(Plan.parse(f"en@2:{gamma}/{where}")) for gamma in range(1, 9) for where in ("prompt", "last")
    ]
    scored = [_scored(tree, language) for tree, language in zip(trees, languages, strict=True)]
    store = Store(tmp_path, {"model": "a"})
    engine = SharedEngine(SweepModel(model), vectors, tiny.LAYERS, Budget(100_000, 2**30))
    engine.run(scored, conditions, store, lambda done: None)
    assert calls[:3] == [2, 2, 2]  # once for each form of batch
    assert calls[3] == 4  # the conditions of a position together


def _scored(tree: Tree, language: str) -> questions.ScoredTree:
    options = [tuple(token for _, token in path) for path in tree.targets]
    key = questions.tree_key(tree.prompt, options, language, True)
    return questions.ScoredTree(tree, language, True, tuple((i,) for i in range(len(options))), key)


@pytest.mark.parametrize(("tokens", "memory"), [(1, 1), (7, 10_000), (40, 60_000), (100_000, 2**30)])
def test_budgets_change_nothing_but_the_cost(tokens: int, memory: int, tmp_path: Path):
    model, (trees, languages) = tiny.load("gemma3"), trees_of("gemma3", n=4)
    scored = [_scored(tree, language) for tree, language in zip(trees, languages, strict=True)]
    conditions = [
        Condition(Plan.parse(plan))
        for plan in ("", "en@0:2/last", "loc@1:1/prompt", "en@1:1/last", "loc@3:2/all", "en@0:1/prompt+loc@2:1/last")
    ]
    cells = []
    for name, budget in (("asked", Budget(tokens, memory)), ("reference", Budget(4096, 2**30))):
        store = Store(tmp_path / name, {"model": "a"})
        SharedEngine(SweepModel(model), tiny.vector_set("gemma3"), tiny.LAYERS, budget).run(
            scored, conditions, store, lambda done: None
        )
        cells.append([store.get(c.name, t.key) for c in conditions for t in scored])
    for ours, expected in zip(*cells, strict=True):
        assert ours == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_running_out_of_memory_halves_the_batch(error: Exception, tmp_path: Path):
    model, (trees, languages) = SweepModel(tiny.load("llama")), trees_of("llama")
    scored = [_scored(tree, language) for tree, language in zip(trees, languages, strict=True)]
    conditions = [Condition(Plan.parse(plan)) for plan in ("", "en@0:2/last", "loc@1:1/prompt")]
    run, rows = model.base, []

    def base(batch: Batch, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(batch.trees))
        if len(batch.trees) > 2:
            raise error
        return run(batch, *args, **kwargs)

    store = Store(tmp_path, {"model": "a"})
    with mock.patch.object(model, "base", base):
        SharedEngine(model, tiny.vector_set("llama"), tiny.LAYERS, Budget(4096, 2**30)).run(
            scored, conditions, store, lambda done: None
        )
    assert max(rows) > 2
    assert all(store.get(c.name, t.key) is not None for c in conditions for t in scored)


def test_an_error_that_is_not_about_memory_is_not_hidden(tmp_path: Path):
    model, (trees, languages) = SweepModel(tiny.load("llama")), trees_of("llama")
    scored = [_scored(tree, language) for tree, language in zip(trees, languages, strict=True)]
    with (
        mock.patch.object(model, "base", side_effect=RuntimeError("shapes")),
        pytest.raises(RuntimeError, match="shapes"),
    ):
        SharedEngine(model, tiny.vector_set("llama"), tiny.LAYERS, Budget(4096, 2**30)).run(
            scored, [Condition(Plan())], Store(tmp_path, {"model": "a"}), lambda done: None
        )


def test_an_architecture_that_trees_do_not_fit_is_swept_one_by_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    load, models = Sweep._load, []
    with mock.patch.object(Sweep, "_load", lambda self: models.append(load(self)) or models[0]):
        found = sweep(given_settings("mpt", tmp_path, limit=None))
    assert tiny.hooks(models[0].model) == []
    assert "it computes positions itself; every condition is computed in full" in " ".join(
        capfd.readouterr().err.split()
    )
    for plan in ("en@1:1/prompt", "loc@1:1/prompt", UNSTEERED):
        samples = tiny.evaluate(tiny.steered("mpt", plan), *TASKS)["samples"]
        rows = found[found["condition"] == plan]
        assert len(rows) == sum(map(len, samples.values())) == 16
        for task, number, acc in zip(rows["task"], rows["doc_id"], rows["acc"], strict=True):
            assert acc == samples[task][number]["acc"]
    plain, steered = (found[found["condition"] == c]["margin"].to_numpy() for c in (UNSTEERED, "loc@1:1/prompt"))
    assert abs(plain - steered).max() > 1e-2


def test_the_check_finds_a_mask_that_is_ignored():
    (tree,), _ = trees_of("llama", n=1)
    assert SweepModel(tiny.load("llama")).check([tree]) == ""
    with mock.patch.object(TreeModel, "_mask", return_value=None):
        found = SweepModel(tiny.load("llama")).check([tree])
    assert "custom attention mask changes the log-probability" in found


# Resuming ------------------------------------------------------------------------------------------------------------

#: Writes three times, says so, and waits to be killed.
_CHILD = """
import sys
from pathlib import Path
from lm_eval_ext.sweep.store import Store
from support.sweeps import given_settings, sweep
write, out, model, vectors = Store.write, *sys.argv[1:]
written = []
def then_wait(self, cells):
    write(self, cells)
    written.append(1)
    if len(written) == 3:
        print("wrote", flush=True)
        sys.stdin.read()
Store.write = then_wait
sweep(given_settings("llama", Path(out), layers="0-2", model=model, vectors=Path(vectors)))
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    files = [str(path) for path in (tmp_path / "killed", tiny.folder("llama"), tiny.vector_file("llama"))]
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, *files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    assert child.stdout is not None
    assert b"wrote\n" in child.stdout, "it ended before it wrote"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    kept = sum(map(len, Store(tmp_path / "killed" / "cells", {})._cells.values()))
    assert kept >= 3
    capfd.readouterr()
    written: list[bool] = []
    write = Store.write

    def counting(self: Store, cells: Any) -> None:
        rows = list(cells)
        written.extend(self.get(name, tree) is not None for name, tree, _ in rows if name != UNSTEERED)
        write(self, rows)

    with mock.patch.object(Store, "write", counting):
        resumed = sweep(given_settings("llama", tmp_path / "killed", layers="0-2"))
    assert "were begun by earlier runs" in capfd.readouterr().err
    assert written
    assert not any(written), "a steered cell was computed again"
    pd.testing.assert_frame_equal(resumed, sweep(given_settings("llama", tmp_path / "whole", layers="0-2")))


def test_a_larger_grid_computes_only_what_is_new(tmp_path: Path):
    sweep(given_settings("llama", tmp_path))
    written: list[str] = []
    write = Store.write

    def noting(self: Store, cells: Any) -> None:
        rows = list(cells)
        written.extend(condition for condition, _, _ in rows)
        write(self, rows)

    with mock.patch.object(Store, "write", noting):
        sweep(given_settings("llama", tmp_path, gammas=("1", "2")))
    assert {name for name in written if name} == {"en@1:2/prompt", "loc@1:2/prompt"}


@pytest.mark.parametrize("what", ["model", "vector file", "dtype"])
def test_what_changed_is_named(what: str, tmp_path: Path):
    asked = given_settings("llama", tmp_path)
    sweep(asked)
    changed = {
        "model": lambda: replace(asked, model_args=f"dtype=float32,peft={tiny.adapter('llama')}"),
        "vector file": lambda: replace(
            asked, vectors=tiny.vector_file("llama", ("en", "loc"), ("en", "ko", "es", "zh", "el"))
        ),
        "dtype": lambda: replace(asked, model_args="dtype=bfloat16"),
    }[what]()
    with pytest.raises(ResultsError, match=rf"another .*{what}.*--restart"):
        sweep(changed)
    sweep(replace(changed, restart=True))


def test_changed_questions_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    asked = given_settings("llama", tmp_path)
    sweep(asked)
    capfd.readouterr()
    sweep(replace(asked, tasks=("tiny_letters",)))
    assert "others are not used now" in capfd.readouterr().err


def test_a_damaged_store_is_a_clear_error(tmp_path: Path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "cells-0.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ResultsError, match="damaged"):
        sweep(given_settings("llama", tmp_path))


def test_the_fingerprint_sees_one_changed_weight():
    model = tiny.load("llama")
    before = weights_fingerprint(model)
    assert weights_fingerprint(tiny.load("llama")) == before
    with torch.no_grad():
        next(model.parameters())[1, 2] += 0.01
    assert weights_fingerprint(model) != before


_TWO = """
import sys
from pathlib import Path
from lm_eval_ext.sweep.run import Sweep
from support.sweeps import given_settings, tiny_tasks
out, model, vectors = sys.argv[1:]
with tiny_tasks():
    Sweep(given_settings("llama", Path(out), model=model, vectors=Path(vectors))).run()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a local socket")
def test_two_processes_share_the_work(tmp_path: Path):
    (tmp_path / "sweep.py").write_text(_TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    files = [str(path) for path in (tmp_path / "two", tiny.folder("llama"), tiny.vector_file("llama"))]
    done = subprocess.run(
        [*launch, str(tmp_path / "sweep.py"), *files],
        capture_output=True,
        text=True,
        env=environment(ACCELERATE_USE_CPU="true"),
        timeout=HUNG,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "two" / "cells").glob("cells-*.sqlite"))) == 2
    two = pd.read_parquet(tmp_path / "two" / "items.parquet")
    pd.testing.assert_frame_equal(two, sweep(given_settings("llama", tmp_path / "one")), atol=1e-4)


# Questions -----------------------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_cut_as_the_harness_cuts_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    short = given_settings("llama", tmp_path, model_args="dtype=float32,max_length=40")
    found = sweep(short)
    assert "prompts are truncated from the left" in capfd.readouterr().err
    results = tiny.evaluate(tiny.steered("llama", "en@1:1/prompt", max_length=40), *TASKS)
    rows = found[found["condition"] == "en@1:1/prompt"].set_index(["task", "doc_id"])
    for task in TASKS:
        for sample in results["samples"][task][: short.limit]:
            given_values = [response[0][0] for response in sample["resps"]][:4]
            gold = given_values.pop(sample["doc"]["gold"])
            assert rows.loc[(task, sample["doc_id"]), "margin"] == pytest.approx(gold - max(given_values), abs=1e-4)


def test_an_option_longer_than_the_context_is_an_error(tmp_path: Path):
    with pytest.raises(ModelError, match="does not fit"):
        sweep(given_settings("llama", tmp_path, model_args="dtype=float32,max_length=2"))


def test_one_question_is_enough(tmp_path: Path):
    found = sweep(given_settings("llama", tmp_path, limit=1, tasks=("tiny_letters",)))
    assert found["condition"].value_counts().to_dict() == {UNSTEERED: 1, "en@1:1/prompt": 1, "loc@1:1/prompt": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [([""], "gives no tokens"), ([" "], None)],
)
def test_options_that_tokenise_to_nothing(options: list[str], words: str | None, tmp_path: Path):
    """Told with task and document, before anything is scored."""
    run = Sweep(given_settings("llama", tmp_path))
    with tiny_tasks():
        instances = run.questions.instances
    instances[0].arguments = (instances[0].args[0], options[0])
    model = tiny.steered("llama")
    if words is None:
        assert model.encode(instances)[0].continuation
    else:
        with pytest.raises(UserError, match=words):
            model.encode(instances)


def test_without_the_prior_only_the_question_is_asked(tmp_path: Path):
    found = sweep(given_settings("llama", tmp_path / "without", prior=False))
    expected = sweep(given_settings("llama", tmp_path / "with"))
    assert "acc_mutual_info" in expected
    assert "acc_mutual_info" not in found
    assert found["acc"].tolist() == expected["acc"].tolist()


# The grid ------------------------------------------------------------------------------------------------------------


def test_every_plan_has_its_controls():
    grid = Grid(("loc",), (3,), (Gamma(2.0),), ("prompt",), n_random=2)
    assert [(c.name, c.control, c.of) for c in grid.singles()] == [
        ("loc@3:2/prompt", None, "loc@3:2/prompt"),
        ("loc~random0@3:2/prompt", "random", "loc@3:2/prompt"),
        ("loc~random1@3:2/prompt", "random", "loc@3:2/prompt"),
        ("loc~other@3:2/prompt", "other_language", "loc@3:2/prompt"),
        ("loc@3:-2/prompt", "negated", "loc@3:2/prompt"),
    ]


def test_pairs_are_no_deeper_in_english():
    grid = Grid(("en", "loc"), (1, 2), (Gamma(1.0),), ("prompt",), n_random=0, with_controls=False)
    plans = {kind: [Plan.parse(f"{kind}@{layer}:1/prompt") for layer in (1, 2)] for kind in ("en", "loc")}
    names = [c.name for c in grid.pairs(plans["en"], plans["loc"])]
    assert names == [
        "en@1:1/prompt+loc@1:1/prompt",
        "en@1:1/prompt+loc@2:1/prompt",
        "en@2:1/prompt+loc@2:1/prompt",
    ]


BAD = {
    "a layer that the model lacks": ({"layers": "0,9"}, "layer 9 does not exist"),
    "a layer that is no layer": ({"layers": "x"}, "'x' is not a layer"),
    "a kind that the file lacks": ({"kinds": ("en", "formal")}, "no kind formal"),
    "a gamma that is no number": ({"gammas": ("1", "much")}, "gamma 'much'"),
    "a position that is none": ({"positions": ("first",)}, "positions='first'"),
    "a control gamma that is no number": ({"control_gammas": ("?",)}, "gamma '?'"),
    "an unknown task": ({"tasks": ("tiny_letters", "nonsense")}, "unknown task nonsense"),
    "a task that is not multiple choice": ({"tasks": ("tiny_generate",)}, "multiple-choice tasks only"),
    "a language that nothing is asked in": ({"languages": ("ar",)}, "no questions in"),
    "questions of no language": ({"tasks": ("tiny_mute_letters",)}, "language of document 0 is unknown"),
    "no vector file": ({"vectors": Path("missing.safetensors")}, "no vector file"),
    "a plan among the model's arguments": ({"model_args": "steer=en@1:2"}, "a sweep has --vectors"),
    "a metric that no task has": ({"metric": "f2"}, "the tasks score probability, acc"),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_bad_input(changes: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(UserError) as found:
        sweep(given_settings("llama", tmp_path, **changes))
    assert words in str(found.value)


def test_all_that_cannot_work_is_told_at_once_and_before_the_model(tmp_path: Path):
    vectors = tiny.vector_file("llama", ("en", "loc"), ("en", "ko", "es"))
    weightless = tmp_path / "model"
    weightless.mkdir()
    shutil.copy(tiny.folder("llama") / "config.json", weightless)
    asked = given_settings("llama", tmp_path / "out", vectors=vectors, model=str(weightless), limit=None)
    with pytest.raises(ModelError, match="cannot load the model"):
        sweep(replace(asked, vectors=tiny.vector_file("llama")))
    with pytest.raises(UserError) as found:
        sweep(replace(asked, layers="7", kinds=("en", "style"), gammas=("x", "1")))
    for words in ("layer 7", "no kind style", "gamma 'x'", "language 'zh'"):
        assert words in str(found.value)


# Results -------------------------------------------------------------------------------------------------------------


def _development(asked: Settings, *, drawn: bool = False) -> None:
    """A sweep whose tasks pass for development splits of ours."""
    names = {"tiny_cloze": "bmlama_dev", "tiny_letters": "blend_decon_dev_cloze"}
    with mock.patch.object(legacy_names, "family", names.__getitem__):
        sweep(asked, drawn=drawn)


def test_the_plan_is_chosen_on_development_splits(tmp_path: Path):
    _development(given_settings("llama", tmp_path, pair_layers=2, layers="0,1,2"))
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    summary = pd.read_csv(tmp_path / "summary.csv")
    pairs = summary[(summary["kinds"] == "en+loc") & summary["control"].isna() & (summary["language"] == AVERAGE)]
    sums = pairs.groupby("condition", sort=False)["change"].sum()
    assert sums[plan["steer"]] == pytest.approx(sums.max())
    assert plan["candidates"] == len(sums)
    assert plan["chosen_on"] == {"transfer": "bmlama_dev", "localization": "blend_decon_dev_cloze"}
    Plan.parse(plan["steer"])


def test_the_best_plans_have_controls_whatever_their_gamma(tmp_path: Path):
    sweep(
        given_settings(
            "llama", tmp_path, gammas=("1", "2"), control_gammas=("9",), n_random=2, controls=True, limit=None
        )
    )
    summary = pd.read_csv(tmp_path / "summary.csv")
    plans = summary[summary["control"].isna() & (summary["language"] == AVERAGE) & summary["condition"].notna()]
    best = plans.loc[plans.groupby(["family", "kinds"])["change"].idxmax()]
    assert len(best) == 4
    assert (best["null_n"] == 2).all()
    assert plans["null_n"].isna().any()


def test_test_questions_choose_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with tiny_tasks():
        result = Sweep(given_settings("llama", tmp_path)).run()
    assert result is not None
    assert result.plan is None
    assert not (tmp_path / "plan.yaml").exists()
    command._print(result)
    printed = capfd.readouterr()
    said = " ".join(printed.err.split())
    assert "note: no plan is chosen: " in said
    assert "plans are never chosen on test questions" in said
    assert "wrote items.parquet, summary.csv, sweep.html, figures/ to" in " ".join(printed.out.split())


def test_the_files_say_what_was_found(tmp_path: Path):
    asked = given_settings("llama", tmp_path, layers="0,2", pair_layers=1, n_random=2, controls=True, limit=None)
    _development(asked, drawn=True)
    summary = pd.read_csv(tmp_path / "summary.csv", keep_default_na=True)
    plans = summary[summary["control"].isna() & summary["condition"].notna()]
    assert (plans["null_n"] == 2).all()
    assert plans["other_language"].notna().all()
    assert plans["negated"].notna().all()
    assert (plans["low"] <= plans["change"]).all()
    assert (plans["change"] <= plans["high"]).all()
    items = pd.read_parquet(tmp_path / "items.parquet")
    one = plans[(plans["language"] == "ko") & (plans["family"] == "bmlama_dev")].iloc[0]
    mine = items[
        (items["condition"] == one["condition"]) & (items["family"] == "bmlama_dev") & (items["language"] == "ko")
    ]
    assert one["score"] == pytest.approx(mine["acc"].mean())
    assert json.loads((tmp_path / "sweep.json").read_text())["questions"] == 16
    names = {path.stem for path in (tmp_path / "figures").glob("*.csv")}
    assert {"layer_curves_bmlama_dev_prompt", "gamma_curves_bmlama_dev_prompt", "two_layers_bmlama_dev"} <= names
    page = (tmp_path / "sweep.html").read_text()
    assert "random directions" in page
    assert "Content-Security-Policy" in page


def test_the_command(tmp_path: Path):
    smallest = ["--layers", "1", "--gammas", "1", "--random", "1", "--pairs", "none", "--resamples", "100"]
    where = ["--vectors", str(tiny.vector_file("llama")), "--model", str(tiny.folder("llama")), "--out", str(tmp_path)]
    with tiny_tasks():
        dry = CliRunner().invoke(app, ["sweep", *where, "--tasks", "tiny_letters", *smallest, "--dry-run"])
        assert dry.exit_code == 0, dry.output
        assert not list(tmp_path.iterdir())
        done = CliRunner().invoke(app, ["sweep", *where, "--tasks", "tiny_letters", *smallest, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "items.parquet").is_file()
    refused = CliRunner().invoke(app, ["sweep", *where, "--tasks", "tiny_letters", "--pairs", "all"])
    assert refused.exit_code == 2
    assert "--pairs" in refused.output


def test_choose_needs_pairs():
    empty = pd.DataFrame(columns=["condition", "kinds", "family", "language", "control", "change"])
    assert choose(empty, Axes("bmlama_dev", "blend_decon_dev")) is None
