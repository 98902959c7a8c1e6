"""Published question sets: LocQA and SemEval-2026 task 7, on made-up rows in their authors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext.cli import app
from lm_eval_ext.data import published
from lm_eval_ext.errors import DataError

LOCQA = {
    "How old must one be?": {
        "category": "Law",
        "languages": {
            "English": {"translated_question": "How old must one be?", "answers": {"USA": "21", "UK": "18"}},
            "French": {
                "translated_question": "Quel âge ?",
                "answers": {"France": "18 ans", "Canada": "18 ans, 19 ans"},
            },
            "Korean": {"translated_question": "몇 살?", "answers": {"South Korea": "19", "North Korea": "N/A"}},
            "Hebrew": {"translated_question": "גיל?", "answers": {"Israel": "N/A"}},
        },
    },
    "Which coin?": {
        "category": "State and Country",
        "languages": {
            "French": {
                "translated_question": "Quelle monnaie ?",
                "answers": {"France": "Euro ", "Belgium": "Euro", "Canada": "Dollar", "Switzerland": "Franc"},
            },
            "Chinese": {
                "translated_question": "货币？",
                "answers": {"China\n(Chinese)": "人民币", "Singapore\n(Chinese)": "新加坡元"},
            },
        },
    },
}


def put(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, "utf-8")
    return file


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "import", *map(str, arguments)])
    return result.exit_code, result.output.replace("\n", " ")


# --- LocQA ------------------------------------------------------------------------------------------------------------


def test_locqa(tmp_path: Path) -> None:
    lines, report = published.read("locqa", put(tmp_path, "locqa.json", json.dumps(LOCQA)))
    by_key = {(line["id"], line["language"]): line for line in lines}
    assert set(by_key) == {("locqa-00", "en"), ("locqa-00", "ko"), ("locqa-01", "fr"), ("locqa-01", "zh")}
    age = by_key["locqa-00", "ko"]  # figures of any country; not of one that has no answer
    assert dict(zip(age["options"], age["countries"], strict=True)) == {
        "19": ["South Korea"],
        "21": ["US"],
        "18": ["UK"],
    }
    assert (age["options"][age["answer"]], age["topic"]) == ("19", "Law")
    coin = by_key["locqa-01", "fr"]
    assert dict(zip(coin["options"], coin["countries"], strict=True)) == {
        "Euro": ["France", "Belgium"],
        "Dollar": ["Canada"],
        "Franc": ["Switzerland"],
    }
    assert by_key["locqa-01", "zh"]["countries"] in ([["China"], ["Singapore"]], [["Singapore"], ["China"]])
    assert report.left_out == {
        "no other answer to choose from": {"fr": 1},  # `18 ans` is among `18 ans, 19 ans`
        "no answer of the language's own country": {"he": 1},
    }
    assert report.notes == ["13 answers to 2 questions were read"]


def test_locqa_becomes_tasks_that_run(tmp_path: Path) -> None:
    file = put(tmp_path, "locqa.json", json.dumps(LOCQA))
    status, text = run(file, "--format", "locqa", "--name", "locqa", "--out", tmp_path / "tasks")
    assert status == 0, text
    assert "kept: en 1, ko 1, zh 1, fr 1" in text
    assert not (tmp_path / "tasks" / ".gitignore").exists()
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    tasks = ["locqa_fr", "locqa_zh_cloze"]
    evaluated: Any = simple_evaluate(tiny.hf("llama"), tasks=tasks, task_manager=manager, bootstrap_iters=0)
    assert {"acc,none", "english_bias,none"} <= set(evaluated["results"]["locqa_fr"])
    assert evaluated["configs"]["locqa_zh_cloze"]["metadata"]["axis"] == "localization"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is not locqa.json as google-research-datasets/locqa publishes it"),
        (json.dumps({"q": {"category": "Law"}}), "KeyError('languages')"),
        (
            json.dumps({"q": {"category": "c", "languages": {"Latin": {"translated_question": "?", "answers": {}}}}}),
            "unknown language 'Latin' of 'q'; valid: English, Spanish",
        ),
        ("{", "is not JSON"),
    ],
)
def test_other_shapes_of_locqa(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        published.read("locqa", put(tmp_path, "locqa.json", text))
    assert message in str(caught.value)


# --- SemEval ----------------------------------------------------------------------------------------------------------

TRIAL = (
    "index\tlang_reg\tquestion\tmultiple_choice_options\tcorrect_answer\r\n"
    '1\tel-GR\tΠοιο;\t"Ένα \nΔύο\nΤρία"\tΔύο\r\n'
    '2\ttl-PH\t"Ano ang ""isa""?"\t"Isa\nDalawa"\tIsa\r\n'
    '3\teu-ES\tZein?\t"Bat\nBi"\tBat\r\n'
    '4\tes-EC\t¿Cuál?\t"Uno\nDos"\tTres\r\n'
)
QUESTIONS = (
    "id\tquestion\toption_A\toption_B\toption_C\toption_D\n"
    "ga-IE_0001\tWhat is eaten in Ireland?\tstew\trice\tbread\tsoup\n"
    "ko-KR_0002\tWhat is eaten in South Korea?\tstew\trice\tbread\tsoup\n"
)
ANSWERS = "id\tanswer\nga-IE_0001\tA\nko-KR_0002\tB\n"


def test_the_trial_data(tmp_path: Path) -> None:
    lines, report = published.read("semeval2026", put(tmp_path, "trial.tsv", TRIAL))
    assert [(line["id"], line["language"], line["options"], line["answer"], line["topic"]) for line in lines] == [
        ("el-GR_1", "el", ["Ένα", "Δύο", "Τρία"], "Δύο", "el-GR"),
        ("tl-PH_2", "fil", ["Isa", "Dalawa"], "Isa", "tl-PH"),
    ]
    assert lines[1]["question"] == 'Ano ang "isa"?'
    assert report.left_out == {
        "no words for a prompt in the language": {"eu": 1},
        "the answer is none of the options": {"es": 1},
    }


def test_questions_with_the_answers_apart_are_imported_for_evaluation_only(tmp_path: Path) -> None:
    questions, answers = put(tmp_path, "q.tsv", QUESTIONS), put(tmp_path, "a.tsv", ANSWERS)
    out = tmp_path / "tasks"
    command = (questions, "--format", "semeval2026", "--name", "semeval7", "--out", out)
    status, text = run(*command, "--answers", answers)
    assert (status, "ko-KR_0002 is not in the language of its locale" in text, "say --lang en" in text) == (
        2,
        True,
        True,
    )
    status, text = run(*command, "--answers", answers, "--lang", "en")
    assert status == 0, text
    assert (out / ".gitignore").read_text() == "semeval7.jsonl\n"
    rows = [json.loads(line) for line in (out / "semeval7.jsonl").read_text("utf-8").splitlines()]
    assert [(row["language"], row["gold"], row["topic"]) for row in rows] == [("en", 0, "ga-IE"), ("en", 1, "ko-KR")]
    run(*command, "--answers", answers, "--lang", "en")
    assert (out / ".gitignore").read_text() == "semeval7.jsonl\n"
    status, text = run(*command, "--answers", answers, "--lang", "en", "--split", "dev")
    assert (status, "evaluation only" in text) == (2, True)


@pytest.mark.parametrize(
    ("text", "answers", "message"),
    [
        (QUESTIONS, None, "has no answers: give the file with the columns id and answer"),
        (QUESTIONS, "id\tanswer\nga-IE_0001\tA\n", "has no answer to ko-KR_0002"),
        (QUESTIONS, "id\tA\tB\tC\tD\n", "must have the columns id and answer, it has id, A, B, C, D"),
        (TRIAL, ANSWERS, "has its answers in the column correct_answer"),
        (ANSWERS, None, "these are the answers"),
        ("id\ttext\nam-ET_001\t?\n", None, "short answers (track 1)"),
        ("question\tanswer\n", None, "it must have the columns index, lang_reg, question"),
        (QUESTIONS + "el-GR_0003\tonly this\n", ANSWERS, "line 4: it must have 6 cells"),
    ],
)
def test_other_shapes_of_semeval(tmp_path: Path, text: str, answers: str | None, message: str) -> None:
    apart = None if answers is None else put(tmp_path, "a.tsv", answers)
    with pytest.raises(DataError) as caught:
        published.read("semeval2026", put(tmp_path, "q.tsv", text), apart)
    assert message in str(caught.value)


def test_other_mistakes(tmp_path: Path) -> None:
    file = put(tmp_path, "locqa.json", json.dumps(LOCQA))
    for arguments, message in (
        (("--format", "blend"), "--format 'blend' is unknown; valid: locqa, semeval2026"),
        (("--answers", file), "--format '' is unknown"),
        (("--format", "locqa", "--lang", "ko"), "are not for --format locqa"),
    ):
        status, text = run(file, "--name", "x", "--out", tmp_path / "tasks", *arguments)
        assert (status, message in text) == (2, True), text
