"""The public names: listed, documented with an example that runs, typed, and cheap to import."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from support import runs, tiny
from support.processes import modules_after

import lm_eval_ext as lx
from lm_eval_ext.models import embedded
from lm_eval_ext.paths import tasks_dir
from lm_eval_ext.steering import registry

#: What a call of a package goes to.
FUNCTIONS = {
    "plane": ("lm_eval_ext.plane.shifts", "measure"),
    "report": ("lm_eval_ext.report.build", "report"),
    "sweep": ("lm_eval_ext.sweep.run", "sweep"),
}
NAMES = [name for name in lx.__all__ if not name.startswith("__")]


def public(name: str) -> Any:
    if name in FUNCTIONS:
        module, function = FUNCTIONS[name]
        return getattr(__import__(module, fromlist=[function]), function)
    return getattr(lx, name)


def test_importing_the_library_imports_nothing_heavy() -> None:
    modules = modules_after("import lm_eval_ext as lx; lx.__version__; lx.UserError; dir(lx)")
    ours = {name for name in modules if name.startswith("lm_eval_ext")}
    assert {name.partition(".")[0] for name in modules}.isdisjoint(
        {
            "torch",
            "transformers",
            "lm_eval",
            "datasets",
            "pandas",
            "numpy",
            "scipy",
            "plotly",
            "typer",
            "yaml",
            "typing_extensions",
        }
    )
    assert ours <= {"lm_eval_ext", "lm_eval_ext.version", "lm_eval_ext.errors", "lm_eval_ext_autoload"}


def test_every_public_name_is_there_and_no_other() -> None:
    assert len(set(lx.__all__)) == len(lx.__all__)
    assert set(lx.__all__) <= set(dir(lx))
    with pytest.raises(AttributeError, match="module 'lm_eval_ext' has no attribute 'nonsense'"):
        _ = lx.nonsense  # type: ignore[attr-defined]
    for name in FUNCTIONS:
        assert callable(getattr(lx, name))


def test_a_package_that_is_called_stays_a_package() -> None:
    import lm_eval_ext.plane.shifts as shifts
    from lm_eval_ext.plane.shifts import measure

    assert shifts.measure is measure
    assert inspect.ismodule(lx.plane)
    with pytest.raises(lx.UserError, match="is not a folder"):
        lx.plane("/nowhere", baseline="x")


@cache
def our_tasks() -> TaskManager:
    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples take for granted, in an empty working directory: a model, its tokenizer, vectors and results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    # The harness's scan of its 14,000 own tasks takes longer than all examples together.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: our_tasks())
    model, tokenizer = tiny.roomy("llama")
    runs.write_demo(tmp_path / "results", n=12)
    tiny.vector_set("llama", languages=("ko", "el")).save(tmp_path / "v.safetensors")
    return {
        "lx": lx,
        "torch": torch,
        "Path": Path,
        "model": model,
        "tokenizer": tokenizer,
        "folder": model.name_or_path,
        "inputs": tokenizer("Which bird is the national bird?", return_tensors="pt"),
        "pairs": lx.load_pairs("loc", "mini", languages=["ko"], limit=4),
        "vectors": lx.VectorSet.load("v.safetensors"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name: str, examples: dict[str, Any]) -> None:
    if name == "embedded_model" and not embedded.is_installed():
        pytest.skip("the wheels of the embedded model are not installed")
    thing = public(name)
    documented = (
        [thing, *(member for member in vars(thing).values() if inspect.isfunction(member))]
        if inspect.isclass(thing)
        else [thing]
    )
    parser = doctest.DocTestParser()
    run = 0
    for part in documented:
        text = inspect.getdoc(part) or ""
        if part is thing:
            assert ">>>" in text, f"{name} has no example"
        test = parser.get_doctest(text, dict(examples), f"{name}.{getattr(part, '__name__', '')}", None, 0)
        if test.examples:
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            failures: list[str] = []
            runner.run(test, out=failures.append)
            assert not runner.failures, "".join(failures)
            run += len(test.examples)
    assert run


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented(name: str) -> None:
    thing = public(name)
    text = inspect.getdoc(thing) or ""
    assert len(text.partition("\n")[0]) > 20
    if inspect.isfunction(thing):
        missing = [parameter for parameter in inspect.signature(thing).parameters if parameter not in text]
        assert not missing, f"{name} says nothing of {', '.join(missing)}"
        assert "Raises:" in text


def test_users_code_is_typed(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        "import lm_eval_ext as lx\n"
        "plane: lx.Plane = lx.plane(lx.load('results'), baseline='unsteered')\n"
        "lx.load(3)\n"
        "lx.nonsense\n"
    )
    # Without the types of torch and others, which take most of a minute; what our own code makes of them `make lint` checks.
    options = [
        "--strict",
        "--no-error-summary",
        "--no-site-packages",
        "--ignore-missing-imports",
        "--follow-imports=silent",
    ]
    command = [sys.executable, "-m", "mypy", *options, "--config-file=", "--cache-dir", str(tmp_path), str(code)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(lx.__file__).parents[1])
    errors = [line.partition(": ")[2] for line in process.stdout.splitlines()]
    assert len(errors) == 2, process.stdout
    assert 'Argument 1 to "load" has incompatible type "int"' in errors[0]
    assert 'Module has no attribute "nonsense"' in errors[1]
