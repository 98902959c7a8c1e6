"""A user's own questions: from JSON lines to tasks that the harness runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.data import own
from lm_eval_ext.data.task_metadata import TaskMetadata
from lm_eval_ext.errors import DataError

SPANISH: dict[str, Any] = {
    "id": "breakfast",
    "language": "es",
    "question": "¿Qué se desayuna?",
    "options": ["Churros", "Cereales", "Kimchi", "Tacos"],
    "answer": 0,
    "countries": ["Spain", ["US", "UK"], "South_Korea", "Mexico"],
}
KOREAN = SPANISH | {
    "language": "ko",
    "question": "아침에 무엇을 먹나요?",
    "options": ["밥", "시리얼", "추로스", "타코"],
}
KOREAN |= {"countries": ["South_Korea", "US", "Spain", "Mexico"]}
PLAIN: dict[str, Any] = {"question": " 2 + 2? ", "options": ["3", "4", "5"], "answer": "B", "language": "en"}


def put(folder: Path, *rows: object) -> Path:
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def run(folder: Path, *tasks: str, model: Any = None, limit: int | None = None) -> dict[str, Any]:
    results = simple_evaluate(
        model or tiny.hf("qwen2"),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        limit=limit,
    )
    assert results is not None
    return results


def scores(results: dict[str, Any], task: str) -> dict[str, float]:
    found = results["results"][task].items()
    return {
        name.removesuffix(",none"): value for name, value in found if name.endswith(",none") and "stderr" not in name
    }


#: The harness's command line, without the scan of its 14,000 own tasks and its report on the machine.
LM_EVAL = """
import lm_eval.evaluator, lm_eval.tasks.manager
lm_eval.tasks.manager.__file__ = "/nowhere/manager.py"
lm_eval.evaluator.add_env_info = lambda results: None
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_questions_become_tasks_with_letters_and_as_cloze(tmp_path: Path) -> None:
    own.write(put(tmp_path, PLAIN), "sums", tmp_path / "tasks")
    results = run(tmp_path / "tasks", "sums", "sums_cloze")
    letters, cloze = (results["samples"][name] for name in ("sums_en", "sums_en_cloze"))
    assert [argument[0] for argument in letters[0]["arguments"]] == ["2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:"] * 3
    assert [argument[1] for argument in letters[0]["arguments"]] == [" A", " B", " C"]
    assert [tuple(argument) for argument in cloze[0]["arguments"]][:3] == [
        ("Question: 2 + 2?\nAnswer:", f" {option}") for option in "345"
    ]
    assert letters[0]["target"] == cloze[0]["target"] == 1
    assert set(scores(results, "sums")) == {"acc"}
    assert set(scores(results, "sums_cloze")) == {"acc", "acc_norm", "acc_mutual_info"}


def test_countries_make_it_a_localization_axis(tmp_path: Path) -> None:
    own.write(put(tmp_path, SPANISH, KOREAN), "food", tmp_path / "tasks")
    results = run(tmp_path / "tasks", "food", "food_cloze")
    for group in ("food", "food_cloze"):
        averaged = scores(results, group)
        assert averaged["acc"] + averaged["english_bias"] + averaged["other_rate"] == pytest.approx(1)
    assert {"english_bias_norm", "acc_prior", "acc_bytes"} <= set(scores(results, "food_cloze"))
    (sample,) = results["samples"]["food_ko_cloze"]
    assert sample["doc"]["language"] == "ko"
    assert sample["doc"]["countries"] == [["South_Korea"], ["US"], ["Spain"], ["Mexico"]]
    assert sample["arguments"][0][0] == "질문: 아침에 무엇을 먹나요?\n답:"


def test_tasks_say_what_they_are(tmp_path: Path) -> None:
    def said(folder: Path, task: str) -> dict[str, Any]:
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load([task])["tasks"][task]
        metadata = TaskMetadata(task, loaded.config.metadata)
        return {key: getattr(metadata, key) for key in ("axis", "split", "form", "family", "language")}

    own.write(put(tmp_path, SPANISH), "food", tmp_path / "a")
    common = {"language": "es", "split": "test"}
    assert said(tmp_path / "a", "food_es") == common | {"axis": "localization", "form": "letters", "family": "food"}
    assert said(tmp_path / "a", "food_es_cloze") == common | {
        "axis": "localization",
        "form": "texts",
        "family": "food_cloze",
    }
    arguments = ["--name", "sums", "-o", str(tmp_path / "b"), "--axis", "transfer", "--split", "dev"]
    result = CliRunner().invoke(cli.app, ["data", "import", str(put(tmp_path, PLAIN)), *arguments])
    assert result.exit_code == 0, result.output
    assert said(tmp_path / "b", "sums_en")["family"] == "sums_dev"  # apart from test questions of the same name
    with pytest.raises(DataError, match="--axis 'culture' is unknown; valid: transfer, localization"):
        own.write(put(tmp_path, PLAIN), "sums", tmp_path / "c", axis="culture")


