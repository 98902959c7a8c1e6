"""What a user can get wrong in training: one message that says what to do, status 2, and nothing trained is lost."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny, training_runs
from support.training_runs import settings, trained
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.errors import TrainingError, UserError
from lm_eval_ext.training import checkpoints
from lm_eval_ext.training.batches import PairBatcher
from lm_eval_ext.training.encoding import TEMPLATE, Encoder
from lm_eval_ext.training.run import train
from lm_eval_ext.training.trainer import AlignmentTrainer

MODEL = "--model TINY"
MIST, MIDALIGN, CLO = (f"{method} {MODEL} --out OUT" for method in ("mist", "midalign", "clo"))

#: A command (TINY, OUT, DATA, TUPLES and PAIRS stand for paths), and what its message says.
MISTAKES = [
    (f"{MIST} --epochs 0", "--epochs 0"),
    (f"{MIST} --epochs nan", "must be a number above 0"),
    (f"{MIST} --learning-rate -1", "--learning-rate"),
    (f"{MIST} --warmup 1.5", "share of the steps"),
    (f"{MIST} --max-steps -1", "'--steps' / '--max-steps'"),
    (f"{MIST} --dtype int8", "valid: auto, bfloat16, float32"),
    (f"{MIST} --device tpu", "valid: cpu, cuda"),
    (f"{MIST} --languages xx", "unknown language 'xx'"),
    (f"{MIST} --languages ,", "names none"),
    (f"{MIST} --template Hello", "{prompt}"),
    (f"{MIST} --report-to nobody", "nobody"),
    (f"{MIST} --data MISSING.jsonl", "MISSING.jsonl"),
    (f"{MIST} --data BROKEN", "misses response"),
    (f"{MIST} --data DATA --languages ko", "no row in ko"),
    (f"{MIST} --data DATA --languages en --max-length 5", "nothing is left for en"),
    ("mist --out OUT --model /nothere/at/all", "cannot load the model"),
    (f"mist {MODEL} --out FILE", "is a file"),
    (f"mist {MODEL} --out FULL", "no run of this command"),
    (f"{MIDALIGN} --data DATA --batch-size 1 --pairs PAIRS", "at least two pairs"),
    (f"{MIDALIGN} --layer 99", "layer"),
    (f"{MIDALIGN} --layer 1-2", "works at one layer"),
    (f"{MIDALIGN} --layer deep", "deep"),
    (f"{MIDALIGN} --temperature 0", "must be above 0"),
    (f"{MIDALIGN} --direction up", "valid: forward, backward, both"),
    (f"{MIDALIGN} --mode never", "valid: alternate, sum"),
    (f"{MIDALIGN} --mode sum --contrastive-steps 3", "leave it out"),
    (f"{MIDALIGN} --steps 2 --contrastive-steps 3", "more than --steps"),
    (f"{MIDALIGN} --contrastive-batch-size 9", "multiple of --batch-size"),
    (f"{MIDALIGN} --contrastive-weight -1", "0 or above"),
    (f"{MIDALIGN} --data DATA --languages en,es,zh --pairs nowhere", "built in: mini, flores"),
    (
        f"{MIDALIGN} --data DATA --languages en,es,zh --pairs PAIRS --max-pairs 1 --steps 2",
        "a step takes 8 different pairs",
    ),
    (f"{CLO} --beta -1", "--beta"),
    (f"{CLO} --lambda 2", "between 0 and 1"),
    (f"{CLO} --languages en", "beside English"),
    (f"{CLO} --data DATA", "misses x_en, y_en, x_xx, y_xx"),
    ("merge FULL --out OUT", "holds no run"),
    ("merge FULL --out OUT --dtype int8", "valid: auto"),
    ("eval FULL --out OUT.csv", "holds no run"),
    ("eval FULL --out FULL", "is a folder"),
]


def invoke(command: str, folder: Path) -> tuple[int, str]:
    (folder / "file").write_text("x")
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "thesis.tex").write_text("x")
    (folder / "broken.jsonl").write_text('{"id": "1", "language": "en", "prompt": "a"}\n')
    words = {
        "TINY": tiny.folder("gemma3"),
        "OUT": folder / "out",
        "OUT.csv": folder / "out.csv",
        "FILE": folder / "file",
        "FULL": folder / "full",
        "BROKEN": folder / "broken.jsonl",
        "DATA": training_runs.instructions(folder),
        "TUPLES": training_runs.tuples(folder),
        "PAIRS": training_runs.sentences(folder),
    }
    arguments = [str(words.get(word, word)) for word in command.split()]
    result = CliRunner().invoke(cli.app, ["train", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_a_mistake_is_one_message(command: str, message: str, tmp_path: Path) -> None:
    status, output = invoke(command, tmp_path)
    assert status == 2
    assert message in output
    assert "Traceback" not in output
    assert (tmp_path / "full" / "thesis.tex").is_file()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    before = trained("mist", tmp_path)
    with pytest.raises(TrainingError, match="holds a finished run: add --resume"):
        train(settings("mist", tmp_path))
    with pytest.raises(TrainingError, match="seed: 0 then, 1 now"):
        train(settings("mist", tmp_path, seed=1, resume=True))
    train(settings("mist", tmp_path, resume=True))  # finished: nothing to do
    assert training_runs.same(before, training_runs.weights(tmp_path / "mist"))


#: What fields were called in records of earlier releases.
EARLIER_NAMES = {
    "model_name_or_path": "model",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "warmup_steps": "warmup",
    "lora_r": "rank",
    "model_revision": "revision",
}


@pytest.mark.parametrize("resume", [False, True])
def test_a_kill_before_the_first_record_leaves_a_folder_that_can_be_used(
    resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", kill)
        with pytest.raises(KeyboardInterrupt):
            trained("mist", tmp_path, max_steps=1)
    out = tmp_path / "mist"
    (out / ".run.json.1a2b3c4d").write_text('{"settings"')  # of a write that the kill cut off
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["checkpoints"]
    trained("mist", tmp_path, max_steps=1, resume=resume)
    assert (out / "training.json").is_file()


def test_a_folder_with_checkpoints_of_something_else_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "mist" / "checkpoints" / "checkpoint-5" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    with pytest.raises(TrainingError, match="holds something that is no run of this command"):
        trained("mist", tmp_path, max_steps=1)


def test_a_run_of_an_earlier_release_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = trained("midalign", tmp_path, "straight")
    log_probs = AlignmentTrainer.log_probs

    def interrupted(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return log_probs(self, model, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(AlignmentTrainer, "log_probs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings("midalign", tmp_path))
    file = tmp_path / "midalign" / "run.json"
    record = json.loads(file.read_text())
    del record["settings"]["lora_alpha"]  # a field that they did not have
    record["settings"] = {EARLIER_NAMES.get(key, key): value for key, value in record["settings"].items()}
    file.write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r"started with different settings\n  lora_alpha: 4 then, 9 now"):
        train(settings("midalign", tmp_path, resume=True, lora_alpha=9))
    assert training_runs.same(straight, trained("midalign", tmp_path, resume=True))
    file.with_name("training.json").write_text(json.dumps({"settings": {**record["settings"], "dropout": 0.1}}))
    with pytest.raises(TrainingError, match="has the setting 'dropout', which this version"):
        train(settings("midalign", tmp_path, resume=True))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_probs = AlignmentTrainer.log_probs

    def broken(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        found = log_probs(self, model, inputs)
        return found * float("nan") if self.state.global_step == 3 else found

    monkeypatch.setattr(AlignmentTrainer, "log_probs", broken)
    with pytest.raises(TrainingError, match=r"step 4: the response loss is nan.*\n?.*Kept: the weights of step 3"):
        train(settings("mist", tmp_path))
    newest = checkpoints.newest(tmp_path / "mist")
    assert newest is not None
    assert newest.name == "checkpoint-3"
    kept = load_file(newest / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs = AlignmentTrainer.log_probs

    def broken(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        found = log_probs(self, model, inputs)
        return found + 0 * torch.sqrt(found - found) if self.state.global_step == 2 else found  # 0 * infinity

    monkeypatch.setattr(AlignmentTrainer, "log_probs", broken)
    with pytest.raises(TrainingError, match=r"step 3: a gradient is not a finite number"):
        train(settings("mist", tmp_path))
    assert checkpoints.newest(tmp_path / "mist") == tmp_path / "mist" / "checkpoints" / "checkpoint-2"


@pytest.mark.parametrize("failing", ["save", "optimizer", "state"])
def test_a_full_disk_keeps_the_previous_checkpoint(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trained("mist", tmp_path, "straight", save_total_limit=1)
    names = {"save": "_save", "optimizer": "_save_optimizer_and_scheduler", "state": "_save_rng_state"}
    real = getattr(transformers.Trainer, names[failing])

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, names[failing], full)
        with pytest.raises(TrainingError, match=r"No space left on device\nKept: checkpoint-2.*add --resume"):
            train(settings("mist", tmp_path, save_total_limit=1))
    assert [path.name for path in (tmp_path / "mist" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert training_runs.same(straight, trained("mist", tmp_path, save_total_limit=1, resume=True))


def test_a_full_disk_at_the_end_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoints.write

    def full(file: Path, record: dict[str, Any]) -> None:
        if file.name == checkpoints.FINISHED:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, record)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", full)
        with pytest.raises(TrainingError, match="trained, but the result cannot be written"):
            train(settings("mist", tmp_path))
    first = load_file(tmp_path / "mist" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
    assert training_runs.same(first, trained("mist", tmp_path, resume=True))


def test_an_adapter_of_another_base_of_the_same_shape(tmp_path: Path) -> None:
    trained("mist", tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny.folder("gemma3"), other)
    changed = load_file(other / "model.safetensors")
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    result = CliRunner().invoke(
        cli.app, ["train", "merge", str(tmp_path / "mist"), "--model", str(other), "--out", str(tmp_path / "merged")]
    )
    assert result.exit_code == 2
    assert "is another model" in result.output


def test_runs_of_unlike_prompts_are_not_compared(tmp_path: Path) -> None:
    trained("mist", tmp_path)
    trained("mist", tmp_path, "other", template="Q: {prompt} A:")
    result = CliRunner().invoke(
        cli.app,
        ["train", "eval", str(tmp_path / "mist"), str(tmp_path / "other"), "--out", str(tmp_path / "m.csv")],
    )
    assert result.exit_code == 2
    assert "cannot be compared: template" in result.output
    result = CliRunner().invoke(
        cli.app, ["train", "eval", str(tmp_path / "mist"), "--baseline", "nobody", "--out", str(tmp_path / "m.csv")]
    )
    assert "valid: base, mist" in result.output


def test_a_damaged_record(tmp_path: Path) -> None:
    trained("mist", tmp_path)
    for content in ("{", "[]", json.dumps({"settings": 3})):
        (tmp_path / "mist" / "training.json").write_text(content)
        with pytest.raises(TrainingError):
            train(settings("mist", tmp_path, resume=True))


def test_prompts_and_responses_meet_at_the_border_of_generation() -> None:
    tokenizer = tiny.load_tokenizer("gemma3")
    encoder = Encoder(tokenizer)
    from lm_eval_ext.data.instruct import Instruction

    one = encoder.instruction(Instruction("1", "en", "Hi?", "Yes", history=(("user", "A"), ("assistant", "B"))))
    said = f"{TEMPLATE.format(prompt='A')} B\n{TEMPLATE.format(prompt='Hi?')}"
    assert tokenizer.decode(one.prompt) == f"<begin>{said}"
    assert one.prompt.count(1) == 1
    assert tokenizer.decode(one.response) == " Yes<end>"


def test_a_chat_template_is_used_and_checked() -> None:
    from lm_eval_ext.data.instruct import Instruction

    row = Instruction("1", "en", "Hi?", "Yes")
    tokenizer = tiny.load_tokenizer("gemma3")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    one = Encoder(tokenizer).instruction(row)
    assert tokenizer.decode(one.prompt) == "[user]Hi?[assistant]"
    assert tokenizer.decode(one.response) == "Yes"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'x' if add_generation_prompt }}"
    with pytest.raises(TrainingError, match="otherwise once it is answered"):
        Encoder(tokenizer).instruction(row)
    tokenizer.eos_token = None
    with pytest.raises(TrainingError, match="end-of-sequence"):
        Encoder(tokenizer)


def test_a_sentence_without_tokens() -> None:
    from lm_eval_ext.data.pairs import Pair

    with pytest.raises(UserError, match="no token"):
        PairBatcher(tiny.load_tokenizer("qwen2"), [Pair("a", ""), Pair("b", "c")], 1)
