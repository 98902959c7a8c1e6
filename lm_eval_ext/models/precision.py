"""The dtype that a model runs in on a CPU: the checkpoint's where this CPU computes in it natively, else float32.

Half precision without instructions of its own is emulated, 3 to 50 times slower than float32. Every value of bfloat16 and
float16 is a value of float32, so that a half-precision checkpoint loses nothing there. On GPUs nothing is chosen here.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

log = logging.getLogger(__name__)

#: `0` hides this CPU's half-precision instructions, `1` claims that it has them; the CPU is asked where it is unset.
VARIABLE = "LM_EVAL_EXT_CPU_BFLOAT16"

#: CPU flags of Linux that mean native products: x86, then ARM.
_FLAGS = {"bfloat16": ("amx_bf16", "avx512_bf16", "bf16", "svebf16"), "float16": ("amx_fp16", "avx512_fp16", "asimdhp")}

#: A dtype that costs this many times float32 is warned of.
COSTLY = 3.0

#: Share of float32's speed from which half precision counts as native, where the CPU's flags cannot be read.
_NATIVE_SHARE = 0.8

#: Share of the machine's memory that a model in float32 may take.
_MEMORY_SHARE = 0.9

#: Arguments with which weights are not kept in a dtype, and what `auto` means is left to transformers.
_QUANTISED = ("quantization_config", "load_in_4bit", "load_in_8bit", "autogptq", "gptqmodel", "gguf_file")

_said: set[str] = set()


@dataclass(frozen=True)
class Precision:
    """What a model was asked to run in, and why it runs in what it does.

    Attributes:
        requested: as the user gave it, `auto` where they did not.
        checkpoint: dtype of the weights as they are published; "" where the config does not say.
        argument: what the dtype argument of `from_pretrained` becomes.
        reason: why, in words.
    """

    requested: str
    checkpoint: str
    argument: str
    reason: str

    def record(self, used: Any) -> dict[str, str]:
        """What is saved with results. `used`: the dtype of the loaded weights."""
        return {"used": name_of(used), **{key: text for key, text in asdict(self).items() if key != "argument"}}


def name_of(dtype: Any) -> str:
    """`float32` for `torch.float32`, `"float32"` or `"torch.float32"`; "" for None."""
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def choose(requested: Any, config: Any, *, on_cpu: bool, checkpoint: str = "", **arguments: Any) -> Precision:
    """The dtype to load a model in, said in one log line per process where it is not the checkpoint's or costs much.

    Args:
        requested: the user's dtype; `auto` or None for none.
        config: of the model.
        on_cpu: whether it runs on a CPU only.
        checkpoint: dtype of the published weights, where the config names another.
        arguments: whatever else the model is loaded with.
    """
    wanted = name_of(requested) or "auto"
    stored = checkpoint or checkpoint_dtype(config)
    if wanted != "auto":
        if on_cpu:
            _warn_if_costly(wanted)
        return Precision(wanted, stored, wanted, "requested")
    if not on_cpu:
        return Precision(wanted, stored, "auto", "the checkpoint's, as on every GPU")
    if getattr(config, "quantization_config", None) or any(arguments.get(key) for key in _QUANTISED):
        return Precision(wanted, stored, "auto", "left to transformers: the weights are quantised")
    if stored not in ("", *_FLAGS):
        return Precision(wanted, stored, "auto", "the checkpoint's")
    native, why = support(stored or "bfloat16")
    if native:
        _say(logging.INFO, f"dtype=auto: the checkpoint's {stored or 'dtype'}, because {why}")
        return Precision(wanted, stored, "auto", f"the checkpoint's: {why}")
    if too_large := _too_large(config):
        _say(logging.WARNING, f"dtype=auto: the checkpoint's {stored or 'dtype'}, because {too_large}, although {why}")
        return Precision(wanted, stored, "auto", f"the checkpoint's: {too_large}, although {why}")
    _say(logging.WARNING, f"dtype=auto: float32, not the checkpoint's {stored or 'dtype'}, because {why}")
    return Precision(wanted, stored, "float32", why)


def checkpoint_dtype(config: Any) -> str:
    """The dtype that a model's config names, "" if none."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    named = (getattr(part, key, None) for part in (config, text) for key in ("dtype", "torch_dtype"))
    return name_of(next((dtype for dtype in named if dtype is not None), None))


def support(dtype: str) -> tuple[bool, str]:
    """Whether this CPU multiplies matrices of `bfloat16` or `float16` natively, and how that is known.

    Raises:
        UserError: the variable `LM_EVAL_EXT_CPU_BFLOAT16` is neither 0 nor 1.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked not in ("", "0", "1"):
        raise UserError(f"{VARIABLE}={asked!r} is unknown, valid: 0 (hide half precision), 1 (claim it), or unset")
    return (asked == "1", f"{VARIABLE}={asked}") if asked else _native(dtype)


@cache
def _native(dtype: str) -> tuple[bool, str]:
    flags = cpu_flags(_cpu_information())
    if flags:
        if native := [flag for flag in _FLAGS[dtype] if flag in flags]:
            return True, f"this CPU has {dtype} products ({', '.join(native)})"
        return False, f"this CPU has no {dtype} products"
    half, single = matrix_speed(dtype), matrix_speed("float32")
    text = f"matrix products reach {half / 1e9:.0f} GFLOP/s in {dtype} here, {single / 1e9:.0f} in float32"
    return half >= _NATIVE_SHARE * single, text


def cpu_flags(information: str) -> Collection[str]:
    """The instruction sets in the text of Linux's `/proc/cpuinfo` (x86: `flags`, ARM: `Features`); empty if none."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", information, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()


def this_cpu_flags() -> Collection[str]:
    """`cpu_flags` of this machine; empty where they cannot be read."""
    return cpu_flags(_cpu_information())


@cache
def matrix_speed(dtype: str, size: int = 256, device: str = "cpu") -> float:
    """Floating-point operations a second of a product of two square matrices: the best of a few, in milliseconds."""
    import torch

    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _cpu_information() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _warn_if_costly(dtype: str) -> None:
    if dtype not in _FLAGS or support(dtype)[0]:
        return
    half, single = matrix_speed(dtype), matrix_speed("float32")
    if single > COSTLY * half:
        _say(
            logging.WARNING,
            f"dtype={dtype} costs about {single / half:.0f} times as much as float32 on this CPU "
            f"({half / 1e9:.0f} against {single / 1e9:.0f} GFLOP/s in a matrix product); dtype=auto takes float32",
        )


def _too_large(config: Any) -> str:
    """Why a model does not fit this machine's memory in float32; "" where it does, or where its size is unknown."""
    import psutil
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            parameters = int(AutoModelForCausalLM.from_config(config).num_parameters())
    except Exception:  # an architecture that transformers does not know: whoever loads it says what is wrong
        return ""
    needed, memory = 4 * parameters, psutil.virtual_memory().total
    if needed <= _MEMORY_SHARE * memory:
        return ""
    return f"float32 would take {needed / 2**30:.0f} of {memory / 2**30:.0f} GiB of memory"


def _say(level: int, text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.log(level, "%s", text)
