"""Checking a bundle: that it holds what its manifest says, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_ext.archives import open_archive
from lm_eval_ext.bundle.manifest import MANIFEST, Manifest
from lm_eval_ext.errors import ArchiveError
from lm_eval_ext.results.run import some

if TYPE_CHECKING:
    from pathlib import Path


def verify_bundle(path: Path, expected: str = "") -> Manifest:
    """Check names, sizes and hashes of everything in a bundle.

    Args:
        path: the zip file.
        expected: the manifest's hash as it was told by another way, or its beginning; it is not compared if empty. Without
            it, or a signature, a bundle is shown to be undamaged, not to be from whom it says.

    Raises:
        ArchiveError: anything that is not as the manifest says, is missing, or is too much.
    """
    with open_archive(path) as archive:
        if MANIFEST not in archive.sizes:
            raise ArchiveError(f"{path} is no bundle of lm-eval-ext: it has no {MANIFEST}")
        manifest = Manifest.parse(archive.read(MANIFEST), path)
        if expected and (len(expected) < 12 or not manifest.sha256.startswith(expected.lower())):
            raise ArchiveError(f"{path} is another bundle: its hash is {manifest.sha256}, not {expected}")
        held = archive.sizes.keys() - {MANIFEST}
        if missing := sorted(manifest.members.keys() - held):
            raise ArchiveError(f"{path} is not complete: {some(missing)} of its manifest is missing")
        if added := sorted(held - manifest.members.keys()):
            raise ArchiveError(f"{path} holds {some(added)}, of which its manifest says nothing")
        for name, member in manifest.members.items():
            if archive.sizes[name] != member.size or archive.digest(name) != member.sha256:
                raise ArchiveError(f"{path}: {name} was changed: it is not what the manifest's SHA-256 says")
    return manifest
