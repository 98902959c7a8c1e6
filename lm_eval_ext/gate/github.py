"""What a gate asks of GitHub: one comment on a pull request, updated in place, and artifacts of earlier runs.

The token comes from the environment and goes to the API's host only, over HTTPS, and never into a message.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from lm_eval_ext.errors import GitHubError
from lm_eval_ext.redaction import redact_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

API = "https://api.github.com"
TOKENS = ("GITHUB_TOKEN", "GH_TOKEN")

_REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_TIMEOUT = 60  # seconds
_PER_PAGE, _MAX_PAGES = 100, 30
_MAX_ARTIFACT = 2**30  # bytes
_RIGHTS = {
    "comment": "permissions: {pull-requests: write}; a pull request from a fork gets a token that may only read",
    "artifact": "permissions: {actions: read}",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class GitHub:
    """A repository, as a token sees it.

    Attributes:
        repository: `owner/name`.
        token: of the API.
        api: address of the API.
    """

    repository: str
    token: str = field(repr=False)
    api: str = API

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository):
            raise GitHubError(
                f"{self.repository!r} is no repository; valid: OWNER/NAME (--repository, GITHUB_REPOSITORY)"
            )
        address = urlsplit(self.api)
        if address.scheme != "https" and not (address.scheme == "http" and address.hostname in _LOOPBACK):
            raise GitHubError(
                f"the token is not sent to {redact_text(self.api)}: GITHUB_API_URL must begin with https://"
            )
        if not self.token:
            raise GitHubError(
                f"there is no token: set {TOKENS[0]} (in a workflow: `token: ${{{{ github.token }}}}` of the action)"
            )
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise GitHubError(f"{TOKENS[0]} holds characters that no token has, such as a space or the end of a line")

    @classmethod
    def from_environment(cls, repository: str | None = None) -> GitHub:
        """The repository and token that GitHub's workflows have in their environment."""
        token = next((os.environ[name] for name in TOKENS if os.environ.get(name)), "")
        named = repository or os.environ.get("GITHUB_REPOSITORY") or ""
        return cls(named, token, (os.environ.get("GITHUB_API_URL") or API).rstrip("/"))

    def post_comment(self, pull_request: int, text: str) -> tuple[str, bool]:
        """Update the comment that begins with the same line, or make one.

        Only a comment of our own is updated: of the token's user, or of a bot where the token is one.

        Returns:
            the comment's address, and whether it was there before.

        Raises:
            GitHubError: it is refused.
        """
        marker, login = text.split("\n", 1)[0], self._login()
        for comment in self._pages(f"/issues/{pull_request}/comments", "comment"):
            if str(comment.get("body") or "").split("\n", 1)[0].strip() == marker and _is_ours(comment, login):
                path = f"/issues/comments/{int(comment['id'])}"
                return str(self._json("PATCH", path, "comment", {"body": text}).get("html_url", "")), True
        posted = self._json("POST", f"/issues/{pull_request}/comments", "comment", {"body": text})
        return str(posted.get("html_url", "")), False

    def artifact(self, name: str, branch: str | None) -> tuple[dict[str, Any], bytes]:
        """The newest artifact of a name, made by a run on a branch of this repository, and the bytes of its zip file.

        Args:
            name: of the artifact.
            branch: of the run; the default branch where None. Runs of forks never count: anybody can start one.

        Raises:
            GitHubError: there is none, it has expired, or it is too large.
        """
        branch = branch or str(self._json("GET", "", "artifact").get("default_branch") or "main")
        listed = list(self._pages(f"/actions/artifacts?name={quote(name, safe='')}", "artifact", key="artifacts"))
        ours = [one for one in listed if one.get("name") == name and _is_of_branch(one, branch)]
        if not ours:
            other = sorted({str((one.get("workflow_run") or {}).get("head_branch")) for one in listed})
            hint = f"; there are some of {', '.join(other[:5])}" if other else ""
            raise GitHubError(f"{self.repository} has no artifact {name!r} of a run on the branch {branch}{hint}")
        valid = [one for one in ours if not one.get("expired")]
        if not valid:
            raise GitHubError(
                f"all artifacts {name!r} of {branch} in {self.repository} have expired; run the workflow there again"
            )
        newest = max(valid, key=lambda one: str(one.get("created_at")))
        if int(newest.get("size_in_bytes") or 0) > _MAX_ARTIFACT:
            raise GitHubError(f"the artifact {name!r} is larger than {_MAX_ARTIFACT:,} bytes")
        return newest, self._download(f"/actions/artifacts/{int(newest['id'])}/zip")

    def _login(self) -> str | None:
        """The token's user; None for the token of a workflow, which may not ask."""
        try:
            return str(self._json("GET", "/user", "comment", of_repository=False).get("login"))
        except GitHubError:
            return None

    def _pages(self, path: str, purpose: str, key: str | None = None) -> Iterator[dict[str, Any]]:
        for page in range(1, _MAX_PAGES + 1):
            joined = f"{path}{'&' if '?' in path else '?'}per_page={_PER_PAGE}&page={page}"
            content = self._json("GET", joined, purpose)
            entries = content.get(key) if key and isinstance(content, dict) else content
            if not isinstance(entries, list):
                raise GitHubError(f"GitHub's answer to {path} is not a list; is GITHUB_API_URL ({self.api}) right?")
            yield from entries
            if len(entries) < _PER_PAGE:
                return

    def _json(self, method: str, path: str, purpose: str, body: Any = None, *, of_repository: bool = True) -> Any:
        address = f"{self.api}{f'/repos/{self.repository}' if of_repository else ''}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, self._headers, method=method)  # noqa: S310
        with self._answer(request, path, purpose) as response:
            try:
                return json.loads(response.read() or b"{}")
            except ValueError:
                raise GitHubError(
                    f"GitHub's answer to {path} is not JSON; is GITHUB_API_URL ({self.api}) right?"
                ) from None

    def _download(self, path: str) -> bytes:
        """What an address leads to. Storage is another host, which gets no token."""
        request = urllib.request.Request(f"{self.api}/repos/{self.repository}{path}", headers=self._headers)  # noqa: S310
        with self._answer(request, path, "artifact") as response:
            if response.status != http.client.FOUND:
                return _read(response)
            location = response.headers.get("Location") or ""
        where = urlsplit(location)
        if where.scheme != "https" and where.hostname not in _LOOPBACK:
            raise GitHubError(f"GitHub leads to {where.scheme}://{where.hostname} for the artifact, which is not HTTPS")
        with self._answer(urllib.request.Request(location), path, "artifact") as response:  # noqa: S310
            return _read(response)

    @property
    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "lm_eval_ext",
            "Content-Type": "application/json",
        }

    @contextmanager
    def _answer(self, request: urllib.request.Request, path: str, purpose: str) -> Iterator[HTTPResponse]:
        try:
            response = _opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == http.client.FOUND:
                response = error
            else:
                with error:
                    raise self._refused(error, path, purpose) from None
        except (OSError, http.client.HTTPException) as error:
            raise GitHubError(f"{self.api} cannot be reached ({getattr(error, 'reason', error)})") from None
        with response:
            yield response

    def _refused(self, error: urllib.error.HTTPError, path: str, purpose: str) -> GitHubError:
        try:
            said = json.loads(error.read(100_000))
            message = str(said.get("message", "")) if isinstance(said, dict) else ""
        except (OSError, ValueError):
            message = ""
        reason = f"{error.code}: {redact_text(message)[:200]}" if message else str(error.code)
        told = f"GitHub refuses {path.partition('?')[0] or self.repository} ({reason})"
        if error.code == http.client.UNAUTHORIZED:
            return GitHubError(f"{told}: the token is not valid, or has expired")
        if error.code in (http.client.FORBIDDEN, http.client.NOT_FOUND):
            return GitHubError(
                f"{told}: there is no such thing in {self.repository}, or the job needs {_RIGHTS[purpose]}"
            )
        return GitHubError(told)


