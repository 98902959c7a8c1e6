"""An installed package brings an estimator whose transform is no addition, and every command works with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support import tiny

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "outside-ablation"
version = "1.0"

[project.entry-points."lm_eval_ext.estimators"]
outside_ablation = "outside_ablation:Ablation"

[tool.hatch.build.targets.wheel]
only-include = ["outside_ablation.py"]
""",
    "outside_ablation.py": '''
"""Removes the component along the mean difference from the residual stream."""

from dataclasses import dataclass

from lm_eval_ext import Estimator, Transform


class Ablate(Transform):
    """h - s (h . u) u, with u the unit direction."""

    name = "outside_ablate"
    shapes = {"direction": ("hidden",)}

    def apply(self, residual, artifact, strength):
        unit = artifact["direction"] / artifact["direction"].norm()
        return residual - strength * (residual @ unit)[:, None] * unit


@dataclass(frozen=True)
class Ablation(Estimator):
    """The direction of the mean difference, less `shrink` of its length."""

    name = "outside_ablation"
    transform = Ablate
    shrink: float = 0.0

    def fit(self, states):
        positive, negative = states.collect()
        return {"direction": (1 - self.shrink) * (positive - negative).mean(1)}
''',
}

#: Asked of the sweep and of the harness.
TASK, PLAN, LIMIT = "localization_mini_ko_cloze", "loc@2:0.8/prompt", 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the outside one."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, content in PACKAGE.items():
        (source / name).write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(site), str(source)], check=True, capture_output=True)
    return site


def run(site: Path, *command: str) -> None:
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]


#: Several commands of ours in one process, each as `lm-eval-ext` would run it: starting takes longer than they do.
OURS = """
import json, sys
from lm_eval_ext.cli import app
for command in json.loads(sys.argv[1]):
    app(command, standalone_mode=False)
"""


@pytest.mark.slow
def test_every_command_works_with_it(site: Path, tmp_path: Path) -> None:
    vectors, model, pairs = tmp_path / "v.safetensors", str(tiny.folder("llama")), tmp_path / "pairs.tsv"
    lines = [
        f"{code}\t{tiny.TEXTS[code][n : n + 20]}\t{tiny.TEXTS['en'][n : n + 15]}"
        for code in ("ko", "es")
        for n in range(4)
    ]
    pairs.write_text("\n".join(["language\tpositive\tnegative", *lines]) + "\n", encoding="utf-8")
    sources = ["--estimator", "outside_ablation:shrink=0.5", "--pairs", f"en={pairs}", "--pairs", f"loc={pairs}"]
    grid = ["--kinds", "loc", "--layers", "1-2", "--gammas", "0.8,2", "--random", "1", "--control-gammas", "0.8"]
    asked = ["--tasks", TASK, "--limit", str(LIMIT), "--model", model, "--model-args", "dtype=float32", "--likelihoods"]
    out, geometry = tmp_path / "sweep", tmp_path / "geometry"
    commands = [
        ["extract", "--model", model, "--dtype", "float32", "--out", str(vectors), *sources],
        ["sweep", "--vectors", str(vectors), "--out", str(out), *grid, *asked, "--resamples", "100"],
        ["geometry", "--vectors", str(vectors), "--parts", "vectors", "--out", str(geometry)],
    ]
    run(site, sys.executable, "-c", OURS, json.dumps(commands))

    lm_eval = str(Path(sys.executable).with_name("lm_eval"))
    arguments = f"pretrained={model},dtype=float32,vectors={vectors},steer={PLAN}"
    harness = ["--model", "steered-hf", "--model_args", arguments, "--tasks", TASK, "--limit", str(LIMIT)]
    run(site, lm_eval, *harness, "--device", "cpu", "--output_path", str(tmp_path / "run"), "--log_samples")
    (samples,) = (tmp_path / "run").rglob("samples_*.jsonl")
    items = pd.read_parquet(out / "items.parquet").set_index(["condition", "doc_id"])
    for line in samples.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        options = [float(response[0][0]) for response in sample["resps"]][: len(sample["doc"]["options"])]
        gold = options.pop(int(sample["target"]))
        cell = items.loc[(PLAN, sample["doc_id"])]
        assert cell["margin"] == pytest.approx(gold - max(options), abs=1e-4)
        assert cell["acc"] == sample["acc"]
        conditions = ("", PLAN, PLAN.replace("@", "~random0@"), PLAN.replace("@", "~other@"))
        margins = {round(items.loc[(plan, sample["doc_id"]), "margin"], 3) for plan in conditions}
        assert len(margins) == len(conditions)  # every one of them changes the question

    norms = pd.read_csv(geometry / "norms.csv")
    assert set(norms["kind"]) == {"en", "loc"}
    assert set(norms["language"]) == {"ko", "es"}
    assert (norms["norm"] > 0).all()
