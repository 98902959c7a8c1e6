"""The folder of a run: what is in it, whether a run may use it, and where one goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError, TrainingError
from lm_eval_ext.io import write_file

if TYPE_CHECKING:
    from pathlib import Path

#: What a run was asked to do, written before its first step; what it was and became, written after its last.
BEGUN, FINISHED = "run.json", "training.json"
#: Digests of the texts that a run was trained on, one in each line.
TRAINED_ON = "trained_on.txt"
FOLDER = "checkpoints"


def claim(out: Path, identity: dict[str, Any], *, resume: bool) -> bool:
    """Find out whether a run may write to a folder; True where the run it holds is finished already.

    Raises:
        TrainingError: a file; a folder with something else in it; a run that this one does not resume, or that was asked
            to do something else.
    """
    if out.is_file():
        raise TrainingError(f"--out {out} is a file; give the path of a folder")
    held = next((out / name for name in (FINISHED, BEGUN) if (out / name).is_file()), None)
    if held is None:
        if out.is_dir() and any(out.iterdir()):
            raise TrainingError(f"--out {out} holds something that is no run of this command: give an empty folder")
        return False
    finished = held.name == FINISHED
    if not resume:
        state = "a finished" if finished else "a begun"
        raise TrainingError(f"--out {out} holds {state} run: add --resume to go on with it, or give another folder")
    before = read(held)["settings"]
    now = json.loads(json.dumps(identity))
    if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        told = "\n".join(f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise TrainingError(
            f"--resume: the run in {out} was asked for something else\n{told}\nAsk for the same, or give another folder"
        )
    return finished


def read(file: Path) -> dict[str, Any]:
    """`run.json` or `training.json` of a run.

    Raises:
        TrainingError: it cannot be read, or is not what these commands write.
    """
    try:
        record = sources.read_json(file)
    except DataError as error:
        raise TrainingError(f"the folder holds no run of `lm-eval-ext train`: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise TrainingError(f"{file} is not what `lm-eval-ext train` writes")
    return record


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
