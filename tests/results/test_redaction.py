"""Credentials in model arguments stand in nothing that is written."""

from __future__ import annotations

import json

import pytest
from support.reports import write_tree

from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.records import write_records
from lm_eval_ext.leaderboard.site import write_site
from lm_eval_ext.plane.page import page
from lm_eval_ext.plane.shifts import measure
from lm_eval_ext.plane.table import to_csv
from lm_eval_ext.redaction import LEFT_OUT, is_secret, parse_args, redact, redact_args, redact_text
from lm_eval_ext.report.provenance import commands, run_rows
from lm_eval_ext.results.runs import load

_SECRET = "s3cr3tValue"
ARGUMENTS = {
    "token": _SECRET,
    "api_key": _SECRET,
    "header": {"Authorization": f"Bearer {_SECRET}", "X-Key": _SECRET},
    "base_url": f"https://me:{_SECRET}@models.example.org/v1?api-key={_SECRET}",
    "proxy": f"me:{_SECRET}@proxy.example.org:8080",
    "model_kwargs": {"hub": {"use_auth_token": _SECRET}},
}
AS_TEXT = ",".join(
    [
        f"pretrained=gemma,token={_SECRET},api_key={_SECRET}",
        f'header={{"Authorization": "Bearer {_SECRET}", "X-Key": "{_SECRET}"}}',
        f"base_url=https://me:{_SECRET}@models.example.org/v1?api-key={_SECRET}",
        f'model_kwargs={{"hub": {{"password": "{_SECRET}"}}}}',
    ]
)


@pytest.mark.parametrize("form", ["dictionary", "text", "json"])
def test_published_files_hold_no_credentials(tmp_path, form):
    tree = write_tree(tmp_path / "results", n=4, context=False)
    for file in tree.rglob("results_*.json"):
        content = json.loads(file.read_text())
        arguments = {**content["config"]["model_args"], **ARGUMENTS}
        name = content["config"]["model_args"]["pretrained"]
        text = AS_TEXT.replace("pretrained=gemma", f"pretrained={name}")
        forms = {"dictionary": arguments, "text": text, "json": json.dumps(arguments)}
        content["config"]["model_args"] = forms[form]
        file.write_text(json.dumps(content))
    board = collect([tree], resamples=100)
    write_site(board, tmp_path / "site")
    write_records(board, tmp_path / "site", organization="us", relationship="other", model_organization="us")
    plane = measure(tree, "unsteered", x="transfer_mini_cloze", y="localization_mini_cloze", resamples=100)
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*") if path.is_file()]
    written += [page(plane), to_csv(plane), *commands(plane, []), str(run_rows(plane)), str(load(tree))]
    assert written
    assert not [text for text in written if _SECRET in text]
    assert any("credentials are left out of its model arguments: token, api_key" in note for note in plane.notes)
    assert f"token={LEFT_OUT}" in commands(plane, [])[0]


def test_a_token_does_not_make_another_run(tmp_path):
    tree = write_tree(tmp_path, {"one": ("", 0, 0)}, n=2, context=False)
    file = next(tree.rglob("results_*.json"))
    content = json.loads(file.read_text())
    for number in (1, 2):
        content["config"]["model_args"]["token"] = f"{_SECRET}{number}"
        file.with_name(f"results_2026-01-0{number + 2}T00-00-00.json").write_text(json.dumps(content))
    assert len(load(tree)) == 1


@pytest.mark.parametrize(
    "name",
    ["add_bos_token", "eos_token", "pad_token", "tokenizer", "max_gen_toks", "think_end_token", "max_new_tokens"],
)
def test_settings_of_a_tokenizer_are_no_credentials(name):
    assert not is_secret(name)
    assert redact({name: "</s>"}) == {name: "</s>"}


@pytest.mark.parametrize(
    "text",
    [
        "en@12:2+loc~random2@58%:2",
        "google/gemma-3-270m",
        r"C:\models\gemma",
        "https://example.org/v1",
        "pretrained=gpt2,dtype=float32",
    ],
)
def test_other_text_stays(text):
    assert redact_text(text) == text
    assert redact({"steer": text}) == {"steer": text}


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:a/{_SECRET}@host",
        f"https://me:a@{_SECRET}@host",
        f"me:a+{_SECRET}@host.org",
        f"password=a:{_SECRET}@c",
        f"--api-key sk-{_SECRET * 3}",
        f"https://host/v1?access_token={_SECRET}&x=1",
        f"token=abc,{_SECRET}",
    ],
)
def test_forms_of_credentials(text):
    assert _SECRET not in str(redact_args(f"other={text}" if "token=abc" not in text else text))
    assert _SECRET not in redact_text(text) or "," in text


def test_a_token_is_known_by_its_form():
    assert redact_text(f"hf_{'a1' * 17} and Bearer {_SECRET}") == f"{LEFT_OUT} and Bearer {LEFT_OUT}"
    assert redact_args("token=True,pretrained=x") == {"token": "True", "pretrained": "x"}
    assert parse_args("a=1,b={x, y},c=") == {"a": "1", "b": "{x, y}", "c": ""}
