"""Steering vectors and their file: safetensors with metadata on how they were made and which model they fit.

An entry is what an estimator fitted for one kind and language: float32 tensors `{kind}.{language}.{name}` of shape [layers,
...], for a mean difference the one tensor `vector` [layers, hidden]. Everything else is one JSON object in the file's
metadata, so that a file can be checked before any model is loaded. Files of format version 1 (`{kind}.{language}`, always
mean differences) are read too.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import json_text
from lm_eval_ext.errors import VectorFileError
from lm_eval_ext.fingerprints import hash_bytes, hash_file
from lm_eval_ext.io import write_file
from lm_eval_ext.steering import registry
from lm_eval_ext.steering.decoder import LAYER_CONVENTION, fingerprint, hidden_size, layer_count
from lm_eval_ext.steering.shuffling import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lm_eval_ext.steering.applied import AppliedSteering
    from lm_eval_ext.steering.plan import Plan, Position
    from lm_eval_ext.steering.transforms.base import Transform

FORMAT = "lm_eval_ext.vectors"
FORMAT_VERSION = 2

#: In the file, the name of the mean states of an entry beside those of its tensors.
_MEAN_STATES = "mean states"

#: Language code of vectors that apply to every request.
ANY_LANGUAGE = "any"


@dataclass(frozen=True)
class ModelIdentity:
    """The model that vectors were extracted from.

    Attributes:
        name: as given by the user.
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
        kind: `en`, `loc` or a user-defined kind; `loc~shuffled0` of a control.
        language: whose requests they steer; `any` for all.
        layers: the layer of each row of the tensors (0-based output of a block).
        pooling: token position of the extraction (`steering.pooling`).
        n_pairs: number of contrastive pairs.
        source: name of the pairs.
        source_sha256: hash of the pairs' text.
        dtype: dtype in which the model ran.
        residual_norms: mean norm of the residual stream at that position, per layer of `layers`.
        estimator: name of the method.
        transform: name of the transform that applies its artifact.
        parameters: of the estimator.
        made_from: of pairs of tasks and of JSON lines what must not be evaluated with the vectors (`data.pairs`,
            `PairSet.record`): `tasks`, `families`, `splits`, `prompts` (hashes), `rendering`; else empty.
    """

    kind: str
    language: str
    layers: tuple[int, ...]
    pooling: str
    n_pairs: int
    source: str
    source_sha256: str
    dtype: str
    residual_norms: tuple[float, ...]
    estimator: str = registry.DEFAULT_ESTIMATOR
    transform: str = "add"
    parameters: dict[str, Any] = field(default_factory=dict)
    made_from: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in messages and, followed by the name of a tensor, in the file."""
        return f"{self.kind}.{self.language}"


@dataclass(frozen=True)
class SteeringVectors:
    """The entry of one kind and language.

    Attributes:
        info: how it was made.
        tensors: the artifact, by name, each [len(info.layers), ...] in float32; `vector` [layers, hidden] where it is one.
        mean_states: [layers, hidden] mean state of the pairs' negative texts, where the transform depends on the state;
            else None.
    """

    info: VectorInfo
    tensors: dict[str, Tensor]
    mean_states: Tensor | None = None

    @cached_property
    def transform(self) -> Transform:
        """What applies the artifact.

        Raises:
            EstimatorError: it comes with an estimator that is not installed.
        """
        return registry.transform_for(self.info.transform, self.info.estimator)

    def artifact(self, layer: int) -> dict[str, Tensor]:
        """The artifact after `layer`: its tensors without the axis over layers.

        Raises:
            VectorFileError: the file has no entry of this kind for that layer.
        """
        row = self._row(layer)
        return {name: tensor[row] for name, tensor in self.tensors.items()}

    def displacement(self, layer: int) -> Tensor:
        """[hidden] change of the residual stream at strength 1: the added vector, or the change of the mean state.

        Raises:
            VectorFileError: the file has no entry of this kind for that layer.
        """
        artifact = self.artifact(layer)
        addition = self.transform.addition(artifact, 1.0)
        if addition is not None:
            return addition
        if self.mean_states is None:
            raise VectorFileError(
                f"the vector file has no mean states of {self.info.key!r}, where its effect is measured: extract it again"
            )
        state = self.mean_states[self._row(layer)]
        return self.transform.apply(state[None], artifact, 1.0)[0] - state

    def residual_norm(self, layer: int) -> float:
        """The mean norm of the residual stream after `layer` over the texts of the pairs.

        Raises:
            VectorFileError: the file has no entry of this kind for that layer.
        """
        return self.info.residual_norms[self._row(layer)]

    def _row(self, layer: int) -> int:
        try:
            return self.info.layers.index(layer)
        except ValueError:
            raise VectorFileError(
                f"the vector file has no {self.info.kind!r} vector of {self.info.language!r} for layer {layer}; "
                f"layers in the file: {ranges(self.info.layers)}. Extract that layer, or steer another"
            ) from None


