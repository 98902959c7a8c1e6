"""The folder of a run: what is in it, whether a run may use it, and from which checkpoint it resumes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError, TrainingError
from lm_eval_ext.io import write_file
from lm_eval_ext.training.methods import METHODS

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_ext.training.config import TrainingConfig

#: What a run was asked to do, written before its first step; what it was and became, written after its last.
BEGUN, FINISHED = "run.json", "training.json"
#: Digests of the texts that a run was trained on, one in each line.
TRAINED_ON = "trained_on.txt"
FOLDER = "checkpoints"


def claim(out: Path, config: TrainingConfig, *, resume: bool) -> bool:
    """Find out whether a run may write to a folder; True where the run in it is finished already.

    Args:
        out: the folder.
        config: of the run that wants it.
        resume: whether it may continue one that is there.

    Raises:
        TrainingError: a file; a folder with something else in it; a run that this one does not resume, or that was started
            with different settings.
    """
    if out.is_file():
        raise TrainingError(f"--out {out} is a file; give the path of a folder")
    file = next((out / name for name in (FINISHED, BEGUN) if (out / name).is_file()), None)
    if file is None:
        if out.is_dir() and not all(_is_left_by_a_kill(path) for path in out.iterdir()):
            raise TrainingError(f"--out {out} holds something that is no run of this command: give an empty folder")
        return False
    finished = file.name == FINISHED
    if not resume:
        state = "a finished" if finished else "an unfinished"
        raise TrainingError(f"--out {out} holds {state} run: add --resume to go on with it, or give another folder")
    before = read(file)["settings"]
    now = json.loads(json.dumps(config.identity()))
    if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        differences = "\n".join(f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise TrainingError(
            f"--resume: the run in {out} was started with different settings\n{differences}\n"
            "Give the same settings, or another folder"
        )
    return finished


def _is_left_by_a_kill(path: Path) -> bool:
    """Whether a run that was ended before its first record may have left this in its folder: no checkpoint, no record."""
    if path.name == FOLDER and path.is_dir():
        logs = path / "runs"
        return all(file.is_dir() or logs in file.parents for file in path.rglob("*"))
    return path.name.startswith(f".{BEGUN}.")  # see `io.write_file`


def read(file: Path) -> dict[str, Any]:
    """`run.json` or `training.json` of a run, its settings under the names of this release.

    Raises:
        TrainingError: it cannot be read, is not what these commands write, or has a setting or method that this release
            does not know.
    """
    try:
        record = sources.read_json(file)
    except DataError as error:
        raise TrainingError(f"the folder holds no run of `lm-eval-ext train`: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise TrainingError(f"{file} is not what `lm-eval-ext train` writes")
    name = record["settings"].get("method")
    if name not in METHODS:
        raise TrainingError(f"{file}: unknown method {name!r}; valid: {', '.join(METHODS)}")
    try:
        settings = METHODS[name].config_class.recorded(record["settings"])
    except (TrainingError, TypeError) as error:
        raise TrainingError(f"{file}: {error}") from None
    return {**record, "settings": json.loads(json.dumps(settings))}


def loading_options(record: dict[str, Any]) -> dict[str, Any]:
    """How the base of a run is loaded (`models.loading.load_model`)."""
    settings = record["settings"]
    return {"revision": settings["model_revision"], "trust_remote_code": settings["trust_remote_code"]}


def write(file: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    write_file(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint; its state is written last, so one that a kill cut off has none."""
    complete = [path for path in (out / FOLDER).glob("checkpoint-*") if _step(path) is not None]
    return max(complete, key=lambda path: _step(path) or 0, default=None)


def _step(checkpoint: Path) -> int | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
