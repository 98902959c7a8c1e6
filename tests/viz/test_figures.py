"""The figures: what they draw, that nothing is said by colour alone, their files."""

from __future__ import annotations

import io
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reports import write_tree
from support.runs import random_scores, write_demo, write_run

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.plane.figures import charts
from lm_eval_ext.plane.figures.bias import bias_bars
from lm_eval_ext.plane.figures.context import context_gap, context_gaps
from lm_eval_ext.plane.figures.facets import plane_by_language
from lm_eval_ext.plane.figures.panels import shown_runs
from lm_eval_ext.plane.figures.plane import plane_chart
from lm_eval_ext.plane.figures.slopes import language_slopes
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.results.runs import load
from lm_eval_ext.stats import on_front
from lm_eval_ext.viz import theme
from lm_eval_ext.viz.chart import MAX_RUNS, write_charts
from lm_eval_ext.viz.curves import effect_curves
from lm_eval_ext.viz.heatmap import two_layer_heatmap
from lm_eval_ext.viz.panels import spread
from lm_eval_ext.viz.pca import layer_pca

HEX = re.compile(r"#[0-9a-fA-F]{6}\b")


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    return measure(load(write_demo(tmp_path_factory.mktemp("demo"))), "unsteered", resamples=300)


@pytest.fixture(scope="module")
def cultural(tmp_path_factory):
    """With whole documents, and the country named too."""
    tree = load(write_tree(tmp_path_factory.mktemp("tree"), n=24))
    return measure(tree, "unsteered", x="transfer_mini_cloze", y="localization_mini_cloze", resamples=300)


def conditions() -> pd.DataFrame:
    """Effects of two vectors and a control band over eight layers."""
    rows = [
        (series, layer, 2.0, peak * np.exp(-((layer - at) ** 2) / 4), 0.02, series == "random")
        for series, at, peak in (("en", 3, 0.05), ("loc", 5, 0.08), ("random", 0, 0.0))
        for layer in range(8)
    ]
    frame = pd.DataFrame(rows, columns=["series", "layer", "gamma", "change", "half", "is_control"])
    return frame.assign(low=frame["change"] - frame["half"], high=frame["change"] + frame["half"]).drop(columns="half")


def grid() -> pd.DataFrame:
    """Two vectors at pairs of layers, the last pair left out."""
    rows = [(en, loc, (en - loc) / 100) for en in (7, 8) for loc in (6, 9, 10)][:-1]
    frame = pd.DataFrame(rows, columns=["en_layer", "loc_layer", "change"])
    return frame.assign(low=frame["change"] - 0.015, high=frame["change"] + 0.015)


def states() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (layer, panel, language, f"q{question}", *rng.normal(size=2), 0.4 + layer / 10)
        for layer in range(3)
        for panel in ("universal", "cultural")
        for language in ("en", "ko", "ar")
        for question in range(4)
    ]
    return pd.DataFrame(rows, columns=["layer", "panel", "language", "question", "pc1", "pc2", "explained"])


# --- the theme -------------------------------------------------------------------------------------------------------


def colours_of(part) -> set[str]:
    if isinstance(part, dict):
        return set().union(*map(colours_of, part.values()))
    if isinstance(part, (list, tuple)):
        return set().union(*map(colours_of, part))
    return {part} if isinstance(part, str) and HEX.fullmatch(part) else set()


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_every_colour_of_every_figure_has_a_dark_counterpart(plane, cultural):
    light = {values[0] for values in theme.PALETTE.values()}
    for chart in [
        *charts(plane),
        context_gap(cultural),
        effect_curves(conditions(), "layer"),
        layer_pca(states()),
        two_layer_heatmap(grid()),
    ]:
        content = {key: value for key, value in chart.json().items() if key != "layout"}
        layout = {key: value for key, value in chart.json()["layout"].items() if key != "template"}
        used = colours_of([content, layout])
        assert used
        assert used <= light, chart.name
        assert not colours_of(theme.recolour([content, layout])) & light, chart.name


def test_dark_and_back_is_the_same():
    light, dark = zip(*theme.PALETTE.values(), strict=True)
    assert len(set(light)) == len(light)
    assert len(set(dark)) == len(dark)
    assert not set(light) & set(dark)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_is_readable_on_every_background(mode):
    for text in ("ink", "quiet", "accent", "blue", "vermilion", "green", "purple", "ochre", "violet", "crimson"):
        for background in ("paper", "panel", "gain", "erasure", "loss", "local"):
            ratio = contrast(theme.PALETTE[text][mode], theme.PALETTE[background][mode])
            assert ratio >= 4.5, (text, background, round(ratio, 2))
    for background in ("less", "more"):
        assert contrast(theme.PALETTE["ink"][mode], theme.PALETTE[background][mode]) >= 4.5


