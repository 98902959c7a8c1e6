"""Virtual environments with this package as users install it, beside the packages of the environment that runs the tests."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.harness_cache.sitecustomize import kept

ROOT = Path(__file__).parents[2]

# Which names a fresh interpreter sees that imports the harness only; the scan of its 14,000 own tasks is left out.
SEEN = """
import json
import lm_eval.models
import lm_eval.tasks.manager as manager
manager.__file__ = "/nowhere/manager.py"
from lm_eval.api.registry import model_registry
from lm_eval.tasks import TaskManager
print(json.dumps({"models": list(model_registry), "tasks": TaskManager().all_tasks}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees the packages of this one, and of ours only what a test installs."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))

    def run(self, *command: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LM_EVAL_EXT_"))}
        process = subprocess.run(
            [str(self.python), *map(str, command)],
            cwd=self.folder,
            env={**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf"), "NO_COLOR": "1", **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or process.returncode == 0, process.stderr
        return process

    def seen(self, **env: str) -> tuple[dict[str, Any], str]:
        """Models and tasks the harness knows, and what stood on standard error."""
        process = self.run("-c", SEEN, **env)
        return json.loads(process.stdout), process.stderr


def new_environment(folder: Path) -> Environment:
    venv.create(folder, with_pip=False, symlinks=True)
    environment = Environment(folder)
    # Plain paths: what stands in .pth files over there (our own editable install, for one) is not run.
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (environment.site_packages / "shared.pth").write_text("\n".join(shared))
    return environment


def install(environment: Environment, *arguments: str | Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", environment.python, "install", "--no-index", "--no-deps"]
    subprocess.run([*map(str, pip), *map(str, arguments)], check=True, capture_output=True)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, built once per session."""

    def build() -> tuple[str, str]:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
        (built,) = folder.glob("*.whl")
        return built.name, base64.b64encode(built.read_bytes()).decode()

    name, content = kept("wheel", build)
    (folder / name).write_bytes(base64.b64decode(content))
    return folder / name