def test_the_bias_is_not_averaged_over_english(tmp_path: Path) -> None:
    english = SPANISH | {"language": "en", "countries": ["US", "Spain", "South_Korea", "Mexico"]}
    own.write(put(tmp_path, SPANISH, english), "food", tmp_path / "tasks")
    results = run(tmp_path / "tasks", "food")
    assert "english_bias" not in scores(results, "food")
    assert "english_bias" in scores(results, "food_en")


def test_documents_are_steered_by_their_language(tmp_path: Path) -> None:
    own.write(put(tmp_path, SPANISH, KOREAN), "food", tmp_path / "tasks")
    plain = run(tmp_path / "tasks", "food_cloze", model=tiny.steered("qwen2"))
    moved = run(tmp_path / "tasks", "food_cloze", model=tiny.steered("qwen2", "en@2:8"))
    for task in ("food_es_cloze", "food_ko_cloze"):
        assert plain["samples"][task][0]["resps"] != moved["samples"][task][0]["resps"]


def test_the_folder_can_be_moved_and_holds_several_imports(tmp_path: Path) -> None:
    own.write(put(tmp_path, PLAIN), "sums", tmp_path / "a")
    own.write(put(tmp_path, SPANISH), "food", tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    results = run(tmp_path / "b", "sums", "food_cloze")
    assert set(results["samples"]) == {"sums_en", "food_es_cloze"}


def test_the_command_makes_tasks_that_the_plain_harness_runs(tmp_path: Path) -> None:
    file = put(tmp_path, {key: value for key, value in PLAIN.items() if key != "language"})
    arguments = ["data", "import", str(file), "--name", "sums", "-o", str(tmp_path / "tasks"), "--lang", "en"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "sums, sums_cloze" in result.output
    command = [sys.executable, "-c", LM_EVAL, "run", "--model", "dummy", "--tasks", "sums,sums_cloze"]
    done = subprocess.run(
        [*command, "--include_path", str(tmp_path / "tasks")],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "sums_en_cloze" in done.stdout


def test_the_version_is_that_of_the_questions(tmp_path: Path) -> None:
    versions = set()
    for number, rows in enumerate([(SPANISH,), (SPANISH,), (SPANISH | {"answer": 1},)]):
        own.write(put(tmp_path, *rows), "food", tmp_path / str(number))
        text = (tmp_path / str(number) / "food.jsonl").read_bytes()
        versions.add(version := own.write(put(tmp_path, *rows), "food", tmp_path / str(number)).version)
        assert version == f"1.0+{hashlib.sha256(text).hexdigest()[:12]}"
    assert len(versions) == 2


@pytest.mark.parametrize(("answer", "gold"), [(2, 2), ("C", 2), ("Kimchi", 2), (" Kimchi ", 2), (0, 0), ("A", 0)])
def test_an_answer_is_a_number_a_letter_or_a_text(tmp_path: Path, answer: object, gold: int) -> None:
    (document,) = own.read(put(tmp_path, SPANISH | {"answer": answer}))
    assert document["gold"] == gold


def test_codes_of_a_language_are_understood(tmp_path: Path) -> None:
    for code in ("ko", "KO", "kor_Hang", "ko-KR"):
        (document,) = own.read(put(tmp_path, KOREAN | {"language": code}))
        assert document["language"] == "ko"


# --- mistakes ---------------------------------------------------------------------------------------------------------

WITHOUT = {key: {k: v for k, v in SPANISH.items() if k != key} for key in SPANISH}
BAD: dict[str, tuple[list[object], str]] = {
    "no question": ([WITHOUT["question"]], "question 1: question is missing; needed: a text"),
    "empty question": ([SPANISH | {"question": " "}], "question is ' '; needed: a text that is not empty"),
    "no options": ([WITHOUT["options"]], "options is missing; needed: a list of 2 to 10 different texts"),
    "one option": ([SPANISH | {"options": ["a"]}], "2 to 10 different texts"),
    "too many options": ([SPANISH | {"options": [str(n) for n in range(11)]}], "2 to 10 different texts"),
    "equal options": ([SPANISH | {"options": ["a", "b", "a", "c"]}], "2 to 10 different texts"),
    "an option is a number": (
        [SPANISH | {"options": ["a", 2, "b", "c"]}],
        "question 1: option 2: got 2; needed: a text that is not empty",
    ),
    "options as a text": ([SPANISH | {"options": "a, b"}], "options is 'a, b'; needed: a list of 2 to 10"),
    "no answer": (
        [WITHOUT["answer"]],
        "answer is missing; needed: the number of an option from 0, its letter, or its text",
    ),
    "answer outside": ([SPANISH | {"answer": 4}], "answer 4 is none of the options: give a number from 0 to 3"),
    "answer is no option": ([SPANISH | {"answer": "Paella"}], "answer 'Paella' is none"),
    "letter outside": ([SPANISH | {"answer": "E"}], "answer 'E' is none"),
    "answer is true": ([SPANISH | {"answer": True}], "answer True is none"),
    "ambiguous answer": ([SPANISH | {"options": ["B", "A", "C", "D"], "answer": "A"}], "may mean two options"),
    "misspelt key": (
        [SPANISH | {"contries": []}],
        "unknown key 'contries', did you mean 'countries'? Valid keys: question, options, answer",
    ),
    "no language": ([WITHOUT["language"]], "language is missing; needed: a code such as ko"),
    "language is no text": ([SPANISH | {"language": False}], "language is False; needed: a code such as ko"),
    "unknown language": ([SPANISH | {"language": "xx"}], "unknown language 'xx'; valid: am, ar"),
    "countries of three options": ([SPANISH | {"countries": ["Spain", "US", "UK"]}], "each of the 4 options"),
    "an option without countries": ([SPANISH | {"countries": ["Spain", [], "UK", "US"]}], "each of the 4 options"),
    "countries as a text": ([SPANISH | {"countries": "Spain"}], "countries is 'Spain'; needed: a list: of each option"),
    "a country is a number": (
        [SPANISH | {"countries": ["Spain", ["US", 1], "UK", "US"]}],
        "country 2.2: got 1; needed: a text",
    ),
    "another name of the US": ([SPANISH | {"countries": ["Spain", "USA", "UK", "Mexico"]}], "'USA': write US"),
    "another name of the UK": (
        [SPANISH | {"countries": ["Spain", "US", ["Great Britain"], "Mexico"]}],
        "'Great Britain': write UK",
    ),
    "countries for some": ([SPANISH, {k: v for k, v in KOREAN.items() if k != "countries"}], "all or to none"),
    "an id twice": ([SPANISH, SPANISH], "id 'breakfast' occurs twice in es"),
    "not an object": ([["a"]], "line 1, is not a JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named_with_its_question(case: str, tmp_path: Path) -> None:
    rows, message = BAD[case]
    with pytest.raises(DataError) as error:
        own.write(put(tmp_path, *rows), "mine", tmp_path / "tasks")
    assert message in str(error.value)
    assert "my.jsonl" in str(error.value)
    assert not (tmp_path / "tasks").exists()


def test_all_mistakes_of_a_question_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        own.read(put(tmp_path, SPANISH | {"language": "xx", "topic": 3, "answr": 1}, KOREAN | {"answer": 9}))
    assert [
        line.partition(";")[0].partition(",")[0].partition(":")[2].strip() for line in str(error.value).splitlines()[1:]
    ] == [
        "language: unknown language 'xx'",
        "topic is 3",
        "unknown key 'answr'",
        "answer 9 is none of the options: give a number from 0 to 3",
    ]


def test_many_mistakes_fit_one_screen(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        own.read(put(tmp_path, *(SPANISH | {"id": str(n), "answer": 9} for n in range(50))))
    assert len(str(error.value).splitlines()) == 12
    assert "and 40 more" in str(error.value)


@pytest.mark.parametrize("name", ["gmmlu", "blend_decon_ko", "gmmlu_fr", "My Task", "food-1", "food_cloze", "", "1st"])
def test_a_name_that_is_taken_or_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        own.write(put(tmp_path, PLAIN), name, tmp_path / "tasks")


def test_an_empty_and_a_cut_off_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        own.read(tmp_path / "my.jsonl")
    (tmp_path / "my.jsonl").write_text('{"question": "x"')
    with pytest.raises(DataError, match="truncated"):
        own.read(tmp_path / "my.jsonl")
