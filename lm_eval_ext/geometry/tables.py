"""The measures as tidy tables, one row per layer and whatever else tells rows apart."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lm_eval_ext.errors import VectorFileError
from lm_eval_ext.geometry import measures
from lm_eval_ext.languages import AVERAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lm_eval_ext.data.parallel import ParallelTexts
    from lm_eval_ext.steering.vectors import VectorSet

NORMS = ("layer", "kind", "language", "norm", "residual_norm", "relative_norm", "position", "n_pairs", "source")
ANGLES = ("layer", "language", "cosine", "degrees", "s_per")
CROSS = ("layer", "kind", "language", "other", "cosine")
PCA = ("layer", "panel", "model", "questions", "language", "question", "pc1", "pc2", "explained")
SEPARATION = ("model", "questions", "measure", "layer", "value", "low", "high", "n_questions", "n_languages")
#: Joins the names of two sets of questions in rows of `SEPARATION` that hold their difference.
MINUS = " minus "
#: How the names of comparisons of two models begin.
CHANGE = "change from "
MEXA = ("model", "language", "layer", "value", "low", "high", "n_sentences", "source")

SILHOUETTE, SHARE = "silhouette", "variance share"


def vector_tables(vectors: VectorSet, kinds: Sequence[str], layers: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Norms of two kinds of vectors, their cosines and angles to each other, and cosines between languages.

    Args:
        vectors: the vector set.
        kinds: two, such as `en` and `loc`.
        layers: 0-based decoder layers.

    Returns:
        `norms`, `angles` (with the row `average`: the mean of the languages' own values) and `cross` (empty where a kind has
        one language only), with the columns of this module.

    Raises:
        VectorFileError: a kind or layer that the file lacks, or no language that has both kinds.
    """
    for kind in kinds:
        vectors.check_kind(kind)
    languages = {kind: vectors.languages(kind) for kind in kinds}
    both = [code for code in languages[kinds[1]] if code in languages[kinds[0]]]
    if not both:
        raise VectorFileError(
            f"{vectors.where} has no language with both kinds: {kinds[0]} in {', '.join(languages[kinds[0]])}, "
            f"{kinds[1]} in {', '.join(languages[kinds[1]])}. Extract both in the same languages"
        )
    norms: list[tuple[Any, ...]] = []
    angles: list[tuple[Any, ...]] = []
    cross: list[tuple[Any, ...]] = []
    for layer in layers:
        rows = {}
        for kind in kinds:
            for code in languages[kind]:
                entry = vectors.vectors[kind, code]
                residual = entry.residual_norm(layer)
                rows[kind, code] = entry.displacement(layer).double().numpy()
                norm = float(np.linalg.norm(rows[kind, code]))
                relative = norm / residual if residual else float("nan")
                provenance = (entry.info.pooling, entry.info.n_pairs, entry.info.source)
                norms.append((layer, kind, code, norm, residual, relative, *provenance))
            matrix = measures.cosine_matrix(np.stack([rows[kind, code] for code in languages[kind]]))
            if len(languages[kind]) > 1:
                names = languages[kind]
                cross += [(layer, kind, a, b, matrix[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)]
        cosine = measures.cosines(*(np.stack([rows[kind, code] for code in both]) for kind in kinds))
        columns = np.stack([cosine, measures.degrees(cosine), measures.s_per(cosine)], axis=1)
        angles += [(layer, code, *values) for code, values in zip(both, columns.tolist(), strict=True)]
        angles.append((layer, AVERAGE, *columns.mean(0).tolist()))
    return {
        "norms": pd.DataFrame(norms, columns=list(NORMS)),
        "angles": pd.DataFrame(angles, columns=list(ANGLES)),
        "cross": pd.DataFrame(cross, columns=list(CROSS)),
    }


@dataclass
class StateTables:
    """Collects what is measured of hidden states, of one model or of two to be compared.

    Attributes:
        layers: 0-based decoder layers.
        resamples, seed, level: of the bootstrap. The same texts are drawn for every model, so that changes are paired.
    """

    layers: Sequence[int]
    resamples: int
    seed: int
    level: float
    pca: list[tuple[Any, ...]] = field(default_factory=list)
    separation: list[tuple[Any, ...]] = field(default_factory=list)
    mexa: list[tuple[Any, ...]] = field(default_factory=list)
    _draws: dict[tuple[Any, ...], NDArray[np.float64]] = field(default_factory=dict)

    def add_questions(self, model: str, parallel: ParallelTexts, states: NDArray[np.float32], *, named: bool) -> None:
        """PCA, silhouette and variance share of the states [layers, languages, questions, hidden] of a set of questions.

        Args:
            model: its name.
            parallel: the questions.
            states: of `hidden_states`.
            named: whether the titles of panels name the model.
        """
        weights = self._weights(parallel)
        panel = f"{model}: {parallel.name}" if named else parallel.name
        scores = None
        for layer, of_layer in zip(self.layers, states, strict=True):
            components = measures.components(of_layer.reshape(-1, of_layer.shape[-1]), scores)
            scores = components.scores
            points = iter(scores.tolist())
            explained = float(components.explained.sum())
            self.pca += [
                (layer, panel, model, parallel.name, code, question, *_short(next(points)), round(explained, 4))
                for code in parallel.texts
                for question in parallel.ids
            ]
            products = measures.gram(of_layer)
            for measure, values in (
                (SILHOUETTE, measures.silhouette(products, weights)),
                (SHARE, measures.variance_share(products, weights)),
            ):
                self._add_separation(
                    model, parallel.name, (len(parallel.ids), len(parallel.texts)), measure, layer, values
                )

    def add_sentences(self, model: str, parallel: ParallelTexts, states: NDArray[np.float32]) -> None:
        """MEXA of the states [layers, languages, sentences, hidden]: English against each other language, and on average."""
        weights = self._weights(parallel) / len(parallel.ids)
        english = list(parallel.texts).index("en")
        for layer, of_layer in zip(self.layers, states, strict=True):
            values = {
                code: weights @ measures.aligned(of_layer[english], of_language)
                for code, of_language in zip(parallel.texts, of_layer, strict=True)
                if code != "en"
            }
            if len(values) > 1:
                values[AVERAGE] = np.mean(list(values.values()), axis=0)
            for code, of_language in values.items():
                self._add_mexa(model, parallel, code, layer, of_language)

    def add_change(self, model: str, other: str, parallel: ParallelTexts) -> None:
        """The change from `model` to `other` of everything measured on these texts, paired by text."""
        for key, values in list(self._draws.items()):
            if key[0] == model and key[1] == parallel.name:
                of_other = (other, *key[1:])
                change = self._draws[of_other] - values
                name, (measure, layer) = change_name(model, other), key[2:]
                if measure in (SILHOUETTE, SHARE):
                    counts = (len(parallel.ids), len(parallel.texts))
                    self._add_separation(name, parallel.name, counts, measure, layer, change)
                else:  # MEXA, by language
                    self._add_mexa(name, parallel, measure, layer, change)

    def add_difference(self, model: str, first: ParallelTexts, second: ParallelTexts) -> None:
        """The separation of the languages in `first` minus that in `second`; each set is resampled independently."""
        counts = (min(len(first.ids), len(second.ids)), len(first.texts))
        name = f"{first.name}{MINUS}{second.name}"
        for measure in (SILHOUETTE, SHARE):
            for layer in self.layers:
                draws = [self._draws[model, texts.name, measure, layer] for texts in (first, second)]
                self._add_separation(model, name, counts, measure, layer, draws[0] - draws[1])

    def frames(self) -> dict[str, pd.DataFrame]:
        """`pca`, `separation` and `mexa`, with the columns of this module."""
        return {
            "pca": pd.DataFrame(self.pca, columns=list(PCA)),
            "separation": pd.DataFrame(self.separation, columns=list(SEPARATION)),
            "mexa": pd.DataFrame(self.mexa, columns=list(MEXA)),
        }

    def _weights(self, parallel: ParallelTexts) -> NDArray[np.float64]:
        seed = (self.seed, zlib.crc32(parallel.name.encode()))  # independent draws for each set of texts
        return measures.draw_weights(len(parallel.ids), self.resamples, seed)

    def _add_separation(
        self, model: str, name: str, counts: tuple[int, int], measure: str, layer: int, values: NDArray[np.float64]
    ) -> None:
        self._draws[model, name, measure, layer] = values
        interval = measures.interval(values, counts[0], self.level, biased=True)
        self.separation.append((model, name, measure, layer, *interval, *counts))

    def _add_mexa(
        self, model: str, parallel: ParallelTexts, code: str, layer: int, values: NDArray[np.float64]
    ) -> None:
        self._draws[model, parallel.name, code, layer] = values
        interval = measures.interval(values, len(parallel.ids), self.level, biased=False)
        self.mexa.append((model, code, layer, *interval, len(parallel.ids), parallel.name))


def change_name(model: str, other: str) -> str:
    """The name of a comparison in the column of models."""
    return f"{CHANGE}{model} to {other}"


def _short(values: list[float]) -> list[float]:
    """Rounded to four significant digits, which keeps the page small."""
    return [float(f"{value:.4g}") for value in values]
