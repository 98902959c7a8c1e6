"""How long forwards take here, estimated from the size of a model and the speed of matrix products before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.models.precision import matrix_speed, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel

#: Share of the speed of matrix products that forwards reach (measured on CPUs: 0.4 to 0.65).
SHARE = 0.4

#: Rows of the square matrices that show a device's speed.
_SIZE = {"cpu": 512}
_DEVICE_SIZE = 8192


def operations_per_second(dtype: str, device: str) -> float:
    """Floating-point operations a second of a matrix product on a type of device, measured once in milliseconds."""
    return matrix_speed(dtype, _SIZE.get(device, _DEVICE_SIZE), device)


def weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights that a token is multiplied with: those of the decoder layers, and those of the LM head where it is scored."""
    head = model.get_output_embeddings()
    table = int(model.get_input_embeddings().weight.numel())
    of_head = table if head is None else int(head.weight.numel())
    has_table_of_its_own = head is not None and head.weight is not model.get_input_embeddings().weight
    return int(model.num_parameters()) - table - (of_head if has_table_of_its_own else 0), of_head


def forward_seconds(model: PreTrainedModel, tokens: float, scored: float = 0) -> float | None:
    """Estimated seconds of forwards, right within a factor of two or so; None where the speed cannot be measured.

    Args:
        model: the model, loaded.
        tokens: that are run in all.
        scored: positions at which the LM head is computed.
    """
    body, head = weights(model)
    return operations_seconds(model, 2.0 * (body * tokens + head * scored))


def operations_seconds(model: PreTrainedModel, operations: float) -> float | None:
    """Estimated seconds of so many floating-point operations in forwards of a model; None as for `forward_seconds`."""
    weight = model.get_input_embeddings().weight
    if weight.device.type not in ("cpu", "cuda") or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return None
    return operations / (SHARE * operations_per_second(name_of(weight.dtype), weight.device.type))


def distinct_tokens(prompts: Iterable[Sequence[int]]) -> int:
    """Tokens of some prompts, those of shared beginnings counted once."""
    total = 0
    before: tuple[int, ...] = ()
    for prompt in sorted(map(tuple, prompts)):
        shared = next((n for n, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), None)
        total += len(prompt) - (min(len(before), len(prompt)) if shared is None else shared)
        before = prompt
    return total
