"""Every command and every piece of code in the documentation is one that the programs take."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support import snippets, tiny
from support.snippets import ROOT, Block

from lm_eval_ext.data import axes
from lm_eval_ext.errors import UserError
from lm_eval_ext.gate import read_gate
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.study import config as study

BLOCKS = [block for page in snippets.pages() for block in snippets.blocks(page)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def test_every_command_exists_with_its_options() -> None:
    checked = [(block, words) for block in BLOCKS for words in snippets.commands(block)]
    problems = [
        f"{block.where}: {problem}: {' '.join(words)}"
        for block, words in checked
        if (problem := snippets.problem(words))
    ]
    assert not problems, "\n".join(problems)
    heads = [words[0] for _, words in checked]
    assert heads.count("lm-eval-ext") > 50
    assert heads.count("lm_eval") > 10


@pytest.mark.parametrize(
    "command",
    [
        "lm-eval-ext plain results",
        "lm-eval-ext plane results --baseline a --colour red",
        "lm-eval-ext plane results",
        "lm-eval-ext data chck",
        "lm-eval-ext gate gate.yaml --baseline a --candidate b --xml c",
        "lm_eval --model steered-hf --tasks gmmlu --colour red",
        "lm_eval --model steered-hf --model_args steer=en@20:x --tasks gmmlu",
        "lm-evalext plane results --baseline a",
        "make everything",
        "python benchmarks/none.py",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    assert snippets.problem(command.split())


def test_python_compiles_and_its_imports_exist() -> None:
    for block in of("python"):
        compile(block.text, block.where, "exec")
        assert not list(snippets.imports(block)), block.where
    assert len(of("python")) > 5
    assert list(snippets.imports(Block("", 1, "python", False, "import lm_eval_ext as lx\nlx.steer()"))) == ["lx.steer"]


@pytest.mark.parametrize("block", [block for block in of("python") if block.is_run], ids=lambda block: block.where)
def test_python_that_says_so_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("snippet")
    monkeypatch.setitem(sys.modules, "snippet", module)  # where dataclasses look for it
    module.model, module.tokenizer = tiny.roomy("llama")
    exec(compile(block.text, block.where, "exec"), module.__dict__)


def test_yaml_is_what_the_programs_read(tmp_path: Path) -> None:
    read: list[str] = []
    for number, block in enumerate(of("yaml")):
        content: Any = yaml.safe_load(block.text)
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text, encoding="utf-8")
        try:
            if "rules" in content:
                read_gate(file)
            elif "evaluate" in content:
                study.read(file)
            elif isinstance(content.get("tasks"), list) and "match" in content["tasks"][0]:
                axes.read(file)
            elif "steer" in content:
                Plan.parse(content["steer"])
            else:  # a part of a task, a workflow
                continue
        except UserError as error:
            raise AssertionError(f"{block.where}: {error}") from None
        read.append(block.where)
    assert len(read) >= 5


def test_json_is_json() -> None:
    for block in of("json"):
        for line in block.text.splitlines():
            json.loads(line)


def test_every_variable_of_the_environment_is_documented() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "lm_eval_ext").rglob("*.py"))
    documented = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\bLM_EVAL_EXT_[A-Z0-9_]+\b", source))
    assert used
    assert not {name for name in used if f"`{name}`" not in documented}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