# --- the plane -------------------------------------------------------------------------------------------------------


def test_regions_surround_their_points_and_are_switched_by_a_menu(plane):
    figure = plane_chart(plane).figure
    regions = {trace.name: trace for trace in figure.data if trace.fill == "toself"}
    points = {trace.name: trace for trace in figure.data if trace.mode == "markers+text"}
    for run in ("en", "loc", "surgical", "random"):
        x, y = np.array(regions[run].x), np.array(regions[run].y)
        assert (x[0], y[0]) == (x[-1], y[-1])
        assert x.min() < points[run].x[0] < x.max()
        assert y.min() < points[run].y[0] < y.max()
        assert regions[run].visible is False
    menu = figure.layout.updatemenus[1]
    visible = {button.label: button.args[0]["visible"] for button in menu.buttons}
    assert all(visible["95% regions"])
    assert visible["Intervals"] == [trace.fill != "toself" for trace in figure.data]
    assert menu.buttons[1].args[0]["error_x.visible"] is False


def test_a_region_reaches_further_than_the_interval_of_one_axis(plane):
    figure = plane_chart(plane).figure
    region = next(trace for trace in figure.data if trace.fill == "toself" and trace.name == "surgical")
    row = plane.shifts.set_index(["run", "language"]).loc[("surgical", "average")]
    assert max(region.x) - min(region.x) > 100 * (row["x_high"] - row["x_low"])


def test_the_front_steps_through_the_best_runs_and_no_control(plane):
    figure = plane_chart(plane).figure
    front = next(trace for trace in figure.data if trace.name == "Pareto front")
    average = plane.shifts[plane.shifts["language"] == "average"].set_index("run")
    average = average.drop(index="random")[["x_change", "y_change"]]
    best = average[on_front(average.to_numpy())].sort_values("x_change")
    assert list(front.x[1:-1]) == pytest.approx((100 * best["x_change"]).tolist())
    assert list(front.y[1:-1]) == pytest.approx((100 * best["y_change"]).tolist())
    assert front.line.shape == "vh"


def test_many_runs_are_named_by_the_hover_only(tmp_path):
    for seed in range(20):
        write_run(tmp_path / f"run{seed:02d}", random_scores(seed, n=12))
    many = measure(load(tmp_path), "run00", resamples=100)
    figure = plane_chart(many).figure
    points = [trace for trace in figure.data if trace.mode == "markers+text"]
    assert len(points) == 20
    assert not any(trace.text for trace in points)
    assert all(trace.hovertext for trace in points)
    assert not [trace for trace in figure.data if trace.fill == "toself"]
    runs, sentence = shown_runs(many)
    assert len(runs) == MAX_RUNS
    assert f"Of 19 runs, the {MAX_RUNS} with the largest sum" in sentence
    for make in (plane_by_language, language_slopes, bias_bars):
        chart = make(many)
        assert sentence in chart.caption
        assert set(chart.data["run"]) <= {"run00", *(run.name for run in runs)}


# --- the others ------------------------------------------------------------------------------------------------------


def test_the_plane_of_every_language_has_a_panel_each_on_one_scale(plane):
    chart = plane_by_language(plane)
    titles = [annotation.text for annotation in chart.figure.layout.annotations]
    assert titles == [
        f"<b>{name}</b>" for name in ("Spanish", "Indonesian", "Greek", "Korean", "Chinese", "Arabic", "English")
    ]
    ends = {axis.range for axis in chart.figure.select_xaxes()} | {axis.range for axis in chart.figure.select_yaxes()}
    assert len(ends) == 2
    change = plane.shifts.set_index(["run", "language"])["x_change"]
    korean = [trace for trace in chart.figure.data if trace.xaxis == "x4"]
    assert [trace.x[0] for trace in korean] == pytest.approx([100 * change[run.name, "ko"] for run in plane.runs])


