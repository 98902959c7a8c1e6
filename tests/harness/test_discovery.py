"""The plain `lm_eval` command sees this package, from a wheel and from a checkout, and never breaks because of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.installed import ROOT, Environment, build_wheel, install, new_environment
from support.processes import HUNG, environment, modules_after

from lm_eval_ext import harness
from lm_eval_ext.data import tasks_tree
from lm_eval_ext.paths import tasks_dir

LM_EVAL = Path(sys.executable).with_name("lm_eval")
# The same command without the scan of the harness's 14,000 own tasks.
WITHOUT_SCAN = """
import lm_eval.tasks.manager as manager
manager.__file__ = "/nowhere/manager.py"
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""

#: Every task and group; `test_tasks` spells them out.
NAMES = {Path(name).stem.removeprefix("_") for name in tasks_tree.files()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    return build_wheel(out)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = new_environment(tmp_path_factory.mktemp("installed"))
    install(environment, wheel)
    return environment


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = new_environment(tmp_path_factory.mktemp("editable"))
    install(environment, "--no-build-isolation", "--editable", ROOT)
    return environment


@pytest.fixture
def damaged(wheel: Path, tmp_path: Path) -> Environment:
    """An installation for a test to damage."""
    environment = new_environment(tmp_path / "damaged")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment.site_packages)
    return environment


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = {word: index for index, word in enumerate(("<end>", "one", "two", "three", "?"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = GPT2Config(vocab_size=5, n_positions=32, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_task(folder: Path, name: str, **config: Any) -> Path:
    """A task on one local question, as a user has it on `--include_path`."""
    folder.mkdir(exist_ok=True)
    question = folder / "question.json"
    question.write_text(json.dumps({"question": "one two ?", "options": ["one", "three"], "gold": 1}) + "\n")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(question)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps({**task, **config}))  # JSON is YAML
    return folder


# --- What is installed ------------------------------------------------------------------------------------------------


def test_wheel_holds_code_tasks_data_and_the_hook(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {"lm_eval_ext/py.typed", "lm_eval_ext_autoload.py", "lm_eval_ext_autoload.pth"} <= names
    for folder in (tasks_dir(), ROOT / "lm_eval_ext" / "data"):
        files = {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in {".yaml", ".jsonl", ".tsv"}}
        assert files
        assert {f"lm_eval_ext/{folder.name}/{file.as_posix()}" for file in files} <= names
    assert not [name for name in names if name.startswith(("tests/", "tasks/", "results/", "benchmarks/"))]
    points = metadata.partition("[lm_eval.models]\n")[2].partition("\n\n")[0]
    assert dict(line.split(" = ") for line in points.splitlines()) == harness.MODELS


def test_source_distribution_holds_what_its_tests_need(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [path for folder in ("tests", "results/baselines") for path in (ROOT / folder).rglob("*.[jpy]*")]
    needed += [ROOT / name for name in ("Makefile", "action.yml", ".github/workflows/ci.yml", "examples/gate.yaml")]
    assert {path.relative_to(ROOT).as_posix() for path in needed if "__pycache__" not in path.parts} <= names
    assert {name.split("/")[1] for name in names if name.startswith("results/")} == {"baselines"}


@pytest.mark.slow
def test_plain_lm_eval_lists_every_task(installed: Environment) -> None:
    listed = installed.run(LM_EVAL, "ls", "tasks")
    names = {match[1] for match in re.finditer(r"^\|([^|\s]+)", listed.stdout, re.MULTILINE)}
    assert names >= NAMES
    assert "arc_easy" in names
    assert str(installed.site_packages / "lm_eval_ext" / "tasks") in listed.stdout
    assert "lm_eval_ext:" not in listed.stderr


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_harness_sees_models_and_tasks(kind: str, request: pytest.FixtureRequest) -> None:
    seen, errors = request.getfixturevalue(kind).seen()
    assert set(seen["tasks"]) == NAMES
    assert {"steered-hf", "hf", "dummy"} <= set(seen["models"])
    assert errors == ""


def test_autoload_0_switches_it_off(installed: Environment) -> None:
    seen, errors = installed.seen(LM_EVAL_EXT_AUTOLOAD="0")
    assert seen["tasks"] == []
    assert "hf" in seen["models"]
    assert "steered-hf" not in seen["models"]
    assert errors == ""


def test_interpreter_start_imports_one_module(installed: Environment) -> None:
    def modules(*options: str) -> set[str]:
        return set(installed.run(*options, "-c", "import sys; print(*sys.modules)").stdout.split())

    hook = installed.site_packages / "lm_eval_ext_autoload.pth"
    content, with_hook = hook.read_text(), modules()
    hook.write_text("")
    try:
        assert with_hook - modules() == {"lm_eval_ext_autoload"}
    finally:
        hook.write_text(content)


def test_without_site_there_is_no_hook(installed: Environment) -> None:
    assert installed.run("-S", "-c", "import sys; print('lm_eval_ext_autoload' in sys.modules)").stdout == "False\n"


# --- Damage: the harness runs, and one line says why ------------------------------------------------------------------


def assert_one_warning(errors: str, *reasons: str) -> None:
    (line,) = (line for line in errors.splitlines() if "lm_eval_ext" in line)
    assert all(reason in line for reason in reasons)
    assert "Traceback" not in errors


def test_lm_eval_runs_hf_with_a_plugin_that_cannot_be_imported(
    damaged: Environment, tiny_model: Path, tmp_path: Path
) -> None:
    (damaged.site_packages / "lm_eval_ext" / "__init__.py").write_text("raise ImportError('out of order')")
    task = write_task(tmp_path / "task", "one_question")
    command = ["--model", "hf", "--model_args", f"pretrained={tiny_model}", "--device", "cpu"]
    process = damaged.run("-c", WITHOUT_SCAN, *command, "--tasks", "one_question", "--include_path", task)
    assert "|one_question|" in process.stdout
    assert_one_warning(process.stderr, "out of order")


def test_package_deleted_but_hook_left(damaged: Environment) -> None:
    shutil.rmtree(damaged.site_packages / "lm_eval_ext")
    seen, errors = damaged.seen()
    assert "hf" in seen["models"]
    assert_one_warning(errors, "No module named 'lm_eval_ext'")


def test_tasks_deleted(damaged: Environment) -> None:
    shutil.rmtree(damaged.site_packages / "lm_eval_ext" / "tasks")
    seen, errors = damaged.seen()
    assert "steered-hf" in seen["models"]
    assert_one_warning(errors, "tasks is missing")


@pytest.mark.parametrize("module", ["harness", "paths", "console", "errors"])
def test_a_module_deleted(module: str, damaged: Environment, tmp_path: Path) -> None:
    stand_in(tmp_path)
    (damaged.site_packages / "lm_eval_ext" / f"{module}.py").unlink()
    process = damaged.run("-c", RUN, PYTHONPATH=str(tmp_path))
    assert process.stdout == "evaluated\n"
    assert_one_warning(process.stderr, module)


def test_pth_left_alone_warns_only_where_the_harness_is_called(damaged: Environment) -> None:
    (damaged.site_packages / "lm_eval_ext_autoload.py").unlink()
    assert_one_warning(damaged.run(LM_EVAL, "--help").stderr, "No module named 'lm_eval_ext_autoload'")
    assert damaged.run("-c", "pass").stderr == ""


# --- Other releases of the harness, by a stand-in ---------------------------------------------------------------------

REGISTRY = """
class Registry(dict):
    def register(self, name, target):
        self[name] = target
model_registry = Registry()
"""
MANAGER = """
class TaskManager:
    def __init__(self, include_path=None, include_defaults=True):
        self.paths, self.include_path = include_path, include_path
    def load(self, tasks):
        return {"tasks": {}}
"""
CLI = "class HarnessCLI:\n    def execute(self, args): print('evaluated')"
RUN = """
import lm_eval.models, lm_eval.tasks
from lm_eval._cli.harness import HarnessCLI
HarnessCLI().execute([])
"""


def stand_in(
    folder: Path,
    registry: str = REGISTRY,
    manager: str = MANAGER,
    cli: str = CLI,
) -> None:
    files = {"__init__": "", "models/__init__": "", "api/__init__": "", "api/registry": registry}
    files |= {"_cli/__init__": "", "_cli/harness": cli}
    files |= {"tasks/__init__": "from lm_eval.tasks.manager import TaskManager", "tasks/manager": manager}
    for name, text in files.items():
        file = folder / "lm_eval" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


LOOK = """
import lm_eval.models, lm_eval.tasks
from lm_eval.api.registry import model_registry
print(list(model_registry), lm_eval.tasks.TaskManager().paths)
"""


def test_stands_aside_where_the_harness_loads_entry_points(installed: Environment, tmp_path: Path) -> None:
    stand_in(tmp_path, registry=f"{REGISTRY}\ndef load_plugins(group, registry): ...")
    process = installed.run("-c", LOOK, PYTHONPATH=str(tmp_path))
    assert process.stdout.startswith("[] [")
    assert "lm_eval_ext" in process.stdout
    assert process.stderr == ""


EVERY_PATCH = """
import lm_eval.models, lm_eval.tasks, lm_eval._cli.harness as cli
from lm_eval.tasks import TaskManager
print(*(name for name, works in {
    "models": "steered-hf" in getattr(lm_eval.api.registry, "model_registry", ()),
    "task folder": any("lm_eval_ext" in str(path) for path in getattr(TaskManager(), "paths", None) or ()),
    "task metadata": hasattr(getattr(TaskManager, "load", None), "__wrapped__"),
    "user errors": hasattr(getattr(cli.HarnessCLI, "execute", None), "__wrapped__"),
}.items() if works), sep=", ")
"""
#: The patches of what the stand-in brings.
PATCHES = [patch for patch in harness.PATCHES if patch.name not in ("mutual information", "response cache")]
CHANGES = {
    "no register": ("models", {"registry": "model_registry = {}"}, "has no attribute 'register'", "--model steered-hf"),
    "no registry": ("models", {"registry": ""}, "has no attribute 'model_registry'", "--model steered-hf"),
    "no include_path": (
        "task folder",
        {"manager": MANAGER.replace("include_path", "search")},
        "does not take include_path",
        "pass --include_path ",
    ),
    "no load": (
        "task metadata",
        {"manager": MANAGER.replace("load", "load_tasks")},
        "has no attribute 'load'",
        "the language that a task's metadata names is not known",
    ),
    "no execute": ("user errors", {"cli": "class HarnessCLI: ..."}, "has no attribute 'execute'", "a traceback"),
}


@pytest.mark.parametrize(("lost", "change", "reason", "consequence"), CHANGES.values(), ids=CHANGES)
def test_what_a_release_has_changed_costs_one_patch_and_no_other(
    lost: str, change: dict[str, str], reason: str, consequence: str, installed: Environment, tmp_path: Path
) -> None:
    stand_in(tmp_path, **change)
    process = installed.run("-c", EVERY_PATCH, PYTHONPATH=str(tmp_path))
    assert process.stdout.strip().split(", ") == [patch.name for patch in PATCHES if patch.name != lost]
    assert_one_warning(process.stderr, f"({lost}: ", reason, consequence)


def test_a_release_with_more_arguments_changes_nothing(installed: Environment, tmp_path: Path) -> None:
    stand_in(tmp_path, manager=MANAGER.replace("include_path=None", "search=None, include_path=None"))
    process = installed.run("-c", EVERY_PATCH, PYTHONPATH=str(tmp_path))
    assert process.stdout.strip().split(", ") == [patch.name for patch in PATCHES]
    assert process.stderr == ""


def test_the_import_hook_waits_for_the_modules_that_are_patched() -> None:
    import lm_eval_ext_autoload

    assert {name for patch in harness.PATCHES for name in patch.modules} == lm_eval_ext_autoload.SEAMS


WITHOUT_LOAD = """
import lm_eval.tasks.manager as manager
load = manager.TaskManager.load
del manager.TaskManager.load
from support import tiny  # with the backend, which applies the patches
manager.TaskManager.load = load  # what a release might call otherwise
print("found:", "transfer_mini_ko" in manager.TaskManager().all_tasks)
model = tiny.steered("llama", "loc@1:3")
print("answers:", json.dumps(tiny.answers(tiny.evaluate(model, "tiny_cloze", log_samples=True))))
try:
    tiny.evaluate(model, "tiny_meta_cloze_ko")
except ValueError as error:
    print("error:", error)
"""


def test_a_model_is_imported_without_the_harness_s_tasks() -> None:
    """They bring datasets and pandas, 100 MB, which only an evaluation needs."""
    modules = modules_after("from lm_eval_ext.backends.hf.model import SteeredHFLM")
    assert "lm_eval.models.huggingface" in modules
    assert not {"lm_eval.tasks", "datasets", "pandas", "pyarrow"} & modules


def test_modules_of_the_harness_that_are_loaded_later_are_extended_without_the_hook() -> None:
    code = (
        "from lm_eval_ext import harness; harness.install(); from lm_eval.tasks import TaskManager; "
        "from lm_eval.api.registry import get_model; import lm_eval.models; "
        "assert hasattr(TaskManager.__init__, harness._PATCHED); print(get_model('steered-hf').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(LM_EVAL_EXT_AUTOLOAD="0"), capture_output=True, text=True, check=False, timeout=HUNG,
    )  # fmt: skip
    assert done.stdout == "SteeredHFLM\n", done.stderr


def test_without_load_tasks_are_found_and_documents_steered_by_their_column() -> None:
    from support import tiny

    process = subprocess.run(
        [sys.executable, "-c", f"import json\n{WITHOUT_LOAD}"],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{os.environ['PYTHONPATH']}",
            "LM_EVAL_EXT_AUTOLOAD": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    said = dict(line.split(": ", 1) for line in process.stdout.splitlines() if ": " in line)
    assert said["found"] == "True"
    here = tiny.answers(tiny.evaluate(tiny.steered("llama", "loc@1:3"), "tiny_cloze", log_samples=True))
    assert json.loads(said["answers"]) == json.loads(json.dumps(here))
    assert said["error"].startswith("task tiny_meta_cloze_ko: the language is not known")
    assert_one_warning(process.stderr, "the language that a task's metadata names is not known", "lang=CODE")


def test_reloads_and_threads(installed: Environment, tmp_path: Path) -> None:
    stand_in(tmp_path)
    code = """
import importlib, threading
# Not also a submodule: a package and its submodule imported at once may meet Python's own deadlock avoidance.
modules = ["lm_eval.models", "lm_eval.tasks"]
threads = [threading.Thread(target=importlib.import_module, args=[name]) for name in modules * 4]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import lm_eval_ext_autoload, lm_eval.tasks.manager, sys
for module in (lm_eval_ext_autoload, lm_eval.tasks.manager, lm_eval.tasks, lm_eval.models):
    importlib.reload(module)
print(len(lm_eval.tasks.TaskManager().paths), len(lm_eval.tasks.manager.TaskManager().paths), type(
    lm_eval.models.__loader__).__name__, sum(f.__module__ == "lm_eval_ext_autoload" for f in sys.meta_path))
"""
    process = installed.run("-c", code, PYTHONPATH=str(tmp_path))
    assert process.stdout == "1 1 SourceFileLoader 1\n"
    assert process.stderr == ""


def test_no_effect_without_the_harness(installed: Environment) -> None:
    code = "import sys; sys.modules['lm_eval'] = None; import json; print('lm_eval_ext.harness' in sys.modules)"
    process = installed.run("-c", code)
    assert (process.stdout, process.stderr) == ("False\n", "")


# --- The seams, in this process ---------------------------------------------------------------------------------------


@pytest.fixture
def task_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The harness's own TaskManager, extended, its built-in tasks being none."""
    from lm_eval.tasks import manager

    class TaskManager(manager.TaskManager):
        """So that the harness's own class stays as it is."""

    (tmp_path / "builtin").mkdir()
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "builtin" / "manager.py"))
    extend(TaskManager)
    return TaskManager


def extend(task_manager: Any) -> None:
    """Apply the patches of the task manager to a class of its kind."""
    module = ModuleType("lm_eval.tasks.manager")
    module.TaskManager = task_manager  # type: ignore[attr-defined]
    harness.extend(module)


def test_users_own_tasks_win(task_manager: Any, tmp_path: Path) -> None:
    mine = write_task(tmp_path / "mine", "transfer_mini_ko")
    for given in (mine, str(mine), [mine], (str(mine),)):
        manager = task_manager(include_path=given)
        task = manager.load(["transfer_mini_ko"])["tasks"]["transfer_mini_ko"]
        assert Path(task.config.metadata["config_source"]).parent == mine
        assert manager.include_path == given
        assert set(manager.all_tasks) == NAMES


def test_our_folder_is_searched_once(task_manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    for given in (None, "", tasks_dir(), str(tasks_dir()), [tasks_dir().parent / "tasks"], [str(tasks_dir().parent)]):
        assert set(task_manager(include_path=given).all_tasks) >= NAMES
    assert "overrides" not in caplog.text


def test_not_without_the_harness_s_own_tasks(task_manager: Any, tmp_path: Path) -> None:
    mine = write_task(tmp_path / "mine", "mine")
    assert task_manager(include_path=mine, include_defaults=False).all_tasks == ["mine"]


def test_extending_twice_changes_nothing(task_manager: Any) -> None:
    init, load = task_manager.__init__, task_manager.load
    extend(task_manager)
    assert (task_manager.__init__, task_manager.load) == (init, load)


def test_task_metadata_is_the_task_s_own_where_the_run_s_has_the_same_key(task_manager: Any, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "mine", "mine", metadata={"version": 1.0, "language": "ko"})
    write_task(folder, "bare")
    manager = task_manager(include_path=folder, metadata={"language": "xx", "pretrained": "m", "version": 9})
    manager.load(["mine", "bare"])
    mine, bare = harness.task_metadata("mine"), harness.task_metadata("bare")
    assert mine is not None
    assert bare is not None
    assert (mine["language"], mine["version"], mine["pretrained"]) == ("ko", 1.0, "m")
    assert (bare["language"], bare["version"]) == ("xx", 1.0)
    assert harness.task_metadata("never loaded") is None


@pytest.mark.parametrize(
    ("names", "reads_all"),
    [
        (["transfer_mini_ko", "mine", "ours"], False),
        (["theirs"], True),  # a group with a task of the harness
        (["arc_easy"], True),
        (["transfer_mini_*"], True),  # also a task of the harness may have such a name
    ],
)
def test_the_harness_s_task_files_are_read_where_a_name_needs_them(
    names: list[str], reads_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    folder = write_task(tmp_path, "mine")
    for group, members in {"ours": ["mine", "transfer_mini"], "theirs": ["mine", {"task": "arc_easy"}]}.items():
        (folder / f"{group}.yaml").write_text(json.dumps({"group": group, "task": members}), encoding="utf-8")
    read = []

    class TaskManager(tasks.TaskManager):
        def __init__(self, include_path: Any = None, include_defaults: bool = True) -> None:
            read.append(include_defaults)
            super().__init__(include_path=include_path, include_defaults=include_defaults)

    monkeypatch.setattr(tasks, "TaskManager", TaskManager)
    manager = harness.task_manager(names, folder)
    assert read == ([False, True] if reads_all else [False])
    if not reads_all:
        full = tasks.TaskManager(include_path=str(folder))
        for name in names:
            assert manager.task_index[name].yaml_path == full.task_index[name].yaml_path
            assert manager.task_index[name].cfg == full.task_index[name].cfg


def test_lm_eval_reports_a_user_s_mistake_without_a_traceback(installed: Environment, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", "unreachable", custom_dataset="PLACEHOLDER")
    build = "def build(**_):\n    raise DataError('no such file: x.json\\ntry y')\n"
    (task / "build.py").write_text(f"from lm_eval_ext.errors import DataError\n{build}")
    yaml = task / "unreachable.yaml"
    yaml.write_text(yaml.read_text().replace('"PLACEHOLDER"', "!function build.build"))
    command = ["--model", "dummy", "--tasks", "unreachable", "--include_path", task]
    process = installed.run("-c", WITHOUT_SCAN, *command, check=False)
    assert process.returncode == 2
    assert process.stderr.endswith("error: no such file: x.json\ntry y\n")
    assert "Traceback" not in process.stderr


# --- What the tests keep of the harness -------------------------------------------------------------------------------


def test_the_kept_index_holds_what_the_harness_reads() -> None:
    """`support.harness_cache`: the same files in the same order, with the same content."""
    index = pytest.importorskip("lm_eval.tasks._index", reason="another release of the harness: nothing is kept")
    from lm_eval.tasks._yaml_loader import load_yaml

    assert index.load_yaml is not load_yaml
    folder = Path(index.__file__).parent
    files = list(index.TaskIndex._iter_yaml_files(folder))
    assert len(files) > 10_000
    assert files == sorted(folder.rglob("*.yaml"), key=Path.as_posix)
    for file in files[::700]:
        assert index.load_yaml(file, resolve_func=False, recursive=True) == load_yaml(file, resolve_func=False)
