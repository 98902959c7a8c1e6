"""`lm-eval-ext geometry`: how languages lie in a model, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_ext.errors import ModelError, UserError
from lm_eval_ext.languages import LANGUAGES, normalise

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm_eval_ext.geometry.tables import StateTables
    from lm_eval_ext.geometry.texts import Parallel

PARTS = ("vectors", "questions", "sentences")

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
        int, typer.Option(min=1, help="At most so many questions of each set.", rich_help_panel=_STATES)
    ] = 100,
    max_sentences: Annotated[
        int, typer.Option(min=1, help="At most so many sentences.", rich_help_panel=_STATES)
    ] = 100,
    layers: Annotated[str, typer.Option(help="'all', or layers as in a plan, joined by commas: 5,8-10,42%.")] = "all",
    model: Annotated[
        str, typer.Option(help="Name or folder; the embedded model where left out.", rich_help_panel=_MODEL)
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
        str, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one where left out.", rich_help_panel=_MODEL)
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
    from rich.console import Console

    from lm_eval_ext.geometry import figures, page, tables
    from lm_eval_ext.io import write_file
    from lm_eval_ext.steering.extraction import POOLINGS, parse_layers
    from lm_eval_ext.steering.vectors import VectorSet
    from lm_eval_ext.viz.chart import FORMATS, write_charts

    wanted = _listed("parts", parts, PARTS) or [part for part in PARTS if part != "vectors" or vectors]
    forms = _listed("images", images, tuple(form for form in FORMATS if form != "csv"))
    if pooling not in POOLINGS:
        raise UserError(f"--pooling {pooling!r} is unknown, valid: {', '.join(POOLINGS)}")
    pair = kinds.split(",")
    if len(pair) != 2 or len(set(pair)) != 2:
        raise UserError(f"--kinds {kinds!r}: two different kinds are compared, such as en,loc")
    codes = list(dict.fromkeys(normalise(code) for code in languages.split(",") if code.strip()))
    if ("vectors" in wanted) != bool(vectors):
        raise UserError(
            "--parts vectors needs a vector file: add --vectors FILE (lm-eval-ext extract makes one)"
            if not vectors
            else f"--vectors {vectors} is given, but --parts {parts} leaves vectors out: add vectors"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")

    frames: dict[str, Any] = {}
    description = []
    hidden_size = 0
    stored = VectorSet.load(vectors) if vectors else None
    if stored:
        hidden_size = stored.model.hidden_size
        frames |= tables.vector_tables(stored, pair, parse_layers(layers, stored.model.n_layers))
        description.append(f"Vectors of {stored.model.name}, SHA-256 of the file {stored.sha256[:16]}.")
    if set(wanted) & {"questions", "sentences"}:
        texts = _texts(wanted, questions, sentences, codes, max_questions, max_sentences)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        models = _models(model, against, peft, options, stored)
        study = _measure(
            models, texts, layers, pooling, batch_size, options | {"dtype": dtype, "device": device},
            resamples=resamples, seed=seed, level=level,
        )  # fmt: skip
        frames |= study.frames()
        description += [
            f"Hidden states of {' and '.join(name for name, *_ in models)}, pooling {pooling}, dtype {dtype}.",
            *(f"{found.name}: {len(found.ids)} texts in {', '.join(found.texts)}." for found in texts.values()),
            f"{level:.0%} intervals: bootstrap over texts, {resamples:,} resamples, seed {seed}.",
        ]
    charts = figures.charts(frames, hidden_size=hidden_size, pooling=pooling, level=level)
    for name, frame in frames.items():
        if len(frame):
            write_file(out / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
    write_file(out / "geometry.html", page.page(charts, frames, description))
    write_charts(charts, out, forms)

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a log should not fold the tables
    for table in page.tables(frames):
        console.print(page.terminal_table(table))
    for sentence in page.findings(frames):
        console.print(f"• {sentence}", soft_wrap=not console.is_terminal)
    console.print(f"\nwrote {out / 'geometry.html'}, and its tables as CSV", soft_wrap=True)


def _listed(option: str, given: str, valid: tuple[str, ...]) -> list[str]:
    found = [part.strip() for part in given.split(",") if part.strip()]
    if unknown := [part for part in found if part not in valid]:
        raise UserError(f"--{option} {given!r}: unknown {', '.join(unknown)}; valid: {', '.join(valid)}")
    return found


def _texts(
    parts: list[str], questions: str, sentences: str, codes: list[str], max_questions: int, max_sentences: int
) -> dict[str, Parallel]:
    """The texts of each set by its name; everything is read before a model is loaded."""
    from lm_eval_ext.geometry import texts

    found = []
    if "questions" in parts:
        for source in dict.fromkeys(questions.split(",")):
            found += texts.questions(source.strip(), codes, max_questions)
    if "sentences" in parts:
        found.append(texts.sentences(sentences, codes, max_sentences))
    return {parallel.name: parallel for parallel in found}


def _models(
    model: str, against: str, peft: str, options: dict[str, Any], stored: Any
) -> list[tuple[str, str, str, Any]]:
    """Label, name, adapter and config of each model; what does not fit is found before any weights are loaded."""
    from lm_eval_ext.models import embedded
    from lm_eval_ext.models.loading import load_config
    from lm_eval_ext.results.run import short_model
    from lm_eval_ext.steering.decoder import layer_count

    path = model or str(embedded.path())
    config = load_config(path, **options)
    base = short_model(model) if model else embedded.NAME
    found = [(f"{base} + {short_model(peft)}" if peft else base, path, peft, config)]
    if stored:
        stored.check_model(base, config)
    if against and (Path(against) / "adapter_config.json").is_file():
        found.append((f"{base} + {Path(against).name}", path, against, config))
    elif against:
        other = load_config(against, **options)
        if layer_count(other) != layer_count(config):
            raise ModelError(
                f"--against {against} has {layer_count(other)} layers, {base} {layer_count(config)}: only models of the "
                "same depth are compared layer by layer"
            )
        found.append((short_model(against), against, "", other))
    if len({name for name, *_ in found}) < len(found):
        found = [(f"{name} ({number})", *rest) for number, (name, *rest) in enumerate(found, start=1)]
    return found


def _measure(
    models: list[tuple[str, str, str, Any]],
    texts: dict[str, Parallel],
    layers: str,
    pooling: str,
    batch_size: int,
    options: dict[str, Any],
    **bootstrap: Any,
) -> StateTables:
    from tqdm import tqdm

    from lm_eval_ext.geometry.states import distinct
    from lm_eval_ext.geometry.tables import StateTables
    from lm_eval_ext.models.loading import load_model
    from lm_eval_ext.steering.decoder import layer_count
    from lm_eval_ext.steering.extraction import parse_layers

    study = StateTables(parse_layers(layers, layer_count(models[0][-1])), **bootstrap)
    total = len(models) * sum(len(distinct(parallel)) for parallel in texts.values())
    with tqdm(total=total, desc="Measuring", unit="text") as bar:
        for name, path, adapter, _ in models:
            loaded, tokenizer = load_model(path, peft=adapter, **options)
            _add(study, name, loaded, tokenizer, texts, pooling, batch_size, bar.update, named=len(models) > 1)
    if len(models) > 1:
        for parallel in texts.values():
            study.add_change(models[0][0], models[1][0], parallel)
    return study


def _add(
    study: StateTables,
    name: str,
    loaded: Any,
    tokenizer: Any,
    texts: dict[str, Parallel],
    pooling: str,
    batch_size: int,
    progress: Callable[[int], object],
    *,
    named: bool,
) -> None:
    """Measure one model on all texts, one set of hidden states at a time."""
    from lm_eval_ext.geometry.states import hidden_states

    for parallel in texts.values():
        states = hidden_states(
            loaded,
            tokenizer,
            parallel,
            study.layers,
            "last" if pooling == "last" else "mean",
            batch_size=batch_size,
            progress=progress,
        )
        if parallel.name.startswith("sentences"):
            study.add_sentences(name, parallel, states)
        else:
            study.add_questions(name, parallel, states, named=named)
    universal, cultural = ([t for t in texts.values() if t.name.startswith(axis)] for axis in ("universal", "cultural"))
    for one, other in zip(cultural, universal, strict=False):
        study.add_difference(name, one, other)