def test_slopes_lead_from_before_to_after_and_say_what_is_decided(cultural):
    chart = language_slopes(cultural)
    lines = [trace for trace in chart.figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 2 * len(cultural.runs) * 7
    rows = cultural.shifts[cultural.shifts["language"] != "average"].set_index(["run", "language"])
    first = lines[0]
    assert first.y == pytest.approx([100 * rows["x_baseline"]["en", "es"], 100 * rows["x_run"]["en", "es"]])
    solid = sum(trace.line.dash == "solid" for trace in lines)
    decided = sum(
        bool((row[f"{axis}_low"] > 0 or row[f"{axis}_high"] < 0) and row[f"{axis}_changed"] >= 6)
        for (run, _), row in rows.iterrows()
        if run != "unsteered"
        for axis in "xy"
    )
    assert 0 < solid == decided
    assert len({trace.marker.symbol for trace in lines}) == 7
    labelled = list(chart.figure.select_traces({"mode": "text"}))
    assert labelled
    for label in labelled:  # plotly leaves out what lies beyond the axis
        low, high = chart.figure.layout[label.yaxis.replace("y", "yaxis")].range
        assert low < label.y[0] < high


def test_bias_bars_show_before_and_after_with_the_interval_of_the_change(cultural):
    chart = bias_bars(cultural)
    assert "Korean" in chart.figure.data[0].x
    assert "English" not in chart.figure.data[0].x
    before, after = chart.figure.data[0], chart.figure.data[2]
    assert (before.name, after.name) == ("unsteered", "loc")
    row = cultural.shifts.set_index(["run", "language"]).loc[("loc", "average")]
    assert before.y[0] == pytest.approx(100 * row["bias_baseline"])
    assert after.y[0] == pytest.approx(100 * row["bias_run"])
    assert after.y[0] - before.y[0] + after.error_y.array[0] == pytest.approx(100 * row["bias_high"])
    patterns = [trace.marker.pattern.shape for trace in chart.figure.data]
    assert len(set(patterns)) == len(patterns)  # told apart in black and white


def test_naming_the_country_is_paired_on_the_same_questions(cultural):
    gaps = context_gaps(cultural).set_index(["run", "language"])
    assert set(gaps.index.get_level_values("run")) == {"unsteered", "en", "loc", "surgical", "random"}
    row = gaps.loc[("loc", "average")]
    assert row["gap"] == pytest.approx(row["named"] - row["plain"])
    assert row["low"] < row["gap"] < row["high"]
    assert (row["n"], row["questions"]) == (6 * 24, 24)
    assert row["plain"] == pytest.approx(cultural.shifts.set_index(["run", "language"])["y_run"]["loc", "average"])
    chart = context_gap(cultural)
    assert [trace.marker.symbol for trace in chart.figure.data[1:3]] == ["circle-open", "circle"]
    assert len(chart.data) == 5 * 8


def test_without_that_task_there_is_no_such_figure(plane):
    assert context_gap(plane) is None
    assert [chart.name for chart in charts(plane)] == ["plane", "plane_by_language", "slopes", "english_bias"]


def test_tasks_without_languages_or_bias_draw_what_they_have(tmp_path):
    for name in ("base", "run"):
        write_run(tmp_path / name, {"arc": {"acc": [1.0, 0.0]}, "boolq": {"acc": [0.0, 1.0]}})
    drawn = charts(measure(load(tmp_path), "base", x="arc", y="boolq", resamples=100))
    assert [chart.name for chart in drawn] == ["plane"]


def test_curves_have_intervals_and_stand_before_the_band_of_controls():
    chart = effect_curves(conditions(), "layer", score="acc")
    band, *rest = chart.figure.data
    assert band.name == "random"
    assert band.fill == "toself"
    lines = [trace for trace in rest if trace.mode == "lines+markers"]
    assert [trace.name for trace in lines] == ["en", "loc"]
    assert np.argmax(lines[0].y) == 3
    assert len({(trace.line.dash, trace.marker.symbol) for trace in lines}) == 2
    assert band.fillpattern.shape is None
    two = pd.concat([conditions(), conditions().query("is_control").assign(series="random, of loc")])
    bands = [trace for trace in effect_curves(two, "layer").figure.data if (trace.name or "").startswith("random")]
    assert len({(trace.fillpattern.shape, trace.line.dash) for trace in bands}) == 2
    gammas = conditions().query("layer == 3").assign(gamma=2.0)
    again = pd.concat([gammas, gammas.assign(gamma=4.0)])
    assert effect_curves(again, "gamma").figure.data[-1].x == (2.0, 4.0)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (conditions().drop(columns="low"), "missing: low"),
        (conditions().iloc[:0], "no rows"),
        (pd.concat([conditions(), conditions().assign(gamma=4.0)]), "'en' has several rows at layer 0"),
    ],
)
def test_curves_of_a_frame_that_means_nothing_are_refused(frame, message):
    with pytest.raises(ResultsError, match=message):
        effect_curves(frame, "layer")


