"""The commands of `lm-eval-ext train`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.errors import TrainingError
from lm_eval_ext.io import write_file
from lm_eval_ext.training.config import DTYPES
from lm_eval_ext.training.methods import METHODS

if TYPE_CHECKING:
    from lm_eval_ext.training.config import TrainingConfig

app = typer.Typer(
    help="Train aligned models: MIST, MIDALIGN, CLO, and the English control.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _add(kind: type[TrainingConfig]) -> None:
    """The command of a method: an option for each field of its configuration."""

    def run(**options: Any) -> None:
        config = kind(**options)
        _check_installed()
        from lm_eval_ext.training.run import train

        train(config)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in kind.options().items()
    ]
    run.__doc__ = kind.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(kind.method)(run)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Folder to write the merged model to.")],
    model: Annotated[str, typer.Option(help="The base, where it is no longer where the run found it.")] = "",
    dtype: Annotated[str, typer.Option(help="auto (that of the base), bfloat16 or float32.")] = "auto",
) -> None:
    """Make one model of an adapter and its base.

    Example:

      lm-eval-ext train merge runs/mist --out runs/mist-merged
    """
    _check_installed()
    if dtype not in DTYPES:
        raise TrainingError(f"--dtype {dtype!r} is unknown, valid: {', '.join(DTYPES)}")
    from lm_eval_ext.training import adapter

    adapter.merge(run, out, model, dtype)
    typer.echo(out)


@app.command("eval")
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, of one base.")],
    out: Annotated[Path, typer.Option(help="CSV to write; a JSON record is written beside it.")],
    baseline: Annotated[
        list[str] | None, typer.Option(help="base (the default) or the name of a folder; repeatable.")
    ] = None,
    data: Annotated[str, typer.Option(help="Held-out instructions: mini or a JSONL file.")] = "mini",
    tuples: Annotated[str, typer.Option(help="Held-out tuples: mini or a JSONL file.")] = "mini",
    pairs: Annotated[str, typer.Option(help="Held-out parallel sentences: flores, ntrex, ... or FILE.tsv.")] = "flores",
    max_pairs: Annotated[int, typer.Option(min=0, help="Maximum number of each language; 0: all.")] = 0,
    layer: Annotated[str, typer.Option(help="Layer of the retrieval; default: that of MIDALIGN, else 50%.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward.")] = 16,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one by default.")] = "",
) -> None:
    """Compare trained models on held-out rows: retrieval, response loss, preference; with paired intervals.

    Retrieval: from English to each language, cosine of mean-pooled hidden states, accuracy at 1. Rows that any of the runs
    was trained on are left out, and counted. Intervals: bootstrap over questions and sentences, 95%.

    Examples:

      lm-eval-ext train eval runs/mist runs/clo --out measures.csv

      lm-eval-ext train eval runs/mist runs/midalign --baseline base --baseline mist --out measures.csv
    """
    _check_installed()
    if out.is_dir():
        raise TrainingError(f"--out {out} is a folder; give the path of a file, such as {out / 'measures.csv'}")
    from lm_eval_ext.training import checkpoints, comparing

    lines, record = comparing.compare(
        runs,
        baseline or [comparing.BASE],
        data=data,
        tuples=tuples,
        pairs=pairs,
        max_pairs=max_pairs,
        layer=layer,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
    )
    write_file(out, comparing.table(lines))
    checkpoints.write(out.with_suffix(".json"), record)
    for line in lines:
        values = f"{line.value:9.3f} {line.before:9.3f} {line.difference:+8.3f} [{line.low:+.3f}, {line.high:+.3f}]"
        typer.echo(f"{line.run:12} {line.baseline:8} {line.measure:14} {line.language:8} n={line.n:<5} {values}")
    typer.echo(f"left out, as trained on: {record['left_out_as_trained_on']}")


def _check_installed() -> None:
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"{error.name} is missing: pip install 'lm_eval_ext[train]'") from None


for _method in METHODS.values():
    _add(_method.config_class)
