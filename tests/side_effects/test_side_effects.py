"""Side effects of steering and of other weights, on tiny models."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from support import tiny
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.errors import DataError, LanguageError, ModelError, UserError
from lm_eval_ext.side_effects import generations
from lm_eval_ext.side_effects.measuring import COLUMNS, measure
from lm_eval_ext.side_effects.panel import Panel, accuracy
from lm_eval_ext.side_effects.prompts import opening
from lm_eval_ext.steering.plan import Plan
from lm_eval_ext.steering.table import SteeringTable

TEXTS = {
    code: {f"t{number}": " ".join(tiny.TEXTS[code].split()[number : number + 6 + number]) for number in range(5)}
    for code in ("en", "ko", "es")
}
PLAN = "en@1:2+loc@2:2"


def table(plan: str = PLAN) -> SteeringTable:
    return SteeringTable.build(Plan.parse(plan), tiny.vector_set("gemma3"), tiny.LAYERS)


@pytest.fixture(scope="module")
def model():
    return tiny.load("gemma3")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.load_tokenizer("gemma3")


def values(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[frame["measure"] == name].set_index(["language", "id"]).sort_index()


def test_a_model_has_no_side_effects_on_itself(model, tokenizer):
    frame = measure(model, tokenizer, None, TEXTS, prompts=TEXTS, new_tokens=6)
    assert list(frame.columns) == list(COLUMNS)
    assert values(frame, "kl")["value"].abs().max() < 1e-9
    assert (values(frame, "same_token")["value"] == 1).all()
    changed = frame[(frame["measure"] != "kl") & (frame["baseline"] != frame["value"])]
    assert changed.empty


def test_next_tokens_against_the_definition(model, tokenizer):
    """Perplexity and divergence of one text, computed on its own."""
    steering = table()
    frame = measure(model, tokenizer, steering, TEXTS, batch_size=4)
    ids = tokenizer(TEXTS["ko"]["t3"], return_tensors="pt")["input_ids"]
    vectors = tiny.vector_set("gemma3")
    with torch.inference_mode():
        before = model(ids).logits[0, :-1].log_softmax(-1)
        with vectors.apply(model, PLAN, language="ko"):
            after = model(ids).logits[0, :-1].log_softmax(-1)
    loss = [-side.gather(1, ids[0, 1:, None]).mean().item() for side in (before, after)]
    row = values(frame, "perplexity").loc["ko", "t3"]
    assert [row["baseline"], row["value"]] == pytest.approx(loss, abs=1e-4)
    divergence = torch.nn.functional.kl_div(after, before, reduction="batchmean", log_target=True).item()
    assert values(frame, "kl").loc["ko", "t3"]["value"] == pytest.approx(divergence, abs=1e-5)
    agrees = (before.argmax(-1) == after.argmax(-1)).float().mean().item()
    assert values(frame, "same_token").loc["ko", "t3"]["value"] == pytest.approx(agrees)


def test_a_stronger_plan_diverges_more(model, tokenizer):
    weak, strong = (measure(model, tokenizer, table(f"loc@2:{gamma}"), TEXTS) for gamma in (1, 4))
    assert (values(strong, "kl")["value"] > values(weak, "kl")["value"]).mean() > 0.9
    assert not tiny.hooks(model)


def test_generations_do_not_depend_on_the_batch(model, tokenizer):
    frames = [
        measure(model, tokenizer, table(), TEXTS, prompts=TEXTS, new_tokens=5, batch_size=size) for size in (1, 5)
    ]
    one, other = (values(frame, "length")[["baseline", "value"]] for frame in frames)
    pd.testing.assert_frame_equal(one, other)


def test_another_model_as_the_baseline(model, tokenizer):
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(tiny.load("gemma3"), tiny.adapter("gemma3")).eval()
    frame = measure(adapted, tokenizer, None, TEXTS, baseline=model)
    assert (values(frame, "kl")["value"] > 0).all()
    with torch.no_grad():
        smaller = tiny.load("gemma3")
        smaller.resize_token_embeddings(len(tokenizer) - 8)
    with pytest.raises(ModelError, match="vocabularies"):
        measure(smaller, tokenizer, None, TEXTS, baseline=model)


def test_languages_and_repetition_of_texts():
    identify = generations.identifier(("ko", "de"))
    text = "오늘은 날씨가 좋아서 산책을 했습니다.\nThe weather was fine today, so we went out.\n\n12 34"
    assert generations.languages(text, identify) == ["ko", "en"]
    assert identify("Das Wetter war heute sehr schön, deshalb gingen wir spazieren.") == "de"
    assert generations.languages("42\n!", identify) == []
    assert generations.repetition([1, 2, 3]) == 0
    assert generations.repetition([1, 2, 3, 4] * 4) == pytest.approx(1 - 4 / 13)


def test_openings_are_half_a_text():
    assert opening("one two three four five") == "one two three"
    assert opening("北京是中华人民共和国的首都也是全国的政治中心") == "北京是中华人民共和国的"


@pytest.mark.parametrize(
    ("texts", "plan", "error", "message"),
    [
        ({"en": {"a": ""}}, "", DataError, "the text a in en has"),
        ({"en": {"a": "word " * 500}}, "", DataError, "valid: 2 to"),
        ({"fr": {"a": "le jour"}}, PLAN, LanguageError, "cannot steer language 'fr'"),
    ],
)
def test_texts_that_cannot_be_measured(model, tokenizer, texts, plan, error, message):
    with pytest.raises(error, match=message):
        measure(model, tokenizer, table(plan) if plan else None, texts)


def test_a_language_that_cannot_be_told():
    with pytest.raises(LanguageError, match="does not know the language xyz"):
        generations.identifier(("xyz",))


# --- the panel -------------------------------------------------------------------------------------------------------


def panel(**measures: tuple[float, float]) -> Panel:
    """40 texts in three languages, around the levels that are given."""
    noise = np.random.default_rng(0).normal(0, 0.02, 40)
    rows = [
        (name.replace("__", " "), code, f"t{number}", before + noise[number], after + noise[number])
        for name, (before, after) in measures.items()
        for code in ("en", "ko", "es")
        for number in range(40)
    ]
    return Panel(pd.DataFrame(rows, columns=list(COLUMNS)), "org/new", "", "org/base", {"texts": "mini"})


def test_levels_and_changes():
    found = panel(perplexity=(2.0, 2.1), length=(20.0, 25.0), language=(0.9, 0.8))
    summary = found.summary(resamples=200).set_index(["measure", "language"])
    perplexity = summary.loc["perplexity", "average"]
    assert (perplexity["n"], perplexity["change"]) == (80, pytest.approx(math.exp(0.1) - 1))
    assert (perplexity["low"], perplexity["high"]) == pytest.approx((perplexity["change"], perplexity["change"]))
    assert perplexity["baseline"] == pytest.approx(math.exp(2), rel=0.02)
    assert summary.loc["length", "ko"]["change"] == pytest.approx(0.25, abs=0.01)
    assert summary.loc["language", "es"]["change"] == pytest.approx(-0.1)


def test_a_panel_is_read_as_it_was_written(tmp_path):
    written = panel(kl=(0.0, 0.1))
    written.write(tmp_path / "panel.json")
    read = Panel.read(tmp_path / "panel.json")
    pd.testing.assert_frame_equal(read.frame, written.frame)
    assert (read.model, read.baseline, read.settings) == (written.model, written.baseline, written.settings)


def test_accuracy_of_tasks_is_paired_by_document():
    def results(*scores: float) -> dict:
        return {"samples": {"arc": [{"doc_hash": f"h{n}", "acc": score} for n, score in enumerate(scores)]}}

    frame = accuracy(results(1.0, 0.0), results(0.0, 0.0, 1.0))
    assert frame[["measure", "language", "baseline", "value"]].to_numpy().tolist() == [
        ["accuracy arc", "all", 1.0, 0.0],
        ["accuracy arc", "all", 0.0, 0.0],
    ]
    with pytest.raises(UserError, match="arc has no f1 per document"):
        accuracy(results(1.0), results(1.0), "f1")


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: object):
    result = CliRunner().invoke(cli.app, ["side-effects", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_measures_a_plan(tmp_path):
    model = f"pretrained={tiny.roomy_folder('gemma3')},dtype=float32"
    out, picture = tmp_path / "panel.json", tmp_path / "panel.svg"
    result = command(
        *("--model_args", model, "--vectors", tiny.vector_file("gemma3"), "--steer", PLAN, "--languages", "ko,es"),
        *("--max-texts", 5, "--new-tokens", 8, "--json", out, "--svg", picture),
    )
    assert result.exit_code == 0, result.output
    assert "same most likely next token" in result.output
    content = json.loads(out.read_text())
    assert (content["plan"], content["model"]) == (PLAN, tiny.roomy_folder("gemma3").name)
    measured = {(row["measure"], row["language"]) for row in content["summary"]}
    assert {("kl", "ko"), ("perplexity", "average"), ("length", "en"), ("repetition", "es")} <= measured
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is measured against itself"),
        (["--baseline_args", "pretrained=x,load_in_4bit=True"], "unknown load_in_4bit; valid: pretrained, dtype"),
        (["--baseline_args", "pretrained=x", "--texts", "europarl"], "europarl"),
        (["--steer", "en@1:2"], "needs vectors"),
    ],
)
def test_commands_that_mean_nothing(arguments, message):
    result = command("--model_args", f"pretrained={tiny.folder('gemma3')}", *arguments)
    assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.stderr
