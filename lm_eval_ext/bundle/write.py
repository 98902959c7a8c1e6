"""Writing a bundle: results, samples or their hashes, the environment, and the manifest."""

from __future__ import annotations

import json
import platform
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import json_text
from lm_eval_ext.archives import write_archive
from lm_eval_ext.bundle.manifest import MANIFEST, Manifest, Member, Task
from lm_eval_ext.data.task_questions import id_columns
from lm_eval_ext.errors import ArchiveError
from lm_eval_ext.fingerprints import hash_bytes, hash_file, hash_json, hash_lines
from lm_eval_ext.redaction import LEFT_OUT, names_left_out, redact, redact_args, redact_text, secret_values
from lm_eval_ext.report.provenance import evaluation
from lm_eval_ext.results.run import short_model
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_ext.results.run import Run, TaskResults

ENVIRONMENT = "environment.txt"
RESULTS = "results"

_SOFTWARE = {"lm_eval": "lm_eval_version", "transformers": "transformers_version", "commit": "git_hash"}
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
#: Keys of a task's configuration that hold what a user gave.
_GIVEN = ("metadata", "dataset_kwargs")
_LOCAL = re.compile(r"/|~|\.\.?/|file:|[A-Za-z]:[\\/]")
_SANITIZED = re.compile(r"[\"<>:/|\\?*\[\]]+")
#: What a sample keeps of itself without texts, besides its scores.
_KEPT = ("doc_id", "filter", "doc_hash", "prompt_hash", "target_hash", "metrics")


def write_bundle(run: Run, path: Path, *, samples: bool = True) -> Manifest:
    """Write a run as a bundle.

    Args:
        run: of any model type.
        path: the zip file.
        samples: whether documents, prompts and answers are in it; else their hashes and scores, which a gate can still read.

    Returns:
        its manifest.

    Raises:
        ArchiveError: samples that hold a credential of the model's arguments.
        ResultsError: damaged files.
        OutputError: it cannot be written.
    """
    places = list(dict.fromkeys(record.results.parent for record in run.tasks.values()))
    contents = {record.results: json_text.parse(record.results.read_bytes()) for record in run.tasks.values()}
    secrets = {value for content in contents.values() for value in secret_values(_arguments(content))}

    def named(file: Path) -> str:
        folder = f"/{places.index(file.parent) + 1}" if len(places) > 1 else ""
        return f"{RESULTS}{folder}/{file.name}"

    members: dict[str, bytes | Path] = {ENVIRONMENT: environment().encode()}
    for file, content in contents.items():
        text = json.dumps(_published(content), indent=2, ensure_ascii=False)
        for secret in secrets:
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], LEFT_OUT)
        members[named(file)] = f"{text}\n".encode()
    tasks = {}
    for task, record in sorted(run.tasks.items()):
        tasks[task], hashed = _task(record)
        if record.samples is None:
            continue
        members[named(record.samples)] = record.samples if samples else hashed
        if samples:
            _refuse_secrets(record.samples, secrets)
    logged = any(record.samples is not None for record in run.tasks.values())
    newest = contents[max(run.tasks.values(), key=lambda record: record.date).results]
    manifest = Manifest(
        created_by=f"lm_eval_ext {__version__}",
        name=run.name,
        model=short_model(run.model),
        model_type=run.details.get("type", ""),
        plan=run.plan,
        date=run.date,
        vectors_sha256=_vectors_digest(newest),
        software={name: str(run.config[key]) for name, key in _SOFTWARE.items() if run.config.get(key)},
        command=_command(run, newest),
        left_out=names_left_out(run.config.get("model_args") or {}),
        samples="none" if not logged else "included" if samples else "hashes",
        tasks=tasks,
        members={name: _member(content) for name, content in sorted(members.items())},
    ).signed()
    write_archive(path, {**members, MANIFEST: manifest.to_json()})
    return manifest


def _vectors_digest(content: dict[str, Any]) -> str:
    steering = content["config"].get("steering")
    vectors = steering.get("vectors") if isinstance(steering, dict) else None
    return str(vectors.get("sha256") or "") if isinstance(vectors, dict) else ""


