"""What is drawn and printed: the figure, the page, the table, the CSV, the command."""

from __future__ import annotations

import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.processes import modules_after
from support.runs import random_scores, write_demo, write_run
from typer.testing import CliRunner

from lm_eval_ext.commands.plane import plane as command
from lm_eval_ext.errors import UserError
from lm_eval_ext.plane.figures.plane import draw
from lm_eval_ext.plane.page import page
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.plane.table import terminal_table, to_csv
from lm_eval_ext.results.runs import load
from lm_eval_ext.viz import labels

app = typer.Typer()
app.command()(command)

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def plane(demo):
    return measure(load(demo), "unsteered", resamples=500)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Path:
    """A page whose run, model, plan and task names all try to run a script."""
    root = tmp_path_factory.mktemp("hostile")
    tasks = {"arc": {"acc": [1.0, 0.0, 1.0]}, HOSTILE.replace("/", ""): {"acc": [0.0, 1.0, 1.0]}}
    for plan in ("", HOSTILE):
        write_run(root, tasks, plan=plan, model=HOSTILE, label=HOSTILE, date=f"2026-01-0{1 + bool(plan)}T00-00-00")
    measured = measure(load(root), "", x="arc", y=HOSTILE.replace("/", ""), resamples=100)
    path = root / "plane.html"
    path.write_text(page(measured))
    return path


# --- the figure ------------------------------------------------------------------------------------------------------


def test_the_figure_has_four_named_quadrants_and_the_baseline_at_the_origin(plane):
    figure = draw(plane)
    names = [annotation.text.replace("<br>", " ") for annotation in figure.layout.annotations]
    assert names == ["Gains on both", "Cultural erasure", "Losses on both", "Local gain, transfer loss"]
    (origin,) = [trace for trace in figure.data if trace.name == "unsteered" and trace.showlegend is None]
    assert (origin.x, origin.y) == ((0.0,), (0.0,))
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert axis.range[0] < 0 < axis.range[1]
        assert "percentage points" in axis.title.text
        assert "acc" in axis.title.text
    assert "transfer_mini_cloze" in figure.layout.xaxis.title.text


def test_an_arrow_runs_from_the_model_to_each_steered_run(plane):
    arrows = {trace.name: trace for trace in draw(plane).data if trace.mode == "lines+markers"}
    change = plane.shifts[plane.shifts["language"] == "average"].set_index("run")
    assert not arrows["unsteered"].x
    for run in ("en", "loc", "surgical", "random"):
        assert arrows[run].x == pytest.approx((0, 100 * change["x_change"][run]))
        assert arrows[run].y == pytest.approx((0, 100 * change["y_change"][run]))


def test_arrows_start_at_the_steered_model_and_not_at_the_baseline(tmp_path):
    write_run(tmp_path / "pretrained", random_scores(0), model="org/base")
    write_run(tmp_path / "aligned", random_scores(5, {"transfer": 0.1, "localization": -0.1}), model="org/aligned")
    write_run(tmp_path / "aligned_loc", random_scores(6), model="org/aligned", plan="loc@3:2")
    figure = draw(measure(load(tmp_path), "pretrained", resamples=100))
    arrows = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    points = {trace.name: trace for trace in figure.data if trace.showlegend is None}
    assert not arrows["aligned"].x
    assert points["aligned"].x[0] > 0
    assert arrows["aligned_loc"].x == (points["aligned"].x[0], points["aligned_loc"].x[0])


def test_every_language_has_a_view_that_fits_the_traces(plane):
    figure = draw(plane)
    menu, uncertainty = figure.layout.updatemenus
    assert [button.label for button in uncertainty.buttons][:2] == ["Intervals", "95% regions"]
    assert [button.label for button in menu.buttons] == [
        "Average of es id el ko zh ar",
        *("Spanish", "Indonesian", "Greek", "Korean", "Chinese", "Arabic", "English"),
        "Every language",
    ]
    change = plane.shifts.set_index(["run", "language"])["x_change"]
    for button in menu.buttons:
        data, ranges = button.args
        assert all(len(values) == len(figure.data) for values in data.values())
        assert set(ranges) == {"xaxis.range", "yaxis.range"}
    korean, every = menu.buttons[4].args[0]["x"], menu.buttons[8].args[0]["x"]
    point_of_loc = next(
        n for n, trace in enumerate(figure.data) if trace.name == "loc" and trace.mode == "markers+text"
    )
    assert korean[point_of_loc] == pytest.approx([100 * change["loc", "ko"]])
    assert every[point_of_loc] == pytest.approx([100 * change["loc", code] for code in plane.languages])


