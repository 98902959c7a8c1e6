"""A small study whose commands are replaced, shared by the tests of studies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_ext.commands.table import COMMANDS, subcommand
from lm_eval_ext.study import config
from lm_eval_ext.study.options import CommandLines
from lm_eval_ext.study.run import Runner
from lm_eval_ext.study.stages import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STUDY: dict[str, Any] = {
    "languages": ["en", "ko"],
    "data": {"mine": {"source": "mini", "languages": "en,ko"}},
    "train": {"steps": 2, "batch-size": 2},
    "models": {
        "base": {},
        "mist": {"method": "mist", "data": "mine"},
        "clo": {"method": "clo", "beta": 0.2, "full": True},
    },
    "extract": {"pairs": ["en=mini", "loc=mini"], "max-pairs": 2},
    "sweep": {"tasks": ["bmlama_dev", "blend_decon_dev_cloze"], "layers": "40%-60%", "controls": False},
    "evaluate": {"tasks": ["transfer_mini_cloze"], "conditions": ["unsteered", "surgical"], "limit": 1},
}
COMMAND_LINES = CommandLines(subcommand)
MODULES = {name: target.partition(":")[0] for name, (target, _) in COMMANDS.items()}
PLAN = "en@1:2/prompt+loc@2:2/prompt"


def study(folder: Path, change: dict[str, Any] | None = None) -> config.Study:
    file = folder / "study.yaml"
    content = {"out": str(folder / "out"), **STUDY, **(change or {})}
    file.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value != "LEFT OUT"}, sort_keys=False)
    )
    return config.read(file)


class Commands:
    """Stands for the commands: makes the files of each stage out of what it reads, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.before: Callable[[list[str]], None] = lambda arguments: None

    def run(self, given: Sequence[str], lock: int) -> int:
        arguments = list(given)
        self.calls.append(arguments)
        out = Path(arguments[arguments.index("--out" if "--out" in arguments else "--output_path") + 1])
        self.before(arguments)
        words = [Path(word) for a in arguments for word in a.replace("=", ",").split(",")]
        files = [file for word in words for file in ([word] if word.is_file() else word.glob("*.safetensors"))]
        reads = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        content = f"{arguments} {reads}"
        made = {
            "train": ["adapter_model.safetensors", "adapter_config.json", "README.md"],
            "sweep": ["summary.csv", "plan.yaml"],
            "eval": ["model/results_1.json", "model/samples_1.jsonl"],
        }.get(arguments[0])
        for file in [out] if made is None else [out / name for name in made]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump({"steer": PLAN}) if file.suffix == ".yaml" else content)
        if arguments[0] == "plane":
            out.with_suffix(".csv").write_text(content)
        return 0

    def names(self) -> list[str]:
        """Which commands ran since the last time."""
        calls, self.calls = self.calls, []
        return [call[0] for call in calls]


def runner(asked: config.Study, say: Callable[[str], None] = print) -> Runner:
    return Runner(plan(asked, COMMAND_LINES), asked.out, MODULES, say)


def start(asked: config.Study, *picked: str) -> list[str]:
    said: list[str] = []
    runner(asked, said.append).run(picked)
    return said
