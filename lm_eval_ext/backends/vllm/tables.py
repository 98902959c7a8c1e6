"""A steering table as bytes, for workers in other processes and on other machines: safetensors, no pickle."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from lm_eval_ext.errors import EstimatorError
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.table import Addition, Change, SteeringTable, Step

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_ext.steering.transforms.base import Artifact, Transform


def to_bytes(table: SteeringTable) -> bytes:
    """The steps of a table and its height; equal tables give equal bytes."""
    tensors: dict[str, Tensor] = {}
    description: dict[str, Any] = {"height": table.height, "layers": {}}
    for layer, steps in sorted(table.steps.items()):
        described: list[dict[str, Any]] = []
        for number, step in enumerate(steps):
            name = f"{layer}/{number}"
            if isinstance(step, Addition):
                tensors[name] = step.matrix.contiguous()
                described.append({"position": step.position})
            else:
                rows = {}
                for row, (artifact, strength) in step.artifacts.items():
                    rows[str(row)] = strength
                    tensors.update({f"{name}/{row}/{key}": tensor.contiguous() for key, tensor in artifact.items()})
                described.append({"position": step.position, "transform": step.transform.name, "rows": rows})
        description["layers"][str(layer)] = described
    text = json.dumps(description, sort_keys=True).encode()
    return len(text).to_bytes(8, "little") + text + save(tensors)


def from_bytes(content: bytes) -> SteeringTable:
    """The table of `to_bytes`, without languages.

    Raises:
        EstimatorError: a transform that is not installed here.
    """
    length = int.from_bytes(content[:8], "little")
    description = json.loads(content[8 : 8 + length])
    tensors = load(content[8 + length :])
    steps: dict[int, tuple[Step, ...]] = {}
    for layer, described in description["layers"].items():
        of_layer: list[Step] = []
        for number, step in enumerate(described):
            name = f"{layer}/{number}"
            if "transform" not in step:
                of_layer.append(Addition(step["position"], tensors[name]))
                continue
            artifacts: dict[int, tuple[Artifact, float]] = {}
            for row, strength in step["rows"].items():
                prefix = f"{name}/{row}/"
                artifact = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                artifacts[int(row)] = artifact, strength
            of_layer.append(Change(step["position"], _transform(step["transform"]), artifacts))
        steps[int(layer)] = tuple(of_layer)
    return SteeringTable(steps=steps, height=description["height"])


def identity(content: bytes) -> str:
    """A hash of a table's bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def _transform(name: str) -> Transform:
    for estimator in registry.names():
        try:
            return registry.transform_for(name, estimator)
        except EstimatorError:  # another estimator brings it
            continue
    raise EstimatorError(
        f"the transform {name!r} is not installed on a worker: install the package that brings it there"
    )
