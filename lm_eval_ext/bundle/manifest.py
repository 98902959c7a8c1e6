"""What a bundle says of itself: `manifest.json`.

Its `sha256` is that of the manifest without this key, as canonical JSON: keys sorted, no spaces, UTF-8; all numbers are
integers. `jq -cSj 'del(.sha256)' manifest.json | sha256sum` prints it too.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_ext import json_text
from lm_eval_ext.errors import ArchiveError
from lm_eval_ext.fingerprints import hash_bytes

MANIFEST = "manifest.json"
FORMAT = "lm_eval_ext bundle"
VERSION = 1

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Member(_Record):
    """A file of the bundle: its size in bytes and its SHA-256."""

    size: Annotated[int, Field(ge=0)]
    sha256: _Digest


class Task(_Record):
    """What was asked of one task.

    Attributes:
        version: of the task.
        documents: how many, "" where the results do not say.
        source: the data set, with its configuration and revision, or the task's file.
        harness_sha256: the harness's hash over documents, prompts and targets; "" where samples were not logged.
        documents_sha256, prompts_sha256: of the sorted hashes of all documents and prompts, one a line; "" without samples.
    """

    version: str
    documents: int | None
    source: str
    harness_sha256: str
    documents_sha256: str
    prompts_sha256: str


class Manifest(_Record):
    """A run, and what is needed to make it again.

    Attributes:
        format, version: of the bundle.
        created_by: the release that wrote it.
        name, model, model_type, plan, date: of the run; the plan is "" where nothing is steered.
        vectors_sha256: of the vector file, "" without one.
        software: versions that the results name: of the harness, transformers, and the commit.
        command: of the evaluation, word by word; credentials are left out and local paths are short.
        left_out: names of the arguments whose values are credentials.
        samples: whether documents and answers are there, or only their hashes and scores, or nothing.
        tasks: by name.
        members: all other files, by name.
        sha256: of all this; see the module.
    """

    format: Literal["lm_eval_ext bundle"] = "lm_eval_ext bundle"
    version: Literal[1] = 1
    created_by: str
    name: str
    model: str
    model_type: str
    plan: str
    date: str
    vectors_sha256: str
    software: dict[str, str]
    command: list[str]
    left_out: list[str]
    samples: Literal["included", "hashes", "none"]
    tasks: dict[str, Task]
    members: dict[str, Member]
    sha256: str = ""

    def canonical(self) -> bytes:
        """What the hash is of."""
        content = self.model_dump(exclude={"sha256"})
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def signed(self) -> Manifest:
        """The same with its hash."""
        return self.model_copy(update={"sha256": hash_bytes(self.canonical())})

    def to_json(self) -> bytes:
        """The file's content."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes, path: object) -> Manifest:
        """Read a manifest and check its hash.

        Raises:
            ArchiveError: it is damaged, of another format, or its hash is not its own.
        """
        try:
            read: Any = json_text.parse(content)
        except ValueError as error:
            raise ArchiveError(f"{path}: {MANIFEST}{json_text.why(error)}") from None
        if not isinstance(read, dict) or read.get("format") != FORMAT:
            raise ArchiveError(f"{path} is no bundle of lm-eval-ext: {MANIFEST} does not say the format {FORMAT!r}")
        if read.get("version") != VERSION:
            raise ArchiveError(
                f"{path} is a bundle of version {read.get('version')!r}; this release reads version {VERSION}, update it"
            )
        try:
            manifest = cls.model_validate(read)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArchiveError(f"{path}: {MANIFEST} is damaged: {where}: {first['msg']}") from None
        if manifest.sha256 != (own := hash_bytes(manifest.canonical())):
            raise ArchiveError(
                f"{path}: {MANIFEST} was changed: it says the hash {manifest.sha256[:16]}, its content has {own[:16]}"
            )
        return manifest
