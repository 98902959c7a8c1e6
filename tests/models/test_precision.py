"""The dtype that a model runs in: what this machine's CPU is fast in, said in the log and in everything that is saved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import cli, doctor
from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import UserError
from lm_eval_ext.models import precision
from lm_eval_ext.models.loading import load_model
from lm_eval_ext.steering.vectors import VectorSet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.transformers4

AVX2 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\nbugs\t\t:\n"
ZEN4 = "flags\t\t: avx2 avx512f avx512_bf16\n"
SAPPHIRE_RAPIDS = "flags\t\t: avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16\n"
CASCADE_LAKE = "flags\t\t: avx2 avx512f avx512_vnni\n"
GRAVITON3 = "Features\t: fp asimd fphp asimdhp sve bf16\n"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(precision, "_said", set())
    precision._native.cache_clear()
    yield
    precision._native.cache_clear()


def on(monkeypatch: pytest.MonkeyPatch, information: str) -> None:
    """As if this machine had another CPU."""
    monkeypatch.setattr(precision, "_cpu_information", lambda: information)


def config(dtype: str | None, **values: Any) -> Any:
    return SimpleNamespace(dtype=None if dtype is None else getattr(torch, dtype), **values)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    tiny.load("gemma3").to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer("gemma3").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("information", "dtype", "native"),
    [
        (AVX2, "bfloat16", False),
        (AVX2, "float16", False),
        (CASCADE_LAKE, "bfloat16", False),
        (ZEN4, "bfloat16", True),
        (ZEN4, "float16", False),
        (SAPPHIRE_RAPIDS, "bfloat16", True),
        (SAPPHIRE_RAPIDS, "float16", True),
        (GRAVITON3, "bfloat16", True),
        (GRAVITON3, "float16", True),
    ],
)
def test_half_precision_is_kept_where_the_cpu_has_its_instructions(
    monkeypatch: pytest.MonkeyPatch, information: str, dtype: str, native: bool
) -> None:
    on(monkeypatch, information)
    monkeypatch.setattr(precision, "matrix_speed", lambda *_: pytest.fail("measured, though the flags say it"))
    monkeypatch.setattr(precision, "_too_large", lambda config: "")
    chosen = precision.choose("auto", config(dtype), on_cpu=True)
    assert (chosen.argument, chosen.checkpoint) == ("auto" if native else "float32", dtype)
    assert dtype in chosen.reason


@pytest.mark.parametrize(("half", "argument"), [(90.0, "auto"), (20.0, "float32")])
def test_a_cpu_without_readable_flags_is_measured(monkeypatch: pytest.MonkeyPatch, half: float, argument: str) -> None:
    on(monkeypatch, "")
    monkeypatch.setattr(precision, "matrix_speed", lambda dtype: 1e9 * (100 if dtype == "float32" else half))
    monkeypatch.setattr(precision, "_too_large", lambda config: "")
    chosen = precision.choose(None, config("bfloat16"), on_cpu=True)
    assert chosen.argument == argument
    assert f"{half:.0f} GFLOP/s in bfloat16 here, 100 in float32" in chosen.reason


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (config("float32"), {}),
        (config("float64"), {}),
        (config("bfloat16", quantization_config={"bits": 4}), {}),
        (config("bfloat16"), {"gguf_file": "model.gguf"}),
        (config("bfloat16"), {"load_in_8bit": True}),
        (config("bfloat16"), {"on_cpu": False}),
    ],
)
def test_nothing_is_chosen_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, model: Any, arguments: dict[str, Any]
) -> None:
    on(monkeypatch, AVX2)
    assert precision.choose("auto", model, **{"on_cpu": True, **arguments}).argument == "auto"
    assert not caplog.records


def test_a_config_without_a_dtype_is_taken_for_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_too_large", lambda config: "")
    on(monkeypatch, AVX2)
    assert precision.choose("auto", config(None), on_cpu=True).argument == "float32"


def test_a_model_that_memory_cannot_hold_in_float32_keeps_its_dtype(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, half: Path
) -> None:
    on(monkeypatch, AVX2)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000))
    model, _ = load_model(str(half), device="cpu")
    assert model.dtype == torch.bfloat16
    assert "float32 would take 0 of 0 GiB of memory" in caplog.text


def test_an_unknown_value_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(precision.VARIABLE, "yes")
    with pytest.raises(UserError, match=r"'yes' is unknown, valid: 0 .*, 1 .*, or unset"):
        precision.choose("auto", config("bfloat16"), on_cpu=True)


def test_a_costly_dtype_is_kept_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on(monkeypatch, AVX2)
    monkeypatch.setattr(precision, "matrix_speed", lambda dtype: 1e9 * {"float32": 100, "bfloat16": 10}.get(dtype, 50))
    for asked in ("bfloat16", torch.bfloat16, "float16", "float32"):
        assert precision.choose(asked, config("bfloat16"), on_cpu=True).argument == precision.name_of(asked)
    (record,) = caplog.records
    assert "dtype=bfloat16 costs about 10 times as much as float32" in record.getMessage()
    on(monkeypatch, ZEN4)
    precision._native.cache_clear()
    precision.choose("bfloat16", config("bfloat16"), on_cpu=True)
    assert len(caplog.records) == 1


def test_a_run_with_bfloat16_hidden_is_one_in_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, half: Path
) -> None:
    """End to end: the log says it, the results file has it, and scores are those of the same weights in float32."""
    monkeypatch.setenv(precision.VARIABLE, "0")
    found = tiny.evaluate(SteeredHFLM(str(half), device="cpu"), "tiny_letters", "tiny_cloze")
    assert caplog.text.count("dtype=auto: float32, not the checkpoint's bfloat16, because") == 1
    assert found["config"]["dtype"] == {
        "used": "float32",
        "requested": "auto",
        "checkpoint": "bfloat16",
        "reason": f"{precision.VARIABLE}=0",
    }
    upcast = tiny.load("gemma3")
    with torch.no_grad():
        for weight in upcast.parameters():
            weight.copy_(weight.bfloat16())
    expected = tiny.evaluate(SteeredHFLM(upcast, tokenizer=tiny.tokenizer("gemma3")), "tiny_letters", "tiny_cloze")
    assert tiny.answers(found) == tiny.answers(expected)
    assert "dtype" not in expected["config"]  # of a model that was given loaded


def test_a_run_with_bfloat16_claimed_is_one_in_bfloat16(monkeypatch: pytest.MonkeyPatch, half: Path) -> None:
    monkeypatch.setenv(precision.VARIABLE, "1")
    found = tiny.evaluate(SteeredHFLM(str(half), device="cpu"), "tiny_letters")["config"]["dtype"]
    assert (found["used"], found["checkpoint"]) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize(("variable", "dtype"), [("0", "float32"), ("1", "bfloat16")])
def test_extraction_records_the_dtype_that_ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, half: Path, variable: str, dtype: str
) -> None:
    monkeypatch.setenv(precision.VARIABLE, variable)
    out = tmp_path / "v.safetensors"
    asked = ["--model", str(half), "--out", str(out), "--kinds", "loc", "--languages", "ko", "--max-pairs", "2"]
    result = CliRunner().invoke(cli.app, ["extract", *asked, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    (entry,) = VectorSet.load(out).vectors.values()
    assert entry.info.dtype == dtype


def test_doctor_shows_the_peak_in_both() -> None:
    (finding,) = [found for found in doctor.devices() if found.subject == "cpu matrix products"]
    assert all(f"{dtype} " in finding.detail for dtype in ("float32", "bfloat16", "dtype=auto takes"))
