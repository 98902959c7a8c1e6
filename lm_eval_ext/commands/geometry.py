"""The command `lm-eval-ext geometry`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_ext.errors import UserError
from lm_eval_ext.languages import LANGUAGES

_VECTORS, _STATES, _MODEL, _INTERVALS = "Vectors", "Hidden states", "Model", "Intervals"


def geometry(
    out: Annotated[Path, typer.Option(help="Folder for the page and the tables.")] = Path("geometry"),
    parts: Annotated[
        str,
        typer.Option(help="Of vectors, questions, sentences; all but vectors if no vector file is given."),
    ] = "",
    vectors: Annotated[
        Path | None, typer.Option(help="Vector file; the part `vectors` needs no model.", rich_help_panel=_VECTORS)
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="The two kinds whose angle is measured.", rich_help_panel=_VECTORS)
    ] = "en,loc",
    questions: Annotated[
        str,
        typer.Option(
            help="Of mini, gmmlu, blend, joined by commas; 'mini' is in the package.", rich_help_panel=_STATES
        ),
    ] = "mini",
    sentences: Annotated[
        str, typer.Option(help="Parallel sentences: mini, flores, ntrex, gmmlu or FILE.tsv.", rich_help_panel=_STATES)
    ] = "mini",
    languages: Annotated[
        str, typer.Option(help="Language codes, joined by commas.", rich_help_panel=_STATES)
    ] = ",".join(LANGUAGES),
    pooling: Annotated[
        str,
        typer.Option("--pooling", "--position", help="mean (over the text's tokens) or last.", rich_help_panel=_STATES),
    ] = "mean",
    max_questions: Annotated[
        int, typer.Option(min=1, help="Maximum number of questions of each set.", rich_help_panel=_STATES)
    ] = 100,
    max_sentences: Annotated[
        int, typer.Option(min=1, help="Maximum number of sentences.", rich_help_panel=_STATES)
    ] = 100,
    layers: Annotated[str, typer.Option(help="'all', or layers as in a plan, joined by commas: 5,8-10,42%.")] = "all",
    model: Annotated[
        str, typer.Option(help="Name or folder; the embedded model by default.", rich_help_panel=_MODEL)
    ] = "",
    against: Annotated[
        str,
        typer.Option(
            help="A second model of the same depth, or an adapter of the first: measured too, with paired changes.",
            rich_help_panel=_MODEL,
        ),
    ] = "",
    peft: Annotated[str, typer.Option(help="PEFT adapter to load on top.", rich_help_panel=_MODEL)] = "",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32 or float16.", rich_help_panel=_MODEL)] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one by default.", rich_help_panel=_MODEL)
    ] = "",
    revision: Annotated[str, typer.Option(help="Revision of the model on the hub.", rich_help_panel=_MODEL)] = "main",
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run the model repository's own code.", rich_help_panel=_MODEL)
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward.", rich_help_panel=_MODEL)] = 16,
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="Bootstrap resamples.", rich_help_panel=_INTERVALS)
    ] = 1_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.", rich_help_panel=_INTERVALS)] = 0,
    level: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.", rich_help_panel=_INTERVALS)
    ] = 0.95,
    images: Annotated[
        str, typer.Option(help="Also every figure as svg, png or both (needs lm_eval_ext\\[figures]).")
    ] = "",
) -> None:
    """Measure how languages lie in a model, layer by layer.

    Vectors: norms, angle of EN and LOC, cosines between languages. Questions:
    principal components, silhouette by language, share of the variance between
    languages. Sentences: MEXA. One forward per text for all layers; a page that
    needs no network, and a CSV for each table.

    Examples:

      lm-eval-ext geometry --vectors v.safetensors

      lm-eval-ext geometry --vectors v.safetensors --parts vectors

      lm-eval-ext geometry --model google/gemma-3-12b-pt --against adapters/midalign \\
        --questions gmmlu,blend --sentences flores --images svg
    """
    from lm_eval_ext.console import output
    from lm_eval_ext.geometry import page
    from lm_eval_ext.geometry.run import PARTS
    from lm_eval_ext.geometry.run import geometry as measure
    from lm_eval_ext.viz.chart import FORMATS

    image_formats = _split("images", images, tuple(form for form in FORMATS if form != "csv"))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    result = measure(
        vectors=vectors,
        parts=_split("parts", parts, PARTS),
        kinds=kinds.split(","),
        questions=questions.split(","),
        sentences=sentences,
        languages=[code for code in languages.split(",") if code.strip()],
        pooling=pooling,
        max_questions=max_questions,
        max_sentences=max_sentences,
        layers=layers,
        model=model,
        against=against,
        peft=peft,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        batch_size=batch_size,
        resamples=resamples,
        seed=seed,
        level=level,
    )
    path = result.write(out, image_formats)

    console = output(120)
    for table in page.tables(result.frames):
        console.print(page.terminal_table(table))
    for sentence in result.findings:
        console.print(f"• {sentence}", soft_wrap=not console.is_terminal)
    console.print(f"\nwrote {path}, and its tables as CSV", soft_wrap=True)


def _split(option: str, text: str, valid: tuple[str, ...]) -> list[str]:
    values = [value.strip() for value in text.split(",") if value.strip()]
    if unknown := [value for value in values if value not in valid]:
        raise UserError(f"--{option} {text!r}: unknown {', '.join(unknown)}; valid: {', '.join(valid)}")
    return values
