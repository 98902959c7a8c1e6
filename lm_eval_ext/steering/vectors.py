"""Steering vectors and their file: safetensors with metadata that says what they are and which model they fit.

One tensor `{kind}.{language}` of shape [layers, hidden] in float32 for each kind and language; everything else is one JSON
object in the file's metadata, so that a file can be checked before any model is loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext.errors import VectorFileError
from lm_eval_ext.fingerprints import hash_file
from lm_eval_ext.io import write_file
from lm_eval_ext.steering.decoder import LAYER_CONVENTION, fingerprint, hidden_size, layer_count

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "lm_eval_ext.vectors"
FORMAT_VERSION = 1

#: Language code of vectors that apply to every request.
ANY_LANGUAGE = "any"


@dataclass(frozen=True)
class ModelIdentity:
    """The model that vectors were extracted from.

    Attributes:
        name: what the user called it.
        fingerprint: hash of the decoder's shape (`decoder.fingerprint`).
        hidden_size: width of the residual stream.
        n_layers: number of decoder layers.
    """

    name: str
    fingerprint: str
    hidden_size: int
    n_layers: int

    @classmethod
    def of(cls, name: str, config: Any) -> ModelIdentity:
        """The identity of a transformers config."""
        return cls(name, fingerprint(config), hidden_size(config), layer_count(config))


@dataclass(frozen=True)
class VectorInfo:
    """How the vectors of one kind and language were made.

    Attributes:
        kind: `en`, `loc` or a kind of the user's own.
        language: whose requests they steer; `any` for all.
        layers: the layer of each row of the tensor (0-based output of a block).
        position: token position of the extraction, `last` or `mean`.
        n_pairs: number of contrastive pairs averaged.
        source: name of the pairs.
        source_sha256: hash of the pairs' text.
        dtype: dtype in which the model ran.
        residual_norms: mean norm of the residual stream at that position, per layer of `layers`.
    """

    kind: str
    language: str
    layers: tuple[int, ...]
    position: str
    n_pairs: int
    source: str
    source_sha256: str
    dtype: str
    residual_norms: tuple[float, ...]

    @property
    def key(self) -> str:
        """Name of the tensor in the file."""
        return f"{self.kind}.{self.language}"


@dataclass(frozen=True)
class SteeringVectors:
    """Vectors of one kind and language: `values` has shape [len(info.layers), hidden], float32."""

    info: VectorInfo
    values: Tensor

    def at(self, layer: int) -> tuple[Tensor, float]:
        """The vector [hidden] after `layer` and the mean residual norm there.

        Raises:
            VectorFileError: the file holds no vector of this kind for that layer.
        """
        try:
            row = self.info.layers.index(layer)
        except ValueError:
            raise VectorFileError(
                f"the vector file has no {self.info.kind!r} vector of {self.info.language!r} for layer {layer}; "
                f"layers in the file: {ranges(self.info.layers)}. Extract that layer, or steer another"
            ) from None
        return self.values[row], self.info.residual_norms[row]


@dataclass(frozen=True)
class VectorSet:
    """All vectors of a file.

    Attributes:
        model: the model they were extracted from.
        vectors: by kind and language.
        path: the file, None when not yet saved.
        sha256: hash of the file's bytes, empty when not yet saved.
    """

    model: ModelIdentity
    vectors: dict[tuple[str, str], SteeringVectors]
    path: Path | None = None
    sha256: str = ""
    created_by: str = field(default="", compare=False)

    @property
    def kinds(self) -> list[str]:
        """Kinds in the file, in its order."""
        return list(dict.fromkeys(kind for kind, _ in self.vectors))

    def languages(self, kind: str) -> list[str]:
        """Languages that have vectors of `kind`."""
        return [language for k, language in self.vectors if k == kind]

    def check_kind(self, kind: str) -> None:
        """Make sure that the file holds `kind`.

        Raises:
            VectorFileError: it does not; the message lists what it holds.
        """
        if kind not in self.kinds:
            raise VectorFileError(f"{self.where} holds no vectors of kind {kind!r}; kinds: {', '.join(self.kinds)}")

    @property
    def where(self) -> str:
        """The file's name for messages."""
        return f"vector file {self.path}" if self.path else "the vector set"

    def check_model(self, name: str, config: Any, *, any_model: bool = False) -> None:
        """Make sure that the vectors fit the model whose config is given.

        Args:
            name: the model's name for the message.
            config: its transformers config.
            any_model: accept vectors of another model of the same width and depth (moving vectors between models).

        Raises:
            VectorFileError: another width, another number of layers, or another architecture.
        """
        actual = ModelIdentity.of(name, config)
        for what, ours, theirs in (
            ("hidden size", self.model.hidden_size, actual.hidden_size),
            ("number of layers", self.model.n_layers, actual.n_layers),
        ):
            if ours != theirs:
                raise VectorFileError(
                    f"{self.where} was made for {self.model.name!r} with {what} {ours}, but {name!r} has {theirs}. "
                    f"Extract vectors from {name!r}: lm-eval-ext extract --model {name}"
                )
        if self.model.fingerprint != actual.fingerprint and not any_model:
            raise VectorFileError(
                f"{self.where} was made for {self.model.name!r} (fingerprint {self.model.fingerprint}), but {name!r} is "
                f"another architecture (fingerprint {actual.fingerprint}). Extract vectors from {name!r}, or pass "
                "any_model=True to use them all the same"
            )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.torch import save

        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "layer_convention": LAYER_CONVENTION,
            "model": asdict(self.model),
            "vectors": [asdict(entry.info) for entry in self.vectors.values()],
            "created_by": self.created_by,
        }
        tensors = {entry.info.key: entry.values.float().contiguous() for entry in self.vectors.values()}
        write_file(path, save(tensors, metadata={FORMAT: json.dumps(metadata, ensure_ascii=False)}))

    @classmethod
    def load(cls, path: Path) -> VectorSet:
        """Read and check a vector file.

        Raises:
            VectorFileError: missing, truncated, not ours, of an unknown version, inconsistent, or with a value that is
                not finite.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise VectorFileError(f"no vector file at {path}. Make one: lm-eval-ext extract --out {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = _metadata(path, file.metadata() or {})
                infos = [_info(path, entry) for entry in metadata["vectors"]]
                present = set(file.keys())
                missing = [info.key for info in infos if info.key not in present]
                if missing or not infos:
                    raise VectorFileError(f"vector file {path} is damaged: missing tensors {missing or 'all'}")
                tensors = {info.key: file.get_tensor(info.key).float() for info in infos}
        except OSError as error:
            raise VectorFileError(f"cannot read the vector file {path}: {error.strerror or error}") from None
        except SafetensorError as error:
            raise VectorFileError(
                f"vector file {path} is not a readable safetensors file ({error}): truncated, or another format. "
                "Extract it again with lm-eval-ext extract"
            ) from None
        model = _identity(path, metadata)
        for info in infos:
            _check_tensor(path, info, tensors[info.key], model)
        return cls(
            model=model,
            vectors={(info.kind, info.language): SteeringVectors(info, tensors[info.key]) for info in infos},
            path=path,
            sha256=hash_file(path),
            created_by=str(metadata.get("created_by", "")),
        )


def _metadata(path: Path, raw: dict[str, str]) -> dict[str, Any]:
    if FORMAT not in raw:
        raise VectorFileError(
            f"{path} is a safetensors file, but not of steering vectors (no {FORMAT!r} metadata). "
            "Make one with lm-eval-ext extract"
        )
    try:
        metadata = json.loads(raw[FORMAT])
        version = metadata["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise VectorFileError(f"vector file {path} has damaged metadata ({error!r})") from None
    if version != FORMAT_VERSION:
        raise VectorFileError(
            f"vector file {path} has format version {version!r}; this release reads {FORMAT_VERSION}. "
            "Update lm_eval_ext or extract again"
        )
    if metadata.get("layer_convention") != LAYER_CONVENTION:
        raise VectorFileError(
            f"vector file {path} numbers layers as {metadata.get('layer_convention')!r}; expected {LAYER_CONVENTION!r}"
        )
    if not isinstance(metadata.get("vectors"), list):
        raise VectorFileError(f"vector file {path} has damaged metadata (no list of vectors)")
    return dict(metadata)


def _identity(path: Path, metadata: dict[str, Any]) -> ModelIdentity:
    try:
        model = ModelIdentity(**metadata["model"])
        if not (isinstance(model.hidden_size, int) and isinstance(model.n_layers, int)):
            raise TypeError("hidden_size and n_layers must be whole numbers")
        return model
    except (KeyError, TypeError) as error:
        raise VectorFileError(f"vector file {path} has damaged metadata (model: {error!r})") from None


def _info(path: Path, entry: dict[str, Any]) -> VectorInfo:
    try:
        info = VectorInfo(
            **{**entry, "layers": tuple(entry["layers"]), "residual_norms": tuple(entry["residual_norms"])}
        )
        if not all(isinstance(layer, int) for layer in info.layers):
            raise TypeError("layers must be whole numbers")
        if not all(math.isfinite(norm) for norm in info.residual_norms):
            raise ValueError("a residual norm is NaN or infinity")
    except (KeyError, TypeError, ValueError) as error:
        raise VectorFileError(f"vector file {path} has damaged metadata (vectors: {error!r})") from None
    if len(info.residual_norms) != len(info.layers):
        raise VectorFileError(
            f"vector file {path}: {info.key} has {len(info.layers)} layers, "
            f"but {len(info.residual_norms)} residual norms"
        )
    return info


def _check_tensor(path: Path, info: VectorInfo, tensor: Tensor, model: ModelIdentity) -> None:
    expected = (len(info.layers), model.hidden_size)
    if tuple(tensor.shape) != expected:
        raise VectorFileError(
            f"vector file {path}: {info.key} has shape {list(tensor.shape)}, expected {list(expected)} (layers, hidden size)"
        )
    wrong = [layer for layer in info.layers if not 0 <= layer < model.n_layers]
    if wrong:
        raise VectorFileError(f"vector file {path}: {info.key} names layers {wrong}, the model has {model.n_layers}")
    if not bool(tensor.isfinite().all()):
        raise VectorFileError(
            f"vector file {path}: {info.key} holds NaN or infinity. Extract it again (not in float16)"
        )


def ranges(layers: tuple[int, ...]) -> str:
    """`(0, 1, 2, 5)` as `0-2, 5`."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
