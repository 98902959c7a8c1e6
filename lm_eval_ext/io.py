"""Atomic writes: a file or folder appears whole or not at all, readable by whom the umask lets read.

What is unfinished lies beside its target under a name that begins with a dot, and is removed when writing fails.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_ext.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the system says when there is no room. Other errors of filling a folder may come from reading something.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file, replacing what is there, and make its folder if needed.

    Args:
        path: the file.
        content: bytes, or text that is written as UTF-8 with its newlines as they are.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    with new_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to be written that becomes `path` when the block ends without an error, and its folder if needed.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            unfinished.unlink()


@contextmanager
def write_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that becomes `path` when the block ends without an error.

    Args:
        path: the folder; its parents are made if needed.
        replace: whether a folder that is there with something in it gives way to the new one; else it is an error.

    Yields:
        The empty folder to fill.

    Raises:
        OutputError: the folder cannot be written, or is there already; what was there before stays. Errors of the block
            are passed on, but for a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        unfinished, before = scratch / path.name, scratch / "before"
        unfinished.mkdir()
        try:
            yield unfinished
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise cannot_write(path, error) from None
            raise
        try:
            _share(unfinished)
            if replace and path.is_dir():
                path.rename(before)
            unfinished.rename(path)  # replaces an empty folder
        except OSError as error:
            if before.exists():
                before.rename(path)
            raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error that says which file or folder cannot be written, and why."""
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def _share(folder: Path) -> None:
    """Give files the permissions of any new file: some libraries (safetensors) let only their owner read them."""
    probe = folder.parent / "probe"
    probe.touch()
    mode = probe.stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | mode)
