"""Where things are: the task files, the package's own data, the cache."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent


def cache_dir() -> Path:
    """The cache folder: `LM_EVAL_EXT_CACHE`, else the platform's user cache."""
    if configured := os.environ.get("LM_EVAL_EXT_CACHE"):
        return Path(configured).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("lm_eval_ext")


def tasks_dir() -> Path:
    """The folder of task YAML: inside the package when installed from a wheel, beside it in a checkout."""
    installed = PACKAGE / "tasks"
    return installed if installed.is_dir() else PACKAGE.parent / "tasks"