def pull_request_number(given: int | None) -> int:
    """The pull request of a workflow's run: what is given, else that of the event.

    Raises:
        GitHubError: the run belongs to none.
    """
    if given is not None:
        return given
    content = _event()
    number = (content.get("pull_request") or {}).get("number")
    issue = content.get("issue") or {}
    if "pull_request" in issue:  # a comment on a pull request is an event of its issue
        number = issue.get("number")
    if not isinstance(number, int):
        event = os.environ.get("GITHUB_EVENT_NAME") or "no event of GitHub"
        raise GitHubError(f"this run belongs to no pull request ({event}); name one with --pull-request")
    return number


def footer() -> str:
    """A line that says which commit and which run of a workflow a comment is of; "" outside of one."""
    server, repository, run = (os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    head = (_event().get("pull_request") or {}).get("head") or {}
    commit = str(head.get("sha") or os.environ.get("GITHUB_SHA") or "")
    parts = [f"commit {commit[:12]}"] if re.fullmatch(r"[0-9a-f]{7,64}", commit) else []
    if server.startswith("https://") and _REPOSITORY.fullmatch(repository) and run.isdigit():
        parts.append(f"[log and artifacts]({server}/{repository}/actions/runs/{run})")
    return f"\n<sub>{' · '.join(parts)}</sub>\n" if parts else ""


def _event() -> dict[str, Any]:
    """What started the run of a workflow."""
    path = os.environ.get("GITHUB_EVENT_PATH")
    if not path or not Path(path).is_file():
        return {}
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        raise GitHubError(
            f"GITHUB_EVENT_PATH ({path}) is not JSON; name the pull request with --pull-request"
        ) from None
    return content if isinstance(content, dict) else {}


def _is_ours(comment: dict[str, Any], login: str | None) -> bool:
    """Whether the token's user wrote it: nobody else's comment is given our verdict."""
    user = comment.get("user") or {}
    return user.get("type") == "Bot" if login is None else user.get("login") == login


def _is_of_branch(artifact: dict[str, Any], branch: str) -> bool:
    run = artifact.get("workflow_run") or {}
    return run.get("head_branch") == branch and run.get("head_repository_id") == run.get("repository_id")


def _read(response: HTTPResponse) -> bytes:
    content = response.read(_MAX_ARTIFACT + 1)
    if len(content) > _MAX_ARTIFACT:
        raise GitHubError(f"the artifact is larger than {_MAX_ARTIFACT:,} bytes")
    return content
