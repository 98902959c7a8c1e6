"""A stand-in for the Hugging Face Hub: the few routes that loading a data set takes, over local files.

A client is pointed to it by the environment variable HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FakeHub(BaseHTTPRequestHandler):
    repo: str
    revision: str
    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{self.repo}", f"/datasets/{self.repo}/resolve/{self.revision}/"
        if path in (api, f"{api}/revision/{self.revision}"):
            files = [{"rfilename": name} for name in self._files()]
            self._json({"id": self.repo, "sha": self.revision, "private": False, "tags": [], "siblings": files})
        elif path.startswith(f"{api}/tree/{self.revision}"):
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            self._json(self._listing(path.removeprefix(f"{api}/tree/{self.revision}").strip("/"), recursive))
        elif path.startswith(resolve) and (self.folder / path.removeprefix(resolve)).is_file():
            self._file(path.removeprefix(resolve))
        else:
            self._missing()

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if urlsplit(self.path).path != f"/api/datasets/{self.repo}/paths-info/{self.revision}":
            return self._missing()
        return self._json([self._entry(name) for name in self._files() if name in body["paths"]])

    def _files(self) -> list[str]:
        return sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())

    def _listing(self, below: str, recursive: bool) -> list[dict[str, object]]:
        entries = sorted((self.folder / below).rglob("*") if recursive else (self.folder / below).iterdir())
        names = [(entry.relative_to(self.folder).as_posix(), entry.is_dir()) for entry in entries]
        return [
            {"type": "directory", "path": name, "oid": "0"} if is_dir else self._entry(name) for name, is_dir in names
        ]

    def _entry(self, name: str) -> dict[str, object]:
        content = (self.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        content = (self.folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.revision}
        self._send(200, content, headers)

    def _missing(self) -> None:
        code = "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound"
        self._send(404, b"{}", {"X-Error-Code": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_request(self, *_: object) -> None:
        self.asked.append(self.path)

    def log_message(self, *_: object) -> None:
        pass


def serve(repo: str, revision: str, folder: Path, asked: list[str]) -> ThreadingHTTPServer:
    """A server of `folder` as that revision of a data set, on a free port; call `serve_forever` on a thread.

    Every path asked for is appended to `asked`.
    """
    attributes = {"repo": repo, "revision": revision, "folder": folder, "asked": asked}
    return ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (FakeHub,), attributes))
