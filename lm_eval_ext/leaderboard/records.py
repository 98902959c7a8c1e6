"""Records that travel: the Every Eval Ever schema, and the hub's `.eval_results`.

Every Eval Ever (EvalEval coalition, schema 0.3.0, package `every-eval-ever`): one JSON per run,
`data/COLLECTION/DEVELOPER/MODEL/UUID.json`.
`.eval_results` (hub-docs, `eval-results.md`): a YAML list per benchmark that belongs into the model's repository; the hub
takes data sets that it lists as benchmarks, so only tasks on a hub data set have one.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections import Counter
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_ext.data import tasks_tree
from lm_eval_ext.errors import ResultsError
from lm_eval_ext.harness import MODELS
from lm_eval_ext.languages import AVERAGE
from lm_eval_ext.models import embedded
from lm_eval_ext.results.axes import records_of
from lm_eval_ext.results.run import short_model, some
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_ext.leaderboard.collect import Board
    from lm_eval_ext.results.run import Run

SCHEMA_VERSION = "0.3.0"
COLLECTION = "lm_eval_ext"

#: Who evaluated, relative to who made the model, in the schema's words.
RELATIONSHIPS = ("first_party", "third_party", "collaborative", "other")

#: Makers of models whose names do not say them: that of the embedded one.
_ORGANIZATIONS = {embedded.NAME: "google"}

_BLEND = "https://github.com/nlee0212/BLEnD"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def every_eval_ever(
    board: Board, *, organization: str, relationship: str = "other", model_organization: str = ""
) -> Iterator[tuple[PurePosixPath, dict[str, Any]]]:
    """One record per run, with its path under `data/`.

    Args:
        board: what was collected.
        organization: who evaluated (`source_organization_name`).
        relationship: one of `RELATIONSHIPS`.
        model_organization: whose the models are whose names do not say it (local ones).

    Raises:
        ResultsError: a model's organisation is not known.
    """
    now = str(int(time.time()))
    names = model_names(board, model_organization)
    for name, run in board.runs.items():
        rows = board.scores[board.scores["run"] == name].to_dict("records")
        if not rows:
            continue
        when = _timestamp(run.config.get("date"))
        identity = f"{COLLECTION}/{names[run.model]}/{name}/{run.date}"
        record: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": identity,
            "retrieved_timestamp": now,
            "source_metadata": {
                "source_name": "lm_eval_ext",
                "source_type": "evaluation_run",
                "source_organization_name": organization,
                "evaluator_relationship": relationship,
            },
            "eval_library": {
                "name": "lm_eval",
                "version": str(run.config.get("lm_eval_version") or "unknown"),
                "additional_details": {"lm_eval_ext": __version__},
            },
            "model_info": _model(run, names[run.model]),
            "evaluation_results": [_result(board, run, row, when) for row in rows],
        }
        if when:
            record["evaluation_timestamp"] = when
        path = PurePosixPath(COLLECTION, *_model_path(names[run.model]), f"{_uuid(identity)}.json")
        yield path, record


def hub_results(board: Board, *, model_organization: str = "") -> Iterator[tuple[PurePosixPath, str]]:
    """The YAML files of every run on a hub data set, each with its path under the model's name.

    A steered run is not the model as its repository has it: its file is one of its own and its notes say the plan.
    """
    names, written = model_names(board, model_organization), set[PurePosixPath]()
    for name, run in board.runs.items():
        rows = board.scores[board.scores["run"] == name].to_dict("records")
        with_languages = {row["family"] for row in rows if row["language"] != AVERAGE}
        files: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["language"] == AVERAGE and row["family"] in with_languages:
                continue
            if dataset := _hub_dataset(run, row["family"], row["language"]):
                files.setdefault(row["family"], []).append(_entry(board, run, row, dataset))
        for family, entries in files.items():
            suffix = f"-{_safe(name)}" if run.plan else ""
            folder = PurePosixPath(*_model_path(names[run.model]), ".eval_results")
            path = folder / f"{_safe(family)}{suffix}.yaml"
            if path in written:  # another run of the same model
                path = folder / f"{_safe(family)}-{_safe(name)}-{_short_hash(name)}.yaml"
            written.add(path)
            yield path, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)


def write_records(
    board: Board, folder: Path, *, organization: str, relationship: str, model_organization: str = ""
) -> list[Path]:
    """Write both kinds under a folder: `every_eval_ever/data/...` and `eval_results/MODEL/.eval_results/...`.

    Raises:
        ResultsError: a model's organisation is not known.
        OutputError: a file cannot be written.
    """
    from lm_eval_ext.io import write_file

    written = []
    records = every_eval_ever(
        board, organization=organization, relationship=relationship, model_organization=model_organization
    )
    for path, record in records:
        target = folder / "every_eval_ever" / "data" / path
        write_file(target, json.dumps(record, indent=2, ensure_ascii=False))
        written.append(target)
    for path, text in hub_results(board, model_organization=model_organization):
        target = folder / "eval_results" / path
        write_file(target, text)
        written.append(target)
    return written


def model_names(board: Board, organization: str = "") -> dict[str, str]:
    """What each model is called in the records: `ORGANISATION/NAME`, with a hash where another has the same.

    Two checkpoints of two trainings are both called `checkpoint-1000`.

    Args:
        board: what was collected.
        organization: whose the models are whose names do not say it.

    Raises:
        ResultsError: an organisation is not known, or is no part of a name.
    """
    if organization and _safe(organization) != organization:
        raise ResultsError(
            f"{organization!r} is no organisation of the hub; valid for --model-organization: letters, digits, '-', '_', '.'"
        )
    models = {model: short_model(model) for model in dict.fromkeys(run.model for run in board.runs.values())}
    for model, short in models.items():
        if "/" not in short and (known := _ORGANIZATIONS.get(short, organization)):
            models[model] = f"{known}/{short}"
    if flat := [short for short in models.values() if "/" not in short]:
        raise ResultsError(
            f"nothing says whose model {some(flat)} is, and records are filed by organisation; say --model-organization "
            "ORGANISATION (the maker's name on the hub), or --no-records for the site alone"
        )
    sharing = Counter(map(_model_path, models.values()))
    return {
        model: f"{name}-{_short_hash(model)}" if sharing[_model_path(name)] > 1 else name
        for model, name in models.items()
    }


def _uuid(identity: str) -> uuid.UUID:
    """The same for the same evaluation, in the form that the schema's project wants (version 4)."""
    return uuid.UUID(bytes=hashlib.sha256(identity.encode()).digest()[:16], version=4)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _timestamp(date: Any) -> str | None:
    """The seconds since 1970 of a date: a number, or ISO 8601 as other releases of the harness write it."""
    try:
        if isinstance(date, str) and not date.replace(".", "", 1).isdigit():
            return str(int(datetime.fromisoformat(date).timestamp()))
        return str(int(float(date))) if date else None
    except (OverflowError, TypeError, ValueError):
        return None