@dataclass(frozen=True)
class VectorSet:
    """All vectors of a file, or just extracted.

    Example:
        >>> vectors = lx.VectorSet.load("v.safetensors")
        >>> vectors.kinds, vectors.languages("loc")
        (['en', 'loc'], ['ko', 'el'])
        >>> with vectors.apply(model, "loc@58%:2", language="ko"):
        ...     tokens = model.generate(**inputs, max_new_tokens=8)

    Attributes:
        model: the model they were extracted from.
        vectors: by kind and language.
        path: the file, None when not yet saved.
        sha256: hash of the file's bytes, empty when not yet saved.
    """

    model: ModelIdentity
    vectors: dict[tuple[str, str], SteeringVectors] = field(repr=False)
    path: Path | None = None
    sha256: str = ""
    created_by: str = field(default="", compare=False)

    @property
    def kinds(self) -> list[str]:
        """Kinds in the file, in its order, without those of controls."""
        return list(dict.fromkeys(kind for kind, _ in self.vectors if SEPARATOR not in kind))

    def n_shuffled(self, kind: str) -> int:
        """How many controls of shuffled labels `kind` has (see `steering.shuffling`)."""
        return len({name for name, _ in self.vectors if name.startswith(f"{kind}{SEPARATOR}")})

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
            any_model: accept vectors of another architecture of the same width and depth.

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
                "any_model=True to use them anyway"
            )

    def apply(
        self,
        model: PreTrainedModel,
        plan: str | Plan,
        language: str | Sequence[str] | None = None,
        position: Position | None = None,
        *,
        any_model: bool = False,
    ) -> AppliedSteering:
        """Steer a model from now on, until `remove()` or the end of the `with` block.

        Re-entrant and safe on exceptions: the outermost `with` removes the hooks.

        Args:
            model: a decoder-only model of transformers, whatever wraps it.
            plan: such as `en@42%:2+loc@58%:2`; see `steering.plan`.
            language: of every example, or one for each example of a batch.
            position: tokens to steer where the plan does not say: `prompt` (our default), `last`, `last3`, ...
            any_model: accept vectors of another architecture of the same width and depth.

        Raises:
            PlanError: a plan that cannot be read or does not fit the model.
            VectorFileError: vectors that do not fit the model, or a kind or layer that is missing.
            LanguageError: a language that the plan has no vectors for.

        Example:
            >>> vectors = lx.VectorSet.load("v.safetensors")
            >>> with vectors.apply(model, "en@42%:2+loc@58%:2", language=["ko", "el"]):
            ...     logits = model(**tokenizer(["119", "166"], return_tensors="pt")).logits
            >>> steering = vectors.apply(model, "loc@58%:2", language="ko", position="last")
            >>> steering.remove()
        """
        from lm_eval_ext.steering.applied import AppliedSteering
        from lm_eval_ext.steering.plan import DEFAULT_POSITION, Plan
        from lm_eval_ext.steering.table import SteeringTable

        name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        self.check_model(name, model.config, any_model=any_model)
        parsed = plan if isinstance(plan, Plan) else Plan.parse(plan)
        table = SteeringTable.build(parsed, self, self.model.n_layers, position or DEFAULT_POSITION)
        return AppliedSteering(model, table, language)

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(Path(path), self._content())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, also of one that is not saved yet."""
        return self.sha256 or hash_bytes(self._content())

    def _content(self) -> bytes:
        from safetensors.torch import save

        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "layer_convention": LAYER_CONVENTION,
            "model": asdict(self.model),
            "vectors": [_as_json(entry.info) for entry in self.vectors.values()],
            "created_by": self.created_by,
        }
        tensors = {
            f"{entry.info.key}.{name}": tensor.float().contiguous()
            for entry in self.vectors.values()
            for name, tensor in (*entry.tensors.items(), (_MEAN_STATES, entry.mean_states))
            if tensor is not None
        }
        return save(tensors, metadata={FORMAT: json.dumps(metadata, ensure_ascii=False)})

    @classmethod
    def load(cls, path: Path | str) -> VectorSet:
        """Read and check a vector file.

        Raises:
            VectorFileError: missing, truncated, not ours, of an unknown version, inconsistent, or with a value that is
                not finite.
            EstimatorError: an entry needs an estimator that is not installed.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path).expanduser()
        if not path.is_file():
            raise VectorFileError(f"no vector file at {path}. Make one: lm-eval-ext extract --out {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = _metadata(path, file.metadata() or {})
                version = metadata["format_version"]
                infos = [_info(path, entry, version) for entry in metadata["vectors"]]
                keys = [_tensor_keys(info, version) for info in infos]
                present = set(file.keys())
                missing = [key for named in keys for key in named.values() if key not in present]
                if missing or not infos:
                    raise VectorFileError(f"vector file {path} is damaged: missing tensors {missing or 'all'}")
                entries = [
                    SteeringVectors(
                        info,
                        {name: file.get_tensor(key).float() for name, key in named.items()},
                        file.get_tensor(means).float() if (means := f"{info.key}.{_MEAN_STATES}") in present else None,
                    )
                    for info, named in zip(infos, keys, strict=True)
                ]
        except OSError as error:
            raise VectorFileError(f"cannot read the vector file {path}: {error.strerror or error}") from None
        except SafetensorError as error:
            raise VectorFileError(
                f"vector file {path} is not a readable safetensors file ({error}): truncated, or another format. "
                "Extract it again with lm-eval-ext extract"
            ) from None
        model = _identity(path, metadata)
        for entry in entries:
            _check_tensors(path, entry, model)
        return cls(
            model=model,
            vectors={(entry.info.kind, entry.info.language): entry for entry in entries},
            path=path,
            sha256=hash_file(path),
            created_by=str(metadata.get("created_by", "")),
        )


def _as_json(info: VectorInfo) -> dict[str, Any]:
    return {name: value for name, value in asdict(info).items() if value or name != "made_from"}


def _metadata(path: Path, raw: dict[str, str]) -> dict[str, Any]:
    if FORMAT not in raw:
        raise VectorFileError(
            f"{path} is a safetensors file, but not of steering vectors (no {FORMAT!r} metadata). "
            "Make one with lm-eval-ext extract"
        )
    try:
        metadata = json_text.parse(raw[FORMAT])
        version = metadata["format_version"]
    except (KeyError, TypeError, ValueError) as error:
        raise VectorFileError(f"vector file {path} has damaged metadata ({error!r})") from None
    if version not in range(1, FORMAT_VERSION + 1) or isinstance(version, bool):
        raise VectorFileError(
            f"vector file {path} has format version {version!r}; this release reads 1 to {FORMAT_VERSION}. "
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


#: Fields of an entry of format version 1, where the pooling was called `position`.
_FIELDS_1 = ("kind", "language", "layers", "position", "n_pairs", "source", "source_sha256", "dtype", "residual_norms")


def _info(path: Path, entry: dict[str, Any], version: int) -> VectorInfo:
    try:
        fields = {**entry, "layers": tuple(entry["layers"]), "residual_norms": tuple(entry["residual_norms"])}
        if version == 1:
            if unknown := set(fields) - set(_FIELDS_1):
                raise TypeError(f"unknown fields {', '.join(sorted(unknown))}")
            fields["pooling"] = fields.pop("position")
        info = VectorInfo(**fields)
        if not isinstance(info.parameters, dict) or not isinstance(info.made_from, dict):
            raise TypeError("parameters and made_from must be objects")
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


def _tensor_keys(info: VectorInfo, version: int) -> dict[str, str]:
    """The tensors of an entry: their names in the artifact and in the file."""
    if version == 1:
        return {"vector": info.key}
    shapes = registry.transform_for(info.transform, info.estimator).shapes
    return {name: f"{info.key}.{name}" for name in shapes}


def _check_tensors(path: Path, entry: SteeringVectors, model: ModelIdentity) -> None:
    info = entry.info
    check_artifact(
        f"vector file {path}: {info.key}", entry.transform, entry.tensors, len(info.layers), model.hidden_size
    )
    wrong = [layer for layer in info.layers if not 0 <= layer < model.n_layers]
    if wrong:
        raise VectorFileError(f"vector file {path}: {info.key} names layers {wrong}, the model has {model.n_layers}")
    means = entry.mean_states
    if means is not None and list(means.shape) != [len(info.layers), model.hidden_size]:
        raise VectorFileError(f"vector file {path}: the mean states of {info.key} have shape {list(means.shape)}")
    tensors = [*entry.tensors.values(), *([] if means is None else [means])]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise VectorFileError(
            f"vector file {path}: {info.key} holds NaN or infinity. Extract it again (not in float16)"
        )


def check_artifact(
    where: str, transform: Transform, tensors: Mapping[str, Tensor], n_layers: int, hidden_size: int
) -> None:
    """Make sure that an artifact has the tensors and the shapes that its transform names.

    Args:
        where: name of the artifact, for the message.
        transform: the transform that applies it.
        tensors: by name, [layers, ...].
        n_layers, hidden_size: the expected sizes.

    Raises:
        VectorFileError: a tensor is missing, unknown, or of another shape.
    """
    if set(tensors) != set(transform.shapes):
        raise VectorFileError(
            f"{where} has the tensors {', '.join(sorted(tensors)) or 'none'}, "
            f"expected {', '.join(sorted(transform.shapes))} (transform {transform.name!r})"
        )
    sizes = {"hidden": hidden_size}
    for name, axes in transform.shapes.items():
        shape = list(tensors[name].shape)
        for axis, size in zip(axes, shape[1:], strict=False):
            sizes.setdefault(axis, size)
        expected = [n_layers, *(sizes.get(axis, axis) for axis in axes)]
        if shape != expected:
            tensor = "" if list(transform.shapes) == ["vector"] else f", tensor {name!r}"
            words = {"hidden": "hidden size"}
            named = ", ".join(["layers", *(words.get(axis, axis) for axis in axes)])
            raise VectorFileError(f"{where}{tensor} has shape {shape}, expected {expected} ({named})")


def ranges(layers: tuple[int, ...]) -> str:
    """`(0, 1, 2, 5)` as `0-2, 5`."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
