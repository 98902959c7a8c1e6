"""Records in the Every Eval Ever schema, as that project's own package validates them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.reports import write_tree
from support.runs import random_scores, write_run

from lm_eval_ext.errors import ResultsError
from lm_eval_ext.leaderboard.collect import collect
from lm_eval_ext.leaderboard.records import SCHEMA_VERSION, model_names, write_records
from lm_eval_ext.models import embedded

if TYPE_CHECKING:
    from pathlib import Path

eee = pytest.importorskip("every_eval_ever.validator", reason="needs the package every-eval-ever (see the Makefile)")


def problems(folder: Path) -> list[str]:
    """Errors and warnings about every record below a folder."""
    files = sorted((folder / "every_eval_ever").rglob("*.json"))
    assert files
    found = []
    for file in files:
        name = file.relative_to(folder / "every_eval_ever").as_posix()
        report = eee.validate_file(file, repo_path=name, run_semantic_checks=True)
        found += [f"{name}: {eee.format_error(one)}" for one in (*report.errors, *report.warnings)]
        assert report.valid == (not report.errors)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("records")
    write_tree(root / "tree", n=4, context=False)
    write_run(root / "tree" / "hub", random_scores(1, n=4), model="org/model", model_type="hf")
    write_run(root / "tree" / "embedded", random_scores(2, n=4), model=embedded.NAME)
    write_run(root / "tree" / "api", random_scores(2, n=4), model="lab/served", model_type="local-completions")
    board = collect([root / "tree"], resamples=100)
    write_records(
        board, root / "site", organization="Our lab", relationship="third_party", model_organization="our-lab"
    )
    return root / "site"


def test_records_are_what_the_project_s_own_validator_wants(folder):
    from every_eval_ever.schema import get_schema_version

    assert problems(folder) == []
    assert get_schema_version() == SCHEMA_VERSION
    records = [json.loads(file.read_text()) for file in (folder / "every_eval_ever").rglob("*.json")]
    deployed = {
        record["model_info"]["id"]: record["model_info"]["additional_details"]["deployment_type"] for record in records
    }
    assert deployed == {
        "our-lab/gemma-3-270m": "self_deployed",
        "org/model": "self_deployed",
        f"google/{embedded.NAME}": "self_deployed",
        "lab/served": "unknown",
    }


def test_the_validator_sees_what_is_wrong(folder, tmp_path):
    (file, *_) = sorted((folder / "every_eval_ever").rglob("*.json"))
    record = json.loads(file.read_text())
    record["evaluation_results"][0]["score_details"]["score"] = 2
    copy = tmp_path / "every_eval_ever" / file.relative_to(folder / "every_eval_ever")
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps(record))
    assert any("outside" in problem for problem in problems(tmp_path))


def test_a_local_model_asks_for_an_organisation(tmp_path):
    write_run(tmp_path / "a", random_scores(1, n=2), model="org/model")
    write_run(tmp_path / "b", random_scores(1, n=2), model="checkpoint-10")
    board = collect([tmp_path], resamples=100)
    with pytest.raises(ResultsError, match=r"whose model checkpoint-10 is.*--model-organization ORGANISATION"):
        model_names(board)
    assert set(model_names(board, "us").values()) == {"org/model", "us/checkpoint-10"}