def test_the_grid_of_two_layers_says_every_change_in_words_too():
    chart = two_layer_heatmap(grid(), score="acc")
    (cells,) = chart.figure.data
    assert (cells.x, cells.y) == (("6", "9", "10"), ("7", "8"))
    assert cells.z[0] == pytest.approx([1.0, -2.0, -3.0])
    assert np.isnan(cells.z[1][2])
    assert cells.text == (["+1.0", "<b>−2.0</b>", "<b>−3.0</b>"], ["<b>+2.0</b>", "−1.0", ""])
    assert (cells.zmin, cells.zmax) == (-3.0, 3.0)
    assert pd.read_csv(io.StringIO(chart.csv())).shape == (5, 5)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (grid().drop(columns="high"), "missing: high"),
        (grid().iloc[:0], "no rows"),
        (pd.concat([grid(), grid().assign(gamma=4.0)]), "EN at layer 7 and LOC at layer 6 have several rows"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(frame, message):
    with pytest.raises(ResultsError, match=message):
        two_layer_heatmap(frame)


def test_the_pca_slider_moves_every_language_of_every_panel():
    frame = states()
    chart = layer_pca(frame)
    (slider,) = chart.figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "1", "2"]
    assert slider.active == 1
    moved, titles = slider.steps[2].args
    assert len(moved["x"]) == len(chart.figure.data) == 6
    arabic = frame.query("layer == 2 and panel == 'cultural' and language == 'ar'")
    assert moved["y"][5] == pytest.approx(arabic["pc2"].tolist())
    assert "60% of the variance" in titles["annotations[0].text"]
    assert chart.figure.data[0].name == "English"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_pca(states().drop(columns="pc1")), "missing: pc1"),
        (lambda: layer_pca(states().iloc[:0]), "no rows"),
        (lambda: layer_pca(states(), layer=9), "no layer 9; it has 0, 1, 2"),
    ],
)
def test_a_pca_of_a_frame_that_means_nothing_is_refused(call, message):
    with pytest.raises(ResultsError, match=message):
        call()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_labels_are_spread_without_changing_places(values):
    placed = spread(values, 5.0)
    order = sorted(range(len(values)), key=lambda index: values[index])
    gaps = np.diff([placed[index] for index in order])
    assert (gaps >= 5.0 - 1e-6).all()
    if len(values) > 1 and (np.diff(sorted(values)) >= 5.0).all():
        assert placed == pytest.approx(values)
    inside = spread(values, 5.0, (10.0, 60.0))
    assert (np.diff([inside[index] for index in order]) >= 5.0 - 1e-6).all()
    assert all(10.0 - 1e-6 <= height <= 60.0 + 1e-6 for height in inside)


# --- files -----------------------------------------------------------------------------------------------------------


def test_every_figure_as_csv_is_what_is_drawn(plane, tmp_path):
    written = write_charts(charts(plane), tmp_path / "deep", ("csv",))
    assert [path.name for path in written] == ["plane.csv", "plane_by_language.csv", "slopes.csv", "english_bias.csv"]
    frame = pd.read_csv(io.StringIO((tmp_path / "deep" / "plane.csv").read_text()), keep_default_na=False)
    assert len(frame) == len(plane.shifts)


def test_an_unknown_format_is_refused_before_anything_is_written(plane, tmp_path):
    with pytest.raises(ResultsError, match="as gif; formats: csv, svg, png"):
        write_charts(charts(plane), tmp_path, ("csv", "gif"))
    assert not list(tmp_path.iterdir())


def test_static_images_of_every_script_without_menus(cultural, tmp_path):
    pytest.importorskip("kaleido", reason="needs kaleido (pip install 'lm_eval_ext[figures]')")
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs Chrome or Chromium")
    figure = go.Figure(go.Scatter(x=[1, 2], y=[1, 2], mode="text", text=["국민 음식 国菜", "الطعام الوطني"]))
    figure.update_layout(
        **theme.layout(updatemenus=[theme.menu([{"label": "never", "method": "update", "args": [{}]}])])
    )
    chart = plane_chart(cultural)
    drawn = type(chart)("scripts", "", "", figure, chart.data, height=300)
    svg, png = write_charts([drawn], tmp_path, ("svg", "png"))
    texts = "".join(ET.parse(svg).getroot().itertext())  # our own file
    assert "국민 음식 国菜" in texts
    assert "الطعام الوطني" in texts
    assert "never" not in texts
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_without_a_browser_the_message_says_what_to_do(plane, tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="needs kaleido (pip install 'lm_eval_ext[figures]')")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(ResultsError, match=r"cannot make plane.svg: .*\n.*lm_eval_ext\[figures\].*BROWSER_PATH"):
        plane_chart(plane).image("svg")
