"""`lm-eval-ext gate`: verdicts on real result files, misuse, outputs."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.gates import LANGUAGES, NEWER, OLDER, answers, write_gate, write_pair
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import cli

PASS, FAIL, INCONCLUSIVE, MISUSE = 0, 1, 2, 3


@pytest.fixture(autouse=True)
def _no_github(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def gate(rules: Path, baseline: Path, candidate: Path, *options: str):
    arguments = [str(rules), "--baseline", str(baseline), "--candidate", str(candidate), *options]
    result = CliRunner().invoke(cli.app, ["gate", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def status(tmp_path: Path, before: dict, after: dict, *rules: str, **options) -> int:
    code: int = gate(write_gate(tmp_path, *rules), *write_pair(tmp_path, before, after, **options)).exit_code
    return code


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_an_unchanged_model_passes(tmp_path):
    assert status(tmp_path, answers(), answers(), "axis: qa, margin: 0.02", "axis: qa, max_changed: 0") == PASS


@pytest.mark.parametrize(
    ("flips", "margin", "expected", "reason"),
    [
        (0.0, 0.03, FAIL, "a loss is shown"),
        (0.0, 0.02, FAIL, "a loss is shown"),  # 400 items can show 2.3 points: three are more
        (0.1, 0.03, INCONCLUSIVE, "too few items"),  # with 13% changed answers they can show 4.6
    ],
)
def test_three_points_on_one_language_of_400_items(tmp_path, flips, margin, expected, reason):
    before, after = answers(), answers(lose={"el": 0.03}, flips=flips)
    rules = write_gate(tmp_path, f"axis: qa, margin: {margin}, languages: el")
    result = gate(rules, *write_pair(tmp_path, before, after))
    assert result.exit_code == expected, result.output
    assert reason in " ".join(result.output.split())


def test_a_lost_language_fails_although_the_average_would_not(tmp_path):
    before, after = answers(2000), answers(2000, lose={"el": 0.08})
    rules = write_gate(tmp_path, "axis: qa, margin: 0.02", "axis: qa, margin: 0.06, languages: average")
    report = tmp_path / "gate.json"
    assert gate(rules, *write_pair(tmp_path, before, after), "--json", str(report)).exit_code == FAIL
    verdicts = {(check["language"], check["margin"]): check for check in json.loads(report.read_text())["checks"]}
    assert verdicts["el", 0.02]["verdict"] == "fail"
    assert verdicts["es", 0.02]["verdict"] == "pass"
    assert verdicts["average", 0.06]["verdict"] == "pass"
    assert verdicts["average", 0.06]["change"] == pytest.approx(-0.04)  # of Spanish and Greek, English apart
    assert verdicts["average", 0.06]["n"] == 4000


def test_too_few_items_are_no_pass(tmp_path):
    assert status(tmp_path, answers(20), answers(20), "axis: qa, margin: 0.02") == INCONCLUSIVE


def test_a_catastrophe_needs_few_items(tmp_path):
    assert status(tmp_path, answers(40), answers(40, lose={"el": 0.5}), "axis: qa, margin: 0.02, languages: el") == FAIL


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("floor: 0.5", PASS),
        ("floor: 0.6", INCONCLUSIVE),
        ("floor: 0.9", FAIL),
        ("chance: 0.25", PASS),
        ("chance: 0.9", FAIL),
        ("chance: 0.6, margin: 0.01", INCONCLUSIVE),
    ],
)
def test_a_score_against_a_constant(tmp_path, rule, expected):
    assert status(tmp_path, answers(), answers(), f"axis: qa, languages: el, {rule}") == expected


def test_of_the_english_bias_less_is_better(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers(lose={"el": 0.1}))
    for path in tmp_path.rglob("results_*.json"):
        content = json.loads(path.read_text())
        content["higher_is_better"] = {f"qa_{code}": {"acc": True, "english_bias": False} for code in LANGUAGES}
        path.write_text(json.dumps(content))
    rules = write_gate(tmp_path, "axis: qa, metric: english_bias, languages: el, margin: 0.05")
    report = tmp_path / "gate.json"
    assert gate(rules, base, new, "--json", str(report)).exit_code == FAIL  # more wrong answers are more bias
    (check,) = json.loads(report.read_text())["checks"]
    assert check["candidate"] - check["baseline"] == pytest.approx(0.1)
    assert check["change"] == pytest.approx(-0.1)
    rules = write_gate(tmp_path, "axis: qa, metric: english_bias, languages: el, margin: 0.05, better: higher")
    assert gate(rules, base, new).exit_code == PASS
    result = gate(write_gate(tmp_path, "axis: qa, metric: english_bias, floor: 0.1"), base, new)
    assert (result.exit_code, "less english_bias is better" in result.stderr) == (MISUSE, True)


def test_documents_without_a_language_are_one_group(tmp_path):
    scores = {"plain": {"acc": [1.0, 0.0] * 200}}
    report = tmp_path / "gate.json"
    rules = write_gate(tmp_path, "axis: plain, margin: 0.02")
    assert gate(rules, *write_pair(tmp_path, scores, scores), "--json", str(report)).exit_code == PASS
    assert [check["language"] for check in json.loads(report.read_text())["checks"]] == ["all"]


# --- misuse ----------------------------------------------------------------------------------------------------------

RULE = "axis: qa, margin: 0.05"


def misused(tmp_path: Path, after: dict, *rules: str, head: str = "", options=(), **run) -> str:
    result = gate(
        write_gate(tmp_path, *(rules or [RULE]), head=head), *write_pair(tmp_path, answers(), after, **run), *options
    )
    assert result.exit_code == MISUSE, result.output
    assert "Traceback" not in result.output
    message: str = result.stderr
    return message


def test_a_swapped_baseline(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers(lose={"el": 0.1}))
    result = gate(write_gate(tmp_path, RULE), new, base)
    assert result.exit_code == MISUSE
    assert "are --baseline and --candidate swapped?" in result.stderr
    assert gate(write_gate(tmp_path, RULE), new, base, "--any-order").exit_code == PASS  # what a swap would have hidden


@pytest.mark.parametrize(("key", "value"), [("model", "org/base"), ("plan", "loc@3:2")])
def test_another_baseline_than_the_gate_names(tmp_path, key, value):
    base, new = write_pair(tmp_path, answers(), answers(), plan="loc@3:2")
    head = f"baseline: {{{key}: '{value}'}}"
    wanted, other = (base, new) if key == "model" else (new, base)
    result = gate(write_gate(tmp_path, RULE, head=head), other, wanted, "--any-order")
    assert result.exit_code == MISUSE
    assert f"wants the baseline to have {key} {value!r}" in result.stderr
    assert gate(write_gate(tmp_path, RULE, head=head), wanted, other, "--any-order").exit_code == PASS


def test_a_run_against_itself(tmp_path):
    base, _ = write_pair(tmp_path, answers(), answers())
    result = gate(write_gate(tmp_path, RULE), base, base)
    assert (result.exit_code, "against itself" in result.stderr) == (MISUSE, True)


def test_a_missing_language(tmp_path):
    few = {task: scores for task, scores in answers().items() if task != "qa_el"}
    assert "the candidate 'org/new' has no el on qa; it has en, es" in misused(tmp_path, few)
    # A rule that does not speak of Greek does not miss it.
    rules = write_gate(tmp_path, "axis: qa, languages: es, margin: 0.05")
    assert gate(rules, tmp_path / "base", tmp_path / "new").exit_code == PASS


def test_a_language_that_nobody_has(tmp_path):
    message = misused(tmp_path, answers(), "axis: qa, languages: [el, gr], margin: 0.05")
    assert "the baseline 'org/base' has no gr on qa; it has en, es, el" in message


def test_another_item_set(tmp_path):
    message = misused(tmp_path, answers(390), limit=390)
    assert "not comparable" in message
    assert "1170 documents that both have, of 1200" in message
    assert "limit None and 390" in message


def test_entirely_other_items(tmp_path):
    base, new = write_pair(tmp_path, answers(30), answers(30))
    for path in new.rglob("samples_*.jsonl"):
        path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "x'))
    result = gate(write_gate(tmp_path, RULE), base, new)
    assert (result.exit_code, "not one document is the same" in result.stderr) == (MISUSE, True)


def test_another_task_version(tmp_path):
    message = misused(tmp_path, answers(), versions={"qa_el": 2.0})
    assert "other versions of qa_el: 1.0 in the baseline 'org/base', 2.0 in 'org/new'" in message


def test_other_prompts(tmp_path):
    assert "the prompts of 1200 documents differ" in misused(tmp_path, answers(), n_shot=5)
    rules = write_gate(tmp_path, RULE, head="prompts: any")
    assert gate(rules, tmp_path / "base", tmp_path / "new").exit_code == PASS


def test_missing_samples(tmp_path):
    assert "--log_samples" in misused(tmp_path, answers(), samples=False)


def test_documents_without_a_score(tmp_path):
    after = answers()
    after["qa_el"]["acc"][3] = None
    assert "1 documents without a score" in misused(tmp_path, after)


def test_scores_that_are_not_shares(tmp_path):
    after = answers()
    after["qa_el"]["acc"][3] = 17.0
    assert "is not between 0 and 1" in misused(tmp_path, after)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("axis: nowhere", "no results for 'nowhere'"),
        ("axis: qa, metric: f1", "have no score 'f1'"),
        ("axis: qa, languages: [en, average]", "nothing to average"),
        ("axis: qa, margin: 2", "3 points are 0.03"),
    ],
)
def test_rules_that_the_results_cannot_answer(tmp_path, rule, message):
    assert message in misused(tmp_path, answers(), rule)


def test_several_runs_are_never_averaged(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers())
    for seed in (1, 2):
        write_run(new / f"seed{seed}", answers(seed=seed, flips=0.01), model="org/new", date=NEWER)
    result = gate(write_gate(tmp_path, RULE), base, new)
    assert result.exit_code == MISUSE
    assert "holds 3 runs, and a gate never averages them; name one with --candidate-run" in result.stderr
    assert gate(write_gate(tmp_path, RULE), base, new, "--candidate-run", "seed1").exit_code == PASS
    assert gate(write_gate(tmp_path, RULE), base, new, "--candidate-run", "seed7").exit_code == MISUSE


def test_one_run_with_several_seeds(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers())
    write_run(new, answers(), model="org/new", date=OLDER, random_seed=7)
    result = gate(write_gate(tmp_path, RULE), base, new)
    assert (result.exit_code, "with several seeds (random seed 7 and None)" in result.stderr) == (MISUSE, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["gate.yaml"],
        ["gate.yaml", "--baseline", "a"],
        ["gate.yaml", "--unknown"],
        ["renew"],
        ["renew", "gate.yaml"],
    ],
)
def test_a_command_line_that_means_nothing_is_no_verdict(arguments):
    assert CliRunner().invoke(cli.app, ["gate", *arguments]).exit_code == MISUSE


def test_folders_that_hold_no_results(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert gate(write_gate(tmp_path, RULE), folder, folder).exit_code == MISUSE


# --- outputs ---------------------------------------------------------------------------------------------------------

HOSTILE = "</table><script>alert(1)</script>|\x07]]>&\"'\n::error::x"


@pytest.fixture
def hostile(tmp_path) -> tuple[Path, Path, Path]:
    """A lost language of a task whose name would break every format."""
    task = "qa <b>|&]]>::x,y%\x07_el"
    before, after = ({task: scores["qa_el"]} for scores in (answers(), answers(lose={"el": 0.1})))
    base, new = write_pair(tmp_path, before, after)
    for path in (base / "org__base").glob("results_*.json"):
        content = json.loads(path.read_text())
        content["config"]["model_args"] = {"pretrained": HOSTILE}
        content["model_name"] = HOSTILE
        path.write_text(json.dumps(content))
    rules = tmp_path / "gate.yaml"
    rules.write_text(json.dumps({"rules": [{"axis": task, "margin": 0.05}]}))
    return rules, base, new


def test_junit_is_well_formed_and_counts(tmp_path, hostile):
    junit = tmp_path / "out" / "gate.xml"
    assert gate(*hostile, "--junit", str(junit)).exit_code == FAIL
    suites = ElementTree.parse(junit).getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("1", "1", "0")
    (failure,) = suites.iter("failure")
    assert "a loss is shown" in (failure.get("message") or "")
    assert "<b>|&]]>" in (failure.text or "")  # as text, not as markup


def test_a_picture_is_well_formed_and_fetches_nothing(tmp_path, hostile):
    svg = tmp_path / "gate.svg"
    assert gate(*hostile, "--svg", str(svg)).exit_code == FAIL
    text = svg.read_text()
    root = ElementTree.fromstring(text)
    assert "fail" in "".join(root.itertext())
    assert "@font-face" not in text
    assert text.count("http") == text.count('xmlns="http')
    assert {element.tag.partition("}")[2] for element in root.iter()}.isdisjoint({"script", "b", "image", "a"})


def test_json_says_everything(tmp_path, hostile):
    report = tmp_path / "gate.json"
    gate(*hostile, "--json", str(report))
    content = json.loads(report.read_text(), parse_constant=pytest.fail)
    assert (content["verdict"], content["status"]) == ("fail", FAIL)
    assert content["baseline"]["model"] == HOSTILE
    (check,) = content["checks"]
    assert check["losses"] == 40
    assert check["p"] <= check["p_holm"] < 0.001
    assert check["low"] < check["change"] == pytest.approx(-0.1)


def test_a_step_summary_is_appended_and_holds_no_markup(tmp_path, hostile, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    gate(*hostile)
    text = summary.read_text()
    assert text.startswith("before\n## ✗ Gate: fail")
    assert "<script" not in text
    assert "<b>" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| ✗")]
    assert row.replace("\\|", "").count("|") == 8


def test_annotations_stay_on_their_line(hostile, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    lines = gate(*hostile).stdout.splitlines()
    (annotation,) = [line for line in lines if line.startswith("::")]
    assert annotation.startswith("::error title=gate%3A qa <b>|&]]>%3A%3Ax%2Cy%25")
    assert "a loss is shown" in annotation


def test_a_misuse_is_annotated_too(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    base, _ = write_pair(tmp_path, answers(), answers())
    result = gate(write_gate(tmp_path, RULE), base, base)
    assert result.exit_code == MISUSE
    assert result.stdout.startswith("::error title=gate misused::baseline and candidate are both")


def test_an_output_that_cannot_be_written(tmp_path):
    base, new = write_pair(tmp_path, answers(), answers())
    result = gate(write_gate(tmp_path, RULE), base, new, "--json", str(base))
    assert (result.exit_code, "cannot write" in result.stderr) == (MISUSE, True)


def test_help_explains_the_exit_status():
    result = CliRunner().invoke(cli.app, ["gate", "--help"])
    assert result.exit_code == 0
    for word in ("0 pass, 1 fail, 2 inconclusive, 3 misuse", "renew", "check"):
        assert word in result.output
    assert "--any-order" in CliRunner().invoke(cli.app, ["gate", "gate.yaml", "--help"]).output
