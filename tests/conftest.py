"""Shared fixtures: where the real data is; what the harness works out in each process is worked out once."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from support.harness_cache import sitecustomize as harness_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

# No test measures time: a loaded machine must not fail.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

# Who asks a hub that cannot be reached tries again for half a minute. Tests of downloads serve a hub and set 0.
os.environ["HF_HUB_OFFLINE"] = "1"

# What a contributor has set for work of their own must not decide a test: one that needs the mirror sets it.
for variable in ("LM_EVAL_EXT_DATA", "LM_EVAL_EXT_CPU_BFLOAT16"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session", autouse=True)
def _harness_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for this session: for both workers, and for the processes that tests start."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ[harness_cache.VARIABLE] = str(folder)
    assert harness_cache.__file__
    paths = [str(Path(harness_cache.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@pytest.fixture(scope="session", autouse=True)
def _rows_share() -> Iterator[None]:
    """A few requests are scored as many are: what rows may share is measured, and used, however little is asked."""
    from lm_eval_ext.scoring import scorer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "probe_cost", lambda length: 0)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those with most tests: two workers that take whole files end at about one time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -sizes[item.path], item.path))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What all modules have imported is kept out of garbage collections, which would look through it again and again."""
    gc.collect()
    gc.freeze()


def _shared_data() -> Path | None:
    folder = Path(os.environ.get("LM_EVAL_EXT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder.resolve() if (folder / "blend").is_dir() else None


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mirror in the form of the upstream data (with `LM_EVAL_EXT_ALLOW_MODIFIED=1`); see `support.small_mirror`."""
    from support import small_mirror

    return small_mirror.write(tmp_path_factory.mktemp("small"))


@pytest.fixture
def upstream_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data in the form of upstream, set for the test: the real data, or where there is none the small mirror."""
    folder = _shared_data()
    if folder is None:
        monkeypatch.setenv("LM_EVAL_EXT_ALLOW_MODIFIED", "1")
        folder = request.getfixturevalue("small_data")
    monkeypatch.setenv("LM_EVAL_EXT_DATA", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real upstream data; the test is skipped where there is none (a public clone ships none)."""
    found = _shared_data()
    if found is None:
        pytest.skip("needs the upstream data: set LM_EVAL_EXT_TEST_DATA to a mirror (see docs/how-to/offline.md)")
    return found
