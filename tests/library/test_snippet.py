"""The library's first snippet, as written, from the installed wheel in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny
from support.installed import Environment, build_wheel, install, new_environment

SNIPPET = """
import lm_eval_ext as lx

pairs   = lx.load_pairs("loc", {source!r}, languages=["ko", "el"])
pairs  += lx.load_pairs("en", "mini", languages=["ko", "el"])
vectors = lx.extract(model, tokenizer, pairs, estimator="mean_difference", layers="all")
vectors.save("v.safetensors"); vectors = lx.VectorSet.load("v.safetensors")
with vectors.apply(model, {plan!r}, language="ko"):
    model.generate(**inputs)
run   = lx.evaluate("steered-hf", tasks=TASKS, vectors=vectors, plan={plan!r}, **options("steered"))
_     = lx.evaluate("steered-hf", tasks=TASKS, vectors=vectors, **options("unsteered"))
runs  = lx.load("results"); plane = lx.plane(runs, baseline="unsteered"); plane.plot(); plane.table()
best  = lx.sweep(TASKS, vectors, kinds=["loc"], layers="42%", gammas=["1"], limit=2, model=FOLDER)
report = lx.report(runs, baseline="unsteered"); report.write("report.html")
"""

#: What the snippet leaves to the reader: a model, what it is given, and which tasks (few: the scan of all takes long).
AROUND = """
import os, sys
os.chdir(sys.argv[2])
import lm_eval.tasks
from transformers import AutoModelForCausalLM, AutoTokenizer
from lm_eval_ext.paths import tasks_dir

FOLDER, TASKS = sys.argv[1], ["transfer_mini_ko_cloze", "localization_mini_ko_cloze"]
model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
inputs = tokenizer("119", return_tensors="pt")
manager = lm_eval.tasks.TaskManager(include_path=str(tasks_dir()), include_defaults=False)
lm_eval.tasks.TaskManager = lambda **_: manager

def options(name):
    return {"pretrained": FOLDER, "output": f"results/{name}", "limit": 3, "device": "cpu"}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = new_environment(tmp_path_factory.mktemp("environment"))
    install(environment, build_wheel(tmp_path_factory.mktemp("wheel")))
    return environment


PLAN = "en@42%:2+loc@58%:2"


def run(environment: Environment, folder: Path, source: str, **env: str) -> None:
    code = AROUND + SNIPPET.format(source=source, plan=PLAN) + "\nprint(run['config']['steering']['plan'], best.plan)\n"
    process = environment.run("-c", code, str(tiny.roomy_folder("llama")), folder, **env)
    assert process.stdout.endswith(f"{PLAN} None\n")
    for name in ("v.safetensors", "report.html", "sweep/summary.csv"):
        assert (folder / name).is_file()


@pytest.mark.slow
def test_the_snippet_runs_from_the_wheel(environment: Environment, tmp_path: Path) -> None:
    run(environment, tmp_path, "mini")


@pytest.mark.slow
def test_the_snippet_runs_on_blend(environment: Environment, tmp_path: Path, shared_data: Path) -> None:
    cache = tmp_path / "cache"
    run(environment, tmp_path, "blend", LM_EVAL_EXT_DATA=str(shared_data), LM_EVAL_EXT_CACHE=str(cache))
