"""Where data files come from: a local mirror first, else upstream at a pinned version, checked and cached.

There is no fallback: data that is missing, unreachable or has the wrong hash is a `DataError` that names the file, the
address tried, and the mirror variable.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_ext import json_text
from lm_eval_ext.data.derived import DERIVED, Derived
from lm_eval_ext.errors import DataError
from lm_eval_ext.fingerprints import hash_file
from lm_eval_ext.io import write_file
from lm_eval_ext.paths import PACKAGE, cache_dir

if TYPE_CHECKING:
    from datasets import Dataset

#: Folder that holds the data laid out as `path` names it ("blend/annotations/US_data.json").
MIRROR_VARIABLE = "LM_EVAL_EXT_DATA"
#: Set to 1 to use a mirror whose files differ from upstream on purpose.
MODIFIED_VARIABLE = "LM_EVAL_EXT_ALLOW_MODIFIED"


@cache
def registry() -> dict[str, tuple[str, str]]:
    """Every verbatim upstream file: name -> (SHA-256, address)."""
    lines = packaged("registry.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split() for line in lines if line and not line.startswith("#"))
    return {name: (sha256, url) for name, sha256, url in entries}


def packaged(name: str) -> Path:
    """A data file that ships with the package, such as `mini/transfer.jsonl`."""
    return PACKAGE / "data" / name


def mirror() -> Path | None:
    """The local mirror, or None where the variable is not set.

    Raises:
        DataError: the variable is set to something that is not a folder.
    """
    configured = os.environ.get(MIRROR_VARIABLE)
    if not configured:
        return None
    folder = Path(configured).expanduser()
    if not folder.is_dir():
        raise DataError(f"{MIRROR_VARIABLE}={configured} is not a folder: correct it, or unset it to fetch the data")
    return folder


def mirrored(name: str) -> Path | None:
    """The file of that name in the local mirror, unchecked; None where there is none."""
    folder = mirror()
    file = folder / name if folder else None
    return file if file and file.is_file() else None


def path(name: str) -> Path:
    """A data file by its name in the mirror: from the mirror (there also as NAME.gz), else fetched into the cache.

    The SHA-256 of a known file is checked wherever it comes from; `LM_EVAL_EXT_ALLOW_MODIFIED=1` accepts a mirror that
    differs on purpose.

    Raises:
        DataError: the file is unknown, unreachable, or has the wrong hash.
    """
    upstream, derived = registry().get(name), DERIVED.get(name)
    if file := mirrored(name) or mirrored(f"{name}.gz"):
        expected = upstream[0] if upstream else derived.sha256 if derived else None
        if expected and os.environ.get(MODIFIED_VARIABLE) != "1":
            # The hash of a file that is published compressed is that of the compressed file.
            _verify(file, expected, packed=file.name == Path(name).name)
        return file
    if upstream:
        return _download(name, *upstream)
    if derived:
        return _derive(name, derived)
    raise DataError(f"no address is known for {name}. {_mirror_hint(name)}")


def read_text(file: Path) -> str:
    """The UTF-8 text of a file, newlines as they are; a `.gz` file is decompressed.

    Raises:
        DataError: missing, unreadable, not UTF-8, or empty.
    """
    try:
        text = _content(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}): copy or fetch it again") from None
    if not text.strip():
        raise DataError(f"{file} is empty: copy or fetch it again")
    return text


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: as `read_text`, or the text is not JSON (truncated, for example).
    """
    return _parse(read_text(file), str(file))


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line; blank lines are skipped.

    Raises:
        DataError: as `read_text`, or a line is not a JSON object; the message names the line.
    """
    return [row for _, row in read_numbered_jsonl(file)]


def read_numbered_jsonl(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`, each object with the number of its line, from 1."""
    rows = []
    # Not splitlines(), which also splits at separators that may be inside a JSON string.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{file}, line {number},")
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}, is not a JSON object but {type(row).__name__}")
        rows.append((number, row))
    return rows


