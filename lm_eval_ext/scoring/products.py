"""Float32 matrix products by oneDNN on AMD processors.

PyTorch computes them with MKL, which uses only half of the vector units of these processors. oneDNN, which PyTorch uses for
other dtypes, uses all of them. Its sums are equally exact and differ in their order only.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def fast_products(weight: Tensor) -> AbstractContextManager[object]:
    """A context in which linear layers are computed by oneDNN, if that is faster for `weight` (float32, on an AMD CPU).

    Has no effect where gradients are enabled.
    """
    return _OneDNN() if _gains(weight) and not torch.is_grad_enabled() else nullcontext()


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """`inputs` [rows, n] times `weight` [m, n] transposed, plus `bias`: [rows, m], in `out` unless oneDNN computes it."""
    if _gains(weight) and len(inputs):
        result: Tensor = _onednn(inputs, weight, bias)
        return result
    product = torch.mm(inputs, weight.T, out=out)  # avoids the page faults of a new buffer
    return product if bias is None else product.add_(bias)


class _OneDNN(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            inputs, weight, *bias = args
            if _is_plain(weight) and inputs.dtype is torch.float32 and inputs.numel():
                return _onednn(inputs, weight, *bias)
        return func(*args, **(kwargs or {}))


@torch.library.custom_op("lm_eval_ext::linear", mutates_args=())  # opaque to torch.compile
def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return result


@_onednn.register_fake
def _(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])


def _gains(weight: Tensor) -> bool:
    return _is_plain(weight) and not torch.is_autocast_enabled("cpu") and _is_slow_by_mkl()


def _is_plain(weight: Tensor) -> bool:
    """Whether it is float32, on the CPU, and no tensor subclass (such as a quantised weight)."""
    return (
        weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
    )


@cache
def _is_slow_by_mkl() -> bool:
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in _processor())


def _processor() -> str:
    """Text that names the processor's vendor."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:500]
    except OSError:
        return platform.processor()
