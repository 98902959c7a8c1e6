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
    import torch

    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            flat = weight.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64].float()
            total = flat.sum(dtype=torch.float64 if flat.device.type == "cpu" else torch.float32)
            digest.update(f"{name} {tuple(weight.shape)} {float(total)!r} {some.tolist()}".encode())
    return digest.hexdigest()[:16]
