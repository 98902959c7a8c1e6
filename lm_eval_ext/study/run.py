"""Running the stages of a study: what is done is kept, what changed runs again, what was interrupted is resumed.

`study.json` in the study's folder holds of each stage what it was made from (its arguments, the hashes of all that it read
and of the source files that its command can run) and the hashes of what it made. A stage is done where all of that is as
recorded.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lm_eval_ext.data import sources
from lm_eval_ext.errors import DataError, StudyError
from lm_eval_ext.fingerprints import hash_text, hash_tree
from lm_eval_ext.io import write_file
from lm_eval_ext.paths import tasks_dir
from lm_eval_ext.redaction import redact_text
from lm_eval_ext.study.source_files import SourceFiles
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lm_eval_ext.study.stages import Stage

STATE = "study.json"
_LOCK = ".study.lock"
#: What `eval` runs of this package: all that the harness is given, models and tasks.
EVAL_MODULE = "lm_eval_ext.harness"
#: How many changed source files a message names.
_NAMED = 3


@dataclass(frozen=True)
class Step:
    """A stage and whether it has to run.

    Attributes:
        stage: the stage.
        why: why it runs; empty where it is done.
        seconds: what it took the last time; None where it never ran to its end.
    """

    stage: Stage
    why: str
    seconds: float | None


class State:
    """`study.json`: what the stages were made from and made.

    Raises:
        StudyError: the file is damaged, or the folder holds something else.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.file = out / STATE
        self.stages: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            try:
                self.stages = sources.read_json(self.file)["stages"]
                if any("made_from" not in entry for entry in self.stages.values()):
                    raise KeyError("made_from")
            except (AttributeError, DataError, KeyError, TypeError) as error:
                raise StudyError(
                    f"{self.file} is damaged ({error}): remove it to run all stages again, or name another folder"
                ) from None
        elif out.is_dir() and any(path.name != _LOCK for path in out.iterdir()):
            raise StudyError(f"{out} holds something that is no study: give an empty folder with --out")

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Write what is known of a stage, the file whole or not at all."""
        self.stages[name] = entry
        text = json.dumps({"version": 1, "stages": self.stages}, indent=1, ensure_ascii=False)
        write_file(self.file, text + "\n")


class Runner:
    """Decides which stages run, and runs them one after the other.

    Args:
        stages: all of a study, each after those that it needs.
        out: the study's folder.
        modules: by subcommand, the module whose code it runs; of `eval`, the harness's, it is `EVAL_MODULE`.
        say: prints a line.

    Raises:
        StudyError: the folder holds something else.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        out: Path,
        modules: Mapping[str, str],
        say: Callable[[str], None] = print,
    ) -> None:
        self.modules = {"eval": EVAL_MODULE, **modules}
        self.stages = {stage.name: stage for stage in stages}
        self.out = out
        self.say = say
        self.state = State(out)

    def steps(self, picked: Sequence[str] = ()) -> list[Step]:
        """What is to be done, in order; only the picked stages, if any are.

        Raises:
            StudyError: a pattern that picks nothing, or a picked stage that needs one that is neither done nor picked.
        """
        names = self._picked(picked)
        running: dict[str, str] = {}
        steps = []
        for name, stage in self.stages.items():
            waits = [need for need in stage.needs if need in running]
            why = f"after {waits[0]}" if waits else self._why(stage)
            if why:
                running[name] = why
            if name in names:
                if missing := [need for need in waits if need not in names]:
                    raise StudyError(f"{name} needs {missing[0]}, which is not done: add it to --stages")
                steps.append(Step(stage, why, self.state.stages.get(name, {}).get("seconds")))
        return steps

    def run(self, picked: Sequence[str] = ()) -> None:
        """Run what is to be done. A stage that fails ends the study; what is done stays.

        Raises:
            StudyError: as `steps`, another study runs in the folder, or a stage fails.
        """
        with self._locked() as lock:
            self.state = State(self.out)
            steps = self.steps(picked)
            for number, step in enumerate(steps, start=1):
                label = f"[{number}/{len(steps)}] {step.stage.name}"
                # Asked again: what ran since may have made the very files that this stage has read before.
                if why := self._why(step.stage):
                    self.say(f"{label}: {why}")
                    self._run(step.stage, lock)
                else:
                    self.say(f"{label}: done before")

    def _run(self, stage: Stage, lock: int) -> None:
        before = self.state.stages.get(stage.name, {})
        inputs = self._inputs(stage)
        resumed = stage.resume is not None and before.get("made_from") == inputs and not before.get("made")
        arguments = stage.ready().arguments
        if resumed and stage.resume:
            arguments += stage.resume
        if not resumed:
            stage.clear()
        self.state.record(stage.name, {"made_from": inputs})
        self.say(f"  lm-eval-ext {redact_text(' '.join(arguments))}")
        started = time.monotonic()
        status = launch(arguments, lock)
        if status in (130, -2):
            raise KeyboardInterrupt
        if status:
            raise StudyError(
                f"{stage.name} failed (status {status}); its messages are above. What is done is kept: correct the "
                "cause and run the study again"
            )
        outputs = self._outputs(stage)
        if not outputs:
            raise StudyError(f"{stage.name} succeeded but wrote none of {', '.join(stage.outputs.patterns)}")
        seconds = round(time.monotonic() - started, 1)
        self.state.record(stage.name, {"made_from": inputs, "made": outputs, "seconds": seconds})
        self.say(f"  {stage.name}: {seconds:.0f} s")

    def _why(self, stage: Stage) -> str:
        """Why a stage runs; empty where it is done."""
        known = self.state.stages.get(stage.name)
        if known is None:
            return "new"
        before, now = known["made_from"], self._inputs(stage)
        if not known.get("made"):
            return "was interrupted" if before == now else "was interrupted, and has changed since"
        labels = {
            "version": "this package is another version",
            "built in": "the data or tasks of this package changed",
            "arguments": "its options changed",
        }
        for what, label in labels.items():
            if before.get(what) != now[what]:
                return label
        if "code" not in before:
            return "the code that it ran is not recorded"
        if changed := _changed(before["code"], now["code"]):
            more = f", and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            return f"the code that it runs changed ({', '.join(changed[:_NAMED])}{more})"
        if changed := _changed(before["reads"], now["reads"]):
            return f"{changed[0]} changed"
        outputs = self._outputs(stage)
        if lost := [path for path in known["made"] if path not in outputs]:
            return f"{lost[0]} is gone"
        if changed := _changed(known["made"], outputs):
            return f"{changed[0]} is not as it was made"
        return ""

    def _inputs(self, stage: Stage) -> dict[str, Any]:
        """All that decides what a stage writes."""
        earlier = [file for need in stage.needs for file in self.stages[need].outputs.files()]
        return {
            "version": __version__,
            "built in": self._built_in,
            # The plan that a stage waits for is a file that it reads.
            "arguments": [redact_text(self._relative(argument)) for argument in stage.arguments],
            "reads": {self._path(path): hash_tree(path) for path in (*earlier, *stage.reads)},
            "code": self._source_files.hashes(self.modules[stage.arguments[0]]),
        }

    @cached_property
    def _source_files(self) -> SourceFiles:
        return SourceFiles()

    @cached_property
    def _built_in(self) -> str:
        """A hash of the data and tasks that come with the package: they may change while its version does not."""
        folders = (sources.packaged("mini"), sources.packaged("instruct_mini"), tasks_dir())
        return hash_text(*map(hash_tree, folders), separator="")

    def _outputs(self, stage: Stage) -> dict[str, str]:
        return {self._path(file): hash_tree(file) for file in stage.outputs.files()}

    def _path(self, path: Path) -> str:
        return str(path.relative_to(self.out)) if self.out in path.parents else str(path)

    def _relative(self, argument: str) -> str:
        """An argument without the study's folder, which may be moved."""
        return argument.replace(str(self.out), "OUT")

    def _picked(self, patterns: Sequence[str]) -> set[str]:
        picked = set(self.stages) if not patterns else set[str]()
        for pattern in patterns:
            matches = {name for name in self.stages if fnmatch(name, pattern) or name.partition("/")[0] == pattern}
            if not matches:
                kinds = dict.fromkeys(name.partition("/")[0] for name in self.stages)
                raise StudyError(f"--stages {pattern!r} picks nothing; valid: {', '.join([*kinds, *self.stages])}")
            picked |= matches
        return picked

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = (self.out / _LOCK).open("w")
        except OSError as error:
            raise StudyError(f"cannot write to {self.out}: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StudyError(f"a study, or a stage of it, is running in {self.out}: wait, or end it") from None
            yield lock.fileno()


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys whose values differ, or that only one of the two has."""
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def launch(arguments: Sequence[str], lock: int) -> int:
    """Run a command of this package in a process of its own, to its end; its exit status.

    The process inherits the lock: while a stage lives, even if its study was killed, no other starts in the folder.
    """
    command = [sys.executable, "-m", "lm_eval_ext", *arguments]
    return subprocess.run(command, pass_fds=[lock]).returncode  # noqa: S603
