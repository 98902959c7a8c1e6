"""Geometry: the measures against other implementations and hand values, one forward per text, the command and its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine as cosine_distance
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from support import gmmlu_mirror, tiny
from support.browser import CHROMIUM, chromium, new_tab
from typer.testing import CliRunner

from lm_eval_ext import cli
from lm_eval_ext.data.parallel import ParallelTexts, sentences
from lm_eval_ext.errors import DataError, ModelError, UserError, VectorFileError
from lm_eval_ext.geometry import measures, tables, texts
from lm_eval_ext.geometry.run import geometry
from lm_eval_ext.geometry.states import distinct, hidden_states
from lm_eval_ext.geometry.tables import StateTables, vector_tables
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.steering.decoder import decoder_layers
from lm_eval_ext.steering.extraction import pooled_states
from lm_eval_ext.steering.vectors import ModelIdentity, SteeringVectors, VectorInfo, VectorSet


def states(seed: int, n_languages: int = 3, n_texts: int = 8, width: int = 5, apart: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shift = apart * rng.normal(size=(n_languages, 1, width))
    return rng.normal(size=(n_languages, n_texts, width)) + shift + rng.normal(size=(1, n_texts, width))


def once(n_texts: int) -> np.ndarray:
    return np.ones((1, n_texts))


# Vectors --------------------------------------------------------------------------------------------------------------


def test_cosines_angles_and_s_per_by_hand() -> None:
    one = np.array([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    other = np.array([[2.0, 0, 0], [0, 3, 0], [-1, 0, 0], [1, 3**0.5, 0]])
    found = measures.cosines(one, other)
    np.testing.assert_allclose(found, [1, 0, -1, 0.5], atol=1e-12)
    np.testing.assert_allclose(measures.degrees(found), [0, 90, 180, 60], atol=1e-6)
    np.testing.assert_allclose(measures.s_per(found), [0, 100, 0, 50], atol=1e-9)
    assert np.isnan(measures.cosines(np.zeros((1, 3)), one[:1])).all()


def test_the_cosine_matrix_is_scipys() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 7))
    expected = [[1 - cosine_distance(a, b) for b in rows] for a in rows]
    np.testing.assert_allclose(measures.cosine_matrix(rows), expected, atol=1e-12)


def test_what_random_directions_share() -> None:
    rng = np.random.default_rng(0)
    for width in (2, 32, 640):
        drawn = measures.cosines(rng.normal(size=(20_000, width)), rng.normal(size=(20_000, width)))
        assert measures.random_cosine(width) == pytest.approx(np.abs(drawn).mean(), rel=0.03)


def test_vector_tables_by_hand() -> None:
    values = {
        ("en", "ko"): [[3.0, 4.0], [1.0, 0.0]],
        ("en", "es"): [[3.0, 4.0], [0.0, 2.0]],
        ("loc", "ko"): [[4.0, -3.0], [1.0, 1.0]],
        ("loc", "es"): [[3.0, 4.0], [0.0, -1.0]],
        ("loc", "en"): [[1.0, 0.0], [1.0, 0.0]],
    }
    vectors = {}
    for (kind, code), rows in values.items():
        info = VectorInfo(kind, code, (1, 2), "mean", 9, "test", "0" * 64, "float32", (10.0, 4.0))
        vectors[kind, code] = SteeringVectors(info, {"vector": torch.tensor(rows)})
    found = vector_tables(VectorSet(ModelIdentity("m", "f", 2, 4), vectors), ["en", "loc"], [1, 2])
    norms = found["norms"].set_index(["layer", "kind", "language"])
    assert norms.loc[(1, "en", "ko"), ["norm", "relative_norm"]].tolist() == [5.0, 0.5]
    assert norms.loc[(2, "en", "es"), ["norm", "relative_norm"]].tolist() == [2.0, 0.5]
    angles = found["angles"].set_index(["layer", "language"])["s_per"]
    assert angles.loc[1].to_dict() == pytest.approx({"ko": 100.0, "es": 0.0, AVERAGE: 50.0})
    assert angles.loc[2, "ko"] == pytest.approx(100 * (1 - 0.5**0.5))
    assert found["angles"].set_index(["layer", "language"]).loc[(2, "es"), "degrees"] == pytest.approx(180)
    cross = found["cross"].set_index(["layer", "kind", "language", "other"])["cosine"]
    assert cross[1, "en", "ko", "es"] == pytest.approx(1)
    assert cross[2, "en", "ko", "es"] == pytest.approx(0)
    assert cross[1, "loc", "en", "ko"] == pytest.approx(0.8)
    with pytest.raises(VectorFileError, match="no 'en' vector of 'ko' for layer 3; layers in the file: 1-2"):
        vector_tables(VectorSet(ModelIdentity("m", "f", 2, 4), vectors), ["en", "loc"], [3])


def test_vectors_without_a_language_in_common_and_of_one_language() -> None:
    apart = tiny.vector_set("llama", languages=("ko",)).vectors | tiny.vector_set("llama", ("loc",), ("es",)).vectors
    identity = tiny.vector_set("llama").model
    kept = {key: value for key, value in apart.items() if key != ("loc", "ko")}
    with pytest.raises(VectorFileError, match="no language with both kinds: en in ko, loc in es"):
        vector_tables(VectorSet(identity, kept), ["en", "loc"], [1])
    alone = vector_tables(tiny.vector_set("llama", languages=("ko",)), ["en", "loc"], [1])
    assert len(alone["cross"]) == 0
    assert len(alone["angles"]) == 2


# Hidden states --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(2, 9), st.floats(0, 4))
def test_silhouette_and_variance_share_equal_other_implementations(seed: int, n: int, m: int, apart: float) -> None:
    drawn = states(seed, n, m, apart=apart)
    flat, labels = drawn.reshape(n * m, -1), np.repeat(np.arange(n), m)
    products = measures.gram(drawn)
    assert measures.silhouette(products, once(m))[0] == pytest.approx(silhouette_score(flat, labels), abs=1e-9)
    means = drawn.mean(1)
    between = m * ((means - flat.mean(0)) ** 2).sum()
    share = between / ((flat - flat.mean(0)) ** 2).sum()
    assert measures.variance_share(products, once(m))[0] == pytest.approx(share, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_a_draw_of_texts_equals_the_texts_repeated(seed: int) -> None:
    drawn = states(seed)
    weights = np.random.default_rng(seed).multinomial(8, [1 / 8] * 8, size=3).astype(float)
    repeated = [np.repeat(drawn, row.astype(int), axis=1) for row in weights]
    expected = [measures.variance_share(measures.gram(some), once(8))[0] for some in repeated]
    products = measures.gram(drawn)
    np.testing.assert_allclose(measures.variance_share(products, weights), expected, atol=1e-9)
    # Twice every text is every text, and a copy is no neighbour of its own.
    doubled = measures.silhouette(products, 2 * once(8))
    np.testing.assert_allclose(doubled, measures.silhouette(products, once(8)), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50))
def test_the_measures_ignore_rotation_scale_and_place(seed: int, scale: float) -> None:
    drawn = states(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))
    moved = scale * drawn @ turn + 3.0
    for measure in (measures.silhouette, measures.variance_share):
        one, other = (measure(measures.gram(some), once(8))[0] for some in (drawn, moved))
        assert one == pytest.approx(other, abs=1e-8)


def test_extremes() -> None:
    same = np.repeat(np.random.default_rng(0).normal(size=(1, 6, 4)), 3, axis=0)
    assert measures.variance_share(measures.gram(same), once(6))[0] == pytest.approx(0)
    assert measures.silhouette(measures.gram(same), once(6))[0] < 0  # the own translation is nearest
    by_language = np.eye(3)[:, None, :].repeat(6, axis=1)
    assert measures.variance_share(measures.gram(by_language), once(6))[0] == pytest.approx(1)
    assert measures.silhouette(measures.gram(by_language), once(6))[0] == pytest.approx(1)
    constant = measures.gram(np.ones((2, 5, 3)))
    assert (measures.variance_share(constant, once(5))[0], measures.silhouette(constant, once(5))[0]) == (0, 0)


def test_mexa_by_hand_and_naively() -> None:
    english = np.eye(4)
    other = english[[0, 1, 3, 2]]
    assert measures.aligned(english, other).tolist() == [True, True, False, False]
    assert not measures.aligned(np.ones((3, 2)), np.ones((3, 2))).any()  # a tie is no alignment
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 30, 4)) + rng.normal(size=(1, 30, 4)) * 2
    table = np.array([[1 - cosine_distance(x, y) for y in b] for x in a])
    naive = [
        all(table[i, i] > table[i, j] and table[i, i] > table[j, i] for j in range(30) if j != i) for i in range(30)
    ]
    assert measures.aligned(a, b).tolist() == naive
    assert 0 < sum(naive) < 30


def test_components_are_sklearns_and_do_not_flip() -> None:
    rows = np.random.default_rng(2).normal(size=(20, 6)) * [5, 3, 1, 1, 1, 1]
    expected = PCA(2).fit(rows)
    found = measures.components(rows)
    np.testing.assert_allclose(np.abs(found.scores), np.abs(expected.transform(rows)), atol=1e-9)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_, atol=1e-12)
    turned = measures.components(-rows, found.scores)
    np.testing.assert_allclose(turned.scores, found.scores, atol=1e-9)
    assert measures.components(np.ones((5, 3))).explained.tolist() == [0, 0]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95% intervals of 120 samples of 40 texts each; the truth is what samples of 40 texts show on average."""
    for measure in (measures.variance_share, measures.silhouette):
        drawn = [measures.gram(states(1, n_texts=600)[:, np.random.default_rng(s).choice(600, 40)]) for s in range(120)]
        truth = np.mean([measure(products, once(40))[0] for products in drawn])
        found = [
            measures.interval(measure(products, measures.draw_weights(40, 200, 7)), 40, 0.95, biased=True)
            for products in drawn
        ]
        assert all(one.low <= one.value <= one.high for one in found)
        assert 0.88 * 120 <= sum(one.low <= truth <= one.high for one in found) <= 119


