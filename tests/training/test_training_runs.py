"""Training runs end to end on tiny models: what they learn, how they resume, what processes share, what becomes of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny, training_runs
from support.training_runs import log, same, sentences, settings, trained, weights
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.commands.table import subcommand
from lm_eval_ext.errors import TrainingError
from lm_eval_ext.paths import PACKAGE
from lm_eval_ext.steering import decoder
from lm_eval_ext.training import adapter, checkpoints, comparing
from lm_eval_ext.training import run as running
from lm_eval_ext.training.losses import (
    Likelihoods,
    clo_loss,
    contrastive_loss,
    preference_loss,
    preference_margins,
)
from lm_eval_ext.training.methods import METHODS
from lm_eval_ext.training.schedule import order

TESTS = Path(__file__).parents[1]


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that runs make, instead of training."""
    found: list[Any] = []
    monkeypatch.setattr(running, "_run", lambda trainer, *_: found.append(trainer))
    monkeypatch.setattr(running, "_finish", lambda *_: None)
    return found


def first_batch(trainer: Any, step: int = 0) -> dict[str, Any]:
    size = trainer.args.per_device_train_batch_size
    batch: dict[str, Any] = trainer.method.collate(trainer.items[step * size : (step + 1) * size])
    return batch


# What is trained, and on what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_leaves_a_card(method: str, tmp_path: Path) -> None:
    found = trained(method, tmp_path, max_steps=6)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any(float(tensor.abs().max()) > 0 for name, tensor in found.items() if "lora_B" in name)
    targets = json.loads((tmp_path / method / "adapter_config.json").read_text())["target_modules"]
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert set(targets) == attention | (set() if method == "clo" else {"gate_proj", "up_proj", "down_proj"})
    record = json.loads((tmp_path / method / "training.json").read_text())
    card = (tmp_path / method / "README.md").read_text()
    assert record["data"]["sha256"] in card
    assert record["versions"]["trl"] in card
    assert f"lm-eval-ext train {method} --out {method}" in card
    assert str(tmp_path) not in card
    assert ("contrastive_loss" in " ".join(map(str, log(tmp_path / method)))) == (method == "midalign")


def test_the_losses_of_a_run_fall(tmp_path: Path) -> None:
    trained("midalign", tmp_path, max_steps=30, logging_steps=5)
    entries = log(tmp_path / "midalign")
    for name in ("response_loss", "contrastive_loss"):
        values = [entry[name] for entry in entries if name in entry]
        assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("packing", [False, True])
def test_the_response_loss_is_that_of_the_model_itself(packing: bool, caught: list[Any], tmp_path: Path) -> None:
    running.train(settings("mist", tmp_path, packing=packing))
    trainer = caught[0]
    inputs = first_batch(trainer)
    log_probs = trainer.log_probs(trainer.model, inputs)
    expected = []
    for item in trainer.items[:2]:
        example = trainer.method.data.examples[item.row]
        with torch.no_grad():
            logits = tiny.load("gemma3").double()(torch.tensor([example.prompt + example.response])).logits[0]
        scores = logits.log_softmax(-1)[len(example.prompt) - 1 : -1]
        expected.append(scores[torch.arange(len(example.response)), torch.tensor(example.response)])
    torch.testing.assert_close(log_probs.double(), torch.cat(expected), atol=2e-4, rtol=0)
    loss = trainer.compute_loss(trainer.model, inputs)
    assert loss.item() == pytest.approx(-torch.cat(expected).mean().item(), abs=1e-4)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_contrastive_loss_of_the_model(
    special: bool, checkpointed: bool, caught: list[Any], tmp_path: Path
) -> None:
    changes = {"pool_special": special, "gradient_checkpointing": checkpointed, "layer": "1"}
    running.train(settings("midalign", tmp_path, **changes))
    trainer = caught[0]
    if checkpointed:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer.model.train()
    inputs = first_batch(trainer, 1)
    layers_run: list[int] = []
    for number, layer in enumerate(decoder.decoder_layers(trainer.model)):
        layer.register_forward_hook(lambda *_, number=number: layers_run.append(number))
    loss = trainer.method.contrastive(trainer, inputs)
    assert layers_run == [0, 1]
    loss.backward()
    sides: list[torch.Tensor] = []
    model = tiny.load("gemma3")
    for row, weight in zip(inputs["pairs"], inputs["pair_weights"], strict=True):
        states = model(row[None], output_hidden_states=True).hidden_states[2][0]
        n = int((weight > 0).sum())
        start = 0 if special else 1
        sides.append(states[start : start + n].double().mean(0))
    pooled = torch.stack(sides)
    expected = contrastive_loss(*pooled.chunk(2), 0.1, "both")
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    touched = {name.split("layers.")[1][0] for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert touched == {"0", "1"}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_clo_is_the_formula(packing: bool, full: bool, caught: list[Any], tmp_path: Path) -> None:
    running.train(settings("clo", tmp_path, packing=packing, full=full, beta=0.3, response_weight=0.25))
    trainer = caught[0]
    with torch.no_grad():  # a policy that differs from its reference
        generator = torch.Generator().manual_seed(1)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name or (full and "v_proj" in name):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))

    def likelihood(model: Any, example: Any) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([example.prompt + example.response])).logits[0].double()
        scores = logits.log_softmax(-1)[len(example.prompt) - 1 : -1]
        return scores[torch.arange(len(example.response)), torch.tensor(example.response)]

    base, policy = tiny.load("gemma3"), trainer.model.eval()
    rows = [trainer.method.data.examples[item.row] for item in trainer.items[:2]]
    both = [
        Likelihoods(*(torch.stack([likelihood(model, row.all[i]).sum() for row in rows]) for i in range(4)))
        for model in (policy, base)
    ]
    response = -torch.cat([likelihood(policy, row.xx_xx) for row in rows]).mean()
    expected = clo_loss(response, preference_loss(preference_margins(both[0], both[1], 0.3)), 0.25)
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert loss.item() == pytest.approx(expected.item(), abs=2e-4)
    assert trainer.latest["margin_xx"] != 0


