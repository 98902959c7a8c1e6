"""Checks of the installation: versions, discovery by the harness, patches, data, models and devices."""

from __future__ import annotations

import json
import os
import platform
import shutil
import site
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import harness, languages
from lm_eval_ext.errors import UserError
from lm_eval_ext.paths import cache_dir, tasks_dir
from lm_eval_ext.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

OK = "ok"
#: Not there, and needed for some uses only.
ABSENT = "absent"
#: Needed, and does not work.
BROKEN = "broken"

PTH = "lm_eval_ext_autoload.pth"
REINSTALL = "install again: pip install --force-reinstall --no-deps lm_eval_ext (in a checkout: pip install -e .)"
_OTHER_RELEASE = "pip install 'lm-eval==0.4.13', the release this was tested with, or a newer lm_eval_ext"
USE_EVAL = "or use `lm-eval-ext eval`, which needs no discovery"

#: Rows of the square matrices whose product shows the CPU's peak: a second where bfloat16 is emulated.
_PEAK_SIZE = 512

_SHOWN = ("lm_eval", "torch", "transformers", "datasets")

# Run in a fresh interpreter. Its first line is what the harness finds without an import of this package; the second what is
# examined in the same process, which has imported everything heavy by then.
_PROBE = """
import json, sys
import lm_eval.models
from lm_eval.api import registry
from lm_eval.tasks import TaskManager, manager

# The folder that it takes for its own is this empty one: to read its 14,000 files takes longer than everything else.
manager.__file__ = "manager.py"

def problem(name):
    try:
        registry.get_model(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\\n")[0][:200]

folder, *models = sys.argv[1:]
ours = TaskManager(include_path=folder, include_defaults=False).all_tasks
unseen = sorted(set(ours) - set(TaskManager().all_tasks))
seen = {"models": {name: problem(name) for name in models}, "tasks": len(ours), "unseen": unseen}
print(json.dumps({**seen, "loads_entry_points": hasattr(registry, "load_plugins")}))

from dataclasses import asdict
from lm_eval_ext import doctor
print(json.dumps([asdict(finding) for finding in doctor.heavy()]))
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check: `status` is `OK`, `ABSENT` or `BROKEN`; `remedy` says what to do."""

    subject: str
    status: str
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Run all checks, in the order of printing; where a package is missing, only those that do not need it.

    Yields:
        a finding as soon as its check is done.
    """
    packages = list(versions())
    yield from packages
    yield cache()
    if any(finding.status == BROKEN and finding.subject != "lm_eval_ext" for finding in packages):
        return
    yield command_line()
    with _Probe() as probe:  # a second interpreter, which runs beside what follows
        yield from data()
        yield vllm()
        seen = probe.result()
    yield from discovery(seen)
    yield from heavy() if isinstance(seen, str) else seen.heavy


def heavy() -> Iterator[Finding]:
    """The checks that import the harness and torch."""
    yield from patches()
    yield from models()
    yield from estimators()
    yield from devices()


def versions() -> Iterator[Finding]:
    """Python, this package, and every requirement that is missing or too old; the main ones in any case."""
    from packaging.requirements import Requirement

    yield Finding("python", OK, f"{platform.python_version()} ({sys.executable})")
    try:
        requirements = metadata.requires("lm_eval_ext") or []
    except metadata.PackageNotFoundError:
        yield Finding("lm_eval_ext", BROKEN, f"{__version__}, run from a folder and not installed", REINSTALL)
        requirements = list(_SHOWN)
    else:
        yield Finding("lm_eval_ext", OK, __version__)
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.replace("-", "_")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, BROKEN, "not installed", f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(name, BROKEN, f"{version}, needed: {requirement.specifier}", f"pip install '{requirement}'")
        elif name in _SHOWN:
            yield Finding(name, OK, version)


def cache() -> Finding:
    """Whether the cache folder can be written to."""
    folder = cache_dir()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding("cache", OK, str(folder))
    return Finding("cache", BROKEN, f"{folder} cannot be written to", "set LM_EVAL_EXT_CACHE to a folder of your own")


def command_line() -> Finding:
    """Whether the `lm_eval` on the path is the one of this interpreter."""
    command = shutil.which("lm_eval")
    here = Path(sys.executable).parent
    if command and Path(command).parent.resolve() == here.resolve():
        return Finding("lm_eval command", OK, command)
    remedy = f"call {here / 'lm_eval'}, or activate the environment {here.parent}"
    return Finding(
        "lm_eval command", ABSENT, f"{command} is another environment's" if command else "not on PATH", remedy
    )


def discovery(seen: Seen | str) -> Iterator[Finding]:
    """Whether a fresh interpreter that imports only the harness finds our models and tasks, and how.

    Args:
        seen: by the interpreter, or the error that ended it.
    """
    if isinstance(seen, str):
        yield Finding("discovery", BROKEN, f"the harness does not start: {seen}", "pip install --upgrade lm-eval")
        return
    report = seen.report
    status, why, remedy = _why_unseen(seen.warning)
    route = "entry point" if report["loads_entry_points"] else PTH
    for name, problem in report["models"].items():
        if not problem:
            yield Finding(f"model {name}", OK, f"found by the harness ({route})")
        elif "no model for this name" in problem:
            yield Finding(f"model {name}", status, f"not found by the harness: {why}", remedy)
        else:
            yield Finding(f"model {name}", BROKEN, f"cannot be imported: {problem}", REINSTALL)
    if not report["tasks"]:
        yield Finding("tasks", BROKEN, f"no task files in {tasks_dir()}", REINSTALL)
    elif report["unseen"]:
        some = ", ".join(report["unseen"][:3])
        yield Finding("tasks", status, f"{len(report['unseen'])} not found by the harness ({some}, ...): {why}", remedy)
    else:
        yield Finding("tasks", OK, f"{report['tasks']} names found by the harness ({PTH})")


def patches() -> Iterator[Finding]:
    """Whether each change that this package makes to the harness fits its release; tried in this process."""
    for patch, error in harness.examine():
        subject = f"patch: {patch.name}"
        if error is None:
            yield Finding(subject, OK, "fits this release of the harness")
        else:
            detail = f"{patch.lost} ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            yield Finding(subject, BROKEN, detail, _OTHER_RELEASE)


#: Not imported by the probe: vLLM takes half a minute, and has a finding of its own.
_VLLM = "steered-vllm"


@dataclass(frozen=True)
class Seen:
    """What a fresh interpreter found.

    Attributes:
        report: models and tasks that the harness finds.
        warning: of our import hook; empty without.
        heavy: the findings of `heavy` in that interpreter.
    """

    report: dict[str, Any]
    warning: str = ""
    heavy: tuple[Finding, ...] = ()


class _Probe:
    """A fresh interpreter that imports only the harness, started where this is entered."""

    def __enter__(self) -> _Probe:
        self._elsewhere = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _PROBE, str(tasks_dir()), *(name for name in harness.MODELS if name != _VLLM)],
            cwd=self._elsewhere.name,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._elsewhere.cleanup()

    def result(self) -> Seen | str:
        """What it found, or the error that ended it."""
        output, said = self._process.communicate()
        errors = said.strip().splitlines()
        if self._process.returncode:
            return errors[-1] if errors else f"exit status {self._process.returncode}"
        warning = next((line for line in errors if line.startswith("lm_eval_ext")), "")
        report, findings = map(json.loads, output.splitlines()[-2:])
        return Seen(report, warning, tuple(Finding(**finding) for finding in findings))


def _why_unseen(warning: str) -> tuple[str, str, str]:
    """Status, reason and remedy where the import hook did not run."""
    if os.environ.get("LM_EVAL_EXT_AUTOLOAD") == "0":
        return ABSENT, "switched off by LM_EVAL_EXT_AUTOLOAD=0", f"unset it, {USE_EVAL}"
    if not any((Path(folder) / PTH).is_file() for folder in (*site.getsitepackages(), site.getusersitepackages())):
        return BROKEN, f"{PTH} is not in site-packages", f"{REINSTALL}, {USE_EVAL}"
    return BROKEN, warning or "the import hook was not called", f"{REINSTALL}, {USE_EVAL}"


def data() -> Iterator[Finding]:
    """Which data is packaged, mirrored or cached. What is absent is fetched when a task first needs it."""
    from huggingface_hub import constants

    from lm_eval_ext.data import gmmlu, sources
    from lm_eval_ext.data.derived import DERIVED

    mini = sorted(sources.packaged("mini").glob("*.jsonl"))
    yield (
        Finding("mini data", OK, f"{len(mini)} files in the package")
        if mini
        else Finding("mini data", BROKEN, f"no files in {sources.packaged('mini')}", REINSTALL)
    )
    try:
        mirror = sources.mirror()
    except UserError as error:
        yield Finding("mirror", BROKEN, str(error), "correct the variable, or unset it")
        return
    state = f"= {mirror}" if mirror else "is not set (needed offline only)"
    yield Finding("mirror", OK if mirror else ABSENT, f"{sources.MIRROR_VARIABLE} {state}")
    offline = f"fetched on first use; offline, set {sources.MIRROR_VARIABLE} to a mirror"
    sets = {"BLEnD": "blend/", "FLORES-200": "parallel/flores", "NTREX-128": "parallel/ntrex"}
    for subject, prefix in {**sets, "localization_gap": "localization_gap/"}.items():
        names = [
            name
            for name in (*sources.registry(), *DERIVED)
            if name.startswith(prefix) and Path(name).stem not in languages.FURTHER  # a mirror of the seven is whole
        ]
        here = [name for name in names if sources.mirrored(name) or (cache_dir() / "data" / name).is_file()]
        status = OK if len(here) == len(names) else ABSENT
        yield Finding(subject, status, f"{len(here)} of {len(names)} files here", "" if status == OK else offline)
    mirrored = [code for code in languages.KNOWN if sources.mirrored(f"gmmlu/{code}/test.jsonl")]
    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{gmmlu.REPO.replace('/', '--')}"
    if mirrored or hub.is_dir():
        where = [f"mirror: {' '.join(mirrored)}"] * bool(mirrored) + [f"hub cache: {hub}"] * hub.is_dir()
        yield Finding("Global-MMLU", OK, "; ".join(where))
    else:
        yield Finding("Global-MMLU", ABSENT, "not here", offline)


def models() -> Iterator[Finding]:
    """Whether the embedded default model is installed and converted."""
    from lm_eval_ext.models import embedded

    if embedded.is_converted():
        yield Finding("embedded model", OK, f"{embedded.NAME}, ready in {embedded.path()}")
    elif not embedded.is_installed():
        yield Finding("embedded model", ABSENT, "its wheels are not installed", embedded.INSTALL)
    else:
        remedy = "nothing: it is converted on first use (or now: lm-eval-ext model)"
        yield Finding("embedded model", OK, f"{embedded.NAME}, installed, not yet converted", remedy)


def estimators() -> Iterator[Finding]:
    """The estimators that `extract --estimator` takes, those of other packages with what is wrong with them."""
    from lm_eval_ext.errors import EstimatorError
    from lm_eval_ext.steering import registry

    for name in registry.names():
        subject = f"estimator {name}"
        try:
            transform = registry.estimator_class(name).transform
        except EstimatorError as error:
            yield Finding(subject, BROKEN, str(error), "mend or uninstall the package that brings it")
        else:
            yield Finding(subject, OK, f"transform {transform.name}")


def vllm() -> Finding:
    """Whether vLLM is installed, which build, and whether it can run here; it is not imported, which takes long."""
    from lm_eval_ext.backends.vllm import release
    from lm_eval_ext.models import precision

    found = release.installed()
    if found is None:
        return Finding("vllm", ABSENT, "not installed (needed by --model steered-vllm only)", release.INSTALL)
    build = f"{found.distribution} {found.version}, {'CPU' if found.is_cpu_build else 'GPU'} build"
    if problem := release.problem():
        return Finding("vllm", ABSENT, f"{build}, cannot be used here", problem)
    kernels = release.cpu_instructions(precision.this_cpu_flags())
    return Finding("vllm", OK, f"{build}, " + (f"with its {kernels} kernels" if found.is_cpu_build else "sees a GPU"))


def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    import torch

    from lm_eval_ext.models import precision

    yield Finding("cpu", OK, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    peaks = ", ".join(
        f"{dtype} {precision.matrix_speed(dtype, _PEAK_SIZE) / 1e9:.0f} GFLOP/s" for dtype in ("float32", "bfloat16")
    )
    native, why = precision.support("bfloat16")
    taken = "the checkpoint's" if native else "float32 for half-precision checkpoints"
    yield Finding("cpu matrix products", OK, f"{peaks}; dtype=auto takes {taken}: {why}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", OK, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", OK, platform.machine())