# One forward per text -------------------------------------------------------------------------------------------------

PARALLEL = ParallelTexts(
    "universal (test)",
    tuple("abcdef"),
    {code: tuple(text[i : i + 4 + 3 * i] for i in range(6)) for code, text in tiny.TEXTS.items()},
)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_states_equal_one_text_at_a_time(family: str, pooling: Any) -> None:
    model, tokenizer = tiny.load(family), tiny.load_tokenizer(family)
    found = hidden_states(model, tokenizer, PARALLEL, [3, 0], pooling, batch_size=5)
    assert found.shape == (2, 4, 6, tiny.HIDDEN)
    for row, code in enumerate(PARALLEL.texts):
        for place, text in enumerate(PARALLEL.texts[code]):
            (alone,) = pooled_states(model, tokenizer, [text], [3, 0], pooling, where="test")
            np.testing.assert_allclose(found[:, row, place], alone.states[:, 0].numpy(), atol=2e-5)


def test_a_text_is_run_once_and_only_as_deep_as_needed() -> None:
    model = tiny.load("llama")
    rows = [0] * tiny.LAYERS

    def count(layer: int) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            rows[layer] += len(inputs[0])

        return hook

    for layer, module in enumerate(decoder_layers(model)):
        module.register_forward_pre_hook(count(layer))
    twice = ParallelTexts("x", PARALLEL.ids, PARALLEL.texts | {"xx": PARALLEL.texts["en"]})
    done: list[int] = []
    hidden_states(model, tiny.load_tokenizer("llama"), twice, [0, 2], "mean", batch_size=7, progress=done.append)
    assert rows == [24, 24, 24, 0]
    assert sum(done) == len(distinct(twice)) == 24