def _model(run: Run, model: str) -> dict[str, Any]:
    deployment = "self_deployed" if _runs_weights(run.details.get("type", "")) else "unknown"
    details = {"deployment_type": deployment, "model_availability": "unknown"}
    details |= {"plan": run.plan or "unsteered", **{key: short_model(value) for key, value in run.details.items()}}
    info: dict[str, Any] = {"name": model, "id": model, "additional_details": details}
    info["developer"] = model.split("/")[0]
    if version := run.config.get("transformers_version"):
        info["inference_engine"] = {"name": "transformers", "version": str(version)}
    return info


def _runs_weights(model_type: str) -> bool:
    """Whether a model type of the harness runs the weights itself, not a server of somebody."""
    return model_type in MODELS or model_type.partition("-")[0] in ("hf", "vllm", "sglang", "steered")


def _result(board: Board, run: Run, row: dict[str, Any], when: str | None) -> dict[str, Any]:
    metric = str(row["metric"])
    average = row["language"] == AVERAGE
    name = f"{row['family']}.{'average' if average else row['language']}"
    result: dict[str, Any] = {
        "evaluation_result_id": f"{name}.{metric}",
        "evaluation_name": name,
        "source_data": _source_data(run, row),
        "metric_config": {
            "evaluation_description": board.axes[row["family"]].rule,
            # Other rules than the plain one are our own constructs, not everybody's accuracy.
            "metric_id": "accuracy" if metric == "acc" else f"lm_eval_ext.{metric}",
            "metric_name": metric,
            "metric_kind": "accuracy" if metric.startswith("acc") else metric,
            "metric_unit": "proportion",
            "lower_is_better": not _higher_is_better(run, row["family"], metric),
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {
            "score": float(row["score"]),
            "uncertainty": {
                "confidence_interval": {
                    "lower": float(row["low"]),
                    "upper": float(row["high"]),
                    "confidence_level": board.level,
                    "method": "bootstrap over questions",
                },
                "num_samples": int(row["n"]),
                "num_bootstrap_samples": board.resamples,
            },
            "details": {"questions": str(row["questions"]), "items": row["items"]},
        },
        "generation_config": {"additional_details": _settings(run, row["family"])},
    }
    if average:
        result["score_details"]["details"]["average"] = "macro average over all languages but English"
    if row["bias"] == row["bias"]:
        result["score_details"]["details"]["english_bias"] = f"{row['bias']:.6f}"
    if when:
        result["evaluation_timestamp"] = when
    return result


def _source_data(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    family, version = str(row["family"]), {"additional_details": {"task_version": str(row["version"])}}
    if dataset := _hub_dataset(run, family, row["language"]):
        where = {"hf_config": dataset["task_id"]} if row["language"] != AVERAGE else {}
        where |= {"hf_revision": dataset["revision"]} if "revision" in dataset else {}
        return {"dataset_name": family, "source_type": "hf_dataset", "hf_repo": dataset["id"], **where, **version}
    if _own_folder(run, family) in ("blend_decon", "english_bias"):
        return {"dataset_name": family, "source_type": "url", "url": [_BLEND], **version}
    return {"dataset_name": family, "source_type": "other", "source_version": str(row["version"])}


def _hub_dataset(run: Run, family: str, language: str) -> dict[str, str] | None:
    """The hub data set of a family: id, task (its configuration), revision where it is known."""
    if _own_folder(run, family) == "gmmlu":
        from lm_eval_ext.data.gmmlu import REPO, REVISION

        return {"id": REPO, "task_id": language, "revision": REVISION}
    record = next(iter(records_of(family, run)), None)
    source, _, revision = record.source.partition("@") if record else ("", "", "")
    parts = source.split("/")
    if len(parts) < 2 or not all(parts):
        return None
    dataset = {"id": "/".join(parts[:2]), "task_id": "/".join(parts[2:]) or "default"}
    return dataset | ({"revision": revision} if revision else {})


def _own_folder(run: Run, family: str) -> str | None:
    """The folder under `tasks/` of one of our own families, whose data a loader of ours reads; None for another family."""
    known_families = (tasks_tree.family_of_task(record.task) for record in records_of(family, run))
    return next((known.folder for known in known_families if known), None)


def _entry(board: Board, run: Run, row: dict[str, Any], dataset: dict[str, str]) -> dict[str, Any]:
    settings = ", ".join(f"{key}: {value}" for key, value in _settings(run, row["family"]).items())
    notes = [
        f"{row['metric']} in per cent, {board.level:.0%} interval {100 * row['low']:.2f} to {100 * row['high']:.2f}",
        f"lm_eval {run.config.get('lm_eval_version', '')} with lm_eval_ext {__version__}, {row['family']} "
        f"({row['language']}) version {row['version']}".replace("  ", " "),
        *([settings] if settings else []),
        *([f"steered: {run.plan}"] if run.plan else []),
    ]
    return {
        "dataset": dataset,
        "value": round(100 * float(row["score"]), 2),
        "date": str(row["date"]),
        "notes": "; ".join(notes),
    }


def _settings(run: Run, family: str) -> dict[str, str]:
    record = next(iter(records_of(family, run)), None)
    return {key: str(value) for key, value in (record.settings if record else {}).items() if value is not None}


def _higher_is_better(run: Run, family: str, metric: str) -> bool:
    said = (record.higher_is_better for record in records_of(family, run))
    return next((bool(known[metric]) for known in said if metric in known), True)


def _model_path(model: str) -> tuple[str, str]:
    """Developer and name of a model as folders."""
    developer, _, name = model.rpartition("/")
    return _safe(developer) or "unknown", _safe(name) or "unknown"


def _safe(text: str) -> str:
    """Text as one part of a path: no separators, no dots in front."""
    return _UNSAFE.sub("-", text).strip(".-")[:100]
