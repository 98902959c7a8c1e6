"""Studies: what runs, what is skipped, what goes on, and what is refused before anything runs."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import tiny
from support.studies import COMMAND_LINES, PLAN, STUDY, Commands, runner, start, study
from typer.testing import CliRunner

from lm_eval_ext.backends.vllm import release
from lm_eval_ext.cli import app
from lm_eval_ext.errors import ModelError, StudyError, UserError
from lm_eval_ext.languages import LANGUAGES
from lm_eval_ext.study import config
from lm_eval_ext.study import run as running
from lm_eval_ext.study.run import Runner
from lm_eval_ext.study.stages import Choice, plan, plan_for_condition

if TYPE_CHECKING:
    from collections.abc import Sequence

STUDIES = Path(__file__).parents[2] / "studies"

ALL = ["data", *["train"] * 2, *["extract"] * 3, *["sweep"] * 3, *["eval"] * 6, "plane"]


# --- what runs --------------------------------------------------------------------------------------------------------


def test_stages_run_once_each_with_what_the_ones_before_made(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    start(asked)
    calls = list(commands.calls)
    assert commands.names() == ALL
    mist = next(call for call in calls if call[:2] == ["train", "mist"])
    assert mist[mist.index("--data") + 1] == str(asked.out / "data" / "mine.jsonl")
    assert mist[mist.index("--steps") + 1] == "2"
    assert mist[mist.index("--languages") + 1] == "en,ko"
    clo = next(call for call in calls if call[:2] == ["train", "clo"])
    assert clo[clo.index("--languages") + 1] == "ko"
    assert "--full" in clo
    steered = [call for call in calls if call[0] == "eval" and any("steer=" in a for a in call)]
    assert [f"steer={PLAN}" in call[4] for call in steered] == [True] * 3
    assert f"peft={asked.out / 'models' / 'mist'}" in steered[1][4]
    assert f"pretrained={asked.out / 'models' / 'clo'}" in steered[2][4]  # the whole model was trained
    plane = calls[-1]
    assert [plane[i + 1] for i, a in enumerate(plane) if a == "--run"] == [
        "base-surgical",
        "mist",
        "mist-surgical",
        "clo",
        "clo-surgical",
    ]
    assert plane[plane.index("--baseline") + 1] == "base"
    said = start(asked)
    assert commands.names() == []
    assert all(line.endswith("done before") for line in said)


def test_only_what_depends_on_a_change_runs_again(tmp_path: Path, commands: Commands) -> None:
    start(study(tmp_path))
    commands.names()
    asked = study(tmp_path, {"models": {**STUDY["models"], "mist": {"method": "mist", "data": "mine", "seed": 1}}})
    said = start(asked)
    assert commands.names() == ["train", "extract", "sweep", "eval", "eval", "plane"]
    assert any("train/mist: its options changed" in line for line in said)
    start(study(tmp_path, {"models": asked.models, "plane": {"level": 0.9}}))
    assert commands.names() == ["plane"]


def test_what_is_made_again_the_same_stops_there(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    start(asked)
    commands.names()
    (asked.out / "vectors" / "base.safetensors").unlink()
    said = start(asked)
    assert commands.names() == ["extract"]
    assert any("extract/base: vectors/base.safetensors is gone" in line for line in said)


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        ("models/mist/adapter_model.safetensors", "train/mist"),
        ("sweep/clo/plan.yaml", "sweep/clo"),
        ("results/base/model/samples_1.jsonl", "evaluate/base"),
        ("plane.csv", "plane"),
    ],
)
def test_an_output_that_changed_is_made_again(tmp_path: Path, commands: Commands, damage: str, first: str) -> None:
    asked = study(tmp_path)
    start(asked)
    commands.names()
    (asked.out / damage).write_text("damaged")
    said = start(asked)
    assert next(line for line in said if "done before" not in line).endswith(f"{first}: {damage} is not as it was made")
    assert len(commands.names()) == 1


def test_a_changed_file_of_the_user_is_noticed(tmp_path: Path, commands: Commands) -> None:
    pairs = tmp_path / "mine.tsv"
    pairs.write_text("language\tpositive\tnegative\nko\ta\tb\n")
    asked = study(tmp_path, {"extract": {"pairs": [f"en={pairs}", "loc=mini"]}})
    start(asked)
    commands.names()
    pairs.write_text("language\tpositive\tnegative\nko\ta\tc\n")
    said = start(asked)
    assert any(f"extract/base: {pairs} changed" in line for line in said)
    assert commands.names()[:3] == ["extract"] * 3


def test_a_changed_model_is_noticed(tmp_path: Path, commands: Commands) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny.folder("llama"), model)
    asked = study(tmp_path, {"model": str(model)})
    start(asked)
    commands.names()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    start(asked)
    assert commands.names() == ALL[1:]


@pytest.mark.parametrize(
    ("what", "why"), [("_built_in", "the data or tasks of this package changed"), ("version", "is another version")]
)
def test_another_package_runs_everything_again(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, what: str, why: str
) -> None:
    asked = study(tmp_path)
    start(asked)
    commands.names()
    if what == "version":
        monkeypatch.setattr(running, "__version__", "99")
    else:
        monkeypatch.setattr(Runner, "_built_in", "0")
    said = start(asked)
    assert commands.names() == ALL
    assert why in said[0]


def test_a_folder_that_was_moved_is_still_done(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    start(asked)
    commands.names()
    shutil.move(asked.out, tmp_path / "elsewhere")
    start(study(tmp_path, {"out": str(tmp_path / "elsewhere")}))
    assert commands.names() == []


# --- interruptions and failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "resumed", "kept"), [("train", True, True), ("sweep", False, True), ("extract", False, False)]
)
def test_an_interrupted_stage_goes_on_where_it_can(
    tmp_path: Path, commands: Commands, kind: str, resumed: bool, kept: bool
) -> None:
    asked = study(tmp_path)
    left = {
        "train": asked.out / "models" / "mist" / "checkpoints" / "x",
        "sweep": asked.out / "sweep" / "base" / "cells" / "x",
        "extract": asked.out / "vectors" / "base.safetensors",
    }[kind]

    def interrupt(arguments: list[str]) -> None:
        if arguments[0] == kind:
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_text("half")
            raise KeyboardInterrupt

    commands.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        start(asked)
    n = len(commands.names())
    found: list[bool] = []
    commands.before = lambda arguments: found.append(left.exists()) if arguments[0] == kind and not found else None
    said = start(asked)
    again = list(commands.calls)
    assert len(commands.names()) == len(ALL) - n + 1
    assert ("--resume" in again[0]) == resumed
    assert found == [kept]
    assert sum("done before" in line for line in said) == n - 1


def test_an_interrupted_stage_that_changed_since_starts_anew(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    left = asked.out / "models" / "mist" / "checkpoints" / "x"

    def interrupt(arguments: list[str]) -> None:
        if arguments[0] == "train":
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_text("half")
            raise KeyboardInterrupt

    commands.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        start(asked)
    commands.before = lambda arguments: None
    commands.names()
    start(study(tmp_path, {"train": {"steps": 3, "batch-size": 2}}))
    assert not left.exists()
    assert all("--resume" not in call for call in commands.calls)


def test_a_stage_that_fails_ends_the_study_and_keeps_what_is_done(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = study(tmp_path)

    def fail(arguments: Sequence[str], lock: int) -> int:
        return 2 if arguments[0] == "sweep" else commands.run(arguments, lock)

    monkeypatch.setattr(running, "launch", fail)
    with pytest.raises(StudyError, match=r"sweep/base failed \(status 2\)"):
        start(asked)
    commands.names()
    monkeypatch.setattr(running, "launch", commands.run)
    start(asked)
    assert commands.names() == [name for name in ALL if name in ("sweep", "eval", "plane")]


def test_a_stage_that_makes_nothing_is_a_failure(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "launch", lambda arguments, lock: 0)
    with pytest.raises(StudyError, match=r"data/mine succeeded but wrote none of mine\.jsonl"):
        start(study(tmp_path))


def test_two_studies_do_not_run_in_one_folder(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    start(asked)
    with (asked.out / ".study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="is running in"):
            start(asked)


def test_a_stage_outlives_its_study_and_keeps_the_folder(tmp_path: Path) -> None:
    """A real process: the study is gone, the stage that it started still runs."""
    import subprocess

    asked = study(tmp_path)
    first = runner(asked)
    with first._locked() as lock:
        stage = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[lock], stdin=subprocess.PIPE)
    try:
        with pytest.raises(StudyError, match="a stage of it, is running"), first._locked():
            pass
    finally:
        stage.communicate(b"\n")
    with first._locked():
        pass


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": 3}', ""])
def test_a_damaged_state_is_refused(tmp_path: Path, commands: Commands, content: str) -> None:
    asked = study(tmp_path)
    start(asked)
    (asked.out / "study.json").write_text(content)
    with pytest.raises(StudyError, match="is damaged"):
        start(asked)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(StudyError, match="something that is no study"):
        start(study(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


# --- picking and planning ---------------------------------------------------------------------------------------------


def test_stages_can_be_picked(tmp_path: Path, commands: Commands) -> None:
    asked = study(tmp_path)
    start(asked, "data", "train/mist")
    assert commands.names() == ["data", "train"]
    start(asked, "train", "extract")
    assert commands.names() == ["train", *["extract"] * 3]
    start(asked, "evaluate/*", "sweep")
    assert commands.names() == [*["sweep"] * 3, *["eval"] * 6]
    with pytest.raises(StudyError, match=r"--stages 'evaluation' picks nothing; valid: data, train, extract"):
        start(asked, "evaluation")


def test_picking_a_stage_without_what_it_needs_is_refused(tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(StudyError, match="train/mist needs data/mine, which is not done"):
        start(study(tmp_path), "train")
    assert commands.names() == []


def test_a_dry_run_prints_the_plan_and_makes_nothing(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval_ext.study.estimate._count", lambda tasks, limit: 10)  # loading tasks takes long
    monkeypatch.setattr("lm_eval_ext.study.stages.check_tasks", lambda study: None)
    file = tmp_path / "study.yaml"
    change = {"model": str(tiny.folder("gemma3")), "sweep": "LEFT OUT", "steer": "en@42%:2+loc@58%:2"}
    asked = study(tmp_path, change)
    shown = CliRunner().invoke(app, ["study", str(file), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert not asked.out.exists()
    assert "[1/13] data/mine: new, about" in shown.output
    assert "extract/mist: after train/mist, about" in shown.output
    assert "steer=en@42%:2+loc@58%:2" in shown.output
    assert "13 of 13 stages to run, about" in shown.output
    assert "?" not in shown.output.splitlines()[-1]
    start(asked)
    commands.names()
    shown = CliRunner().invoke(app, ["study", str(file), "--dry-run"])
    assert "0 of 13 stages to run" in shown.output
    assert commands.names() == []


def test_a_dry_run_says_what_cannot_be_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_ext.study.stages.check_tasks", lambda study: None)
    study(tmp_path, {"model": str(tmp_path / "no-model")})
    shown = CliRunner().invoke(app, ["study", str(tmp_path / "study.yaml"), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "train/mist: after data/mine, about ?" in shown.output
    assert "16 of 16 stages to run, more than" in shown.output


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("en", "en@1:2/prompt"),
        ("loc", "loc@2:2/prompt"),
        ("surgical", PLAN),
        ("random", "en~random@1:2/prompt+loc~random@2:2/prompt"),
        ("other", "en~other@1:2/prompt+loc~other@2:2/prompt"),
        ("negative", "en@1:-2/prompt+loc@2:-2/prompt"),
    ],
)
def test_conditions_are_made_of_the_surgical_plan(condition: str, expected: str) -> None:
    assert plan_for_condition(condition, PLAN) == expected


def test_a_sweep_that_chose_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="sweep/mist chose no plan: that takes development splits"):
        Choice("sweep/mist", tmp_path / "plan.yaml", "en").plan()


# --- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"modells": {}}, "unknown key 'modells', did you mean 'models'? Valid keys: out, model"),
    ({"models": {}}, "models is {}; needed: at least one name with its options, such as base: {}"),
    ({"models": "LEFT OUT"}, "models is missing; needed: at least one name"),
    ({"models": "base"}, "models is 'base'; needed: at least one name with its options"),
    ({"models": {"a": 3, "b": {}}}, "models: a is 3; needed: keys with values"),
    ({"models": {"a": {"method": "dpo"}}}, "method is 'dpo'; valid: clo, midalign, mist, sft-en"),
    ({"models": {"a b": {}}}, "'a b' is no name"),
    ({"models": {"../a": {}}}, "'../a' is no name"),
    ({"models": {"a": {}, "a-surgical": {}}}, "two runs would be called 'a-surgical'"),
    ({"models": {"a": {"method": "mist", "bta": 1}, "b": {}}}, "models: a: unknown option 'bta'; valid: "),
    ({"models": {"a": {"method": "mist", "out": "x"}, "b": {}}}, "models: a: out is set by the study itself"),
    ({"models": {"a": {"method": "mist", "steps": "many"}, "b": {}}}, "models: a: Invalid value for '--steps'"),
    ({"models": {"a": {"method": "clo", "lambda": 2}, "b": {}}}, "models: a: --lambda 2.0: must lie between 0 and 1"),
    ({"models": {"a": {"method": "mist", "full": 3}, "b": {}}}, "full is 3: it is true or false"),
    ({"models": {"a": {"method": "mist", "languages": [False]}, "b": {}}}, "unknown language"),
    ({"models": {"a": {"method": "mist", "model": "x"}, "b": {}}}, "model is set by the study itself"),
    ({"train": {"steps": True}}, "steps is true: it takes a value"),
    ({"data": {"d": {}}}, "data: d: source is missing"),
    ({"data": {"d": {"source": "mini", "max-chars": 0}}}, "data: d: Invalid value for '--max-chars'"),
    ({"languages": ["en", "gr"]}, "languages: unknown language 'gr'"),
    ({"languages": [False]}, "languages is [False]; needed: a list of names"),
    ({"extract": {"pair": "x"}}, "extract: unknown option 'pair'"),
    ({"extract": {"pairs": {"en": "mini"}}}, "pairs is {'en': 'mini'}: it is a text, a number or a list"),
    ({"sweep": {"layers": "all"}}, "sweep: Missing option '--tasks'"),
    ({"sweep": "LEFT OUT"}, "nothing says which layers to steer"),
    ({"steer": "en@42%"}, "must name both en and loc"),
    ({"steer": "en@42%:x"}, "steer: steering plan, character 8"),
    ({"evaluate": "LEFT OUT"}, "evaluate is missing; needed: keys with values; valid keys: tasks, conditions"),
    ({"evaluate": {}}, "evaluate: tasks is missing; needed: a list of names"),
    ({"evaluate": {"tasks": ["a"], "batch-size": 1, "batch_size": 2}}, "batch-size and batch_size are one key"),
    ({"evaluate": {"tasks": []}}, "evaluate: tasks is []"),
    ({"evaluate": {"tasks": ["a"], "conditions": ["best"]}}, "unknown condition 'best'; valid: unsteered, en"),
    ({"evaluate": {"tasks": ["a"], "limit": 0}}, "limit is 0; needed: a whole number from 1"),
    ({"evaluate": {"tasks": ["a"], "batch-size": "big"}}, "batch-size is 'big'"),
    ({"evaluate": {"tasks": ["a"], "model-args": {"peft": "x"}}}, "model-args: peft is set by the study itself"),
    ({"evaluate": {"tasks": ["a"], "shots": 1}}, "evaluate: unknown key 'shots'"),
    ({"plane": {"baseline": "unsteered"}}, "baseline 'unsteered' is no run of this study: base, base-surgical"),
    ({"models": {"base": {}}, "evaluate": {"tasks": ["a"], "conditions": ["unsteered"]}}, "there is only the run base"),
    ({"out": "a,b"}, "must have no comma"),
    ({"out": 3}, "out is 3; needed: a text"),
    (
        {"models": {"a": {"method": "midalign", "pairs": "flores"}}, "evaluate": {"tasks": ["sib200_ko"]}},
        "sib200_ko has the sentences of flores",
    ),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES, ids=[said[:40] for _, said in MISTAKES])
def test_mistakes_are_found_before_anything_runs(
    tmp_path: Path, commands: Commands, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        start(study(tmp_path, change))
    assert said in str(refused.value)
    assert commands.names() == []


def test_an_unknown_task_is_found_before_anything_runs(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", tiny.task_manager)
    study(tmp_path, {"evaluate": {"tasks": ["tiny_cloze", "transfer_maxi"]}, "sweep": {"tasks": "tiny_letters"}})
    result = CliRunner().invoke(app, ["study", str(tmp_path / "study.yaml")])
    assert (result.exit_code, "unknown task transfer_maxi;" in result.output) == (2, True)
    assert commands.names() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"models: [", "is not YAML"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"out: a\nout: b", "the key 'out' is given twice, in lines 1 and 2"),
        (b"", "got nothing; needed: keys with values; valid keys: out"),
        (b"- a", "got ['a']; needed: keys with values; valid keys: out"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    result = CliRunner().invoke(app, ["study", str(tmp_path / "study.yaml")])
    assert (result.exit_code, said in result.output, "Traceback" in result.output) == (2, True, False)
    assert CliRunner().invoke(app, ["study", str(tmp_path / "nothing.yaml")]).exit_code == 2


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as refused:
        study(
            tmp_path,
            {"modells": {}, "models": {"a b": {}, "c": {"method": "dpo"}}, "steer": "en@2", "evaluate": {"limit": 0}},
        )
    first, *lines = str(refused.value).splitlines()
    assert first.endswith("study.yaml: 6 mistakes")
    for said, line in zip(
        [
            "models: 'a b' is no name",
            "models: c: method is 'dpo'; valid: clo",
            "steer: 'en@2' must name both",
            "evaluate: tasks is missing",
            "evaluate: limit is 0; needed: a whole number from 1",
            "unknown key 'modells', did you mean 'models'?",
        ],
        lines,
        strict=True,
    ):
        assert line.strip().startswith(said)


def test_options_reach_the_commands_as_they_are_written(tmp_path: Path) -> None:
    """YAML 1.1 makes numbers, a date and false of these."""
    file = tmp_path / "study.yaml"
    file.write_text(
        """
        out: 2024-05-01
        models: {no: , mist: {method: mist, revision: 12e4567, learning-rate: 1.50e-5, languages: [no, ko]}}
        extract: {revision: 0123456}
        steer: en@42%:2+loc@58%:2
        evaluate: {tasks: a, batch_size: auto, num_fewshot: 0, model-args: {revision: 1.10}}
        train:
        """
    )
    asked = config.read(file)
    assert asked.out == Path("2024-05-01")
    options = {"method": "mist", "revision": "12e4567", "learning-rate": "1.50e-5", "languages": ["no", "ko"]}
    assert asked.models == {"no": {}, "mist": options}
    assert (asked.extract, asked.train, asked.sweep) == ({"revision": "0123456"}, {}, None)
    assert asked.evaluate.options == {"batch_size": "auto", "num_fewshot": 0}
    assert asked.evaluate.model_args == {"revision": "1.10"}
    assert asked.languages == tuple(LANGUAGES)


def test_a_study_on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps and evaluations run there, with what is trained; training and extraction do not."""
    asked = study(tmp_path, {"engine": "vllm"})
    monkeypatch.setattr(release, "installed", lambda: None)
    with pytest.raises(ModelError, match="needs vLLM, which is not installed: pip install"):
        plan(asked, COMMAND_LINES)
    monkeypatch.setattr(release, "installed", lambda: release.Release("vllm", "0.32.0"))
    stages = {stage.name: " ".join(stage.arguments) for stage in plan(asked, COMMAND_LINES)}
    adapter = asked.out / "models" / "mist"
    assert stages["sweep/mist"].endswith(f"--model-args lora_local_path={adapter} --engine vllm")
    assert stages["evaluate/mist"].startswith(f"eval --model steered-vllm --model_args lora_local_path={adapter} ")
    assert f"--peft {adapter}" in stages["extract/mist"]
    with pytest.raises(StudyError, match="sweep: engine is set by the study"):
        plan(study(tmp_path, {"sweep": {**STUDY["sweep"], "engine": "vllm"}}), COMMAND_LINES)