def test_states_that_overflow_are_refused() -> None:
    model = tiny.load("llama")
    with torch.no_grad():
        decoder_layers(model)[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="not finite; use dtype bfloat16 or float32"):
        hidden_states(model, tiny.load_tokenizer("llama"), PARALLEL, [1], "mean")


def test_changes_are_paired_and_differences_are_not() -> None:
    study = StateTables([0, 1], resamples=200, seed=0, level=0.9)
    one = np.stack([states(1), states(2)]).astype(np.float32)
    shifted = one + np.float32([[[[0]], [[1]], [[3]]]])
    sets = [
        ParallelTexts(f"{axis} (x)", tuple("abcdefgh"), dict.fromkeys(["en", "ko", "es"], ("t",) * 8))
        for axis in ("universal", "cultural")
    ]
    for name, found in (("base", one), ("tuned", shifted)):
        for parallel in sets:
            study.add_questions(name, parallel, found, named=True)
        study.add_sentences(name, ParallelTexts("sentences (x)", sets[0].ids, sets[0].texts), found)
        study.add_difference(name, sets[1], sets[0])
    for name in ("universal (x)", "sentences (x)"):
        study.add_change("base", "tuned", ParallelTexts(name, sets[0].ids, sets[0].texts))
    frames = study.frames()
    rows = frames["separation"].set_index(["model", "questions", "measure", "layer"])
    change = rows.loc[("change from base to tuned", "universal (x)", "variance share", 1)]
    values = [rows.loc[(model, "universal (x)", "variance share", 1), "value"] for model in ("base", "tuned")]
    assert change["value"] == pytest.approx(values[1] - values[0])
    assert change["value"] > change["low"] > 0
    gap = rows.loc[("base", "cultural (x) minus universal (x)", "silhouette", 0)]
    assert gap["value"] == 0
    assert gap["low"] < 0 < gap["high"]
    assert set(frames["mexa"]["language"]) == {"ko", "es", AVERAGE}
    assert set(frames["pca"]["panel"]) == {f"{m}: {s.name}" for m in ("base", "tuned") for s in sets}


