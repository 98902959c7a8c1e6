"""Where a baseline comes from: a folder, a data set on the hub, or an artifact of an earlier run on GitHub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.archives import open_archive
from lm_eval_ext.errors import GateError, GitHubError
from lm_eval_ext.fingerprints import hash_bytes
from lm_eval_ext.io import write_file, write_folder

if TYPE_CHECKING:
    from lm_eval_ext.gate.github import GitHub

_HUB = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-][\w./-]*?))?(:(?P<folder>[\w.-][\w./-]*))?", re.ASCII
)
_ARTIFACT = re.compile(r"artifact:(?P<name>[^@/\\:*?\"<>|\r\n]+)(@(?P<branch>[\w.-][\w./-]*))?")
SOURCES = "a folder, hub:ORG/DATASET[@REVISION][:FOLDER], artifact:NAME[@BRANCH]"


def fetch_baseline(source: str, out: Path, github: GitHub | None = None) -> Path:
    """The folder of a baseline, fetched if it is elsewhere.

    Args:
        source: a folder; `hub:ORG/DATASET[@REVISION][:FOLDER]`; or `artifact:NAME[@BRANCH]`, the newest of a run on the
            branch (the default branch where none is named).
        out: the folder that it is fetched into, which must be new or empty.
        github: where artifacts are; that of the environment if None.

    Returns:
        the folder with the results: `source` itself where that is a folder.

    Raises:
        GateError: no such folder or data set, or a source of no known form.
        GitHubError, ArchiveError, OutputError: no such artifact, or one that is damaged or not safe to unpack, or a
            folder that has something in it.
    """
    if match := _HUB.fullmatch(source):
        return _from_hub(match["repo"], match["revision"], match["folder"] or "", out)
    if match := _ARTIFACT.fullmatch(source):
        _from_artifact(match["name"], match["branch"], out, github)
        return out
    if source.partition(":")[0] in ("hub", "artifact"):
        raise GateError(f"{source!r} names no baseline; valid: {SOURCES}")
    folder = Path(source)
    if not folder.is_dir():
        raise GateError(f"the baseline {source} is not there; valid: {SOURCES}")
    return folder


def _from_hub(repo: str, revision: str | None, folder: str, out: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = folder.strip("/")
    if ".." in wanted.split("/"):
        raise GateError(f"{folder!r} is no folder of a data set")
    named = f"{repo}{f'@{revision}' if revision else ''}"
    try:
        fetched = Path(
            snapshot_download(
                repo, repo_type="dataset", revision=revision, allow_patterns=[f"{wanted}/*"] if wanted else None
            )
        )
    except HFValidationError as error:
        raise GateError(f"{repo!r} is no data set of the hub: {error}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise GateError(
            f"the data set {named} cannot be fetched ({type(error).__name__}: {reason}); a private one needs HF_TOKEN"
        ) from None
    results = [file for file in (fetched / wanted).rglob("*") if file.is_file()]
    if not results:
        raise GateError(f"the data set {named} has no {wanted or 'file'}")
    with write_folder(out) as fresh:
        for file in results:
            write_file(fresh / file.relative_to(fetched / wanted), file.read_bytes())
    return out


def _from_artifact(name: str, branch: str | None, out: Path, github: GitHub | None) -> None:
    from lm_eval_ext.gate.github import GitHub

    told, content = (github or GitHub.from_environment()).artifact(name, branch)
    said = str(told.get("digest") or "")
    if said.startswith("sha256:") and said.removeprefix("sha256:") != hash_bytes(content):
        raise GitHubError(f"the artifact {name!r} is not what its SHA-256 says; fetch it again")
    with write_folder(out) as fresh:
        zipped = fresh.parent / "artifact.zip"
        write_file(zipped, content)
        with open_archive(zipped) as archive:
            archive.extract(fresh)
