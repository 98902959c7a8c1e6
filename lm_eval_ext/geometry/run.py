"""The whole measurement: texts and models in, tables, figures and a page out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_ext.console import Progress
from lm_eval_ext.data.parallel import sentences as load_sentences
from lm_eval_ext.errors import ModelError, UserError
from lm_eval_ext.geometry import figures, page, tables, texts
from lm_eval_ext.geometry.states import distinct, hidden_states
from lm_eval_ext.geometry.tables import StateTables
from lm_eval_ext.io import write_file
from lm_eval_ext.languages import LANGUAGES, normalise
from lm_eval_ext.models import embedded
from lm_eval_ext.models.loading import load_config, load_model
from lm_eval_ext.models.precision import name_of
from lm_eval_ext.results.run import short_model
from lm_eval_ext.spreadsheets import frame_to_csv
from lm_eval_ext.steering.decoder import layer_count
from lm_eval_ext.steering.extraction import parse_layers
from lm_eval_ext.steering.pooling import parse_pooling
from lm_eval_ext.steering.vectors import VectorSet
from lm_eval_ext.viz.chart import write_charts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from lm_eval_ext.data.parallel import ParallelTexts
    from lm_eval_ext.steering.pooling import Pooling
    from lm_eval_ext.viz.chart import Chart

#: What can be measured: steering vectors, hidden states of questions, hidden states of parallel sentences.
PARTS = ("vectors", "questions", "sentences")


@dataclass(frozen=True)
class GeometryResult:
    """What was measured, as tables, figures, sentences and a page.

    Attributes:
        frames: the tables by name, with the columns of `geometry.tables`: `norms`, `angles` and `cross` of the vectors,
            `pca` and `separation` of the questions, `mexa` of the sentences. What was not measured is missing or empty.
        description: what was measured, a line each.
        hidden_size: width of the residual stream of the vectors' model; 0 without vectors.
        pooling: how hidden states were pooled over a text's tokens.
        level: of the intervals.
    """

    frames: dict[str, pd.DataFrame] = field(repr=False)
    description: Sequence[str]
    hidden_size: int
    pooling: Pooling
    level: float

    @cached_property
    def charts(self) -> list[Chart]:
        """Every figure that the tables allow."""
        return figures.charts(self.frames, hidden_size=self.hidden_size, pooling=self.pooling, level=self.level)

    @property
    def findings(self) -> list[str]:
        """The extremes along the layers, and which differences the intervals support, in sentences."""
        return page.findings(self.frames)

    def write(self, folder: Path | str, image_formats: Sequence[str] = ()) -> Path:
        """Write `geometry.html`, which needs no network, and a CSV file for each table.

        Args:
            folder: made if needed.
            image_formats: `svg`, `png` or both, to write every figure as an image too.

        Returns:
            the path of the page.

        Raises:
            OutputError: the folder cannot be written.
            ResultsError: images are asked for, and kaleido or the browser that it drives is missing.
        """
        folder = Path(folder)
        for name, frame in self.frames.items():
            if len(frame):
                write_file(folder / f"{name}.csv", frame_to_csv(frame, "%.6g"))
        write_file(folder / "geometry.html", page.page(self.charts, self.frames, self.description))
        write_charts(self.charts, folder, image_formats)
        return folder / "geometry.html"


def geometry(
    *,
    vectors: VectorSet | Path | str | None = None,
    parts: Sequence[str] = (),
    kinds: Sequence[str] = ("en", "loc"),
    questions: Sequence[str] = ("mini",),
    sentences: str = "mini",
    languages: Sequence[str] = tuple(LANGUAGES),
    pooling: str = "mean",
    max_questions: int = 100,
    max_sentences: int = 100,
    layers: str = "all",
    model: str = "",
    against: str = "",
    peft: str = "",
    dtype: str = "auto",
    device: str = "",
    revision: str = "main",
    trust_remote_code: bool = False,
    batch_size: int = 16,
    resamples: int = 1_000,
    seed: int = 0,
    level: float = 0.95,
) -> GeometryResult:
    """Measure how languages lie in a model, layer by layer.

    Vectors: norms, the angle between two kinds, cosines between languages. Questions: principal components, silhouette by
    language, share of the variance between languages. Sentences: MEXA (Kargaran et al. 2024, arXiv 2410.05873). One forward
    per text for all layers. Everything that can be checked without the model's weights is checked before they are loaded.

    Args:
        vectors: a vector set, or a vector file; the part `vectors` needs no model.
        parts: some of `PARTS`; if empty all, but `vectors` only where vectors are given.
        kinds: the two kinds of vectors whose angle is measured.
        questions: sources of questions, of `mini`, `gmmlu`, `blend`.
        sentences: source of parallel sentences: `mini`, `flores`, `ntrex`, `gmmlu` or the path of a TSV file.
        languages: codes, such as `en`, `ko`; English is needed for the sentences only and is added to them.
        pooling: of hidden states over a text's tokens: `mean` or `last`.
        max_questions: at most so many questions of each set.
        max_sentences: at most so many sentences.
        layers: `all`, or decoder layers as in a plan, joined by commas: `5,8-10,42%`.
        model: name or folder; the embedded model if empty.
        against: a second model of the same depth, or an adapter of the first: measured too, with paired changes.
        peft: PEFT adapter to load on top of `model`.
        dtype: `auto`, `bfloat16`, `float32` or `float16`.
        device: `cpu`, `cuda`, ...; a GPU if there is one if empty.
        revision: of the model on the hub.
        trust_remote_code: run the model repository's own code.
        batch_size: texts per forward.
        resamples: of the bootstrap over texts.
        seed: of the resamples.
        level: of the intervals, such as 0.95.

    Returns:
        the tables, with figures and a page to write.

    Raises:
        UserError: parts, kinds, languages, texts, layers, vectors or models that are unknown or do not fit each other.

    Example:
        >>> result = geometry(vectors="v.safetensors", parts=["vectors"])
        >>> sorted(result.frames)
        ['angles', 'cross', 'norms']
        >>> result.write("geometry")
        PosixPath('geometry/geometry.html')
    """
    selected = list(parts) or [part for part in PARTS if part != "vectors" or vectors is not None]
    if unknown := [part for part in selected if part not in PARTS]:
        raise UserError(f"unknown part {', '.join(unknown)}; valid: {', '.join(PARTS)}")
    parsed_pooling = parse_pooling(pooling)
    if len(kinds) != 2 or len(set(kinds)) != 2:
        raise UserError(f"--kinds {','.join(kinds)!r}: two different kinds are compared, such as en,loc")
    codes = list(dict.fromkeys(normalise(code) for code in languages))
    if ("vectors" in selected) != (vectors is not None):
        raise UserError(
            "--parts vectors needs a vector file: add --vectors FILE (lm-eval-ext extract makes one)"
            if vectors is None
            else f"--vectors {vectors} is given, but --parts {','.join(parts)} leaves vectors out: add vectors"
        )

    frames: dict[str, pd.DataFrame] = {}
    description: list[str] = []
    vector_set = vectors if isinstance(vectors, VectorSet | None) else VectorSet.load(vectors)
    if vector_set is not None:
        frames |= tables.vector_tables(vector_set, kinds, parse_layers(layers, vector_set.model.n_layers))
        description.append(f"Vectors of {vector_set.model.name}, SHA-256 of the file {vector_set.digest[:16]}.")
    if {"questions", "sentences"} & set(selected):
        text_sets = _load_texts(selected, questions, sentences, codes, max_questions, max_sentences)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        models = _resolve_models(model, against, peft, options, vector_set)
        state_tables = StateTables(
            parse_layers(layers, layer_count(models[0].config)), resamples=resamples, seed=seed, level=level
        )
        loading = {**options, "dtype": dtype, "device": device}
        dtypes = _measure_states(state_tables, models, text_sets, parsed_pooling, batch_size, loading)
        frames |= state_tables.frames()
        description += [
            f"Hidden states of {' and '.join(each.label for each in models)}, pooling {pooling}, dtype "
            f"{' and '.join(dict.fromkeys(dtypes))}.",
            *(f"{parallel.name}: {len(parallel.ids)} texts in {', '.join(parallel.texts)}." for parallel in text_sets),
            f"{level:.0%} intervals: bootstrap over texts, {resamples:,} resamples, seed {seed}.",
        ]
    hidden_size = 0 if vector_set is None else vector_set.model.hidden_size
    return GeometryResult(frames, description, hidden_size, parsed_pooling, level)


class _Model(NamedTuple):
    label: str
    name: str
    adapter: str
    config: Any


def _load_texts(
    parts: Sequence[str],
    questions: Sequence[str],
    sentences: str,
    codes: list[str],
    max_questions: int,
    max_sentences: int,
) -> list[ParallelTexts]:
    """The sets of texts; everything is read before a model is loaded."""
    text_sets: list[ParallelTexts] = []
    if "questions" in parts:
        for source in dict.fromkeys(questions):
            text_sets += texts.questions(source.strip(), codes, max_questions)
    if "sentences" in parts:
        text_sets.append(load_sentences(sentences, codes, max_sentences))
    return text_sets


def _resolve_models(
    model: str, against: str, peft: str, options: dict[str, Any], vector_set: VectorSet | None
) -> list[_Model]:
    """The models to measure, one or two; what does not fit is noticed before any weights are loaded."""
    path = model or str(embedded.path())
    config = load_config(path, **options)
    base = short_model(model) if model else embedded.NAME
    models = [_Model(f"{base} + {short_model(peft)}" if peft else base, path, peft, config)]
    if vector_set is not None:
        vector_set.check_model(base, config)
    if against and (Path(against) / "adapter_config.json").is_file():
        models.append(_Model(f"{base} + {Path(against).name}", path, against, config))
    elif against:
        other = load_config(against, **options)
        if layer_count(other) != layer_count(config):
            raise ModelError(
                f"--against {against} has {layer_count(other)} layers, {base} {layer_count(config)}: only models of the "
                "same depth are compared layer by layer"
            )
        models.append(_Model(short_model(against), against, "", other))
    if len({each.label for each in models}) < len(models):
        models = [each._replace(label=f"{each.label} ({number})") for number, each in enumerate(models, start=1)]
    return models


def _measure_states(
    state_tables: StateTables,
    models: Sequence[_Model],
    text_sets: Sequence[ParallelTexts],
    pooling: Pooling,
    batch_size: int,
    options: dict[str, Any],
) -> list[str]:
    """Measure every model on all texts, one set of hidden states at a time; then the changes between two models.

    Returns:
        the dtype that each model ran in.
    """
    dtypes: list[str] = []
    total = len(models) * sum(len(distinct(parallel)) for parallel in text_sets)
    with Progress(total, "Measuring", "text") as bar:
        for each in models:
            model, tokenizer = load_model(each.name, peft=each.adapter, **options)
            dtypes.append(name_of(model.dtype))
            for parallel in text_sets:
                states = hidden_states(
                    *(model, tokenizer, parallel, state_tables.layers, pooling),
                    batch_size=batch_size,
                    progress=bar.update,
                )
                if parallel.axis is None:
                    state_tables.add_sentences(each.label, parallel, states)
                else:
                    state_tables.add_questions(each.label, parallel, states, named=len(models) > 1)
            universal, cultural = (
                [parallel for parallel in text_sets if parallel.axis == axis] for axis in ("universal", "cultural")
            )
            for of_culture, of_all in zip(cultural, universal, strict=False):
                state_tables.add_difference(each.label, of_culture, of_all)
    if len(models) > 1:
        for parallel in text_sets:
            state_tables.add_change(models[0].label, models[1].label, parallel)
    return dtypes