def test_the_folder_on_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "out": 3}))
    assert config.read(file, tmp_path / "b").out == tmp_path / "b"
    with pytest.raises(StudyError, match="must have no comma"):
        config.read(file, tmp_path / "a,b")


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.yaml")))
def test_the_shipped_studies_can_be_planned(name: str, tmp_path: Path) -> None:
    asked = config.read(STUDIES / name, tmp_path / "out")
    stages = plan(asked, COMMAND_LINES)
    assert {"base", "mist", "midalign", "clo"} <= set(asked.models)
    assert {"unsteered", "en", "loc", "surgical"} <= set(asked.evaluate.conditions)
    assert stages[-1].name in ("plane", "report")


# --- for real ---------------------------------------------------------------------------------------------------------


def test_a_real_study_of_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is the real command, run in this process to save its start."""
    pytest.importorskip("trl")

    def run(arguments: Sequence[str], lock: int) -> int:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return 0

    monkeypatch.setattr(running, "launch", run)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes as long as a run
    asked = study(
        tmp_path,
        {
            "model": str(tiny.folder("llama")),
            "models": {"mist": {"method": "mist", "data": "mine", "dtype": "float32", "max-length": 128}},
            "train": {"steps": 1, "batch-size": 1, "device": "cpu"},
            "extract": {"pairs": ["en=mini", "loc=mini"], "max-pairs": 2, "device": "cpu", "dtype": "float32"},
            "sweep": "LEFT OUT",
            "steer": "en@1:2+loc@2:2",
            "evaluate": {
                "tasks": ["transfer_mini_ko_cloze", "localization_mini_ko_cloze"],
                "conditions": ["unsteered", "surgical"],
                "limit": 2,
                "device": "cpu",
                "model-args": {"dtype": "float32"},
            },
            "plane": {"resamples": 100},
        },
    )
    start(asked)
    assert "mist-surgical" in (asked.out / "plane.csv").read_text()
    state = json.loads((asked.out / "study.json").read_text())["stages"]
    assert all(entry["made"] and "seconds" in entry for entry in state.values())
    before = (asked.out / "study.json").read_bytes()
    start(asked)
    assert (asked.out / "study.json").read_bytes() == before
