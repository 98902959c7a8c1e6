"""Instructions and tuples: what is taken, what is refused, and that nothing is left out without a count."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lm_eval_ext.cli import app
from lm_eval_ext.data import instruct, oasst
from lm_eval_ext.data.instruct import Instruction, Report, Tuple
from lm_eval_ext.errors import DataError, UserError

ROW: dict[str, Any] = {"id": "1", "language": "el", "prompt": "Πόσο κάνει 2 και 2;", "response": "Κάνει 4."}
TUPLE: dict[str, Any] = {
    "id": "1",
    "language": "ko",
    "x_en": "What is 2 and 2?",
    "y_en": "It is 4.",
    "x_xx": "2 더하기 2는?",
    "y_xx": "4입니다.",
}


def jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "instruct", *map(str, arguments)])
    return result.exit_code, result.output


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response": None}, "response must be a text that is not empty"),
        ({"prompt": "  "}, "prompt must be a text that is not empty"),
        ({"prompt": ["a"]}, "prompt must be a text that is not empty"),
        ({"language": "gr"}, "unknown language 'gr'; valid: en, es"),
        ({"language": 3}, "unknown language '3'"),
        ({"split": "test"}, "unknown split 'test'; valid: train, held_out"),
        ({"cultural": "yes"}, "cultural must be true or false"),
        ({"history": [["user", "a"]]}, "ending with the assistant"),
        ({"history": [["assistant", "a"], ["user", "b"]]}, "history must be pairs"),
        ({"history": "before"}, "history must be pairs"),
        ({"id": None}, "id must be a text"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "id": "2", **change}) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        instruct.load(file)
    assert "1 of its 2 rows are wrong" in str(refused.value)
    assert "line 3: " in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("field", ["id", "language", "prompt", "response"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(DataError, match=f"line 1: misses {field}; it has"):
        instruct.load(jsonl(tmp_path, row))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**TUPLE, "language": "en"}], "language must not be en"),
        ([{**TUPLE, "x_xx": TUPLE["x_en"]}], "x_en and x_xx are the same text"),
        ([TUPLE, TUPLE], "occurs twice in ko, first in line 1"),
        ([TUPLE, {**TUPLE, "language": "zh", "y_en": "It is 5."}], "English side in zh is not that in ko"),
        ([ROW], "misses x_en, y_en, x_xx, y_xx"),
    ],
)
def test_mismatched_tuples_are_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError) as refused:
        instruct.load_tuples(jsonl(tmp_path, *rows))
    assert said in str(refused.value)


def test_a_file_with_many_wrong_rows_says_how_many(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30 of its 30 rows are wrong") as refused:
        instruct.load(jsonl(tmp_path, *[{**ROW, "id": str(i), "prompt": ""} for i in range(30)]))
    assert str(refused.value).count("line ") == 10


def test_a_wanted_language_without_rows_is_an_error_with_numbers(tmp_path: Path) -> None:
    file = jsonl(tmp_path, ROW, {**ROW, "id": "2", "prompt": "b", "split": "held_out"})
    with pytest.raises(DataError) as refused:
        instruct.load(file, ["el", "zh"])
    assert "no row in zh for train" in str(refused.value)
    assert "kept: el 1" in str(refused.value)
    assert "in the split held_out: el 1" in str(refused.value)


def test_everything_that_is_left_out_is_counted(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "id": "2"},
        {**ROW, "id": "3", "prompt": "Γεια;"},
        {**ROW, "id": "4", "prompt": "ΓΕΙΑ!", "split": "held_out"},
        {**ROW, "id": "5", "language": "ko"},
        {**ROW, "id": "6", "prompt": "μακρύ " * 50, "quality": 1},
    ]
    kept, report = instruct.load(jsonl(tmp_path, *rows), ["el"])
    assert [row.id for row in kept] == ["1", "6"]
    short = instruct.within(kept, 100, lambda row: len(row.prompt), "characters", report)
    assert [row.id for row in short] == ["1"]
    assert {reason: dict(counts) for reason, counts in report.left_out.items()} == {
        "repeated": {"el": 1},
        "asked in the split held_out too": {"el": 1},
        "in the split held_out": {"el": 1},
        "in a language that is not wanted": {"ko": 1},
        "longer than 100 characters": {"el": 1},
    }
    assert sum(report.kept.values()) + sum(sum(c.values()) for c in report.left_out.values()) == len(rows)
    assert report.notes == [f"{tmp_path / 'rows.jsonl'}: ignored 'quality' of 1 rows"]


def test_both_sides_of_tuples_are_instructions(tmp_path: Path) -> None:
    tuples = instruct.load_tuples("mini", ["ko", "zh"], split=None)[0]
    instruct.write(tmp_path / "tuples.jsonl", tuples)
    said = {(row.id, row.language, row.prompt, row.response, row.split) for row in instruct.load("mini", split=None)[0]}
    rows = instruct.load(tmp_path / "tuples.jsonl", split=None)[0]
    found = {(row.id, row.language, row.prompt, row.response, row.split) for row in rows}
    assert len(rows) == len(found) == 300
    assert found == {row for row in said if row[1] in ("en", "ko", "zh")}


def test_tuples_that_show_no_preference_are_noted(tmp_path: Path) -> None:
    _, report = instruct.load_tuples(jsonl(tmp_path, {**TUPLE, "y_xx": TUPLE["y_en"]}))
    assert report.notes == ["1 tuples have one answer for both languages: they show no preference"]


texts = st.text(min_size=1).filter(lambda text: text == text.strip() and "\0" not in text)


@given(
    st.lists(
        st.builds(
            Instruction,
            id=texts,
            language=st.sampled_from(["en", "ko"]),
            prompt=texts,
            response=texts,
            cultural=st.booleans(),
            source=texts,
            split=st.sampled_from(instruct.SPLITS),
            history=st.sampled_from([(), (("user", "a"), ("assistant", "b"))]),
        ),
        min_size=1,
        unique_by=lambda row: (row.language, row.id),
    )
)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: list[Instruction]) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    instruct.write(file, rows)
    again, _ = instruct.read(Instruction, file)
    assert again == rows
    assert instruct.sha256(again) == instruct.sha256(rows)


def test_the_hash_is_of_what_the_rows_say(tmp_path: Path) -> None:
    plain = instruct.load(jsonl(tmp_path, ROW))[0]
    spelled = instruct.load(jsonl(tmp_path, {"split": "train", **ROW, "extra": 1}, name="b.jsonl"))[0]
    other = instruct.load(jsonl(tmp_path, {**ROW, "response": "Κάνει 5."}, name="c.jsonl"))[0]
    assert instruct.sha256(plain) == instruct.sha256(spelled) != instruct.sha256(other)


def test_holding_out_keeps_an_id_together() -> None:
    rows = [
        Instruction(f"{n}/{turn}", code, f"{n} {turn}", "a")
        for n in range(500)
        for turn in (1, 2)
        for code in ("en", "el")
    ]
    split = instruct.hold_out(rows, 0.2)
    held_out = {row.id.partition("/")[0] for row in split if row.split == "held_out"}
    assert 60 < len(held_out) < 140
    assert not held_out & {row.id.partition("/")[0] for row in split if row.split == "train"}
    with pytest.raises(DataError, match="from 0 to below 1, got 1"):
        instruct.hold_out(rows, 1)


def test_pairing_up_counts_what_has_no_counterpart() -> None:
    rows = [
        Instruction("1", "en", "Hello?", "Hi."),
        Instruction("1", "el", "Γεια;", "Γεια."),
        Instruction("2", "ko", "안녕?", "안녕."),
        Instruction("3", "en", "Why?", "So."),
        Instruction("4", "en", "OK?", "Yes."),
        Instruction("4", "es", "OK?", "Sí."),
        Instruction("5", "en", "Who?", "You.", split="held_out"),
        Instruction("5", "es", "¿Quién?", "Tú."),
    ]
    report = Report()
    assert instruct.pair_up(rows, report) == [Tuple("1", "el", "Hello?", "Hi.", "Γεια;", "Γεια.")]
    assert {reason: sum(counts.values()) for reason, counts in report.left_out.items()} == {
        "not in English": 1,
        "in no other language": 1,
        "the same prompt as in English": 1,
        "in another split than in English": 1,
    }


# --- OpenAssistant ----------------------------------------------------------------------------------------------------


def message(text: str, role: str = "assistant", lang: str = "en", replies: tuple[Any, ...] = (), **more: Any) -> Any:
    return {"message_id": text, "text": text, "role": role, "lang": lang, "replies": list(replies), **more}


def tree(prompt: Any, state: str = "ready_for_export") -> dict[str, Any]:
    return {"message_tree_id": f"t-{prompt['text']}", "tree_state": state, "prompt": prompt}


def asked(text: str, *replies: Any, lang: str = "en", **more: Any) -> Any:
    return message(text, "prompter", lang, replies, **more)


CONVERSATION = tree(
    asked(
        "Q1",
        message("worse", rank=1),
        message("A1", rank=0, replies=(asked("Q2", message("A2"), message("in Greek", lang="el", rank=0)),)),
        message("unranked"),
        message("removed", rank=-1, deleted=True),
        message("rejected", rank=-2, review_result=False),
    )
)
TREES = [
    CONVERSATION,
    tree(asked("no reply")),
    tree(asked("only Spanish", message("sí", lang="es"))),
    tree(asked("German", lang="de")),
    tree(asked("bad", message("A"), deleted=True)),
    tree(asked("growing", message("A")), state="growing"),
]


def flat(trees: list[Any]) -> list[dict[str, Any]]:
    rows = []

    def visit(node: Any, parent: str | None, root: Any) -> None:
        rows.append({key: value for key, value in node.items() if key != "replies"} | {"parent_id": parent} | root)
        for reply in node["replies"]:
            visit(reply, node["message_id"], root)

    for number, one in enumerate(trees):
        unique = json.loads(json.dumps(one["prompt"]))

        def rename(node: Any, number: int = number) -> None:
            node["message_id"] = f"{number}-{node['message_id']}"
            for reply in node["replies"]:
                rename(reply, number)

        rename(unique)
        visit(unique, None, {"message_tree_id": one["message_tree_id"], "tree_state": one["tree_state"]})
    return rows


@pytest.mark.parametrize("form", ["trees", "trees.gz", "messages"])
def test_the_best_ranked_reply_of_trees_that_are_ready(tmp_path: Path, form: str) -> None:
    file = jsonl(tmp_path, *(flat(TREES) if form == "messages" else TREES))
    if form == "trees.gz":
        packed = tmp_path / "rows.jsonl.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        file = packed
    rows, report = oasst.load(str(file))
    assert [(row.prompt, row.response, row.language, row.history) for row in rows] == [("Q1", "A1", "en", ())]
    assert "in another language than the seven: others 1" in str(report)
    assert {reason: dict(counts) for reason, counts in report.left_out.items()} == {
        "no usable reply in the same language": {"en": 2},
        "in another language than the seven": {"others": 1},
        "prompt deleted, rejected or empty": {"en": 1},
        "tree is growing, not ready_for_export": {"en": 1},
    }


def test_multi_turn_goes_on_in_the_same_language(tmp_path: Path) -> None:
    rows, _ = oasst.load(str(jsonl(tmp_path, CONVERSATION)), multi_turn=True)
    assert [(row.id, row.prompt, row.response, row.history) for row in rows] == [
        ("t-Q1/1", "Q1", "A1", ()),
        ("t-Q1/2", "Q2", "A2", (("user", "Q1"), ("assistant", "A1"))),
    ]


def test_the_real_files(shared_data: Path) -> None:
    english, report = oasst.load(str(shared_data / "instruct" / "oasst_en100_messages.jsonl"), state="")
    assert (len(english), dict(report.left_out)) == (100, {})
    chinese, report = oasst.load(str(shared_data / "instruct" / "oasst1_zh_sft.json"), language="zh")
    assert (len(chinese), report.left_out["later turn of a conversation"]["zh"]) == (242, 524)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a"}], "its first row has text; known are"),
        ([{"message_tree_id": "t", "prompt": {"lang": "en"}, "tree_state": "ready_for_export"}], "damaged"),
        ([{"message_tree_id": "t", "prompt": "?"}], "damaged"),
        ([{"instruction": "a", "output": "b"}], "give it with --lang"),
        (
            [{"message_id": "1", "parent_id": "0", "role": "prompter", "text": "?"}],
            "reply to one that is not in the file",
        ),
        ([tree(asked("growing", message("A")), state="growing")], "--tree-state"),
    ],
)
def test_unknown_and_damaged_files_are_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError) as refused:
        oasst.load(str(jsonl(tmp_path, *rows)))
    assert said in str(refused.value)


def test_a_release_is_taken_from_the_mirror_only_as_it_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / oasst.RELEASES["oasst1"]
    file.parent.mkdir()
    file.write_bytes(gzip.compress(json.dumps(CONVERSATION).encode()))
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="is not the upstream file"):
        oasst.load("oasst1")
    monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
    assert oasst.load("oasst1")[0][0].source == "oasst1"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_and_prints_the_counts(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    file = jsonl(tmp_path, *TREES)
    code, said = run(file, "--multi-turn", "--max-chars", 7, "--out", out)
    assert code == 0, said
    kept, _ = instruct.load(out)
    assert [row.prompt for row in kept] == ["Q1"]
    for line in ("kept", "longer than 7 characters", "no usable reply in the same language", instruct.sha256(kept)):
        assert line in said


def test_the_command_makes_tuples_of_mini(tmp_path: Path) -> None:
    out = tmp_path / "tuples.jsonl"
    code, said = run("mini", "--parallel", "--languages", "ko,zh", "--out", out)
    assert code == 0, said
    made, _ = instruct.load_tuples(out, split=None)
    wanted = [row for row in instruct.load_tuples("mini", split=None)[0] if row.language in ("ko", "zh")]
    assert sorted(map(repr, made)) == sorted(map(repr, wanted))
    again = tmp_path / "again.jsonl"
    code, said = run(out, "--languages", "en,zh", "--out", again)
    assert (code, {row.language for row in instruct.load_tuples(again, split=None)[0]}) == (0, {"zh"}), said


def test_the_command_splits_and_limits(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = [{**ROW, "id": str(n), "prompt": f"{n};"} for n in range(50)]
    code, said = run(jsonl(tmp_path, *rows), "--limit", 40, "--held-out", 0.3, "--out", out)
    assert code == 0, said
    train, held_out = instruct.load(out)[0], instruct.load(out, split="held_out")[0]
    assert (len(train) + len(held_out), f"held out: el {len(held_out)}" in said) == (40, True)
    assert "beyond the first 40" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.jsonl"], "no file 'nothing.jsonl'; built in: mini, oasst1, oasst2"),
        (["mini", "--languages", "xx"], "unknown language 'xx'"),
        (["mini", "--held-out", "2"], "from 0 to below 1"),
        (["mini", "--max-chars", "3"], "no rows are left"),
        (["mini", "--languages", "el", "--translate", "/nowhere/a/model"], "cannot load the model '/nowhere/a/model'"),
    ],
)
def test_mistakes_end_with_status_two(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_CACHE", str(tmp_path))
    code, output = run(*arguments)
    assert code == 2
    assert said in output
    assert "Traceback" not in output


def test_user_errors_are_what_a_disk_without_room_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = jsonl(tmp_path, ROW, name="out.jsonl").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        instruct.write(tmp_path / "out.jsonl", [])
    monkeypatch.undo()
    assert (tmp_path / "out.jsonl").read_bytes() == before