# Texts ----------------------------------------------------------------------------------------------------------------


def test_questions_are_those_that_all_languages_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(tmp_path))
    for code, first in (("en", 0), ("fr", 3)):
        gmmlu_mirror.write_questions(tmp_path, code, "dev", {f"q{i}": f" {code} {i} " for i in range(first, 12)})
    (found,) = texts.questions("gmmlu", ["en", "fr"], 8)
    assert found.ids == tuple(f"q{i}" for i in range(3, 11))
    assert found.texts["fr"][0] == "fr 3"
    universal, cultural = texts.questions("mini", ["en", "ko"], None)
    assert len(universal.ids) == len(cultural.ids) == 68
    with pytest.raises(DataError, match="2 texts in en, fr, at least 5 are needed"):
        texts.questions("gmmlu", ["en", "fr"], 2)


def test_sentences_are_numbered_not_shown() -> None:
    found = sentences("mini", ["en", "ko", "es"], 10)
    assert list(found.texts) == ["en", "ko", "es"]
    assert found.ids == tuple(map(str, range(1, 11)))


def test_blend_questions_of_a_mirror(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(shared_data))
    (found,) = texts.questions("blend", ["en", "ko", "el"], None)
    assert len(found.ids) > 80
    assert {len(of_language) for of_language in found.texts.values()} == {len(found.ids)}


# The library ----------------------------------------------------------------------------------------------------------


def test_the_library_takes_a_vector_set_and_writes_when_asked(tmp_path: Path) -> None:
    result = geometry(vectors=tiny.vector_set("llama"), parts=["vectors"], layers="1,3")
    assert set(result.frames) == {"norms", "angles", "cross"}
    assert set(result.frames["angles"]["layer"]) == {1, 3}
    assert any("most orthogonal after layer" in sentence for sentence in result.findings)
    assert result.write(tmp_path / "out") == tmp_path / "out" / "geometry.html"
    assert (tmp_path / "out" / "angles.csv").is_file()
    with pytest.raises(UserError, match="unknown part shapes; valid: vectors, questions, sentences"):
        geometry(parts=["shapes"])


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = ["language\tpositive\tnegative"]
    for code in ("ko", "es"):
        rows += [f"{code}\t{tiny.TEXTS['en'][3 * i : 3 * i + 20]}\t{tiny.TEXTS[code][i : i + 9]}" for i in range(8)]
    file = tmp_path_factory.mktemp("pairs") / "sentences.tsv"
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, ["geometry", *map(str, arguments)])


def small(tsv: Path) -> list[str]:
    arguments = ["--model", str(tiny.folder("llama")), "--device", "cpu", "--languages", "en,ko,es"]
    return [*arguments, "--sentences", str(tsv), "--max-questions", "9", "--resamples", "100"]