def test_a_beta_of_zero_leaves_the_response_loss_alone(caught: list[Any], tmp_path: Path) -> None:
    gradients = []
    for weight, beta in ((0.5, 0.0), (1.0, 0.1)):
        running.train(settings("clo", tmp_path, name=f"clo{beta}", beta=beta, response_weight=weight))
        trainer = caught[-1]
        trainer.compute_loss(trainer.model, first_batch(trainer)).backward()
        gradients.append({n: p.grad / weight for n, p in trainer.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_the_reference_is_no_second_copy(caught: list[Any], tmp_path: Path) -> None:
    running.train(settings("clo", tmp_path))
    trainer = caught[0]
    size = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    assert size == sum(p.numel() for p in tiny.load("gemma3").parameters())
    batch = first_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    assert trainer.latest["margin_en"] == pytest.approx(0, abs=1e-5)  # nothing is trained yet


# Equal runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [{"contrastive_steps": 0}, {"mode": "sum", "contrastive_weight": 0.0}])
def test_midalign_without_contrastive_steps_is_mist_to_the_bit(mode: dict[str, Any], tmp_path: Path) -> None:
    assert same(trained("mist", tmp_path), trained("midalign", tmp_path, **mode))


def test_a_run_can_be_repeated_and_depends_on_its_seed(tmp_path: Path) -> None:
    first = trained("midalign", tmp_path, "one")
    assert same(first, trained("midalign", tmp_path, "two"))
    assert not same(first, trained("midalign", tmp_path, "three", seed=1))


def test_accumulated_packed_and_checkpointed_steps_are_the_same_step(tmp_path: Path) -> None:
    first = trained("mist", tmp_path, "one", max_steps=2, per_device_train_batch_size=4)
    variants: tuple[dict[str, Any], ...] = (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "packing": True},
        {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    )
    for number, variant in enumerate(variants):
        for name, tensor in trained("mist", tmp_path, f"v{number}", max_steps=2, **variant).items():
            torch.testing.assert_close(tensor, first[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["midalign", "clo"])
def test_resuming_after_a_kill_gives_the_same_weights(method: str, tmp_path: Path) -> None:
    straight = trained(method, tmp_path, "straight", max_steps=6)
    asked = settings(method, tmp_path, "killed", max_steps=6)
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from support import training_runs; from lm_eval_ext.training.trainer import AlignmentTrainer\n"
        "step = AlignmentTrainer.log_probs\n"
        "def killed(self, *a):\n"
        "    if self.state.global_step >= 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *a)\n"
        "AlignmentTrainer.log_probs = killed\n"
        f"training_runs.trained({method!r}, Path(sys.argv[2]), 'killed', max_steps=6, "
        f"model_name_or_path={asked.model_name_or_path!r})\n"
    )
    child = subprocess.run([sys.executable, "-c", script, str(TESTS), str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    found = checkpoints.newest(tmp_path / "killed")
    assert found is not None
    assert found.name == "checkpoint-4"
    cut_off = found.with_name("checkpoint-5")  # a kill in the middle of a checkpoint leaves one like this
    cut_off.mkdir()
    (cut_off / "adapter_config.json").write_text("{}")
    assert same(straight, trained(method, tmp_path, "killed", max_steps=6, resume=True))


@pytest.mark.parametrize("method", ["midalign", "clo"])
def test_two_processes_agree_with_one(method: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-3}
    one = trained(method, tmp_path, "one", per_device_train_batch_size=4, **changes)
    changes |= {"model_name_or_path": str(tiny.folder("gemma3"))} | (
        {"contrastive_batch_size": 2} if method == "midalign" else {}
    )
    (tmp_path / "two.py").write_text(
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from support import training_runs\n"
        f"training_runs.trained({method!r}, Path(sys.argv[2]), 'two', **{changes!r})\n"
    )
    # Told to use several GPUs but the CPU: with --cpu, accelerate starts several processes through MPI alone.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    child = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "two.py"), str(TESTS), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2
    for name, tensor in weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, one[name], atol=1e-5, rtol=1e-4)


def test_the_order_of_rows() -> None:
    mist = order(6, 4, 10, seed=3)
    assert mist == order(6, 4, 10, 5, contrastive_steps=0, seed=3)
    assert sorted(item.row for item in mist[:10] if item.row is not None) == list(range(10))
    mixed = order(6, 4, 10, 5, contrastive_steps=3, seed=3)
    kinds = [item.row is None for item in mixed[::4]]
    assert kinds == [False, True] * 3
    assert [item for item in mixed if item.row is not None] == mist[:12]
    summed = order(2, 4, 10, 5, summed=True, seed=3)
    assert all(item.row is not None and item.pairs is not None for item in summed)


# Methods and their options --------------------------------------------------------------------------------------------

NEW_METHOD = '''
from dataclasses import dataclass
from typing import Annotated

import typer

from lm_eval_ext.training.methods.base import Method
from lm_eval_ext.training.methods.mist import MistConfig


@dataclass(frozen=True, kw_only=True)
class HalvedConfig(MistConfig):
    """Half of MIST's loss."""

    method = "halved"
    factor: Annotated[float, typer.Option(help="Factor of the loss.")] = 0.5
    weight_decay: Annotated[float, typer.Option(help="A field of TRL's configuration.")] = 0.25


class Halved(Method):
    """MIST with a smaller loss."""

    config_class = HalvedConfig
    title = "HALVED: half of the loss"

    def loss(self, trainer, model, inputs, n_tokens):
        assert trainer.args.weight_decay == self.config.weight_decay
        return self.config.factor * super().loss(trainer, model, inputs, n_tokens)
'''


def test_a_new_method_is_one_file(tmp_path: Path) -> None:
    """A copy of the package with one file more: its command, its options, its run and its card."""
    shutil.copytree(PACKAGE, tmp_path / "lm_eval_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lm_eval_ext" / "training" / "methods" / "halved.py").write_text(NEW_METHOD)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lm_eval_ext", "train", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert "Half of MIST's loss." in run("--help").stdout
    options = f"--out run --data {training_runs.instructions(tmp_path)} --languages en,es,zh --steps 2 --lora-r 2"
    child = run(
        "halved", "--model", str(tiny.folder("gemma3")), *options.split(), "--factor", "0.25", "--device", "cpu"
    )
    assert child.returncode == 0, child.stderr[-3000:]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "HALVED: half of the loss" in card
    assert "| factor | 0.25 |" in card
    assert "--factor 0.25" in card


def test_options_have_a_short_name_and_that_of_trl() -> None:
    names = {
        "per_device_train_batch_size": "--batch-size",
        "gradient_accumulation_steps": "--accumulation",
        "max_steps": "--steps",
        "lora_r": "--rank",
        "save_total_limit": "--keep",
    }
    received: list[dict[str, Any]] = []
    command = subcommand("train").commands["mist"]
    for flags in (names.values(), [f"--{name.replace('_', '-')}" for name in names]):
        given = [word for number, flag in enumerate(flags, start=3) for word in (flag, str(number))]
        received.append(command.make_context("mist", ["--out", "x", *given]).params)
    assert received[0] == received[1]
    assert [received[0][name] for name in names] == [3, 4, 5, 6, 7]


def test_the_fields_of_a_configuration_reach_trl(caught: list[Any], tmp_path: Path) -> None:
    changes = {"warmup_steps": 2.0, "seed": 7, "logging_steps": 3, "lora_alpha": 5, "gradient_accumulation_steps": 2}
    running.train(settings("mist", tmp_path, **changes))
    running.train(settings("mist", tmp_path, "share", warmup_steps=0.3))
    args = caught[0].args
    assert (args.warmup_steps, args.seed, args.logging_steps, args.gradient_accumulation_steps) == (2, 7, 3, 2)
    assert args.output_dir == str(tmp_path / "mist" / "checkpoints")
    assert caught[0].model.peft_config["default"].lora_alpha == 5
    assert caught[1].args.warmup_steps == 2  # 0.3 of 4 steps, rounded up
    assert caught[1].model.peft_config["default"].lora_alpha == 4


# What comes of it -----------------------------------------------------------------------------------------------------


def test_an_adapter_is_used_by_steered_hf_and_merged(tmp_path: Path) -> None:
    trained("mist", tmp_path, max_steps=8)
    runner = CliRunner()
    merged = tmp_path / "merged"
    assert runner.invoke(cli.app, ["train", "merge", str(tmp_path / "mist"), "--out", str(merged)]).exit_code == 0
    tasks = ("tiny_cloze",)
    plain = tiny.answers(tiny.evaluate(tiny.steered("gemma3"), *tasks))
    adapted = tiny.answers(tiny.evaluate(tiny.steered("gemma3", peft=str(tmp_path / "mist")), *tasks))
    whole = tiny.answers(tiny.evaluate(tiny.steered("gemma3", pretrained=str(merged)), *tasks))

    def values(found: dict[str, list[Any]]) -> torch.Tensor:
        return torch.tensor([one[0][0] for document in found["tiny_cloze"] for one in document])

    assert (values(adapted) - values(plain)).abs().max() > 0.1
    torch.testing.assert_close(values(adapted), values(whole), atol=1e-3, rtol=1e-4)


def test_a_whole_model_is_trained_and_loaded(tmp_path: Path) -> None:
    found = trained("sft-en", tmp_path, full=True, learning_rate=1e-3)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sft-en")
    assert torch.equal(loaded.state_dict()["model.norm.weight"], found["model.norm.weight"])
    assert not torch.equal(loaded.model.norm.weight, tiny.load("gemma3").model.norm.weight)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_other_architectures(family: str, tmp_path: Path) -> None:
    found = trained("midalign", tmp_path, model_name_or_path=str(tiny.folder(family)), packing=True, max_length=100)
    assert any(float(tensor.abs().max()) > 0 for name, tensor in found.items() if "lora_B" in name)


def test_held_out_measures(tmp_path: Path) -> None:
    for method in ("mist", "clo"):
        trained(method, tmp_path, max_steps=60)
    lines, record = comparing.compare(
        [tmp_path / "mist", tmp_path / "clo"],
        ["base", "mist"],
        data=str(training_runs.instructions(tmp_path)),
        tuples=str(training_runs.tuples(tmp_path)),
        pairs=str(sentences(tmp_path, "held.tsv", first=90)),
        codes=["en", "es", "zh"],
        device="cpu",
    )
    assert {(line.run, line.baseline) for line in lines} == {("mist", "base"), ("clo", "base"), ("clo", "mist")}
    at = {(line.run, line.measure, line.language): line for line in lines if line.baseline == "base"}
    assert at["mist", "response_loss", "average"].high < 0
    assert at["clo", "preference_en", "average"].difference > 0
    assert at["clo", "preference_xx", "average"].difference > 0
    retrieval = at["mist", "retrieval", "es"]
    assert retrieval.difference == pytest.approx(retrieval.value - retrieval.before)
    assert retrieval.n == 24
    assert record["left_out_as_trained_on"] == {"sentences": 0, "instructions": 0, "tuples": 0}


def test_what_was_trained_on_is_not_evaluated(tmp_path: Path) -> None:
    trained("midalign", tmp_path)
    common: dict[str, Any] = {"codes": ["en", "es", "zh"], "device": "cpu"}
    common |= {"data": str(training_runs.instructions(tmp_path)), "tuples": str(training_runs.tuples(tmp_path))}
    _, record = comparing.compare([tmp_path / "midalign"], pairs=str(sentences(tmp_path, "h.tsv", 2)), **common)
    assert record["left_out_as_trained_on"]["sentences"] == 16
    with pytest.raises(ValueError, match="nothing is left to measure on"):
        comparing.compare([tmp_path / "midalign"], pairs=str(sentences(tmp_path)), **common)


def test_a_merge_refuses_another_base(tmp_path: Path) -> None:
    trained("mist", tmp_path)
    with pytest.raises(TrainingError, match="is another model"):
        adapter.merge(tmp_path / "mist", tmp_path / "merged", str(tiny.folder("llama")))
    assert not (tmp_path / "merged").exists()
