"""Vector files: what is saved is what is read, and a file that is damaged or made for another model is refused early."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file
from support import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_ext.errors import UserError, VectorFileError
from lm_eval_ext.steering.decoder import fingerprint
from lm_eval_ext.steering.vectors import FORMAT, VectorSet

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.transformers4


def content(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[FORMAT]), load_file(path)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object], folder: Path) -> Path:
    """A copy of a vector file whose metadata and tensors were changed."""
    metadata, tensors = copy.deepcopy(content(path))
    change(metadata, tensors)
    changed = folder / "changed.safetensors"
    save_file(tensors, changed, metadata={FORMAT: json.dumps(metadata)})
    return changed


@pytest.fixture
def file() -> Path:
    return tiny.vector_file("llama")


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    saved = tiny.vector_set("llama", languages=("en", "ko", "any"), layers=(1, 3))
    path = tmp_path / "new" / "folder" / "v.safetensors"
    saved.save(path)
    loaded = VectorSet.load(path)
    assert loaded.model == saved.model
    assert list(loaded.vectors) == list(saved.vectors)
    for key, entry in saved.vectors.items():
        assert loaded.vectors[key].info == entry.info
        assert torch.equal(loaded.vectors[key].tensors["vector"], entry.tensors["vector"])
    assert loaded.kinds == ["en", "loc"]
    assert loaded.languages("en") == ["ko", "any"]
    assert [item.name for item in path.parent.iterdir()] == ["v.safetensors"]  # nothing left over


def test_a_second_save_is_the_same_file_and_others_may_read_it(tmp_path: Path, file: Path) -> None:
    again = tmp_path / "again.safetensors"
    VectorSet.load(file).save(again)
    assert again.read_bytes() == file.read_bytes()
    assert VectorSet.load(again).sha256 == VectorSet.load(file).sha256
    (tmp_path / "plain").touch()
    assert again.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.safetensors"
    tiny.vector_set("llama").save(path)
    before = path.read_bytes()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        tiny.vector_set("llama", scale=2).save(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["v.safetensors"]


DAMAGE: dict[str, tuple[Callable[[dict[str, Any], dict[str, torch.Tensor]], object], str]] = {
    "NaN": (lambda m, t: t["loc.ko.vector"].view(-1).__setitem__(5, float("nan")), "loc.ko holds NaN or infinity"),
    "infinity": (lambda m, t: t["en.es.vector"].view(-1).__setitem__(0, float("-inf")), "en.es holds NaN or infinity"),
    "unknown version": (lambda m, t: m.update(format_version=3), "format version 3; this release reads 1 to 2"),
    "no version": (lambda m, t: m.pop("format_version"), "damaged metadata (KeyError('format_version'))"),
    "wrong convention": (lambda m, t: m.update(layer_convention="1-based"), "numbers layers as '1-based'"),
    "missing tensor": (lambda m, t: t.pop("loc.ko.vector"), "missing tensors ['loc.ko.vector']"),
    "no vectors": (lambda m, t: m.update(vectors=[]), "missing tensors all"),
    "vectors no list": (lambda m, t: m.update(vectors="loc"), "no list of vectors"),
    "entry no object": (lambda m, t: m.update(vectors=[1]), "damaged metadata (vectors:"),
    "field missing": (lambda m, t: m["vectors"][0].pop("layers"), "damaged metadata (vectors: KeyError('layers'))"),
    "unknown field": (lambda m, t: m["vectors"][0].update(extra=1), "damaged metadata (vectors:"),
    "layers not whole": (lambda m, t: m["vectors"][0].update(layers=["0", 1, 2, 3]), "layers must be whole numbers"),
    "layer out of range": (lambda m, t: m["vectors"][0].update(layers=[0, 1, 2, 9]), "names layers [9]"),
    "norm missing": (lambda m, t: m["vectors"][0]["residual_norms"].pop(), "4 layers, but 3 residual norms"),
    "norm NaN": (lambda m, t: m["vectors"][0]["residual_norms"].__setitem__(1, float("nan")), "NaN or infinity"),
    "norm text": (lambda m, t: m["vectors"][0]["residual_norms"].__setitem__(1, "4"), "damaged metadata (vectors:"),
    "no model": (lambda m, t: m.pop("model"), "damaged metadata (model: KeyError('model'))"),
    "width text": (lambda m, t: m["model"].update(hidden_size="32"), "damaged metadata (model:"),
    "depth text": (lambda m, t: m["model"].update(n_layers="4"), "damaged metadata (model:"),
    "too few rows": (
        lambda m, t: t.update({"loc.ko.vector": t["loc.ko.vector"][:3].clone()}),
        "shape [3, 32], expected [4, 32]",
    ),
    "too narrow": (
        lambda m, t: t.update({"loc.ko.vector": t["loc.ko.vector"][:, :1].clone()}),
        "shape [4, 1], expected [4, 32]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, file: Path, tmp_path: Path) -> None:
    change, expected = DAMAGE[damage]
    damaged = rewrite(file, change, tmp_path)
    with pytest.raises(VectorFileError) as caught:
        VectorSet.load(damaged)
    assert expected in str(caught.value)
    assert str(damaged) in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 200, 0.5, 0.9, -1])
def test_a_truncated_file(size: float, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    truncated = tmp_path / "v.safetensors"
    truncated.write_bytes(whole[: int(size * len(whole)) if 0 < size < 1 else int(size)])
    with pytest.raises(VectorFileError, match="truncated, or another format"):
        VectorSet.load(truncated)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_refused_or_harmless(data: st.DataObject) -> None:
    whole = bytearray(tiny.vector_file("llama").read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header - 1))
    whole[at] = data.draw(st.integers(0, 255))
    path = tiny.vector_file("llama").with_name("flipped.safetensors")
    path.write_bytes(whole)
    try:
        loaded = VectorSet.load(path)
    except UserError:
        return
    assert all(bool(entry.tensors["vector"].isfinite().all()) for entry in loaded.vectors.values())


def test_not_a_vector_file(tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=r"no vector file at .*missing.* lm-eval-ext extract --out"):
        VectorSet.load(tmp_path / "missing.safetensors")
    with pytest.raises(VectorFileError, match="no vector file"):
        VectorSet.load(tmp_path)
    with pytest.raises(VectorFileError, match="but not of steering vectors"):
        VectorSet.load(tiny.folder("llama") / "model.safetensors")
    (tmp_path / "v.pt").write_bytes(b"PK\x03\x04 a pickle in a zip file")
    with pytest.raises(VectorFileError, match="not a readable safetensors file"):
        VectorSet.load(tmp_path / "v.pt")


def test_unreadable_for_the_system(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    with pytest.raises(VectorFileError, match=r"cannot read .*Permission denied"):
        VectorSet.load(file)


def test_other_models_are_refused() -> None:
    vectors = VectorSet.load(tiny.vector_file("llama"))
    vectors.check_model("same", tiny.config("llama", vocab_size=999))  # adapters add tokens
    for changes, expected in (
        ({"hidden_size": 64}, "hidden size 32, but 'other' has 64"),
        ({"num_hidden_layers": 6}, "number of layers 4, but 'other' has 6"),
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, "another architecture"),
    ):
        with pytest.raises(VectorFileError) as caught:
            vectors.check_model("other", tiny.config("llama", **changes))
        assert expected in str(caught.value)
        assert "Extract vectors from 'other'" in str(caught.value)


def test_vectors_of_another_architecture_need_any_model() -> None:
    vectors = VectorSet.load(tiny.vector_file("llama"))
    with pytest.raises(VectorFileError, match="any_model=True"):
        vectors.check_model("mistral", tiny.config("mistral"))
    vectors.check_model("mistral", tiny.config("mistral"), any_model=True)
    with pytest.raises(VectorFileError, match="hidden size"):
        vectors.check_model("wide", tiny.config("mistral", hidden_size=64), any_model=True)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gemma3", "80547ec5b2663cf7"),
        ("llama", "046dacb76e8cfe28"),
        ("qwen2", "af19b6e5ef2dded4"),
        ("mistral", "672dd2fca787d1e3"),
        ("gpt2", "c796c4e28d23fb3d"),
    ],
)
def test_fingerprints_are_the_same_in_every_release_of_transformers(family: str, expected: str) -> None:
    config = AutoConfig.from_pretrained(tiny.folder(family))
    assert fingerprint(config) == fingerprint(tiny.config(family)) == expected


def test_a_layer_that_the_file_lacks() -> None:
    entry = tiny.vector_set("llama", layers=(0, 1, 3)).vectors["loc", "ko"]
    assert torch.equal(entry.artifact(3)["vector"], entry.tensors["vector"][2])
    with pytest.raises(VectorFileError, match="for layer 2; layers in the file: 0-1, 3"):
        entry.artifact(2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"steer": "en@5x"},
        {"steer": "en@9:2"},
        {"steer": "style@1:2"},
        {"steer": "loc~fr@1:2"},
        {"steer": "en@1:2", "vectors": None},
        {"steer": "en@1:2", "positions": "middle"},
        {"vectors": "/nowhere.safetensors"},
        {"padding_side": "both"},
        {"pretrained": "GPT2"},
    ],
)
def test_mistakes_are_found_before_weights_are_loaded(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**arguments, "vectors": arguments.get("vectors", str(tiny.vector_file("llama")))}
    if "pretrained" in arguments:
        arguments["pretrained"] = str(tiny.folder("gpt2"))

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(UserError) as caught:
        tiny.steered("llama", **arguments)
    assert "weights were loaded" not in str(caught.value)


def test_the_check_above_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(UserError, match="weights were loaded"):
        tiny.steered("llama", "en@1:2")


# Files of format version 1 -------------------------------------------------------------------------------------------


def version_1(saved: VectorSet, path: Path) -> Path:
    """The file that earlier releases wrote of the same vectors."""
    entries = []
    for entry in saved.vectors.values():
        fields = {**vars(entry.info), "position": entry.info.pooling}
        entries.append({name: fields[name] for name in FIELDS_1})
    metadata = {
        "format": FORMAT,
        "format_version": 1,
        "layer_convention": "0-based output of block l = hidden_states[l+1]",
        "model": vars(saved.model),
        "vectors": entries,
        "created_by": "lm_eval_ext 0.1.0",
    }
    tensors = {entry.info.key: entry.tensors["vector"] for entry in saved.vectors.values()}
    save_file(tensors, path, metadata={FORMAT: json.dumps(metadata)})
    return path


FIELDS_1 = ("kind", "language", "layers", "position", "n_pairs", "source", "source_sha256", "dtype", "residual_norms")


def test_a_file_of_version_1_steers_as_before(tmp_path: Path) -> None:
    saved = tiny.vector_set("llama")
    saved.save(tmp_path / "2.safetensors")
    loaded = VectorSet.load(version_1(saved, tmp_path / "1.safetensors"))
    for key, entry in saved.vectors.items():
        assert loaded.vectors[key].info == entry.info
        assert torch.equal(loaded.vectors[key].tensors["vector"], entry.tensors["vector"])
    pairs = [("Which bird is", " national"), ("x", " y z")] * 2
    for plan in ("en@1:2+loc@2:3", "loc@0-3:5%/last", "loc~random2@1:3/all"):
        answers = [
            tiny.steered("llama", plan, vectors=str(tmp_path / name)).loglikelihood(
                tiny.requests("loglikelihood", pairs, ["ko", "es", "zh", "en"]), disable_tqdm=True
            )
            for name in ("1.safetensors", "2.safetensors")
        ]
        assert answers[0] == answers[1]


def test_a_file_of_version_1_is_as_strict_as_before(tmp_path: Path) -> None:
    old = version_1(tiny.vector_set("llama"), tmp_path / "1.safetensors")
    for change, expected in (
        (lambda m, t: t.pop("loc.ko"), "missing tensors ['loc.ko']"),
        (lambda m, t: m["vectors"][0].update(estimator="x"), "unknown fields estimator"),
        (lambda m, t: m["vectors"][0].pop("position"), "damaged metadata (vectors: KeyError('position'))"),
    ):
        with pytest.raises(VectorFileError) as caught:
            VectorSet.load(rewrite(old, change, tmp_path))
        assert expected in str(caught.value)
