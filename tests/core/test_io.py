"""Writing: whole or not at all, with the permissions of any new file, and one error that names the target."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from lm_eval_ext.errors import OutputError
from lm_eval_ext.io import write_file, write_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=[0o022, 0o077, 0o002])
def allowed(request: pytest.FixtureRequest) -> Iterator[int]:
    """Permissions of a new file under different umasks."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "out.txt"
    write_file(file, "año\r\n")
    assert file.read_bytes() == "año\r\n".encode()
    write_file(file, b"\0new")
    assert file.read_bytes() == b"\0new"
    assert list(file.parent.iterdir()) == [file]


def test_permissions_are_those_of_any_new_file(tmp_path: Path, allowed: int) -> None:
    write_file(tmp_path / "file", b"")
    assert mode(tmp_path / "file") == allowed
    with write_folder(tmp_path / "folder") as unfinished:
        (unfinished / "inner").mkdir()
        save_file({"x": torch.zeros(1)}, unfinished / "inner" / "x.safetensors")
        (unfinished / "script").touch(0o700)
    assert mode(tmp_path / "folder") == allowed | (allowed >> 2 & 0o111)
    assert mode(tmp_path / "folder" / "inner" / "x.safetensors") == allowed
    assert mode(tmp_path / "folder" / "script") == allowed | 0o100


@pytest.mark.parametrize("target", ["taken/below/out.txt", "folder"])
def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path, target: str) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=rf"cannot write {tmp_path / target}: (Not a directory|Is a directory)"):
        write_file(tmp_path / target, b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "taken"]
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out"
    write_file(file, b"before")

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(file), "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_file(file, b"after")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Several writers of one process at once."""
    file = tmp_path / "out"
    contents = [bytes([65 + n]) * 200_000 for n in range(4)]
    write_file(file, contents[0])
    writers = [
        threading.Thread(target=lambda c=content: [write_file(file, c) for _ in range(20)]) for content in contents
    ]
    for writer in writers:
        writer.start()
    seen = {file.read_bytes() for _ in range(200)}
    for writer in writers:
        writer.join()
    assert seen <= set(contents)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with write_folder(target) as unfinished:
        (unfinished / "a").write_text("a")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(target.parent.iterdir()) == [target]


def test_an_error_while_a_folder_is_filled_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_folder(tmp_path / "out") as unfinished:
        (unfinished / "none").read_text()
    with (
        pytest.raises(OutputError, match=f"cannot write {tmp_path / 'out'}: No space left"),
        write_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_is_there(tmp_path: Path, replace: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "before").touch()

    def fill() -> None:
        with write_folder(out, replace=replace) as unfinished:
            (unfinished / "after").touch()

    if replace:
        fill()
    else:
        with pytest.raises(OutputError, match=r"cannot write .*: Directory not empty"):
            fill()
    assert [path.name for path in out.iterdir()] == ["after" if replace else "before"]
    assert list(tmp_path.iterdir()) == [out]
    (out / ("after" if replace else "before")).unlink()
    fill()
    assert [path.name for path in out.iterdir()] == ["after"]


def test_a_replaced_folder_comes_back_where_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "before").touch()
    rename = type(out).rename

    def refuse(path: Path, target: Path) -> Path:
        if target == out and path.name == "out":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(type(out), "rename", refuse)
    with pytest.raises(OutputError, match="Permission denied"), write_folder(out, replace=True):
        pass
    assert [path.name for path in out.iterdir()] == ["before"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="Not a directory"), write_folder(tmp_path / "out", replace=True):
        pass
    assert (tmp_path / "out").read_text() == "mine"
