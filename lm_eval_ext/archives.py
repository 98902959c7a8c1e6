"""Zip files that come from somebody else, and zip files that are the same bytes whenever they are written.

Names and sizes of what is read are checked before anything is unpacked: a name never leads out of the folder that it is
unpacked into, and a small file never becomes more than `MAX_BYTES`.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lm_eval_ext.errors import ArchiveError
from lm_eval_ext.io import cannot_write, new_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Bounds of what is read: members, bytes of all of them unpacked, and of a name.
MAX_MEMBERS = 10_000
MAX_BYTES = 4 * 2**30
MAX_NAME = 255

_BLOCK = 2**20
#: Zip has no date before it.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class Archive:
    """A zip file whose names and sizes are safe."""

    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        self._file, self.path = file, path
        self.sizes = {info.filename: info.file_size for info in _checked(file.infolist(), path)}

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of one member, block by block.

        Raises:
            ArchiveError: there is no such member, or it is damaged.
        """
        if name not in self.sizes:
            raise ArchiveError(f"{self.path} has no {name}; it is not complete")
        try:
            with self._file.open(name) as content:
                while block := content.read(_BLOCK):
                    yield block
        except _DAMAGED as error:
            raise ArchiveError(f"{self.path}: {name} is damaged ({error}); fetch the file again") from None

    def read(self, name: str, most: int = 64 * 2**20) -> bytes:
        """The bytes of one member of at most `most` bytes."""
        if self.sizes.get(name, 0) > most:
            raise ArchiveError(
                f"{self.path}: {name} is too large, {self.sizes[name]:,} bytes; at most {most:,} are read"
            )
        return b"".join(self.blocks(name))

    def digest(self, name: str) -> str:
        """SHA-256 of one member."""
        digest = hashlib.sha256()
        for block in self.blocks(name):
            digest.update(block)
        return digest.hexdigest()

    def extract(self, folder: Path) -> None:
        """Unpack everything below a folder.

        Raises:
            ArchiveError: a damaged member.
            OutputError: the folder cannot be written.
        """
        for name in self.sizes:
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    for block in self.blocks(name):
                        file.write(block)
            except OSError as error:
                raise cannot_write(target, error) from None


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip file, its names and sizes checked.

    Raises:
        ArchiveError: no such file, no zip file, or one that is not safe to unpack.
    """
    try:
        file = zipfile.ZipFile(path)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from None
    except _DAMAGED as error:
        raise ArchiveError(f"{path} is not a zip file, or was cut off ({error})") from None
    with file:
        yield Archive(file, path)


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write a zip file: members in the order of their names, no dates, the same permissions everywhere.

    Args:
        path: the file.
        members: content, or the file that has it, by name.

    Raises:
        ArchiveError: a name that nobody could unpack.
        OutputError: it cannot be written.
    """
    if unsafe := [name for name in members if not _is_safe(name)]:
        raise ArchiveError(f"{unsafe[0]!r} cannot be a name in an archive; rename the file")
    with new_file(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(members):
            content = members[name]
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # as written on Unix
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(content, bytes):
                file.writestr(info, content)
                continue
            info.file_size = content.stat().st_size
            with content.open("rb") as source, file.open(info, "w") as target:
                for block in iter(lambda: source.read(_BLOCK), b""):
                    target.write(block)


def _checked(members: list[zipfile.ZipInfo], path: Path) -> Iterator[zipfile.ZipInfo]:
    """The files of a zip file.

    Raises:
        ArchiveError: what is not safe to unpack.
    """
    if len(members) > MAX_MEMBERS:
        raise ArchiveError(f"{path} holds {len(members):,} members; at most {MAX_MEMBERS:,} are read")
    if (total := sum(info.file_size for info in members)) > MAX_BYTES:
        raise ArchiveError(f"{path} would unpack to {total:,} bytes; at most {MAX_BYTES:,} are read")
    seen: set[str] = set()
    for info in members:
        name = info.orig_filename
        if info.is_dir():
            name = name.rstrip("/")
        if not _is_safe(name):
            raise ArchiveError(f"{path} is not safe to unpack: the name {name[:80]!r} leads out of the folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"{path} is not safe to unpack: {name} is a link or a device, not a file")
        if info.flag_bits & 1:
            raise ArchiveError(f"{path}: {name} is encrypted")
        if name.lower() in seen:
            raise ArchiveError(f"{path} is not safe to unpack: it holds {name} twice")
        seen.add(name.lower())
        if not info.is_dir():
            yield info


def _is_safe(name: str) -> bool:
    """Whether a name stays below its folder on any system."""
    parts = name.split("/")
    return (
        len(name) <= MAX_NAME
        and not re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', name)
        and all(part not in ("", ".", "..") and part == part.strip(" ") and not part.endswith(".") for part in parts)
    )
