"""Situations of public reports that no other test meets; docs/faq/field-reports.md lists all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support import tiny
from support.runs import DATE, write_run

from lm_eval_ext.data.pairs import Pair
from lm_eval_ext.results.run import find_run
from lm_eval_ext.results.runs import load
from lm_eval_ext.steering.extraction import extract

QUESTIONS = [text[:k] for text in tiny.TEXTS.values() for k in (8, 25)]
LANGUAGES = [code for code in tiny.TEXTS for _ in range(2)]


@pytest.mark.parametrize("steer", ["", "loc@1:3"])
def test_generated_texts_do_not_depend_on_the_batch(steer: str) -> None:
    """huggingface/transformers#25790, TransformerLensOrg/TransformerLens#1005: the padding token is the end token."""
    arguments = [(question, {"until": ["\n\n"], "max_gen_toks": 5}) for question in QUESTIONS]
    one, four = (
        tiny.steered("llama", steer, batch_size=size).generate_until(
            tiny.requests("generate_until", arguments, LANGUAGES), disable_tqdm=True
        )
        for size in (1, 4)
    )
    assert one == four


@pytest.mark.parametrize("steer", ["", "loc@1:3"])
def test_scores_of_whole_texts_do_not_depend_on_the_batch(steer: str) -> None:
    """ml-explore/mlx-lm#1855: padding enters the score of the shorter texts."""
    one, four = (
        tiny.rolling(
            tiny.steered("gpt2", steer, batch_size=size).loglikelihood_rolling(
                tiny.requests("loglikelihood_rolling", [(text,) for text in QUESTIONS], LANGUAGES), disable_tqdm=True
            )
        )
        for size in (1, 4)
    )
    assert one == pytest.approx(four, abs=1e-4)


def test_a_template_without_a_system_role() -> None:
    """EleutherAI/lm-evaluation-harness#2109: the system instruction is left out, as in the harness."""
    model = tiny.steered("llama")
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    )
    user = {"role": "user", "content": "Which bird?"}
    assert model.apply_chat_template([{"role": "system", "content": "Be brief."}, user]) == "[user] Which bird?\n"


def test_estimators_of_a_model_in_float16() -> None:
    """AlphaLab-USTC/AlphaSteer#1: decompositions that do not exist for float16."""
    model, tokenizer = tiny.load("llama").half(), tiny.load_tokenizer("llama")
    texts = list(tiny.TEXTS.values())
    pairs = [Pair(text[:30], text[:15]) for text in texts]
    for name in ("pca_difference", "lda", "whitened_difference"):
        (entry,) = extract(model, tokenizer, pairs, name, [1]).vectors.values()
        for tensor in entry.tensors.values():
            assert tensor.dtype == torch.float32, name
            assert tensor.isfinite().all(), name


def test_results_beside_a_json_file_that_was_named(tmp_path: Path) -> None:
    """EleutherAI/lm-evaluation-harness#2927: `--output_path out.json` writes `out_DATE.json` and the samples beside it."""
    results = write_run(tmp_path / "written", {"transfer_mini_ko_cloze": {"acc": [1.0, 0.0]}})
    shutil.copytree(results.parent, tmp_path / "read")
    (tmp_path / "read" / results.name).rename(tmp_path / "read" / f"out_{DATE}.json")
    (run,) = load(tmp_path / "read").runs
    assert list(run.tasks) == ["transfer_mini_ko_cloze"]


def test_the_same_run_twice_in_a_folder(tmp_path: Path) -> None:
    """EleutherAI/lm-evaluation-harness#1918: one run, of which the newest results count."""
    for date, score in (("2026-01-01T00-00-00", 0.0), ("2026-03-01T00-00-00", 1.0)):
        write_run(tmp_path, {"transfer_mini_ko_cloze": {"acc": [score]}}, date=date)
    runs = load(tmp_path).runs
    assert find_run(runs, "tiny/model").tasks["transfer_mini_ko_cloze"].date.startswith("2026-03")
