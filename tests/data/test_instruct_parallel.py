"""Parallel text: corpora and the tasks made of them, and tuples by machine translation, with a tiny random model."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import M2M100Config, M2M100ForConditionalGeneration, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lm_eval_ext.cli import app
from lm_eval_ext.data import instruct, parallel
from lm_eval_ext.data.instruct import Instruction, Report
from lm_eval_ext.errors import DataError, ModelError
from lm_eval_ext.models import translation

ROWS = [
    Instruction("1", "en", "What is this?\n\n- one\n- two", "This is a thing."),
    Instruction("2", "en", "Who is it?", "It is you.", cultural=True, source="me", split="held_out"),
]


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sib200_kor_Hang", "SIB-200", "flores_en-ko", "belebele_kor_Hang"])
def test_sib200_and_belebele_are_flores(task: str) -> None:
    with pytest.raises(DataError, match="corpus, such as ntrex"):
        parallel.refuse_mixing("flores", ["gmmlu_ko", task])
    parallel.refuse_mixing("ntrex", [task])
    parallel.refuse_mixing("mini", [task])


# --- translation ------------------------------------------------------------------------------------------------------


def translator(folder: Path, *specials: str, longest: int = 64) -> Path:
    """A random encoder-decoder whose tokenizer knows some languages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["This is a thing. Who is it? one two"],
        trainers.BpeTrainer(
            special_tokens=["<s>", "</s>", "<pad>", *specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            vocab_size=320,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=longest
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(fast),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        decoder_start_token_id=1,
    )
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def settings(model: Path | str) -> translation.Settings:
    return translation.Settings(str(model), batch_size=2, beams=1)


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("nllb"), "eng_Latn", "kor_Hang", "ell_Grek")


def test_tuples_by_translation_keep_lines_and_what_the_rows_say(nllb: Path, tmp_path: Path) -> None:
    report = Report()
    done: list[int] = []
    made = translation.tuples(ROWS, ["ko", "el"], tmp_path / "c.sqlite", settings(nllb), report, done.append)
    assert [(row.id, row.language) for row in made] == [("1", "ko"), ("2", "ko"), ("1", "el"), ("2", "el")]
    assert sum(done) == 2 * len(translation.lines(ROWS)) == 12
    first, second = made[:2]
    assert (first.x_en, first.y_en) == (ROWS[0].prompt, ROWS[0].response)
    assert first.x_xx.split("\n")[1] == ""
    assert len(first.x_xx.split("\n")) == 4
    assert (second.cultural, second.split, second.source) == (True, "held_out", f"me, translated by {nllb}")
    assert (report.kept["ko"], report.left_out) == (2, {})


def test_a_stopped_run_goes_on_where_it_was(nllb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "c.sqlite"
    whole = translation.tuples(ROWS, ["ko"], tmp_path / "other.sqlite", settings(nllb), Report())
    asked: list[str] = []
    translate = translation._Model.__call__

    def counted(self: Any, lines: list[str]) -> list[str]:
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(lines)
        return translate(self, lines)

    monkeypatch.setattr(translation._Model, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        translation.tuples(ROWS, ["ko"], cache, settings(nllb), Report())
    assert len(asked) == 4
    before, asked = list(asked), []
    assert translation.tuples(ROWS, ["ko"], cache, settings(nllb), Report()) == whole
    assert not set(before) & set(asked)
    assert len(before) + len(asked) == len(translation.lines(ROWS))
    monkeypatch.setattr(translation, "_Model", None)  # everything is known: no model is loaded
    assert translation.tuples(ROWS, ["ko"], cache, settings(nllb), Report()) == whole


def test_the_cache_is_by_model_and_language(nllb: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.sqlite"
    korean = translation.translate(["Who is it?"], "ko", cache, settings(nllb))
    translation.translate(["Who is it?"], "el", cache, settings(nllb))
    with sqlite3.connect(cache) as database:
        rows = list(database.execute("SELECT language, line, translation FROM lines ORDER BY language"))
    assert [row[:2] for row in rows] == [("el", "Who is it?"), ("ko", "Who is it?")]
    assert rows[1][2] == korean["Who is it?"]


def test_the_model_is_told_the_language(tmp_path: Path, nllb: Path) -> None:
    m2m = translator(tmp_path / "m2m", "__en__", "__ko__")
    madlad = translator(tmp_path / "madlad", "<2ko>")
    own = translator(tmp_path / "opus-en-ko")
    told = {path.name: translation._Model(settings(path), "ko") for path in (nllb, m2m, madlad)}
    assert [(model.prefix, model.first_token is None) for model in told.values()] == [
        ("", False),
        ("", False),
        ("<2ko> ", True),
    ]
    assert told[m2m.name].tokenizer.convert_ids_to_tokens(told[m2m.name].first_token) == "__ko__"
    assert translation._Model(settings(own.with_name("opus-en-{language}")), "ko").first_token is None
    with pytest.raises(ModelError, match="has no token for ar"):
        translation._Model(settings(nllb), "ar")


def test_lines_that_are_too_long_cost_their_tuple_and_are_counted(tmp_path: Path) -> None:
    model = translator(tmp_path / "m", "eng_Latn", "kor_Hang", longest=12)
    rows = [*ROWS, Instruction("3", "en", "Who is it? " * 20, "It is you."), Instruction("4", "el", "Γεια", "Ναι")]
    report = Report()
    made = translation.tuples(rows, ["ko"], tmp_path / "c.sqlite", settings(model), report)
    assert "3" not in {row.id for row in made}
    assert report.left_out["too long to translate, or the translation is empty"]["ko"] == 3 - len(made)
    assert report.left_out["not in English, so not translated"]["el"] == 1


def test_nothing_to_translate_and_a_damaged_cache_are_errors(nllb: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no English instruction"):
        translation.tuples([Instruction("4", "el", "Γεια", "Ναι")], ["ko"], tmp_path / "c", settings(nllb), Report())
    (tmp_path / "c").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="the translation cache"):
        translation.tuples(ROWS, ["ko"], tmp_path / "c", settings(nllb), Report())


def test_the_command_translates(nllb: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "tuples.jsonl"
    instruct.write(file, ROWS)
    arguments = [file, "--languages", "ko,el", "--translate", nllb, "--translations", tmp_path / "c", "--out", out]
    result = CliRunner().invoke(app, ["data", "instruct", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert {(row.id, row.language) for row in instruct.load_tuples(out, split=None)[0]} == {
        (n, code) for n in "12" for code in ("ko", "el")
    }
