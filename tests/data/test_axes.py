"""Axis files: what they may say, which of the harness's tasks the shipped one knows, the command that lists them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import lm_eval.tasks
import pytest
from typer.testing import CliRunner

from lm_eval_ext.cli import app
from lm_eval_ext.data import axes
from lm_eval_ext.errors import DataError

HARNESS = Path(lm_eval.tasks.__file__).parent
#: Folder of the harness: families of its tasks, and how many languages they have.
FOLDERS = {
    "include": ({"include", "include_few_shot_en", "include_few_shot_og"}, 44),
    "global_piqa/nonparallel_cloze": ({"global_piqa_nonparallel"}, 90),
    "global_piqa/parallel_cloze": ({"global_piqa_parallel"}, 90),
    "global_piqa/nonparallel_generation": ({"global_piqa_nonparallel_generation"}, 90),
    "global_piqa/parallel_generation": ({"global_piqa_parallel_generation"}, 90),
    "mmlu_prox": ({"mmlu_prox", "mmlu_prox_lite"}, 29),
    "belebele": ({"belebele"}, 110),
    "xcopa": ({"xcopa"}, 11),
    "xstorycloze": ({"xstorycloze"}, 11),
    "greekmmlu": ({"greekmmlu", "greekmmlu_local"}, 1),
    "cmmlu": ({"cmmlu", "cmmlu_local"}, 1),
    "kmmlu": ({"kmmlu", "kmmlu_local", "kmmlu_hard", "kmmlu_hard_local", "kmmlu_generated"}, 1),
    "click": ({"click"}, 1),
    "copal_id": ({"copal_id", "copal_id_colloquial"}, 1),
    "arab_culture": ({"arab_culture"}, 1),
    "arab_culture_completion": ({"arab_culture_completion"}, 1),
}

OWN = """
tasks:
  - match: ["proverbs_{language}_x", "sayings_*_{language}"]
    languages: {kiswahili: sw, deu: deu_Latn}
    axis: localization
    family: proverbs
    metric: exact_match,strict
  - {match: xcopa_tr, axis: localization, family: mine, language: tur_Latn, split: dev}
