"""Extraction: the vectors are the mean differences of hidden states, whatever the batches, and cost no more than needed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import gmmlu_mirror, tiny
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.data import pairs
from lm_eval_ext.data.pairs import Pair, PairSet
from lm_eval_ext.errors import DataError, ModelError, PlanError
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.steering.extraction import extract, parse_layers
from lm_eval_ext.steering.pooling import POOLINGS, Pooling
from lm_eval_ext.steering.vectors import SteeringVectors, VectorSet

pytestmark = pytest.mark.transformers4

PAIRS = tuple(
    Pair(tiny.TEXTS["en"][: 9 + 5 * i], tiny.TEXTS[language][i : 6 + 3 * i])
    for i, language in enumerate(["ko", "es", "zh", "ko", "es", "zh", "ko"])
)
PAIR_SET = PairSet("en", "ko", "test", PAIRS)


def naive(family: str, pair_set: PairSet, layers: list[int], pooling: Pooling) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and residual norms with one text at a time, in float64, from `output_hidden_states`."""
    model = tiny.load(family).double()
    tokenizer = tiny.load_tokenizer(family)
    first = int(tiny.has_bos(family))  # a beginning-of-sequence token would outweigh all others in a mean

    def pooled(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        # The last entry of `hidden_states` is normalised: the block's own output is read by a hook instead.
        last: list[torch.Tensor] = []
        handle = decoder_layers(model)[-1].register_forward_hook(
            lambda _, __, out: last.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            model(ids)
        handle.remove()
        rows = [last[0] if layer == tiny.LAYERS - 1 else states[layer + 1] for layer in layers]
        tokens = torch.stack([row[0, -1:] if pooling == "last" else row[0, first:] for row in rows])
        return tokens.mean(1), tokens.norm(dim=-1).mean(1)

    found = [(pooled(pair.positive), pooled(pair.negative)) for pair in pair_set.pairs]
    vectors = torch.stack([positive[0] - negative[0] for positive, negative in found]).mean(0)
    norms = torch.stack([side[1] for pair in found for side in pair]).mean(0)
    return vectors, norms


def run(family: str, pooling: Pooling, layers: tuple[int, ...] = (0, 2, 3), **options: Any) -> SteeringVectors:
    vectors = extract(
        tiny.load(family), tiny.load_tokenizer(family), PAIR_SET, layers=layers, pooling=pooling, **options
    )
    return vectors.vectors["en", "ko"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_vectors_equal_a_naive_computation_in_float64(family: str, pooling: Pooling) -> None:
    found = run(family, pooling, batch_size=3)
    vectors, norms = naive(family, PAIR_SET, [0, 2, 3], pooling)
    assert found.tensors["vector"].dtype == torch.float32
    torch.testing.assert_close(found.tensors["vector"].double(), vectors, rtol=0, atol=2e-5 * float(norms.max()))
    torch.testing.assert_close(torch.tensor(found.info.residual_norms).double(), norms, rtol=1e-4, atol=0)
    assert found.info.n_pairs == len(PAIRS)
    assert found.info.source_sha256 == PAIR_SET.sha256
    assert (found.info.layers, found.info.pooling, found.info.dtype) == ((0, 2, 3), pooling, "float32")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt2"])
def test_batch_size_does_not_matter(family: str, pooling: Pooling) -> None:
    one = run(family, pooling, batch_size=1)
    for size in (2, 5, 64):
        torch.testing.assert_close(
            run(family, pooling, batch_size=size).tensors["vector"], one.tensors["vector"], rtol=0, atol=2e-5
        )


class Counted:
    """How often each decoder layer of a model was called."""

    def __init__(self, model: Any) -> None:
        self.calls = [0] * tiny.LAYERS
        for number, layer in enumerate(decoder_layers(model)):
            layer.register_forward_pre_hook(self._count(number))

    def _count(self, number: int) -> Any:
        def count(*_: object) -> None:
            self.calls[number] += 1

        return count


@pytest.mark.parametrize(("layers", "calls"), [((1,), [7, 7, 0, 0]), ((2, 0), [7, 7, 7, 0]), ((3,), [7, 7, 7, 7])])
def test_a_forward_ends_at_the_deepest_layer(layers: tuple[int, ...], calls: list[int]) -> None:
    model = tiny.load("llama")
    head: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda *_: head.append(1))
    counted = Counted(model)
    extract(model, tiny.load_tokenizer("llama"), PAIR_SET, layers=layers, pooling="last", batch_size=2)
    assert counted.calls == calls
    assert not head


def test_no_activations_and_no_hooks_are_kept() -> None:
    model = tiny.load("llama")
    before = sum(len(module._forward_hooks) for module in model.modules())
    many = PairSet("en", "ko", "test", PAIRS * 40)

    def alive(_: int) -> None:
        gc.collect()
        held.append(sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[-1:] == (32,)))

    held: list[int] = []
    extract(
        model, tiny.load_tokenizer("llama"), many, layers=(0, 1, 2, 3), pooling="mean", batch_size=70, progress=alive
    )
    assert len(held) == 8
    assert max(held[-2:]) < held[0] + 70 * 32 * 60  # as much after the last batch as after the first
    assert sum(len(module._forward_hooks) for module in model.modules()) == before


def test_progress_counts_texts() -> None:
    done: list[int] = []
    run("llama", "last", batch_size=4, progress=done.append)
    assert done == [4, 4, 4, 2]


def test_a_model_wrapped_by_peft() -> None:
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(tiny.load("llama"), tiny.adapter("llama")).eval()
    merged = PeftModel.from_pretrained(tiny.load("llama"), tiny.adapter("llama")).merge_and_unload().eval()
    tokenizer = tiny.load_tokenizer("llama")
    values = [
        extract(model, tokenizer, PAIR_SET, layers=(1, 3), pooling="last").vectors["en", "ko"].tensors["vector"]
        for model in (adapted, merged)
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)
    assert not torch.allclose(values[0], run("llama", "last", (1, 3)).tensors["vector"], atol=1e-2)


def test_states_that_overflow_are_refused() -> None:
    model = tiny.load("llama")
    with torch.no_grad():
        decoder_layers(model)[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="en/ko are not finite; use dtype=bfloat16 or float32"):
        extract(model, tiny.load_tokenizer("llama"), PAIR_SET, layers=(1,), pooling="last")
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


@pytest.mark.parametrize(
    ("pair_list", "layers", "error", "expected"),
    [
        ((), (1,), DataError, "no 'en' pairs of language 'ko' in test"),
        ((Pair("a", "b" * 999),), (1,), DataError, "the model's context is 128"),
        ((Pair("", "b"),), (1,), DataError, "has no tokens"),
        (PAIRS, (4,), PlanError, "layers [4] cannot be extracted; the model has 0-3"),
        (PAIRS, (), PlanError, "layers none cannot be extracted"),
    ],
)
def test_mistakes(pair_list: tuple[Pair, ...], layers: tuple[int, ...], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as caught:
        extract(
            tiny.load("llama"),
            tiny.load_tokenizer("llama"),
            PairSet("en", "ko", "test", pair_list),
            layers=layers,
            pooling="last",
        )
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", list(range(48))),
        ("20,28", [20, 28]),
        ("42%,58%", [20, 28]),
        ("28,20,20", [20, 28]),
        ("18-20,40%-42%", [18, 19, 20]),
    ],
)
def test_layers_to_extract(text: str, layers: list[int]) -> None:
    assert parse_layers(text, 48) == layers


