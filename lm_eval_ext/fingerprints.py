"""Whether something is the same as before: SHA-256 of texts, JSON, files and folders, and of a model's weights.

Digests are recorded (in vector files, splits, orders of options, stores of sweeps and studies): none of them may change.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BLOCK = 2**20


def hash_text(*parts: object, separator: str = "/") -> str:
    """Of texts joined by a separator."""
    return hashlib.sha256(separator.join(map(str, parts)).encode()).hexdigest()


def hash_lines(lines: Iterable[str]) -> str:
    """Of a file of these lines, each with a newline at its end."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def hash_json(value: object, *, ascii_only: bool = True) -> str:
    """Of a value as JSON; the order of keys counts.

    Args:
        value: what `json.dumps` takes.
        ascii_only: whether other characters are escaped, as `json.dumps` does if it is not told otherwise.
    """
    return hashlib.sha256(json.dumps(value, ensure_ascii=ascii_only).encode()).hexdigest()


def hash_bytes(content: bytes) -> str:
    """SHA-256 of what a file holds or would hold."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Of a file's bytes."""
    digest = hashlib.sha256()
    _add(digest, path)
    return digest.hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """Of the names, without their folders, and bytes of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        _add(digest, path)
    return digest.hexdigest()


def hash_tree(path: Path) -> str:
    """Of a file, or of all files of a folder but compiled Python: their places, sizes and bytes.

    In a folder, of files above 2 MiB only the first and last MiB: weights of 24 GB would take minutes.
    """
    digest = hashlib.sha256()
    is_folder = path.is_dir()
    for file in sorted(path.rglob("*")) if is_folder else [path]:
        if not file.is_file() or file.suffix == ".pyc":
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if is_folder else ''} {size}\n".encode())
        if is_folder and size > 2 * _BLOCK:
            with file.open("rb") as content:
                digest.update(content.read(_BLOCK))
                content.seek(-_BLOCK, 2)
                digest.update(content.read(_BLOCK))
        else:
            _add(digest, file)
    return digest.hexdigest()


def _add(digest: Any, path: Path) -> None:
    with path.open("rb") as content:
        for block in iter(lambda: content.read(_BLOCK), b""):
            digest.update(block)


def weights_fingerprint(model: Any) -> str:
    """A hash of every weight's name, shape, sum and some of its values: changes with any training step, reads all once."""
    return _tensors_fingerprint((name, _on_hand(model, name, weight)) for name, weight in model.named_parameters())


def state_fingerprint(model: Any) -> str:
    """`weights_fingerprint` of all that a checkpoint holds: quantized weights are buffers."""
    weights = dict(model.named_parameters())
    buffers = ((name, tensor) for name, tensor in model.state_dict().items() if name not in weights)
    of_buffers = _tensors_fingerprint((name, tensor) for name, tensor in buffers if hasattr(tensor, "flatten"))
    return hash_text(weights_fingerprint(model), of_buffers)[:16]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of a tokenizer of transformers: of its vocabulary and of all else that decides a text's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        content = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), repr(tokenizer)]
    else:
        content = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # of the latest call
            content.pop(state, None)
    return hash_json(content)[:16]


def _tensors_fingerprint(tensors: Iterable[tuple[str, Any]]) -> str:
    import torch

    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, tensor in tensors:
            flat = tensor.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64]
            if flat.is_meta:
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                continue
            total = flat.sum(dtype=torch.float64 if flat.device.type == "cpu" else torch.float32)
            digest.update(f"{name} {tuple(tensor.shape)} {float(total)!r} {some.float().tolist()}".encode())
    return digest.hexdigest()[:16]


def _on_hand(model: Any, name: str, weight: Any) -> Any:
    """A weight itself, read from where accelerate has offloaded it."""
    if not weight.is_meta:
        return weight
    from accelerate.utils import align_module_device

    module, _, attribute = name.rpartition(".")
    owner = model.get_submodule(module)
    with align_module_device(owner, "cpu"):
        return getattr(owner, attribute).detach().clone()
