"""From the harness's own runs of tiny models to the plane: nothing here is written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.runs import document, write_run
from typer.testing import CliRunner

from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.runs import load

QUESTIONS = 16
LANGUAGES = ("en", "ko", "zh")
TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""


def save_model(folder: Path, seed: int) -> str:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=260, special_tokens=["</s>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def save_tasks(folder: Path) -> Path:
    folder.mkdir()
    for axis in ("across", "up"):
        for language in LANGUAGES:
            lines = [
                {"id": f"q{n}", "language": language, "question": f"{axis} {language} {n}", "gold": n % 4}
                | {"options": [chr(ord("a") + (n + shift) % 26) for shift in (0, 5, 9, 14)]}
                for n in range(QUESTIONS)
            ]
            file = folder / f"{axis}_{language}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / f"{axis}_{language}.yaml").write_text(TASK.format(task=f"{axis}_{language}", file=file))
        members = ", ".join(f"{axis}_{language}" for language in LANGUAGES)
        (folder / f"{axis}.yaml").write_text(f"group: {axis}\ntask: [{members}]\nmetadata: {{version: 1.0}}\n")
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two models through `--model hf`, one of them twice, and a model object that reports its steering."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    class Steered(HFLM):
        def get_model_info(self):
            steering = {"plan": "loc@1:2", "positions": "prompt", "vectors": {"path": "v", "sha256": "0" * 64}}
            return super().get_model_info() | {"steering": steering | {"pretrained": first}}

    scratch = tmp_path_factory.mktemp("plane")
    first, second = (save_model(scratch / f"model{seed}", seed) for seed in (1, 2))
    tasks = TaskManager(include_path=str(save_tasks(scratch / "tasks")), include_defaults=False)

    def evaluate(condition: str, limit: int | None = None, **model) -> None:
        tracker = EvaluationTracker(output_path=str(scratch / "results" / condition))
        results = simple_evaluate(
            **model,
            tasks=["across", "up"],
            task_manager=tasks,
            evaluation_tracker=tracker,
            device="cpu",
            limit=limit,
            bootstrap_iters=0,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])

    evaluate("base", limit=3, model="hf", model_args={"pretrained": first})
    evaluate("base", model="hf", model_args={"pretrained": first})
    evaluate("other", model="hf", model_args=f"pretrained={second}")
    evaluate("steered", model=Steered(pretrained=second, device="cpu"))
    return scratch / "results"


def test_every_document_of_every_run_is_in_the_frame(tree):
    frame = load(tree).samples()
    assert len(frame) == 3 * 2 * len(LANGUAGES) * QUESTIONS * 2  # runs, groups, languages, documents, metrics
    assert set(frame["run"]) == {"base", "other", "steered"}
    assert set(frame["language"]) == set(LANGUAGES)
    assert set(frame["question_id"]) == {f"q{n}" for n in range(QUESTIONS)}
    assert set(frame["metric"]) == {"acc", "acc_norm"}
    assert frame["value"].isin([0.0, 1.0]).all()


def test_the_frame_has_the_scores_that_the_harness_reports(tree):
    frame = load(tree).samples(metrics=["acc"], runs=["other"])
    results = json.loads(next((tree / "other").rglob("results_*.json")).read_text())["results"]
    means = frame.groupby("task", observed=True)["value"].mean()
    assert len(means) == 2 * len(LANGUAGES)
    for task, mean in means.items():
        assert mean == pytest.approx(results[task]["acc,none"])


def test_a_run_knows_its_model_and_its_steering(tree):
    runs = {run.name: run for run in load(tree).runs}
    assert (runs["other"].plan, runs["steered"].plan) == ("", "loc@1:2")
    # Evaluated as an object the model gets an invented name from the harness; ours is in the steering.
    assert runs["steered"].model == runs["base"].model
    assert runs["base"].model.endswith("model1")


def test_of_two_dates_the_newest_counts_and_it_is_said(tree):
    notes = load(tree).notes
    assert len(notes) == 1
    assert "run 'base'" in notes[0]
    assert "limit 3.0 -> None" in notes[0] or "limit 3 -> None" in notes[0]


def test_the_plane_of_real_runs(tree):
    plane = measure(load(tree), "base", x="across", y="up", resamples=500)
    assert [run.name for run in plane.runs] == ["other", "steered"]
    assert plane.languages == ("ko", "zh", "en")
    assert plane.averaged == ("ko", "zh")
    frame = load(tree).samples(metrics=["acc"]).astype({"run": str, "task": str})
    frame["task"] = frame["task"].str.split("::").str[-1]  # lm-eval 0.5 names a member of a group with it
    mean = frame.groupby(["run", "task"])["value"].mean()
    change = plane.shifts.set_index(["run", "language"])["x_change"]
    for language in LANGUAGES:
        expected = mean["other", f"across_{language}"] - mean["base", f"across_{language}"]
        assert change["other", language] == pytest.approx(expected)
    assert change["other", "average"] == pytest.approx((change["other", "ko"] + change["other", "zh"]) / 2)
    assert change["other"].abs().sum() > 0  # the models do answer differently
    assert (plane.shifts["x_n"][plane.shifts["language"] == "ko"] == QUESTIONS).all()


def test_the_command_on_real_runs(tree, tmp_path):
    import typer

    from lm_eval_ext.commands.plane import plane

    app = typer.Typer()
    app.command()(plane)
    arguments = [str(tree), "--baseline", "base", "--x", "across", "--y", "up", "--out", str(tmp_path / "p.html")]
    result = CliRunner().invoke(app, [*arguments, "--metric", "acc_norm", "--resamples", "200"])
    assert result.exit_code == 0, result.output
    assert "steered" in result.output
    assert "<!doctype html>" in (tmp_path / "p.html").read_text()
    assert (tmp_path / "p.csv").read_text().startswith("run,model,plan,against,language")


def test_hand_written_results_look_like_the_real_ones(tree, tmp_path):
    """The other tests write their results themselves: they must not drift from the harness's format."""
    ours = write_run(tmp_path, {"across_ko": {"acc": [1.0], "acc_norm": [0.0]}}, groups={"across": ["across_ko"]})
    theirs = next((tree / "other").rglob("results_*.json"))
    for name, path in (("results", ours), ("real results", theirs)):
        content = json.loads(path.read_text())
        task = next(task for task in content["configs"] if task.split("::")[-1] == "across_ko")
        assert {"results", "configs", "versions", "n-shot", "n-samples", "config", "model_name"} <= content.keys(), name
        assert {"model", "model_args", "limit", "fewshot_seed"} <= content["config"].keys(), name
        assert content["n-samples"][task].keys() == {"original", "effective"}, name
        assert content["configs"][task]["metadata"]["version"] == 1.0, name
        line = json.loads(next(path.parent.glob(f"samples_{task}_*.jsonl")).read_text().splitlines()[0])
        assert line.keys() >= {"doc_id", "doc", "filter", "metrics", "doc_hash", "prompt_hash", "acc", "acc_norm"}, name
        assert line["doc"].keys() >= document("across", "ko", 0).keys(), name
