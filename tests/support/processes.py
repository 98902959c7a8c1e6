"""Python processes of their own that can import these helpers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

#: Seconds after which a child is taken for hung. No test measures time: a slow machine must not fail.
HUNG = 900


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with `support` to be imported and one thread."""
    path = os.pathsep.join(part for part in (str(TESTS), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def modules_after(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter has imported after running `code`, whatever it exits with."""

    script = (
        f"import sys\nsys.argv = {['program', *arguments]!r}\n"
        f"try:\n    exec({code!r})\nexcept SystemExit:\n    pass\n"
        "print('\\nmodules:', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment(), timeout=HUNG
    )
    return set(done.stdout.rpartition("\nmodules: ")[2].split())
