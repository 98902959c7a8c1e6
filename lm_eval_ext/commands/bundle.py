"""`lm-eval-ext bundle`, `verify` and `rerun`: results that travel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.console import notes, output
from lm_eval_ext.errors import ArchiveError

_Bundle = Annotated[Path, typer.Argument(help="What `lm-eval-ext bundle` wrote.", metavar="RUN.ZIP")]
_Hash = Annotated[
    str,
    typer.Option("--hash", help="The bundle's hash, as its maker told it (12 characters or more).", show_default=False),
]


def bundle(
    results: Annotated[Path, typer.Argument(help="Folder of result files, as lm_eval --output_path wrote them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The zip file.")] = Path("run.zip"),
    run: Annotated[str | None, typer.Option(help="Which run, where the folder holds several.")] = None,
    samples: Annotated[
        bool, typer.Option(help="With documents, prompts and answers; else with their hashes and scores.")
    ] = True,
) -> None:
    """Bundle a run: results, samples, environment, command, hashes of all.

    Credentials among the model's arguments are left out, and folders of this
    machine. The same run makes the same bundle; its hash is printed. Exit
    status: 0, or 2 where there is no such run.

    Examples:

      lm-eval-ext bundle results/run -o run.zip

      lm-eval-ext bundle results --run unsteered -o run.zip --no-samples
    """
    from lm_eval_ext.bundle.write import write_bundle
    from lm_eval_ext.results.run import find_run, list_runs
    from lm_eval_ext.results.runs import load

    tree = load(results)
    if run is None and len(tree) > 1:
        raise ArchiveError(f"{results} holds {len(tree)} runs; name one with --run:\n{list_runs(tree.runs)}")
    chosen = tree.runs[0] if run is None else find_run(tree.runs, run)
    if chosen.is_committed:
        raise ArchiveError(
            f"{results} is a baseline of `lm-eval-ext gate renew`, not an evaluation; it is small already"
        )
    manifest = write_bundle(chosen, out, samples=samples)
    console = notes()
    for note in tree.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    output().print(f"wrote {out} ({out.stat().st_size / 1000:,.0f} kB), hash {manifest.sha256}", soft_wrap=True)


def verify(file: _Bundle, expected: _Hash = "") -> None:
    """Check that a bundle holds what its manifest says, and nothing else.

    Shows that it is undamaged, and with --hash or a signature of the file that
    it is the one that its maker wrote. Exit status: 0, or 2 where it is not.

    Example:

      lm-eval-ext verify run.zip --hash 5bd1fa02c9e1
    """
    from lm_eval_ext.bundle.verify import verify_bundle

    manifest = verify_bundle(file, expected)
    told = {
        "run": manifest.name,
        "model": manifest.model,
        "plan": manifest.plan or "unsteered",
        "evaluated": manifest.date,
        "tasks": ", ".join(f"{task} {record.version}" for task, record in manifest.tasks.items()),
        "samples": manifest.samples,
        "software": ", ".join(f"{name} {version}" for name, version in manifest.software.items()),
        "left out": ", ".join(manifest.left_out) or "nothing",
        "hash": manifest.sha256,
    }
    console = output()
    for name, value in told.items():
        console.print(f"{name + ':':<11}{value}", soft_wrap=True)
    console.print(f"undamaged: {len(manifest.members)} files are what the manifest says", soft_wrap=True)


def rerun(
    file: _Bundle,
    expected: _Hash = "",
    run: Annotated[bool, typer.Option("--run", help="Run the command, do not only print it.")] = False,
    model_args: Annotated[
        str,
        typer.Option("--model_args", help="Arguments of the model that go before the bundle's.", show_default=False),
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new results.")] = Path("results/rerun"),
) -> None:
    """Print the command that makes a bundle's run again, or run it.

    The bundle is checked first. Its command is another's text: only an
    evaluation is run, and code of the model's repository only if you say so
    (--model_args trust_remote_code=True). Files of the run (vectors, a local
    model) and credentials are yours to give. Exit status: 0, 2 where the
    bundle or a file is not what the manifest says, with --run the evaluation's.

    Examples:

      lm-eval-ext rerun run.zip

      lm-eval-ext rerun run.zip --run --model_args vectors=v.safetensors
    """
    import shlex
    import subprocess
    import sys

    from lm_eval_ext.bundle.rerun import check_files, rerun_command
    from lm_eval_ext.bundle.verify import verify_bundle
    from lm_eval_ext.redaction import parse_args, redact_args

    manifest = verify_bundle(file, expected)
    given = {name: str(value) for name, value in parse_args(model_args).items()}
    shown = rerun_command(manifest, {name: str(value) for name, value in redact_args(model_args).items()}, out)
    output().print(shlex.join(shown.words), soft_wrap=True)
    command = rerun_command(manifest, given, out)
    console = notes()
    for note in command.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    if not run:
        return
    check_files(manifest, command)
    arguments = [sys.executable, "-m", "lm_eval_ext", "eval", *command.words[1:]]
    raise typer.Exit(subprocess.run(arguments, check=False).returncode)  # noqa: S603