def environment() -> str:
    """The packages of this environment, as `pip freeze` lists them, with what they were installed from."""
    lines: dict[str, str] = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if not name:
            continue
        origin = json_text.parse(package.read_text("direct_url.json") or "{}")
        url = redact_text(str(origin.get("url", "")))
        commit = (origin.get("vcs_info") or {}).get("commit_id", "")
        from_where = f"  # {url}{commit and f'@{commit}'}" if commit else "  # a local folder" if url else ""
        # The first on the path is the one that is imported.
        lines.setdefault(name.lower(), f"{name}=={package.version}{from_where}")
    head = f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}, when it was bundled"
    return "\n".join([head, *(lines[name] for name in sorted(lines)), ""])


def _arguments(content: dict[str, Any]) -> Any:
    return (content.get("config") or {}).get("model_args")


def _published(content: dict[str, Any]) -> dict[str, Any]:
    """A results file without credentials, and without the folders of this machine."""
    config = _short_paths(redact(content["config"]))
    config["model_args"] = _short_paths(redact_args(_arguments(content)))
    configs = {
        # The harness gives the model's arguments to the tasks, too.
        task: {key: _short_paths(redact(value)) if key in _GIVEN else value for key, value in said.items()}
        for task, said in content["configs"].items()
    }
    texts = {
        key: _short_paths(redact_text(content[key]))
        for key in ("model_name", "model_source", "pretty_env_info")
        if isinstance(content.get(key), str)
    }
    # The harness makes a folder's name of the model's.
    texts["model_name_sanitized"] = _SANITIZED.sub("__", texts.get("model_name", ""))
    return {**content, **texts, "config": config, "configs": configs}


def _short_paths(value: Any) -> Any:
    """A value whose local paths are reduced to their last part."""
    if isinstance(value, dict):
        return {key: _short_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_short_paths(entry) for entry in value]
    return short_model(value) if isinstance(value, str) and _LOCAL.match(value) else value


def _command(run: Run, content: dict[str, Any]) -> list[str]:
    """The evaluation's command, without a folder for its output."""
    words = shlex.split(evaluation(run))
    words = words[: words.index("--output_path")]
    config = content["config"]
    if all(isinstance(config.get(seed), int) for seed in _SEEDS):
        words += ["--seed", ",".join(str(config[seed]) for seed in _SEEDS)]
    if system := content.get("system_instruction"):
        words += ["--system_instruction", redact_text(str(system))]
    if content.get("fewshot_as_multiturn") is True:
        words += ["--fewshot_as_multiturn", "True"]
    return words


def _task(record: TaskResults) -> tuple[Task, bytes]:
    """What was asked, and its samples without texts."""
    documents, prompts, lines = [], [], []
    if record.samples is not None:
        with record.samples.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    sample = json_text.parse(line)
                    documents.append(str(sample["doc_hash"]))
                    prompts.append(str(sample.get("prompt_hash", "")))
                    lines.append(_without_texts(sample, record))
                except (KeyError, TypeError, ValueError) as error:
                    raise ArchiveError(
                        f"{record.samples}, line {number}: not a sample of the harness ({error})"
                    ) from None
    task = Task(
        version=record.version,
        documents=record.n_documents,
        source=redact_text(record.source),
        harness_sha256=record.hash,
        documents_sha256=hash_lines(sorted(set(documents))) if lines else "",
        prompts_sha256=hash_lines(sorted(set(prompts))) if lines else "",
    )
    return task, "".join(f"{line}\n" for line in lines).encode()


def _without_texts(sample: dict[str, Any], record: TaskResults) -> str:
    """A sample as hashes and scores; the document keeps the id of its question and its language."""
    document = sample["doc"] if isinstance(sample.get("doc"), dict) else {}
    kept = {name: document[name] for name in (*id_columns(record.metadata), "language") if name in document}
    line = {key: sample[key] for key in _KEPT if key in sample}
    scores = {metric: sample[metric] for metric in sample["metrics"]}
    answers = {"resps_sha256": hash_json(sample["resps"])} if "resps" in sample else {}
    return json.dumps({**line, "doc": kept, **answers, **scores}, ensure_ascii=False, separators=(",", ":"))


def _refuse_secrets(file: Path, secrets: Iterable[str]) -> None:
    wanted = [secret.encode() for secret in secrets]
    with file.open("rb") as lines:
        for line in lines if wanted else ():
            if any(secret in line for secret in wanted):
                raise ArchiveError(
                    f"{file.name} holds a credential that the model was given; bundle it with --no-samples, "
                    "which keeps hashes and scores only"
                )


def _member(content: bytes | Path) -> Member:
    if isinstance(content, bytes):
        return Member(size=len(content), sha256=hash_bytes(content))
    return Member(size=content.stat().st_size, sha256=hash_file(content))