def test_hover_says_interval_and_n(plane):
    figure = draw(plane)
    hover = next(trace.hovertext[0] for trace in figure.data if trace.name == "loc" and trace.showlegend is None)
    assert "plan loc@58%:2" in hover
    assert re.search(r"<b>localization</b> [+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\] points \(acc\)", hover)
    assert "n = 360 on 60 questions" in hover
    assert "English bias" in hover
    assert re.search(r"most resamples lie in: [a-z, ]+, \d+%$", hover)


def test_runs_differ_without_colour(plane):
    symbols = [trace.marker.symbol for trace in draw(plane).data if trace.showlegend is None]
    assert len(set(symbols)) == len(symbols)
    assert [symbol.endswith("-open") for symbol in symbols] == [
        True,
        False,
        False,
        False,
        True,
    ]  # baseline, ..., control


def test_other_tasks_have_neutral_quadrants(tmp_path):
    for name in ("base", "run"):
        write_run(tmp_path / name, {"arc": {"acc": [1.0, 0.0]}, "boolq": {"acc": [0.0, 1.0]}})
    figure = draw(measure(load(tmp_path), "base", x="arc", y="boolq", resamples=100))
    assert figure.layout.annotations[1].text == "x up, y down"
    assert len(figure.layout.updatemenus) == 1  # nothing to choose but how uncertainty is drawn


@given(st.tuples(st.floats(0, 280), st.floats(0, 330)))
def test_a_label_stays_inside_the_plotting_area(point):
    area = labels.Box(0, 0, 280, 330)
    (position,) = labels.place([point], ["surgical"], [], area)
    box = labels._box(point, "surgical", position)
    assert box.overlap(area) >= 0.75 * box.area  # a point on the edge leaves a little outside


def test_labels_of_close_points_do_not_overlap():
    points = [(100.0, 100.0), (112.0, 104.0), (104.0, 112.0)]
    texts = ["surgical", "random", "unsteered"]
    positions = labels.place(points, texts, [], labels.Box(0, 0, 280, 330))
    boxes = [labels._box(*case) for case in zip(points, texts, positions, strict=True)]
    assert all(one.overlap(other) == 0 for one in boxes for other in boxes if one is not other)


# --- the page --------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


def elements(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(html)
    return parser.found


def test_the_page_is_self_contained_and_fits_a_phone(plane):
    html = page(plane)
    found = elements(html)
    addresses = [attributes.get("src") or attributes.get("href") or "" for _, attributes in found]
    assert not [
        address for address in addresses if address and not address.startswith("#")
    ]  # but for places on the page
    assert not [tag for tag, _ in found if tag in ("link", "iframe")]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found
    assert "default-src 'none'" in html
    assert "plotly.js v" in html


def test_the_page_names_scores_sizes_conclusions_and_runs(plane):
    html = page(plane)
    for text in (
        "option text with the highest log-likelihood; 360 documents on 60 questions",
        "Change against <b>unsteered</b>",
        "each language weighing the same",
        "95% intervals: paired bootstrap over questions, 500 resamples, seed 0",
        "random (a random direction, a control)",
        "Beyond the control random",
        "<td>en@42%:2+loc@58%:2</td>",
    ):
        assert text in html


def test_page_and_csv_keep_local_folders_to_themselves(tmp_path):
    for name in ("base", "run"):
        args = {"pretrained": "/home/me/models/llama", "vectors": "/home/me/v.safetensors"}
        scores = {"arc": {"acc": [1.0, 0.0]}, "boolq": {"acc": [0.0, 1.0]}}
        write_run(tmp_path / name, scores, model="/home/me/models/llama", model_args=args)
    measured = measure(load(tmp_path), "base", x="arc", y="boolq", resamples=100)
    for text in (page(measured), to_csv(measured)):
        assert "/home/me" not in text
        assert "llama" in text


def test_names_are_not_markup_in_the_figure(tmp_path):
    for name in ("base", "<b>run<b>"):
        write_run(tmp_path / name, {"arc": {"acc": [1.0, 0.0]}, "boolq": {"acc": [0.0, 1.0]}}, plan=f"{name}@1")
    figure = draw(measure(load(tmp_path), "base", x="arc", y="boolq", resamples=100))
    point = figure.data[-1]
    for text in (point.name, point.text[0], point.hovertext[0]):
        assert "&lt;b&gt;run&lt;b&gt;" in text


def test_hostile_names_are_text(hostile_page):
    tags = [tag for tag, _ in elements(hostile_page.read_text())]
    assert "img" not in tags
    assert tags.count("script") == 4  # colours and figure as data, plotly, ours


# In a browser: test_browser.py


# --- table and CSV ---------------------------------------------------------------------------------------------------


def printed(plane) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(plane))
    return console.file.getvalue()