@pytest.fixture(scope="module")
def measured(tsv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("geometry") / "deep" / "geometry"
    result = run(*small(tsv), "--vectors", tiny.vector_file("llama"), "--against", tiny.adapter("llama"), "--out", out)
    assert result.exit_code == 0, result.output
    assert "EN and LOC are most orthogonal after layer" in result.output
    return out


def test_the_command_writes_every_table(measured: Path) -> None:
    columns = {"norms": tables.NORMS, "angles": tables.ANGLES, "cross": tables.CROSS, "pca": tables.PCA}
    columns |= {"separation": tables.SEPARATION, "mexa": tables.MEXA}
    for name, expected in columns.items():
        frame = pd.read_csv(measured / f"{name}.csv")
        assert tuple(frame.columns) == expected
        assert set(frame["layer"]) == {0, 1, 2, 3}
    separation = pd.read_csv(measured / "separation.csv")
    assert (separation["low"] <= separation["value"] + 1e-6).all()
    assert (separation["value"] <= separation["high"] + 1e-6).all()
    assert set(separation["model"]) == {"llama", "llama + llama-lora", "change from llama to llama + llama-lora"}
    page = (measured / "geometry.html").read_text("utf-8")
    assert tiny.TEXTS["ko"][2:9] not in page  # ids, never sentences


def test_vectors_alone_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", pytest.fail)
    vectors = ["--vectors", tiny.vector_file("llama"), "--parts", "vectors"]
    result = run(*vectors, "--layers", "1,3", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["angles.csv", "cross.csv", "geometry.html", "norms.csv"]
    assert set(pd.read_csv(tmp_path / "angles.csv")["layer"]) == {1, 3}


def test_a_second_model_and_one_part(tsv: Path, tmp_path: Path) -> None:
    result = run(*small(tsv), "--parts", "sentences", "--against", tiny.folder("qwen2"), "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert set(pd.read_csv(tmp_path / "mexa.csv")["model"]) == {"llama", "qwen2", "change from llama to qwen2"}
    assert not (tmp_path / "pca.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--parts vectors", "--parts vectors needs a vector file"),
        ("--parts questions --vectors {vectors}", "leaves vectors out"),
        ("--parts shapes", "--parts 'shapes': unknown shapes; valid: vectors, questions, sentences"),
        ("--vectors {vectors} --kinds en", "two different kinds are compared"),
        ("--vectors {vectors} --kinds en,en", "two different kinds are compared"),
        ("--model {model} --parts sentences --sentences flores --languages en,fr", "unknown fr; valid: en, es"),
        ("--model {model} --questions mini, --languages en,ko", "no questions ''"),
        ("--vectors {vectors} --kinds en,tone", "holds no vectors of kind 'tone'; kinds: en, loc"),
        ("--vectors {vectors} --layers 4", "layer 4 does not exist: the model has 4"),
        ("--vectors nowhere.safetensors", "no vector file at nowhere.safetensors"),
        ("--vectors {other} --model {model}", "another architecture"),
        ("--model {model} --layers 9", "layer 9 does not exist: the model has 4"),
        ("--model {model} --languages ko", "name another beside ko"),
        ("--model {model} --languages ko,xx", "unknown language 'xx'"),
        ("--model {model} --parts sentences --languages en", "no pairs of kind 'en' for English alone"),
        ("--model {model} --questions trivia", "no questions 'trivia'; valid: mini, gmmlu, blend"),
        ("--model {model} --sentences tatoeba", "no pairs 'tatoeba'"),
        ("--model {model} --max-questions 4", "4 texts in en, es, id, el, ko, zh, ar, at least 5 are needed"),
        ("--model {model} --position first", "pooling 'first' is unknown, valid: last, mean"),
        ("--model {model} --images gif", "--images 'gif': unknown gif; valid: svg, png"),
        ("--model {model} --against {file}/nowhere", "cannot load the model"),
        ("--model {file}/nowhere", "cannot load the model"),
        ("--model {model} --dtype int4", "--dtype 'int4' is unknown"),
        ("--out {file}", "is a file; give a folder"),
    ],
)
def test_bad_input(arguments: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    names = {"vectors": tiny.vector_file("llama"), "other": tiny.vector_file("gpt2"), "file": tmp_path / "file"}
    result = run("--out", tmp_path / "out", *arguments.format(**names, model=tiny.folder("llama")).split())
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_models_of_other_depth_are_not_compared(tmp_path: Path) -> None:
    shutil.copytree(tiny.folder("llama"), tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    result = run("--model", tiny.folder("llama"), "--against", tmp_path / "deeper", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "6 layers, llama 4: only models of the same depth" in " ".join(result.output.split())


# The page in a browser ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on PATH")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_page_draws_and_its_sliders_move(measured: Path, width: int, scheme: Any) -> None:
    errors: list[str] = []
    with chromium() as browser:
        tab = new_tab(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto((measured / "geometry.html").as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.locator(".plot .main-svg").count() >= 7
        for name, state in (("pca", "data[0].x[0]"), ("cross", "data[0].z[0][1]")):
            plot = f"document.querySelector('#figure-{name} .plot')"
            before = tab.evaluate(f"{plot}.{state}")
            box = tab.locator(f"#figure-{name} .slider-rail-touch-rect").bounding_box()
            assert box is not None
            tab.locator(f"#figure-{name} .slider-rail-touch-rect").scroll_into_view_if_needed()
            tab.locator(f"#figure-{name} .slider-rail-touch-rect").click(position={"x": 3, "y": box["height"] / 2})
            tab.wait_for_timeout(300)
            assert tab.evaluate(f"{plot}.{state}") != before, name
    assert errors == []
