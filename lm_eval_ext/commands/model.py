"""The command `lm-eval-ext model`."""

from __future__ import annotations

import typer


def model() -> None:
    """Prepare the embedded model (Gemma 3 270M) if needed, and print its folder."""
    from lm_eval_ext.models import embedded

    typer.echo(embedded.path())
    typer.echo(f"{embedded.NAME}, SHA-256 of its GGUF file {embedded.GGUF_SHA256}. {embedded.LICENCE}", err=True)