def hub_dataset(repo: str, config: str, revision: str, split: str, mirror_name: str) -> Dataset:
    """A split of a Hugging Face Hub data set at a pinned revision, through the library's own cache.

    Args:
        repo: such as `CohereLabs/Global-MMLU`.
        config: the data set's configuration (a language).
        revision: commit hash on the hub.
        split: such as `test`.
        mirror_name: its name in a mirror, for the message.

    Raises:
        DataError: unreachable, gated, no such configuration or split, or only another revision is cached (which the
            library would use without a warning).
    """
    import datasets
    from huggingface_hub import constants

    name = f"{repo} (configuration {config}, split {split}, revision {revision})"
    try:
        builder = datasets.load_dataset_builder(repo, config, revision=revision)
        if builder.hash != revision:
            builder = _cached_revision(builder, repo, config, revision)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    # The library's failures share no base class: its own, the hub client's, the HTTP client's, ValueError, OSError.
    except Exception as error:
        raise DataError(
            f"cannot load {name}\n"
            f"  address tried: {constants.ENDPOINT}/datasets/{repo}\n"
            f"  because: {_brief(error)}\n"
            f"  {_mirror_hint(mirror_name)}"
        ) from error


def _cached_revision(newest: Any, repo: str, config: str, revision: str) -> Any:
    """The builder of a revision that lies in the library's cache, beside the newest one, which it takes offline.

    Raises:
        ConnectionError: the revision is not in the cache.
    """
    versions = Path(newest.cache_dir).parents[1]
    folder = next((path for path in versions.glob(f"*/{revision}") if path.is_dir()), None)
    if folder is None:
        raise ConnectionError(f"only revision {newest.hash} is in the cache")
    names = {"repo_id": repo, "dataset_name": repo.rpartition("/")[2], "config_name": config}
    return type(newest)(**names, version=folder.parent.name, hash=revision)


def _parse(text: str, where: str) -> Any:
    try:
        return json_text.parse(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON ({error.msg}, line {error.lineno} column {error.colno}): "
            "it may be truncated; copy or fetch it again"
        ) from None
    except ValueError as error:
        raise DataError(f"{where} cannot be read{json_text.why(error)}") from None


def _content(file: Path, unpack: bool = True) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if unpack and file.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file} cannot be unpacked ({error}): it may be truncated; copy or fetch it again") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def _verify(file: Path, expected: str, packed: bool) -> None:
    actual = hashlib.sha256(_content(file, unpack=not packed)).hexdigest()
    if actual != expected:
        raise DataError(
            f"{file} is not the upstream file\n"
            f"  SHA-256 expected: {expected}\n"
            f"  SHA-256 found:    {actual}\n"
            f"  copy it again, or set {MODIFIED_VARIABLE}=1 if it is changed on purpose"
        )


def _download(name: str, sha256: str | None, url: str) -> Path:
    import pooch

    store = pooch.create(
        path=cache_dir() / "data", base_url="", registry={name: sha256}, urls={name: url}, retry_if_failed=1
    )
    try:
        return Path(store.fetch(name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=60)))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong hash is a ValueError
        raise DataError(
            f"cannot fetch {name}\n  address tried: {url}\n  because: {_brief(error)}\n  {_mirror_hint(name)}"
        ) from error


def _derive(name: str, derived: Derived) -> Path:
    target = cache_dir() / "data" / name
    if target.is_file() and hash_file(target) == derived.sha256:
        return target
    # The commit is part of an input's name: two inputs may be one file at two commits.
    inputs = [
        _download("upstream/" + "/".join(url.split("/")[5:]), sha256, url) for url, sha256 in derived.inputs.items()
    ]
    try:
        content = derived.convert([file.read_bytes().decode("utf-8") for file in inputs]).encode("utf-8")
    except (ValueError, KeyError, TypeError):  # a damaged input: reported by the hash check below
        content = b""
    actual = hashlib.sha256(content).hexdigest()
    if actual != derived.sha256:
        for file in inputs:  # so that the next run fetches it again
            file.unlink(missing_ok=True)
        raise DataError(
            f"{name}, made from {', '.join(derived.inputs)}, has another content\n"
            f"  SHA-256 expected: {derived.sha256}\n"
            f"  SHA-256 found:    {actual}\n"
            f"  {_mirror_hint(name)}"
        )
    write_file(target, content)
    return target


def _brief(error: Exception) -> str:
    """The kind and first line of an error, short enough for one screen."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _mirror_hint(name: str) -> str:
    configured = os.environ.get(MIRROR_VARIABLE)
    state = f"{MIRROR_VARIABLE}={configured} has no {name}" if configured else f"{MIRROR_VARIABLE} is not set"
    return f"{state}: connect and try again, or set {MIRROR_VARIABLE} to a folder that holds {name}"
