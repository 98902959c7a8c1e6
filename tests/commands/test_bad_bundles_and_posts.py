"""What can go wrong with a comment, a baseline from elsewhere, a bundle or a record is one message that names it."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from support import fake_github
from support.gates import answers, write_gate, write_pair
from support.runs import write_run
from typer.testing import CliRunner

from lm_eval_ext import archives, cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.fake_github import FakeGitHub

    Prepare = Callable[[Path, FakeGitHub, pytest.MonkeyPatch], object]

FETCH = "gate fetch artifact:baseline --out got"
POST = "gate post comment.md --pull-request 7"
MARKER = "<!-- lm-eval-ext gate: gate -->\n"


def written(text: str) -> Prepare:
    return lambda folder, *_: (folder / "comment.md").write_text(text)


def variable(name: str, value: str) -> Prepare:
    def prepare(folder: Path, _: FakeGitHub, patch: pytest.MonkeyPatch) -> None:
        (folder / "comment.md").write_text(MARKER)
        patch.setenv(name, value)

    return prepare


def refusing(start: str, status: int, message: str) -> Prepare:
    def prepare(folder: Path, github: FakeGitHub, _: pytest.MonkeyPatch) -> None:
        (folder / "comment.md").write_text(MARKER)
        github.refuse[start] = status, message

    return prepare


def artifact(content: bytes = b"", **said: object) -> Prepare:
    return lambda folder, github, patch: github.add_artifact("baseline", content, **said)


def zipped(**members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@cache
def whole_bundle() -> bytes:
    """A bundle that is as it should be."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        write_run(folder / "results", answers(2), model="org/model")
        made = CliRunner().invoke(cli.app, ["bundle", f"{folder}/results", "-o", f"{folder}/run.zip"])
        assert made.exit_code == 0, made.output
        return (folder / "run.zip").read_bytes()


def bundle(folder: Path) -> dict[str, bytes]:
    """Its members, and the file in a folder."""
    (folder / "run.zip").write_bytes(whole_bundle())
    with zipfile.ZipFile(folder / "run.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(change: Callable[[dict[str, bytes]], object]) -> Prepare:
    """A bundle whose members were changed and zipped again."""

    def prepare(folder: Path, *_: object) -> None:
        members = bundle(folder)
        change(members)
        with zipfile.ZipFile(folder / "run.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return prepare


def damaged(change: Callable[[bytes], bytes]) -> Prepare:
    """A bundle whose bytes were changed."""

    def prepare(folder: Path, *_: object) -> None:
        bundle(folder)
        (folder / "run.zip").write_bytes(change((folder / "run.zip").read_bytes()))

    return prepare


def link(folder: Path, *_: object) -> None:
    info = zipfile.ZipInfo("results/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "run.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")


def bomb(content: bytes) -> bytes:
    """The sizes in the directory at the end say 3 GiB for each of two members."""
    start, places = 0, []
    while (place := content.find(b"PK\x01\x02", start)) >= 0:
        places.append(place)
        start = place + 4
    for place in places[:2]:
        content = content[: place + 24] + struct.pack("<I", 3 * 2**30) + content[place + 28 :]
    return content


def edited(members: dict[str, bytes], **changes: object) -> None:
    members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), **changes}).encode()


def first_results(members: dict[str, bytes]) -> str:
    return next(name for name in members if "/samples_" in name)


def two_runs(folder: Path, *_: object) -> None:
    for name in ("a", "b"):
        write_run(folder / "results" / name, answers(2), model=f"org/{name}")


def a_pair(folder: Path, *_: object) -> None:
    write_pair(folder, answers(4), answers(4))
    write_gate(folder, "axis: qa, margin: 0.1")


NOTHING: Prepare = lambda *_: None  # noqa: E731

