"""A stand-in for the API of GitHub: comments on pull requests, artifacts, and the storage that artifacts lie in."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "ghs_planted0token0planted0"
BOT = {"login": "github-actions[bot]", "type": "Bot"}


@dataclass
class FakeGitHub:
    """What the repository `org/repo` holds.

    Attributes:
        comments: of pull request 7.
        artifacts: as the API lists them.
        zips: their files, by id.
        refuse: status and message by the beginning of `METHOD PATH`.
        asked: every request: method, path, and the token that came with it.
    """

    comments: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    zips: dict[int, bytes] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    user: dict[str, str] | None = None
    address: str = ""

    def add_comment(self, body: str, user: dict[str, str] | None = None) -> dict[str, Any]:
        number = len(self.comments) + 1
        comment = {"id": number, "body": body, "user": user or BOT, "html_url": f"https://github.com/c/{number}"}
        self.comments.append(comment)
        return comment

    def add_artifact(self, name: str, content: bytes, **said: Any) -> None:
        number = len(self.artifacts) + 1
        run = {"head_branch": said.pop("branch", "main"), "repository_id": 1}
        run["head_repository_id"] = said.pop("head_repository_id", 1)
        told = {"id": number, "name": name, "expired": False, "size_in_bytes": len(content), "workflow_run": run}
        self.artifacts.append({**told, "created_at": f"2026-01-0{number}T00:00:00Z", **said})
        self.zips[number] = content

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        for start, (status, message) in self.refuse.items():
            if f"{method} {path}".startswith(start):
                return status, {"message": message}
        if path == "/user":
            return (200, self.user) if self.user else (403, {"message": "Resource not accessible by integration"})
        if path == "/repos/org/repo":
            return 200, {"default_branch": "main"}
        if path == "/repos/org/repo/issues/7/comments":
            if method == "POST":
                return 201, self.add_comment(body["body"], self.user)
            size, page = (int(query[name][0]) for name in ("per_page", "page"))
            return 200, self.comments[(page - 1) * size : page * size]
        if path.startswith("/repos/org/repo/issues/comments/") and method == "PATCH":
            comment = self.comments[int(path.rpartition("/")[2]) - 1]
            comment["body"] = body["body"]
            return 200, comment
        if path == "/repos/org/repo/actions/artifacts":
            return 200, {"artifacts": [one for one in self.artifacts if one["name"] == query["name"][0]]}
        return 404, {"message": "Not Found"}


def _handler(github: FakeGitHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            parts = urlsplit(self.path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            github.asked.append((self.command, parts.path, token))
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
            if parts.path.startswith("/storage/"):
                self._send(200, github.zips[int(parts.path.rpartition("/")[2])])
            elif token != TOKEN:
                self._send(401, json.dumps({"message": "Bad credentials"}).encode())
            elif parts.path.endswith("/zip"):
                self._send(302, b"", Location=f"{github.address}/storage/{parts.path.split('/')[-2]}")
            else:
                status, content = github.answer(self.command, parts.path, parse_qs(parts.query), body)
                self._send(status, json.dumps(content).encode())

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815

        def _send(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serve() -> Iterator[FakeGitHub]:
    """A server on a free port, as long as the block lasts."""
    github = FakeGitHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(github))
    github.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield github
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(github: FakeGitHub, **changes: str) -> dict[str, str]:
    """What GitHub sets for a run of a workflow."""
    return {
        "GITHUB_TOKEN": TOKEN,
        "GITHUB_REPOSITORY": "org/repo",
        "GITHUB_API_URL": github.address,
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_RUN_ID": "42",
        "GITHUB_SHA": "a" * 40,
        **changes,
    }
