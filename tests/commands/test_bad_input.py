"""A user's mistake ends with one message on one screen that says what was got and what to do, and a non-zero status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval import __main__ as lm_eval_main
from lm_eval.tasks import manager
from safetensors.torch import save_file
from support import tiny
from support.processes import HUNG

from lm_eval_ext import cli
from lm_eval_ext.models import wheel_models
from lm_eval_ext.steering.vectors import FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

pytestmark = pytest.mark.transformers4

#: One screen.
LINES, COLUMNS = 20, 100


@dataclass(frozen=True)
class Case:
    """What is run, what the message must contain, and how the world is prepared for it.

    Attributes:
        run: `MODEL_ARGS` for `lm_eval --model steered-hf`, or `extract OPTIONS` for `lm-eval-ext`.
        says: parts of the message.
        task: the task, for `lm_eval`.
        more: further arguments.
        prepare: makes files; its result replaces `{made}` in the arguments and environment.
        env: environment variables.
    """

    run: str
    says: tuple[str, ...]
    task: str = "tiny_cloze"
    more: str = ""
    prepare: Callable[[Path], object] = lambda folder: None
    env: dict[str, str] = field(default_factory=dict)


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


def vectors(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> Callable[[Path], Path]:
    """A vector file of the tiny Llama, changed."""

    def write(folder: Path) -> Path:
        whole = tiny.vector_set("llama")
        whole.save(folder / "whole.safetensors")
        tensors = {f"{entry.info.key}.vector": entry.tensors["vector"].clone() for entry in whole.vectors.values()}
        header = (folder / "whole.safetensors").read_bytes()
        metadata = json.loads(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"][FORMAT])
        change(metadata, tensors)
        save_file(tensors, folder / "v.safetensors", metadata={FORMAT: json.dumps(metadata)})
        return folder / "v.safetensors"

    return write


def model(**changes: Any) -> Callable[[Path], Path]:
    """The folder of the tiny Llama with another config, or without its weights."""

    def copy(folder: Path) -> Path:
        shutil.copytree(tiny.folder("llama"), folder / "model")
        config = folder / "model" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        if not changes:
            (folder / "model" / "model.safetensors").unlink()
        return folder / "model"

    return copy


def mirror(name: str, content: str) -> Callable[[Path], Path]:
    """A data mirror that holds one file."""

    def make(folder: Path) -> Path:
        written(f"mirror/{name}", content)(folder)
        return folder / "mirror"

    return make


LLAMA = f"pretrained={tiny.folder('llama')},dtype=float32"
STEERED = f"{LLAMA},vectors={tiny.vector_file('llama')}"
EXTRACT = f"extract --model {tiny.folder('llama')} --out {{tmp}}/v.safetensors --device cpu"
HEADER = "language\tpositive\tnegative\n"

CASES = {
    # Plans
    "plan: layer": Case(f"{STEERED},steer=en@x:2", ("character 4", "a layer", "got 'x'", "\n     ^\n", "en@42%:2")),
    "plan: comma": Case(f"{STEERED},steer='en@1:2;loc@2:2'", ("character 7", "expected '+'", "got ';'")),
    "plan: strength": Case(f"{STEERED},steer=en@1:much", ("character 6", "a strength such as 2, -0.5 or 5%")),
    "plan: too strong": Case(f"{STEERED},steer=en@1:3e38", ("adds more than a float32 number", "lower its strengths")),
    "plan: depth": Case(f"{STEERED},steer=en@142%:2", ("character 4", "at most 100%")),
    "plan: number": Case(f"{STEERED},steer=5", ("expected a kind of vector, such as en or loc", "got '5'")),
    "plan: position": Case(f"{STEERED},steer=en@1:2/first", ("character 8", "prompt, last, all", "got 'f'")),
    "plan: kind": Case(f"{STEERED},steer=style@1", ("no vectors of kind 'style'; kinds: en, loc",)),
    "plan: no such layer": Case(f"{STEERED},steer=en@20:2", ("layer 20 does not exist", "valid: 0-3", "58%")),
    "plan: backwards": Case(f"{STEERED},steer=en@3-1", ("range of en@3-1:2 runs backwards (3 to 1)",)),
    "plan: control": Case(
        f"{STEERED},steer=loc~fr@1", ("no 'loc' vectors of language 'fr'", "en, ko, es, zh", "random")
    ),
    "plan: no vectors": Case(
        f"{LLAMA},steer=en@1", ("plan en@1:2 needs vectors", "vectors=FILE", "lm-eval-ext extract")
    ),
    "positions": Case(f"{STEERED},steer=en@1,positions=middle", ("positions='middle'", "valid: prompt, last, all")),
    # Vector files
    "vectors: missing": Case(
        f"{LLAMA},vectors=/nowhere/v.safetensors", ("no vector file at /nowhere", "extract --out")
    ),
    "vectors: truncated": Case(
        f"{LLAMA},vectors={{made}}",
        ("v.safetensors", "truncated, or another format", "Extract it again"),
        prepare=written("v.safetensors", tiny.vector_file("llama").read_bytes()[:3000]),
    ),
    "vectors: pickle": Case(
        f"{LLAMA},vectors={{made}}",
        ("v.pt", "not a readable safetensors file"),
        prepare=written("v.pt", b"PK\x03\x04" * 9),
    ),
    "vectors: not vectors": Case(
        f"{LLAMA},vectors={tiny.folder('llama')}/model.safetensors", ("not of steering vectors", "lm-eval-ext extract")
    ),
    "vectors: version": Case(
        f"{LLAMA},vectors={{made}}",
        ("format version 9; this release reads 1", "Update lm_eval_ext or extract again"),
        prepare=vectors(lambda metadata, tensors: metadata.update(format_version=9)),
    ),
    "vectors: NaN": Case(
        f"{LLAMA},vectors={{made}}",
        ("loc.ko holds NaN or infinity", "Extract it again"),
        prepare=vectors(lambda metadata, tensors: tensors["loc.ko.vector"][1, 1].fill_(float("nan"))),
    ),
    "vectors: tensor missing": Case(
        f"{LLAMA},vectors={{made}}",
        ("damaged: missing tensors ['loc.ko.vector']",),
        prepare=vectors(lambda metadata, tensors: tensors.pop("loc.ko.vector")),
    ),
    "vectors: convention": Case(
        f"{LLAMA},vectors={{made}}",
        ("numbers layers as '1-based'", "hidden_states[l+1]"),
        prepare=vectors(lambda metadata, tensors: metadata.update(layer_convention="1-based")),
    ),
    "vectors: width": Case(
        f"pretrained={{made}},vectors={tiny.vector_file('llama')}",
        ("made for 'tiny-llama' with hidden size 32", "has 64", "lm-eval-ext extract --model"),
        prepare=model(hidden_size=64, head_dim=16),
    ),
    "vectors: depth": Case(
        f"pretrained={{made}},vectors={tiny.vector_file('llama')}",
        ("number of layers 4", "has 3"),
        prepare=model(num_hidden_layers=3),
    ),
    "vectors: architecture": Case(
        f"pretrained={tiny.folder('mistral')},vectors={tiny.vector_file('llama')},steer=en@1",
        ("another architecture", "any_model=True"),
    ),
    "vectors: layer": Case(
        f"{LLAMA},vectors={{made}},steer=loc@0-3",
        ("no 'loc' vector of 'ko' for layer 0; layers in the file: 1-2", "Extract that layer, or steer another"),
        prepare=lambda folder: [
            tiny.vector_set("llama", languages=("ko",), layers=(1, 2)).save(folder / "v.safetensors"),
            folder / "v.safetensors",
        ][-1],
    ),
    # Languages
    "language: unknown": Case(
        f"{STEERED},steer=loc@1",
        ("task tiny_mute_cloze: the language is not known", "en, ko, es, zh", "metadata", "lang=ko"),
        task="tiny_mute_cloze",
    ),
    "language: no vectors": Case(
        f"{STEERED},steer=loc@1,lang=fr",
        ("task tiny_mute_letters: the plan cannot steer language 'fr'", "en, ko, es, zh"),
        task="tiny_mute_letters",
    ),
    "language: of extraction": Case(f"{EXTRACT} --languages ko,xx", ("unknown xx; valid: en, es, id, el, ko, zh, ar",)),
    "language: English alone": Case(f"{EXTRACT} --kinds en --languages en", ("kind 'en' for English alone",)),
    # Models
    "model: no folder": Case("pretrained=/nowhere/model", ("cannot load the model '/nowhere/model'", "Give a folder")),
    "model: no such name": Case("pretrained=nobody/nothing", ("'nobody/nothing'", "Give a folder")),
    "model: architecture": Case(
        "pretrained={made}", ("telepathy", "Give a folder"), prepare=model(model_type="telepathy")
    ),
    "model: no weights": Case(
        "pretrained={made}", ("because: OSError", "model.safetensors", "--model_args"), prepare=model()
    ),
    "model: argument": Case(f"{STEERED},ster=en@1", ("unexpected keyword argument 'ster'", "vectors, steer, lang")),
    "model: adapter": Case(f"{LLAMA},peft=/nowhere/lora", ("adapter_config.json", "/nowhere/lora")),
    "model: dtype": Case(f"pretrained={tiny.folder('llama')},dtype=float33", ("float33", "Check --model_args")),
    "model: padding": Case(f"{LLAMA},padding_side=both", ("padding_side='both'", "valid: left, right")),
    "model: batch size": Case(LLAMA, ("batch_size=0", "valid: 1, 2, 3"), more="--batch_size 0"),
    "model: not installed": Case(
        "dtype=float32",
        ("no `pretrained=` was given", "pip install 'lm_eval_ext[model]'", "pretrained=NAME_OR_FOLDER"),
        env={"LM_EVAL_EXT_CACHE": "{tmp}", "HIDE": "wheels"},
    ),
    "cache: of another steering": Case(
        f"{STEERED},steer=loc@1:2",
        ("--use_cache", "those of another model type (hf)", "Give this run a cache of its own"),
        more="--use_cache {tmp}/cache",
        prepare=lambda folder: tiny.evaluate(
            tiny.hf("llama"), "tiny_letters", use_cache=str(folder / "cache"), limit=1
        ),
    ),
    # Extraction
    "extract: no such model": Case("extract --model /nowhere/m --out {tmp}/v", ("'/nowhere/m'", "Give a folder")),
    "extract: kind": Case(
        f"{EXTRACT} --kinds formal", ("kind 'formal' has no built-in pairs", "--pairs formal=FILE.tsv")
    ),
    "extract: kind's name": Case(
        f"{EXTRACT} --kinds my-kind --pairs my-kind=p.tsv", ("'my-kind'", "letters, digits and _")
    ),
    "extract: pairs": Case(f"{EXTRACT} --pairs flores", ("--pairs 'flores'", "KIND=SOURCE", "en=flores")),
    "extract: pairs unused": Case(f"{EXTRACT} --pairs formal=p.tsv", ("add formal to --kinds, which is en,loc",)),
    "extract: source": Case(f"{EXTRACT} --pairs en=tatoeba", ("no pairs 'tatoeba'", "mini, flores, ntrex", ".tsv")),
    "extract: no file": Case(
        f"{EXTRACT} --kinds formal --pairs formal=/nowhere/p.tsv", ("no pair file at /nowhere/p.tsv",)
    ),
    "extract: header": Case(
        f"{EXTRACT} --kinds formal --pairs formal={{made}}",
        ("must name the columns language, positive, negative", "got 'a,b,c'"),
        prepare=written("p.tsv", "a,b,c\n"),
    ),
    "extract: row": Case(
        f"{EXTRACT} --kinds formal --pairs formal={{made}}",
        ("p.tsv, line 3: expected 3 filled cells, got 2",),
        prepare=written("p.tsv", f"{HEADER}ko\ta\tb\nko\ta\n"),
    ),
    "extract: languages of the file": Case(
        f"{EXTRACT} --kinds formal --pairs formal={{made}} --languages ko",
        ("has pairs for zh, none for ko",),
        prepare=written("p.tsv", f"{HEADER}zh\ta\tb\n"),
    ),
    "extract: long text": Case(
        f"{EXTRACT} --kinds formal --pairs formal={{made}}",
        ("formal/ko", "has 801 tokens, the model's context is 128"),
        prepare=written("p.tsv", f"{HEADER}ko\t{'&' * 800}\tb\n"),
    ),
    "extract: layer": Case(f"{EXTRACT} --layers 2,9", ("layer 9 does not exist", "valid: 0-3")),
    "extract: layers": Case(f"{EXTRACT} --layers middle", ("'middle' is not a layer", "5, 3-8, 42%", "'all'")),
    "extract: position": Case(f"{EXTRACT} --position first", ("pooling 'first'", "valid: last, mean")),
    "extract: dtype": Case(f"{EXTRACT} --dtype float33", ("--dtype 'float33'", "valid: auto, bfloat16, float32")),
    "extract: device": Case(f"{EXTRACT} --device cuda:99", ("cannot load the model", "because:", "CUDA")),
    "extract: out": Case(f"{EXTRACT} --out {{tmp}}", ("is a folder; give the path of a file",)),
    "extract: out of a file": Case(
        f"{EXTRACT} --out {{made}}/v", ("cannot write there", "give another path"), prepare=written("f", "")
    ),
    "extract: adapter": Case(f"{EXTRACT} --peft /nowhere/lora", ("cannot load the model", "adapter_config.json")),
    # Mirrors
    "mirror: no folder": Case(
        f"{EXTRACT} --pairs en=flores",
        ("LM_EVAL_EXT_DATA=/nowhere/data is not a folder",),
        env={"LM_EVAL_EXT_DATA": "/nowhere/data"},
    ),
    "mirror: another file": Case(
        f"{EXTRACT} --pairs en=flores",
        ("eng_Latn.devtest", "is not the upstream file", "SHA-256 expected", "LM_EVAL_EXT_ALLOW_MODIFIED=1"),
        prepare=mirror("parallel/flores200/eng_Latn.devtest", "One line\n"),
        env={"LM_EVAL_EXT_DATA": "{made}"},
    ),
    "mirror: not JSON": Case(
        LLAMA,
        ("test.jsonl, line 1,", "is not JSON", "it may be truncated"),
        task="gmmlu_ko",
        prepare=mirror("gmmlu/ko/test.jsonl", '{"sample_id": "a/test/0", "que'),
        env={"LM_EVAL_EXT_DATA": "{made}"},
    ),
    "mirror: schema": Case(
        LLAMA,
        ("test.jsonl", "question"),
        task="gmmlu_ko",
        prepare=mirror("gmmlu/ko/test.jsonl", '{"sample_id": "a/test/0"}\n'),
        env={"LM_EVAL_EXT_DATA": "{made}"},
    ),
}


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], tuple[Any, str]]:
    """Runs `lm_eval` or `lm-eval-ext` in this process: exit status and standard error."""
    # The scan of the harness's 14,000 own tasks takes seconds and is not what is tested.
    monkeypatch.setattr(manager, "__file__", "/nowhere/manager.py")
    monkeypatch.setattr(lm_eval_main, "setup_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(command: list[str]) -> tuple[Any, str]:
        sys.argv[:] = command
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main() if command[0] == "lm-eval-ext" else lm_eval_main.cli_evaluate()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run


def message_of(errors: str) -> str:
    """The message on standard error, without the log and progress bars before it."""
    assert "Traceback" not in errors
    assert errors.count("\nerror: ") + errors.startswith("error: ") == 1, errors
    return errors[errors.index("error: ") :]


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, command_line: Callable[[list[str]], tuple[Any, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    made = str(case.prepare(tmp_path))

    def filled(text: str) -> str:
        return text.replace("{made}", made).replace("{tmp}", str(tmp_path))

    for variable, value in case.env.items():
        monkeypatch.setenv(variable, filled(value))
    if "HIDE" in case.env:
        monkeypatch.setattr(wheel_models, "distribution", no_wheels)
    if case.run.startswith("extract"):
        command = ["lm-eval-ext", *filled(case.run).split(" ")]
    else:
        command = ["lm_eval", "run", "--model", "steered-hf", "--model_args", filled(case.run), "--tasks", case.task]
        command += ["--include_path", str(tiny.task_folder()), "--device", "cpu", *filled(case.more).split()]
    status, errors = command_line(command)
    assert status == 2, errors
    message = message_of(errors)
    for part in case.says:
        assert part in message
    assert sum(-(-len(line) // COLUMNS) or 1 for line in message.splitlines()) <= LINES


def no_wheels(project: str) -> None:
    raise PackageNotFoundError(project)


def test_what_the_cases_change_is_what_is_wrong(command_line: Callable[[list[str]], tuple[Any, str]]) -> None:
    """The commands of the table are right where nothing is made wrong."""
    arguments = [
        "--model_args",
        f"{STEERED},steer=en@1:2+loc@42%:2/last",
        "--tasks",
        "tiny_cloze,transfer_mini_ko_cloze",
    ]
    options = ["--include_path", str(tiny.task_folder()), "--device", "cpu", "--limit", "1", "--batch_size", "8"]
    status, errors = command_line(["lm_eval", "run", "--model", "steered-hf", *arguments, *options])
    assert status == 0, errors
    assert "error: " not in errors


@pytest.mark.slow
def test_the_plain_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    """One of the cases above, as a user types it."""
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "steered-hf", "--device", "cpu"]
    command += ["--tasks", "transfer_mini_ko_cloze", "--model_args", f"{STEERED},steer=en@9"]
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HUNG)
    assert process.returncode == 2, process.stderr
    assert "layer 9 does not exist: the model has 4 decoder layers" in message_of(process.stderr)
