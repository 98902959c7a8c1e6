"""Float32 linear layers by oneDNN: the same values, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from lm_eval_ext.scoring import products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this build of PyTorch has no oneDNN",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the products that oneDNN made, on a processor that gains by it."""
    found: list[torch.Size] = []
    inner = products._onednn

    def counted(inputs: torch.Tensor, *rest: Any) -> Any:
        found.append(inputs.shape)
        return inner(inputs, *rest)

    monkeypatch.setattr(products, "_is_slow_by_mkl", lambda: True)
    monkeypatch.setattr(products, "_onednn", counted)
    return found


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (1, 1, 24)])
def test_the_same_values(shape: tuple[int, ...], bias: bool, calls: list[torch.Size]) -> None:
    layer, inputs = torch.nn.Linear(24, 40, bias=bias), torch.randn(shape)
    expected = layer(inputs)
    with products.fast_products(layer.weight):
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-5, atol=1e-6)
    assert calls == [torch.Size(shape)]
    layer(inputs)
    assert len(calls) == 1


@torch.inference_mode()
def test_rows_of_a_buffer(calls: list[torch.Size]) -> None:
    inputs, weight, bias, buffer = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6), torch.empty(4, 6)
    expected = inputs @ weight.T + bias
    torch.testing.assert_close(products.linear(inputs, weight, bias, buffer[:3]), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(products.linear(inputs, weight, bias, buffer[:3]), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("why", ["half precision", "autocast", "gradients", "no rows"])
def test_what_is_left_alone(why: str, calls: list[torch.Size]) -> None:
    dtype = torch.bfloat16 if why == "half precision" else torch.float32
    inputs, weight = torch.randn(0 if why == "no rows" else 3, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    with (
        torch.set_grad_enabled(why == "gradients"),
        torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"),
        products.fast_products(weight),
    ):
        found = linear(inputs, weight)
    assert not calls
    assert found.shape == (len(inputs), 6)


def test_another_maker_keeps_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, slow in (("GenuineIntel", False), ("AuthenticAMD", torch.backends.mkl.is_available())):
        monkeypatch.setattr(products, "_processor", lambda name=name: f"vendor_id : {name}")
        products._is_slow_by_mkl.cache_clear()
        assert products._is_slow_by_mkl() is slow
    products._is_slow_by_mkl.cache_clear()