@pytest.mark.parametrize(
    "text", ["", "x", "5:3", "5/last", "5+x@7", "48", "5,", "5, 6", "-1", "7-5", "200%", "5.5", "٣"]
)
def test_layers_that_cannot_be_extracted(text: str) -> None:
    with pytest.raises(PlanError):
        parse_layers(text, 48)


@given(st.text(alphabet="0123456789%-,. al", max_size=9))
@settings(max_examples=200)
def test_any_text_is_layers_or_a_plan_error(text: str) -> None:
    try:
        layers = parse_layers(text, 12)
    except PlanError:
        return
    assert layers == sorted(set(layers))
    assert set(layers) <= set(range(12))


# Pairs of one's own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    file = tmp_path / "formal.tsv"
    rows = [
        ("ko", "안녕하십니까", "안녕"),
        ("ko-KR", "감사합니다", "고마워"),
        ("zh", "您好", "你好"),
        ("fr", "vous", "tu"),
    ]
    rows.append(("any", "Good evening", "hi"))
    file.write_text("\r\n".join(["language\tpositive\tnegative", *map("\t".join, rows)]), encoding="utf-8")
    return file


def test_pairs_of_a_file(tsv: Path) -> None:
    found = {s.language: s for s in pairs.load_pairs("formal", str(tsv), ["ko", "en"])}
    assert list(found) == ["ko", "fr", "any"]  # one of the seven is read where asked for, any other always
    assert found["ko"].pairs == (Pair("안녕하십니까", "안녕"), Pair("감사합니다", "고마워"))
    assert found["ko"].source == "formal.tsv"
    assert len(pairs.load_pairs("formal", str(tsv), ["ko"], limit=1)[0].pairs) == 1
    assert found["ko"].sha256 != found["fr"].sha256