"""


@pytest.fixture(autouse=True)
def _no_files_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(axes.VARIABLE, "")  # restored after the test, whatever `use` does


def own(tmp_path: Path, text: str = OWN) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(text, "utf-8")
    return file


def names(folder: str) -> list[str]:
    """The tasks of a folder of the harness, from its files."""
    texts = (file.read_text("utf-8") for file in (HARNESS / folder).rglob("*.yaml"))
    found = [match for text in texts for match in re.findall(r"^['\"]?task['\"]?: *['\"]?([\w-]+)['\"]?$", text, re.M)]
    return sorted(set(found))


# --- the shipped file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_task_of_the_harness_is_known(folder: str) -> None:
    tasks = names(folder)
    known = {task: axes.find(task) for task in tasks}
    assert tasks
    assert [task for task, found in known.items() if found is None] == []
    families, n_languages = FOLDERS[folder]
    found = [entry for entry in known.values() if entry is not None]
    assert {entry.entry.family for entry in found} == families
    assert len({entry.language for entry in found}) >= n_languages


@pytest.mark.parametrize(
    ("task", "axis", "family", "language"),
    [
        ("include_base_44_turkish_stem", "localization", "include", "tr"),
        ("include_base_44_north_macedonian_few_shot_og_stem", "localization", "include_few_shot_og", "mk"),
        ("global_piqa_nonparallel_cloze_apc_arab_jord", "localization", "global_piqa_nonparallel", "apc"),
        ("global_piqa_parallel_cloze_tur_latn", "transfer", "global_piqa_parallel", "tr"),
        ("mmlu_prox_fr_math", "transfer", "mmlu_prox", "fr"),
        ("mmlu_prox_lite_fr_computer_science", "transfer", "mmlu_prox_lite", "fr"),
        ("belebele_ben_Beng", "transfer", "belebele", "bn"),
        ("xcopa_tr", "transfer", "xcopa", "tr"),
        ("xstorycloze_ru", "transfer", "xstorycloze", "ru"),
        ("greekmmlu_greek_mythology", "localization", "greekmmlu_local", "el"),
        ("cmmlu_astronomy", "transfer", "cmmlu", "zh"),
        ("kmmlu_law", "localization", "kmmlu_local", "ko"),
        ("kmmlu_direct_law", "transfer", "kmmlu_generated", "ko"),
        ("copal_id_colloquial", "localization", "copal_id_colloquial", "id"),
        ("arab_culture_completion_egypt", "localization", "arab_culture_completion", "ar"),
    ],
)
def test_what_is_said(task: str, axis: str, family: str, language: str) -> None:
    said = axes.metadata(task, {"version": 1.0})
    assert (said.axis, said.family, said.language) == (axis, family, language)


@pytest.mark.parametrize(
    "task", ["arc_easy", "belebele", "belebele_afr_prompt_1", "mmlu_prox_fr", "xcopa", "blend_decon_ko"]
)
def test_other_tasks_and_groups_are_not_known(task: str) -> None:
    assert axes.find(task) is None


def test_no_entry_is_dead() -> None:
    """Every entry is the first match of some task of the harness."""
    used = Counter(found.entry.match for folder in FOLDERS for task in names(folder) if (found := axes.find(task)))
    assert [entry.match for entry in axes.read(axes.SHIPPED) if entry.match not in used] == []


# --- files of the user ------------------------------------------------------------------------------------------------


def test_a_file_of_the_user_goes_before_the_shipped_one(tmp_path: Path) -> None:
    axes.use(own(tmp_path))
    assert os.environ[axes.VARIABLE] == str(tmp_path / "my.yaml")  # processes that this one starts read it too
    said = axes.metadata("xcopa_tr")
    assert (said.axis, said.family, said.split, said.language) == ("localization", "mine_dev", "dev", "tr")
    assert axes.metadata("xcopa_it").family == "xcopa"
    assert axes.metadata("proverbs_kiswahili_x").language == "sw"
    assert axes.metadata("sayings_of_old_deu").language == "de"
    assert axes.metadata("sayings_of_old_deu").metric == "exact_match,strict"
    assert axes.find("proverbs_ko_x") is None  # not among its languages
    axes.use(own(tmp_path))  # twice is once
    assert axes.files() == (tmp_path / "my.yaml", axes.SHIPPED)


def test_a_task_s_own_metadata_goes_before_any_file(tmp_path: Path) -> None:
    axes.use(own(tmp_path))
    said = axes.metadata("xcopa_tr", {"language": "az", "split": "test"})
    assert (said.language, said.split, said.axis) == ("az", "test", "localization")
    whole = {"axis": "transfer", "family": "theirs"}
    assert axes.metadata("xcopa_tr", whole).values == whole
    assert axes.document_language("xcopa_tr", {"language": "az"}) is None
    assert axes.document_language("xcopa_tr", {"version": 1}) == "tr"


ENTRY = "tasks: [{match: 'a_{language}', axis: transfer, family: a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + ", metrik: acc}]", "task 1: unknown key 'metrik', did you mean 'metric'?"),
        ("tasks: []", "tasks is []; needed: a list of entries"),
        (
            "tasks: [{match: a, axis: culture, family: a, language: ko}]",
            "axis is 'culture'; needed: transfer or localization",
        ),
        ("tasks: [{match: a, axis: transfer, family: a}]", "either as language: CODE or as {language} in match"),
        (ENTRY + ", language: ko}]", "either as language: CODE or as {language} in match"),
        (
            "tasks: [{match: a, axis: transfer, family: a, language: Korean}]",
            "language is 'Korean'; needed: the code of",
        ),
        (
            "tasks: [{match: a, axis: transfer, family: a, language: ko, languages: {x: ko}}]",
            "which match 'a' does not have",
        ),
        (ENTRY + ", split: train}]", "split is 'train'; needed: test or dev"),
        ("tasks: [", "is not YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        axes.use(own(tmp_path, text))
    assert message in str(caught.value)
    assert axes.files() == (axes.SHIPPED,)


def test_a_file_that_is_missing_is_told_with_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(axes.VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(DataError, match=r"cannot read the axis file .*gone\.yaml: No such file.*LM_EVAL_EXT_AXES"):
        axes.find("xcopa_it")


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["axes", *arguments])
    return result.exit_code, result.output


def test_the_command_lists_every_entry(tmp_path: Path) -> None:
    status, text = run()
    assert status == 0
    assert "xstorycloze_{language}" in text
    status, text = run("--json", "--axes", str(own(tmp_path)))
    rows = json.loads(text)
    assert rows[0]["tasks"] == ["proverbs_{language}_x", "sayings_*_{language}"]
    assert rows[0]["language"] == "2, by the name"
    assert {row["file"] for row in rows} == {str(tmp_path / "my.yaml"), "the package"}
    assert len(rows) == 2 + len(axes.read(axes.SHIPPED))


def test_the_command_tells_of_tasks() -> None:
    status, text = run("--json", "include_base_44_bengali_stem", "localization_gap_dev_ru_cloze")
    mapped, ours = json.loads(text)
    assert status == 0
    assert (mapped["language"], mapped["metric"], mapped["said by"]) == ("bn", "acc", "the package")
    assert (ours["family"], ours["form"], ours["said by"]) == (
        "localization_gap_dev_cloze",
        "texts",
        "its own metadata",
    )
    status, text = run("arc_easy")
    assert (status, "nothing" in text) == (1, True)
    status, text = run("--axes", "nowhere.yaml")
    assert (status, "cannot read the axis file" in text) == (2, True)
