"""Families that people use: what their rows may share, and the scores that come of it, against plain forwards."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny

from lm_eval_ext.errors import ModelError
from lm_eval_ext.scoring import scorer, sharing
from lm_eval_ext.scoring.kv_cache import kv_bytes_per_token
from lm_eval_ext.scoring.sharing import Sharing, probe_length, rope_switch, selecting
from lm_eval_ext.steering.decoder import ResidualStream, decoder_layers, fingerprint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

#: What the scorer finds out about each; `benchmarks/architectures.py` has the others.
FAMILIES = {
    "llama": Sharing.TREES,
    "llama-longrope": Sharing.TREES,
    "llama-dynamic": Sharing.TREES,
    "qwen3": Sharing.TREES,
    "mistral-128": Sharing.TREES,
    "gemma2": Sharing.TREES,
    "gemma3_text": Sharing.TREES,
    "gemma4_text": Sharing.TREES,
    "gemma4_text-moe": Sharing.TREES,
    "phi3-longrope": Sharing.TREES,
    "gpt_oss-128": Sharing.TREES,
    "mixtral": Sharing.TREES,
    "qwen3_moe": Sharing.TREES,
    "cohere2": Sharing.TREES,
    "olmo2": Sharing.TREES,
    "gpt_neo": Sharing.CACHE,
    "mpt": Sharing.CACHE,
    "llama4_text": Sharing.BATCHES,
    "qwen3_5_text": Sharing.BATCHES,
    "deepseek_v32": Sharing.ALONE,
    "falcon_h1": Sharing.BATCHES,
    "xlm-roberta-encoder": Sharing.ALONE,
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("architectures")


@pytest.fixture
def models(bench: Any) -> Any:
    return importlib.import_module("tiny_architectures")


def tiny_model(models: Any, case: str) -> Any:
    if models.VARIANTS.get(case, (case,))[0] not in models.MODEL_TYPES:
        pytest.skip(f"this release of transformers has no {case}")
    return models.tiny_model(case)


@pytest.mark.parametrize("case", FAMILIES)
def test_scores_are_those_of_plain_forwards(case: str, bench: Any, models: Any) -> None:
    checked = bench.Checked(tiny_model(models, case))
    pairs = [
        pair for number, pair in enumerate(checked.pairs()) if number in (0, 1, 12, 13, 14, 21, 22, 25, 27, 28, 33)
    ]
    found = [value for value, _ in checked.ours.loglikelihood(checked.requests(pairs), disable_tqdm=True)]
    assert bench.difference(found, checked.expected(pairs)) <= bench.EQUAL
    record = checked.ours.get_model_info()["scoring"]
    assert record["sharing"] == FAMILIES[case].name.lower(), record
    assert (record["reason"] is None) == (FAMILIES[case] == Sharing.TREES)


@pytest.mark.parametrize("case", ["gemma4_text", "gemma3n_text", "deepseek_v4", "qwen4_exp_text"])
def test_what_is_steered(case: str, bench: Any, models: Any) -> None:
    """Layers that reuse keys and values, and layers of several streams; scores, states and cells of a sweep."""
    checked = bench.Checked(tiny_model(models, case))
    vectors, pairs = checked.vectors(), [checked.pairs()[number] for number in (12, 14, 23)]
    with checked.under("loc@1:1", vectors):
        scored = checked.ours.loglikelihood(checked.requests(pairs, ["ko"] * 3), disable_tqdm=True)
    expected = checked.expected(pairs, **checked.plain_hook(vectors, "ko", "prompt"))
    assert bench.difference([value for value, _ in scored], expected) <= bench.EQUAL
    assert bench.difference(expected, checked.expected(pairs)) > 0.01
    assert checked.states() <= 1e-5


def test_a_sweep_computes_conditions_in_full_where_layers_reuse_keys_and_values(bench: Any, models: Any) -> None:
    assert bench.Checked(tiny_model(models, "gemma4_text")).sweep() <= bench.EQUAL


@pytest.mark.parametrize(("case", "sharing"), [("llama", Sharing.TREES), ("gpt_neo", Sharing.CACHE)])
def test_in_bfloat16_a_mistake_is_told_from_rounding(case: str, sharing: Sharing, bench: Any, models: Any) -> None:
    checked = bench.Checked(tiny_model(models, case).to(torch.bfloat16))
    verdict = checked.ours._scorer.check(checked.ours.encode(checked.requests(checked.pairs()[:12])))
    assert verdict.sharing == sharing
    assert 1e-4 < verdict.noise < verdict.tolerance


def test_what_was_measured_is_said(caplog: pytest.LogCaptureFixture, bench: Any, models: Any) -> None:
    checked = bench.Checked(tiny_model(models, "xlm-roberta-encoder"))
    assert "scoring" not in checked.ours.get_model_info()
    checked.ours.loglikelihood(checked.requests(checked.pairs()[:2]), disable_tqdm=True)
    assert "scoring" not in checked.ours.get_model_info()  # one row
    checked.ours.loglikelihood(checked.requests(checked.pairs()[10:14]), disable_tqdm=True)
    (warning,) = [record.getMessage() for record in caplog.records if "Scoring with" in record.getMessage()]
    assert warning.startswith("Scoring with one row per forward: a batch of rows of different lengths changes")
    assert checked.ours.get_model_info()["scoring"]["reason"] in warning


def test_little_is_scored_alone_until_it_costs_more_than_measuring(
    bench: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "probe_cost", sharing.probe_cost)
    checked = bench.Checked(tiny_model(models, "llama"))
    measured, pairs = [], checked.pairs()[:16:4]
    for _ in range(12):
        found = [value for value, _ in checked.ours.loglikelihood(checked.requests(pairs), disable_tqdm=True)]
        assert bench.difference(found, checked.expected(pairs)) <= bench.EQUAL
        measured.append(checked.ours._scorer.verdict is not None)
    assert not measured[0]
    assert measured[-1]  # many small calls are not scored alone for ever


def test_longer_rows_are_measured_again(bench: Any, models: Any) -> None:
    checked = bench.Checked(tiny_model(models, "llama"))
    lengths = []
    for text in ("Which", "Which bird is the national bird? " * 9):
        checked.ours.loglikelihood(checked.requests([(text, " A"), (text, " rice is")]), disable_tqdm=True)
        lengths.append(checked.ours._scorer.verdict.length)
    assert lengths[0] < lengths[1]


def test_a_model_is_measured_once(bench: Any, models: Any, caplog: pytest.LogCaptureFixture) -> None:
    """For every scorer of it, until its modules or its settings are others."""
    caplog.set_level("INFO", "lm_eval_ext")
    model = tiny_model(models, "llama")

    def measured() -> int:
        caplog.clear()
        checked = bench.Checked(model)
        checked.ours.loglikelihood(checked.requests(checked.pairs()[10:14]), disable_tqdm=True)
        assert checked.ours.get_model_info()["scoring"]["sharing"] == "trees"
        return sum("Scoring with" in record.getMessage() for record in caplog.records)

    assert (measured(), measured()) == (1, 0)
    model.set_attn_implementation("eager")
    assert (measured(), measured()) == (1, 0)
    model.model.layers[0].mlp = copy.deepcopy(model.model.layers[0].mlp)
    assert (measured(), measured()) == (1, 0)


def config(**values: Any) -> Any:
    return SimpleNamespace(to_dict=lambda: values, **values)


@pytest.mark.parametrize("key", ["sliding_window", "attention_chunk_size", "floor_scale", "some_new_span"])
def test_the_probe_is_longer_than_any_window(key: str) -> None:
    assert probe_length(config(**{key: 1024}), 3000, 10**6) > 1024
    assert probe_length(config(nested={key: [7, 1024]}), 3000, 10**6) > 1024
    assert (
        probe_length(config(**{key: 4096}), 3000, 10**6) == probe_length(config(hidden_size=1024), 3000, 10**6) < 1024
    )
    assert probe_length(config(**{key: 1024}), 3000, 900) == 900  # the context


@pytest.mark.parametrize("key", ["index_topk", "indexer_budget", "keep_window_size"])
def test_rows_are_scored_alone_where_attention_selects_some_of_their_tokens(key: str) -> None:
    """Of equally good tokens an indexer takes others in a longer row, and a probe may meet none of them."""
    assert selecting(config(**{key: 64}), 65) == [key]
    assert not selecting(config(**{key: 64}), 64)
    assert not selecting(config(**{key: None}), 65)


def test_soft_prompts_are_not_steered(models: Any) -> None:
    with pytest.raises(
        ModelError, match="32 positions of its own before every text: it can be evaluated, but not steered"
    ):
        decoder_layers(tiny_model(models, "cpmant"))


def test_the_length_at_which_frequencies_change() -> None:
    plain = SimpleNamespace(rope_parameters={"rope_type": "default"}, max_position_embeddings=64)
    dynamic = SimpleNamespace(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=64)
    nested = {"a": {"rope_type": "default"}, "b": {"rope_type": "longrope", "original_max_position_embeddings": 32}}
    found = [rope_switch(SimpleNamespace(config=c)) for c in (plain, dynamic, SimpleNamespace(rope_parameters=nested))]
    assert found == [None, 64, 32]


def test_numbers_of_each_layer(models: Any) -> None:
    tiny_model(models, "gemma4_text")
    small, wide = (models.tiny_config("gemma4_text", global_head_dim=width) for width in (16, 32))
    assert fingerprint(small) != fingerprint(wide)
    assert kv_bytes_per_token(small, 4) < kv_bytes_per_token(wide, 4)


def test_several_streams() -> None:
    streams = torch.randn(2, 3, 4, tiny.HIDDEN)
    active, mean = ResidualStream(active=1), ResidualStream(n_streams=4)
    vector = torch.ones(tiny.HIDDEN)
    assert torch.equal(active.read(streams), streams[1])
    changed = active.write(streams, streams[1] + vector)
    assert torch.equal(changed[1], streams[1] + vector)
    assert torch.equal(changed[0], streams[0])
    torch.testing.assert_close(mean.read(streams), streams.mean(2))
    torch.testing.assert_close(mean.write(streams, streams.mean(2) + vector), streams + vector)
    listed = ResidualStream().write([streams[0], None], vector)  # openai-gpt
    assert torch.equal(ResidualStream().read([streams[0], None]), streams[0])
    assert isinstance(listed, tuple)
    flat, side_by_side = streams.flatten(2), ResidualStream(n_streams=4, side_by_side=True)
    torch.testing.assert_close(side_by_side.read(flat), streams.mean(2))
    torch.testing.assert_close(side_by_side.write(flat, streams.mean(2) + vector), (streams + vector).flatten(2))