def test_answers_are_a_fourth_column(tmp_path: Path) -> None:
    file = tmp_path / "answers.tsv"
    file.write_text("language\tpositive\tnegative\tanswer\nko\ta\tb\t c\n", encoding="utf-8")
    (found,) = pairs.load_pairs("formal", str(file), ["ko"])
    assert found.pairs == (Pair("a", "b", answer=" c"),)
    assert found.sha256 != PairSet("formal", "ko", "answers.tsv", (Pair("a", "b"),)).sha256
    file.write_text("language\tpositive\tnegative\tanswer\nko\ta\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: expected 4 filled cells, got 3"):
        pairs.load_pairs("formal", str(file), ["ko"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no pair file at"),
        ("lang\tpos\tneg\nko\ta\tb\n", "the first line must name the columns language, positive, negative"),
        ("language\tpositive\tnegative\nko\ta\n", "line 2: expected 3 filled cells, got 2"),
        ("language\tpositive\tnegative\nko\ta\t \n", "line 2: expected 3 filled cells"),
        ("language\tpositive\tnegative\nzh\ta\tb\n", "has pairs for zh, none for ko"),
        ("language\tpositive\tnegative\n", "has pairs for no language, none for ko"),
        ("", "is empty"),
    ],
)
def test_pair_files_that_cannot_be_used(content: str | None, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "p.tsv"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        pairs.load_pairs("formal", str(file), ["ko"])
    assert expected in str(caught.value)


def test_built_in_pairs() -> None:
    assert [s.language for s in pairs.load_pairs("en", "mini", ["en", "ko", "zh"])] == ["ko", "zh"]
    assert [s.language for s in pairs.load_pairs("loc", "mini", ["en", "ko"])] == ["en", "ko"]
    for pair_set in pairs.load_pairs("en", "mini", ["ko"]) + pairs.load_pairs("loc", "mini", ["ko"]):
        assert len(pair_set.pairs) >= 60
        assert all(pair.positive != pair.negative for pair in pair_set.pairs)
    with pytest.raises(DataError, match="no pairs of kind 'en' for English alone"):
        pairs.load_pairs("en", "mini", ["en"])
    with pytest.raises(DataError, match="no pairs 'tatoeba' for kind 'en'; built in: mini, flores, ntrex"):
        pairs.load_pairs("en", "tatoeba", ["ko"])


def test_parallel_corpora_of_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path))
    monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
    for name, lines in {"eng_Latn": ['He said ""hi"" ', "Two"], "kor_Hang": ["그는", "둘"], "zho_Hans": ["一"]}.items():
        file = tmp_path / "parallel" / "flores200" / f"{name}.devtest"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (found,) = pairs.load_pairs("en", "flores", ["ko"])
    assert found.pairs == (Pair('He said "hi"', "그는"), Pair("Two", "둘"))
    with pytest.raises(DataError, match=r"has 2 lines, .* has 1: they must be parallel"):
        pairs.load_pairs("en", "flores", ["zh"])


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_that_steers(tsv: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "v.safetensors"
    arguments = ["--model", str(tiny.folder("llama")), "--out", str(out), "--kinds", "formal", "--dtype", "float32"]
    arguments += ["--pairs", f"formal={tsv}", "--languages", "ko,zh", "--layers", "50%,1", "--device", "cpu"]
    result = CliRunner().invoke(cli.app, ["extract", *arguments])
    assert result.exit_code == 0, result.output
    assert "4 sets of vectors, 2 layers" in result.output
    loaded = VectorSet.load(out)
    assert loaded.languages("formal") == ["ko", "zh", "fr", "any"]
    info = loaded.vectors["formal", "ko"].info
    assert (info.layers, info.pooling, info.n_pairs, info.source) == ((1, 2), "last", 2, "formal.tsv")
    pair_sets = pairs.load_pairs("formal", str(tsv), ["ko"])[:1]
    expected = extract(tiny.load("llama"), tiny.load_tokenizer("llama"), pair_sets, layers=(1, 2)).vectors
    assert torch.equal(loaded.vectors["formal", "ko"].tensors["vector"], expected["formal", "ko"].tensors["vector"])
    steered = tiny.steered("llama", "formal@1:3", vectors=str(out))
    request = tiny.requests("loglikelihood", [("Which bird", " is rice")], ["ko"])
    plain = tiny.hf("llama").loglikelihood(request)[0][0]
    assert abs(steered.loglikelihood(request)[0][0] - plain) > 1e-3


def test_the_defaults_of_the_command(tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    arguments = ["--model", str(tiny.folder("gpt2")), "--out", str(out), "--languages", "en,ko", "--max-pairs", "3"]
    result = CliRunner().invoke(cli.app, ["extract", *arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    loaded = VectorSet.load(out)
    assert list(loaded.vectors) == [("en", "ko"), ("loc", "en"), ("loc", "ko")]
    assert {entry.info.pooling for entry in loaded.vectors.values() if entry.info.kind == "en"} == {"mean"}
    assert {entry.info.pooling for entry in loaded.vectors.values() if entry.info.kind == "loc"} == {"last"}
    assert all(entry.info.layers == (0, 1, 2, 3) for entry in loaded.vectors.values())
    assert loaded.created_by.startswith("lm_eval_ext ")


def test_languages_beyond_the_seven_where_the_pairs_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path / "mirror"))
    for language, split in (("en", "test"), ("en", "dev"), ("es", "dev"), ("fr", "dev")):
        questions = {f"{split}/{i}": f"{language} {split} {i}: {tiny.TEXTS['en'][i:]}" for i in range(3)}
        gmmlu_mirror.write_questions(tmp_path / "mirror", language, split, questions)
    out = tmp_path / "v.safetensors"
    arguments = ["extract", "--model", str(tiny.folder("gpt2")), "--out", str(out), "--device", "cpu"]
    arguments += ["--pairs", "en=gmmlu", "--languages", "es,fr", "--kinds"]
    result = CliRunner().invoke(cli.app, [*arguments, "en"])
    assert result.exit_code == 0, result.output
    loaded = VectorSet.load(out)
    assert loaded.languages("en") == ["es", "fr"]
    assert {entry.info.n_pairs for entry in loaded.vectors.values()} == {3}
    refused = CliRunner().invoke(cli.app, [*arguments, "en,loc"])
    assert refused.exit_code == 2
    assert "unknown fr; valid: en, es, id, el, ko, zh, ar (pairs loc=mini)" in " ".join(refused.output.split())