CASES: dict[str, tuple[str, Prepare, str]] = {
    # the comment
    "over the limit": (
        POST,
        written(MARKER + "x" * 65_536),
        "comment.md has 65,\\d+ characters; GitHub takes",
    ),
    "no such comment": (POST, NOTHING, "there is no comment.md; `lm-eval-ext gate ... --comment comment.md` writes it"),
    "no comment of ours": (POST, written("## pass"), "does not begin with the line by which its comment is found"),
    "no token": (POST, variable("GITHUB_TOKEN", ""), "there is no token: set GITHUB_TOKEN"),
    "a token of two lines": (POST, variable("GITHUB_TOKEN", "a\nb"), "holds characters that no token has"),
    "an old token": (POST, variable("GITHUB_TOKEN", "expired"), "401: Bad credentials.*not valid, or has expired"),
    "a token that may only read": (
        POST,
        refusing("POST", 403, "not accessible"),
        "the job needs .*pull-requests: write",
    ),
    "no pull request": ("gate post comment.md", written(MARKER), "belongs to no pull request"),
    "another pull request": (
        POST.replace("7", "8"),
        written(MARKER),
        "404: Not Found.*there is no such thing in org/repo",
    ),
    "no repository": (POST, variable("GITHUB_REPOSITORY", "org"), "'org' is no repository; valid: OWNER/NAME"),
    "no HTTPS": (POST, variable("GITHUB_API_URL", "http://example.org"), "token is not sent to http://example.org"),
    "GitHub is down": (POST, variable("GITHUB_API_URL", "http://127.0.0.1:9"), "http://127.0.0.1:9 cannot be reached"),
    "a moved repository": (POST, refusing("GET /repos", 301, "Moved"), "301: Moved"),
    "a name that ends the line": (
        "gate gate.yaml --baseline base --candidate new --comment c.md --comment-name a-->b",
        a_pair,
        "a comment cannot be called 'a-->b'; valid: up to 50 letters",
    ),
    # a baseline from elsewhere
    "no such folder": (
        "gate fetch nowhere --out got",
        NOTHING,
        "the baseline nowhere is not there; valid: a folder, hub:",
    ),
    "no source": ("gate fetch hub:name --out got", NOTHING, "'hub:name' names no baseline; valid: a folder, hub:ORG/"),
    "unknown artifact": (
        FETCH.replace("baseline", "x"),
        NOTHING,
        "org/repo has no artifact 'x' of a run on the branch main",
    ),
    "of another branch": (FETCH, artifact(branch="dev"), "there are some of dev"),
    "of a fork": (
        FETCH,
        artifact(head_repository_id=2),
        "has no artifact 'baseline'",
    ),
    "expired artifact": (
        FETCH,
        artifact(expired=True),
        "of main in org/repo have expired",
    ),
    "another artifact": (
        FETCH,
        artifact(zipped(a="b"), digest="sha256:00"),
        "is not what its SHA-256 says",
    ),
    "artifact that leads out": (
        FETCH,
        artifact(zipped(**{"../../outside": "x"})),
        "not safe to unpack: the name '../../outside' leads out",
    ),
    # a bundle
    "a changed byte": (
        "verify run.zip",
        rewritten(lambda m: m.update({first_results(m): m[first_results(m)].replace(b"0.0", b"1.0", 1)})),
        "samples_.* was changed: it is not what the manifest's SHA-256 says",
    ),
    "a damaged member": (
        "verify run.zip",
        damaged(lambda b: b[:200] + bytes([b[200] ^ 255]) + b[201:]),
        "damaged",
    ),
    "a missing member": (
        "verify run.zip",
        rewritten(lambda m: m.pop(first_results(m))),
        "not complete: .*missing",
    ),
    "another member": (
        "verify run.zip",
        rewritten(lambda m: m.update(more=b"x")),
        "holds more, of which its manifest says",
    ),
    "no manifest": ("verify run.zip", rewritten(lambda m: m.pop("manifest.json")), "it has no manifest.json"),
    "a changed manifest": ("rerun run.zip", rewritten(lambda m: edited(m, plan="en@1:2")), "manifest.json was changed"),
    "a later format": (
        "verify run.zip",
        rewritten(lambda m: edited(m, version=2)),
        "a bundle of version 2; this release",
    ),
    "a zip slip": (
        "verify run.zip",
        rewritten(lambda m: m.update({"../x": b""})),
        "the name '../x' leads out",
    ),
    "an absolute name": (
        "verify run.zip",
        rewritten(lambda m: m.update({"/etc/x": b""})),
        "the name '/etc/x' leads out",
    ),
    "a link": ("verify run.zip", link, "results/link is a link or a device"),
    "a bomb": ("verify run.zip", damaged(bomb), "would unpack to 6,44\\d,\\d+,\\d+ bytes; at most 4,294,967,296"),
    "cut off": ("verify run.zip", damaged(lambda b: b[:-30]), "run.zip is not a zip file, or was cut off"),
    "no bundle": ("verify nothing.zip", NOTHING, "cannot read nothing.zip"),
    "another bundle": (
        "verify run.zip --hash 000000000000",
        rewritten(lambda m: None),
        "is another bundle: its",
    ),
    "several runs": ("bundle results -o run.zip", two_runs, "results holds 2 runs; name one with --run"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named(name, tmp_path, monkeypatch):
    command, prepare, message = CASES[name]
    monkeypatch.chdir(tmp_path)
    with fake_github.serve() as github:
        for key, value in fake_github.environment(github).items():
            monkeypatch.setenv(key, value)
        monkeypatch.delenv("GITHUB_EVENT_PATH", raising=False)
        prepare(tmp_path, github, monkeypatch)
        result = CliRunner().invoke(cli.app, command.split())
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == (3 if command.startswith("gate") else 2), result.output
    told = " ".join(result.stderr.split())
    assert told.startswith("error: ")
    assert re.search(message, told), told
    assert fake_github.TOKEN not in result.output
    assert not (tmp_path.parent / "outside").exists()


def test_more_members_than_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    bundle(tmp_path)
    result = CliRunner().invoke(cli.app, ["verify", f"{tmp_path}/run.zip"])
    assert "members; at most 1 are read" in result.stderr