def test_the_table_has_a_row_per_run_and_language(plane):
    text = printed(plane)
    rows = [line for line in text.splitlines() if re.match(r"\s+(\w+ +)?(average|en|es|id|el|ko|zh|ar) ", line)]
    assert len(rows) == 5 * 8
    assert re.search(r"surgical +average +\+1\.4 \[.*\] +\+5\.8 \[.*\] ▲ +−3\.6 \[.*\] ▼ +360", text)
    assert re.search(r"unsteered +average +39\.7% +41\.7% +28\.6% +360", text)
    assert "transfer_mini_cloze, acc: option text with the highest log-likelihood" in text


def test_names_are_not_markup_in_the_table(tmp_path):
    scores = {"arc": {"acc": [1.0]}, "boolq": {"acc": [0.0]}}
    write_run(tmp_path / "base", scores)
    write_run(tmp_path / "[red]run[/red]", scores)
    assert "[red]run[/red]" in printed(measure(load(tmp_path), "base", x="arc", y="boolq", resamples=100))


def test_the_csv_is_what_was_measured(plane):
    frame = pd.read_csv(io.StringIO(to_csv(plane)), keep_default_na=False, na_values={"bias_change": [""]})
    shifts = frame[frame["against"] == "unsteered"].reset_index(drop=True)
    assert len(shifts) == len(plane.shifts)
    assert shifts["x_change"].tolist() == pytest.approx(plane.shifts["x_change"].tolist(), abs=1e-6)
    assert shifts["y_high"].tolist() == pytest.approx(plane.shifts["y_high"].tolist(), abs=1e-6)
    assert (frame[["x_task", "x_score", "level"]] == ["transfer_mini_cloze", "acc", 0.95]).all(axis=None)
    control = frame[frame["against"] == "random"]
    assert set(control["run"]) == {"en", "loc", "surgical"}
    assert set(frame["y_verdict"]) <= {"up", "down", "undecided"}
    assert frame["x_n"].tolist()[0] == 360


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_page_and_csv_and_prints_table_and_conclusions(demo, tmp_path):
    out = tmp_path / "deep" / "plane.html"
    result = CliRunner().invoke(app, [str(demo), "--baseline", "unsteered", "--out", str(out), "--resamples", "200"])
    assert result.exit_code == 0, result.output
    assert "surgical" in result.output
    assert "Beyond the control random" in result.output
    assert out.read_text().startswith("<!doctype html>")
    assert out.with_suffix(".csv").read_text().count("\n") == 1 + 5 * 8 + 3 * 8
    assert sorted(path.name for path in out.parent.iterdir()) == ["plane.csv", "plane.html"]  # no temporary files


def test_the_command_takes_a_csv_of_its_own_and_says_notes_on_stderr(demo, tmp_path):
    arguments = [
        str(demo),
        "--baseline",
        "unsteered",
        "--out",
        str(tmp_path / "p.html"),
        "--csv",
        str(tmp_path / "x.csv"),
    ]
    (tmp_path / "p.html").write_text("old")
    write_run(demo / "half", {"transfer_mini_ko_cloze": {"acc": [1.0]}})
    try:
        result = CliRunner().invoke(app, [*arguments, "--languages", "ko, zh", "--resamples", "200"])
    finally:
        shutil.rmtree(demo / "half")
    assert result.exit_code == 0, result.output
    assert "run 'half' has no results for localization_mini_cloze" in result.stderr
    assert (tmp_path / "x.csv").exists()
    assert (tmp_path / "p.html").read_text() != "old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "nobody"], "no run is called 'nobody'"),
        (["--baseline", "unsteered", "--x", "hellaswag"], "no results for 'hellaswag'"),
        (["--baseline", "unsteered", "--metric", "f1"], "no score 'f1'"),
        (["--baseline", "unsteered", "--out", "plane.csv"], "both be written to plane.csv"),
        (["--baseline", "unsteered", "--out", "/proc/none/plane.html"], "cannot write /proc/none/plane.html"),
    ],
)
def test_a_mistake_is_a_user_error(demo, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [str(demo), "--resamples", "100", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


@pytest.mark.parametrize("arguments", [["--level", "2"], ["--resamples", "0"], []])
def test_a_misuse_exits_with_two(demo, arguments):
    baseline = ["--baseline", "unsteered"] if arguments else []
    result = CliRunner().invoke(app, [str(demo), *baseline, *arguments])
    assert result.exit_code == 2
    assert [*arguments, "--baseline"][0] in result.output


def test_importing_the_command_is_cheap():
    modules = modules_after("import lm_eval_ext.commands.plane")
    assert "lm_eval_ext.commands.plane" in modules
    assert not {"pandas", "plotly", "numpy", "torch"} & modules
