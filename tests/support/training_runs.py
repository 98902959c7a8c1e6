"""Small training runs on tiny models: settings, data and results, shared by the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from lm_eval_ext.training.methods import METHODS
from lm_eval_ext.training.run import train
from support import tiny

if TYPE_CHECKING:
    from lm_eval_ext.training.config import TrainingConfig

LANGUAGES = "en,es,zh"

_WORDS = {
    "en": ("water", "fire", "salt", "bread", "snow", "milk", "gold", "rice"),
    "es": ("agua", "fuego", "sal", "pan", "nieve", "leche", "oro", "arroz"),
    "zh": ("水", "火", "盐", "面包", "雪", "牛奶", "金", "米"),
}
_ASK = {"en": ("What is {}?", "It is {}."), "es": ("¿Qué es {}?", "Es {}."), "zh": ("什么是{}？", "它是{}。")}


def instructions(folder: Path) -> Path:
    """A file of instructions, the last two questions of each language held out."""
    return _file(
        folder / "instructions.jsonl",
        [
            {
                "id": str(i),
                "language": code,
                "prompt": _ASK[code][0].format(word),
                "response": _ASK[code][1].format(word),
            }
            | ({"split": "held_out"} if i > 5 else {})
            for code, words in _WORDS.items()
            for i, word in enumerate(words)
        ],
    )


def tuples(folder: Path) -> Path:
    """A file of parallel tuples, the last two questions held out."""
    return _file(
        folder / "tuples.jsonl",
        [
            {"id": str(i), "language": code}
            | {"x_en": _ASK["en"][0].format(_WORDS["en"][i]), "y_en": _ASK["en"][1].format(_WORDS["en"][i])}
            | {"x_xx": _ASK[code][0].format(_WORDS[code][i]), "y_xx": _ASK[code][1].format(_WORDS[code][i])}
            | ({"split": "held_out"} if i > 5 else {})
            for code in ("es", "zh")
            for i in range(8)
        ],
    )


def sentences(folder: Path, name: str = "pairs.tsv", first: int = 0) -> Path:
    """A file of parallel sentences."""
    rows = [
        f"{code}\tIt is {english}, number {k}.\t{_ASK[code][1].format(word)} {k}"
        for code in ("es", "zh")
        for k in range(first, first + 3)
        for english, word in zip(_WORDS["en"], _WORDS[code], strict=True)
    ]
    file = folder / name
    if file.is_file():
        return file
    file.write_text("\n".join(["language\tpositive\tnegative", *rows]) + "\n", encoding="utf-8")
    return file


def settings(method: str, folder: Path, name: str = "", **changes: Any) -> TrainingConfig:
    """What a small run is asked to do."""
    given: dict[str, Any] = {"model_name_or_path": str(tiny.folder("gemma3")), "output_dir": folder / (name or method)}
    given |= {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2}
    given |= {"device": "cpu", "learning_rate": 1e-2, "lora_r": 2}
    given["data"] = str(tuples(folder) if method == "clo" else instructions(folder))
    if method != "sft-en":
        given["languages"] = LANGUAGES
    if method == "midalign":
        given |= {"pairs": str(sentences(folder)), "contrastive_batch_size": 4}
    return METHODS[method].config_class(**given | changes)


def trained(method: str, folder: Path, name: str = "", **changes: Any) -> dict[str, torch.Tensor]:
    """The weights that a run ends with."""
    asked = settings(method, folder, name, **changes)
    train(asked)
    return weights(asked.output_dir)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The trained weights in a folder."""
    adapter = out / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else out / "model.safetensors")


def log(out: Path) -> list[dict[str, Any]]:
    """The log of a finished run."""
    found: list[dict[str, Any]] = json.loads((out / "training.json").read_text())["log"]
    return found


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the bit."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def _file(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.is_file():  # another process may be reading it
        return file
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file
