"""`lm-eval-ext gate post` and `gate fetch`: a pull request's comment, and where a baseline comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.console import output
from lm_eval_ext.errors import GitHubError

_Repository = Annotated[
    str | None, typer.Option(help="OWNER/NAME. Default: GITHUB_REPOSITORY.", metavar="OWNER/NAME", show_default=False)
]


def post(
    comment: Annotated[Path, typer.Argument(help="What `gate check --comment` wrote.")],
    pull_request: Annotated[
        int | None,
        typer.Option(min=1, help="Number of the pull request. Default: that of the event.", show_default=False),
    ] = None,
    repository: _Repository = None,
    or_say: Annotated[
        str, typer.Option(help="Posted where there is no such file: the evaluation ended before.", show_default=False)
    ] = "",
    comment_name: Annotated[str, typer.Option(help="Name of the comment, with --or-say.")] = "gate",
) -> None:
    """Post the comment on a pull request of GitHub, or update the one there.

    The token is read from GITHUB_TOKEN (or GH_TOKEN) and needs the permission
    `pull-requests: write`. Exit status: 0, or 3 where it was not posted.

    Example:

      lm-eval-ext gate post comment.md --pull-request 12 --repository org/model
    """
    from lm_eval_ext.gate.github import GitHub, footer, pull_request_number
    from lm_eval_ext.gate.marker import MAX_COMMENT, is_comment, misuse_comment

    try:
        text = comment.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not or_say:
            raise GitHubError(f"there is no {comment}; `lm-eval-ext gate ... --comment {comment}` writes it") from None
        text = misuse_comment(or_say, name=comment_name)
    except (OSError, UnicodeError) as error:
        raise GitHubError(f"cannot read {comment}: {error}") from None
    if not is_comment(text):
        raise GitHubError(
            f"{comment} does not begin with the line by which its comment is found again; "
            "post what `lm-eval-ext gate ... --comment` wrote"
        )
    text += footer()
    if len(text) > MAX_COMMENT:
        raise GitHubError(f"{comment} has {len(text):,} characters; GitHub takes at most {MAX_COMMENT:,}")
    github = GitHub.from_environment(repository)
    address, updated = github.post_comment(pull_request_number(pull_request), text)
    output().print(f"{'updated' if updated else 'posted'} {address}", soft_wrap=True)


def fetch(
    source: Annotated[
        str, typer.Argument(help="A folder, hub:ORG/DATASET[@REVISION][:FOLDER], or artifact:NAME[@BRANCH].")
    ],
    out: Annotated[Path, typer.Option(help="New folder for what is fetched.")],
    repository: _Repository = None,
) -> None:
    """Fetch a baseline and print its folder.

    An artifact is the newest of its name, made by a run on the branch (the
    default branch if none is named) of the repository itself, never of a
    fork; it needs GITHUB_TOKEN with `actions: read`. A private data set needs
    HF_TOKEN. Exit status: 0, or 3 where there is no such baseline.

    Examples:

      lm-eval-ext gate fetch hub:org/baselines@v3:gemma --out baseline

      lm-eval-ext gate fetch artifact:baseline@main --out baseline
    """
    from lm_eval_ext.gate.github import GitHub
    from lm_eval_ext.gate.sources import fetch_baseline

    github = GitHub.from_environment(repository) if source.startswith("artifact:") else None
    typer.echo(fetch_baseline(source, out, github))
