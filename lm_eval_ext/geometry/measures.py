"""What is measured of vectors and hidden states: pure functions on arrays.

Hidden states of parallel texts have the shape [languages, texts, hidden]: text t of every language says the same.
Statistics of them take weights [resamples, texts], how often each text was drawn; all ones gives the estimate itself. A
text is drawn together with all its languages, and is never compared with its own copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import special

from lm_eval_ext.stats.bootstrap import Interval, expanded_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CHUNK = 250  # resamples at a time: the silhouette of 7 x 300 texts then needs 30 MB


# Vectors --------------------------------------------------------------------------------------------------------------


def cosines(first: Floats, second: Floats) -> Floats:
    """[n] cosines of the rows of two arrays [n, hidden]; NaN where a row is zero."""
    with np.errstate(invalid="ignore"):
        cosine: Floats = (first * second).sum(-1) / (np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1))
    return np.clip(cosine, -1.0, 1.0)


def cosine_matrix(rows: Floats) -> Floats:
    """[n, n] cosines of each row of [n, hidden] with each; NaN where a row is zero."""
    return cosines(rows[:, None], rows[None, :])


def degrees(cosine: Floats) -> Floats:
    """Angles in degrees, between 0 and 180."""
    angles: Floats = np.degrees(np.arccos(cosine))
    return angles


def s_per(cosine: Floats) -> Floats:
    """Perpendicularity 100 (1 - |cos|): 100 for orthogonal directions, 0 for parallel and for opposite ones.

    The paper reports an S_PER per layer and does not define it: this is our default.
    """
    return 100 * (1 - np.abs(cosine))


def random_cosine(width: int) -> float:
    """Expected |cos| of two independent, uniformly random directions in `width` dimensions."""
    return float(np.exp(special.gammaln(width / 2) - special.gammaln((width + 1) / 2)) / np.sqrt(np.pi))


# Hidden states of parallel texts --------------------------------------------------------------------------------------


def gram(states: Floats) -> Floats:
    """[languages, texts, languages, texts] inner products of states [languages, texts, hidden] around their mean."""
    n_languages, n_texts, width = states.shape
    flat = states.reshape(-1, width).astype(np.float64)
    flat = flat - flat.mean(0)
    products: Floats = (flat @ flat.T).reshape(n_languages, n_texts, n_languages, n_texts)
    return products


def variance_share(products: Floats, weights: Floats) -> Floats:
    """[resamples] share of the variance of hidden states that lies between languages.

    Sum of squares of the languages' means around the common mean over the total sum of squares (eta squared, all dimensions
    together): 1 where the language alone determines the state, 0 where every language has the same mean or nothing varies.

    Args:
        products: of `gram`.
        weights: [resamples, texts].
    """
    n_languages = len(products)
    drawn = n_languages * weights.sum(1)
    squares = weights @ np.einsum("ltlt->t", products)
    common = _form(products.sum((0, 2)), weights) / drawn
    between = _form(np.einsum("ltlu->tu", products), weights) * n_languages / drawn - common
    total = squares - common
    scale = np.maximum(squares, np.finfo(np.float64).tiny)
    share: Floats = np.divide(between, total, out=np.zeros_like(total), where=total > 1e-12 * scale)
    return np.clip(share, 0, 1)


def silhouette(products: Floats, weights: Floats) -> Floats:
    """[resamples] mean silhouette (Rousseeuw 1987) of hidden states by language, Euclidean distances, all dimensions.

    1: each language far from all others; 0: languages overlap; below 0: states are nearer to another language's than to
    their own language's, as where a text has similar states in every language.

    Args:
        products: of `gram`.
        weights: [resamples, texts].
    """
    n_languages, n_texts = products.shape[:2]
    squares = np.einsum("ltlt->lt", products)
    distances = np.sqrt(np.maximum(squares[:, :, None, None] + squares[None, None] - 2 * products, 0))
    distances = distances.reshape(-1, n_texts)
    diagonal = np.arange(n_languages)
    scores = []
    for start in range(0, len(weights), _CHUNK):
        chunk = weights[start : start + _CHUNK]
        drawn = chunk.sum(1)
        sums = (distances @ chunk.T).reshape(n_languages, n_texts, n_languages, -1)  # of each state to each language
        others = drawn - chunk.T  # draws of other texts: the distance to a state's own copies is zero
        within = sums[diagonal, :, diagonal]
        inside = np.divide(within, others, out=np.zeros_like(within), where=others > 0)
        sums[diagonal, :, diagonal] = np.inf
        outside = sums.min(2) / drawn
        widest = np.maximum(inside, outside)
        score = np.divide(outside - inside, widest, out=np.zeros_like(widest), where=(widest > 0) & (others > 0))
        scores.append(np.einsum("ltr,rt->r", score, chunk) / (n_languages * drawn))
    return np.concatenate(scores)


def aligned(english: Floats, other: Floats) -> NDArray[np.bool_]:
    """[sentences] whether a sentence and its translation are nearer, by cosine, than either is to any other sentence.

    The share of such sentences is the MEXA score of a layer (Kargaran et al. 2024, arXiv 2410.05873); among n random
    states it is 1 / (2 n - 1).

    Args:
        english: [sentences, hidden] states of the English sentences.
        other: the same of their translations.
    """
    cosine = _unit(english) @ _unit(other).T
    translation = np.diag(cosine).copy()
    np.fill_diagonal(cosine, -np.inf)
    rivals: Floats = np.maximum(cosine.max(1), cosine.max(0))
    is_nearest: NDArray[np.bool_] = translation > rivals
    return is_nearest


class Components(NamedTuple):
    """Two first principal components: scores [texts, 2], and the share of the variance that each explains."""

    scores: Floats
    explained: Floats


def components(states: Floats, like: Floats | None = None) -> Components:
    """The two first principal components of states [texts, hidden].

    Args:
        states: the states.
        like: scores of the previous layer, to which the signs are matched, so that the points do not flip between layers.
    """
    centred = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    left, kept = left[:, :2], values[:2]
    total = float((values**2).sum())
    towards = left**3 if like is None else left * like
    signs = np.where(towards.sum(0) < 0, -1.0, 1.0)
    return Components(left * kept * signs, kept**2 / total if total > 0 else kept)


# Intervals ------------------------------------------------------------------------------------------------------------


def draw_weights(n_texts: int, resamples: int, seed: int | Sequence[int]) -> Floats:
    """[1 + resamples, texts] how often each text is drawn: once in the first row, the estimate; then with replacement."""
    drawn = np.random.default_rng(seed).multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=resamples)
    return np.vstack([np.ones(n_texts), drawn]).astype(np.float64)


def interval(values: Floats, n_texts: int, level: float, *, biased: bool) -> Interval:
    """The estimate and its percentile bootstrap interval from `values` [1 + resamples], the estimate first.

    Args:
        values: of a statistic under `draw_weights`.
        n_texts: number of texts, for the tails (`expanded_tail`).
        level: of the interval.
        biased: whether to subtract the bootstrap's bias. The mean of the drawn texts deviates from the common mean more than
            the mean of all texts does, which inflates separations between languages; means of 0 and 1 have no such bias.
    """
    estimate, draws = float(values[0]), values[1:]
    tail = expanded_tail((1 - level) / 2, n_texts)
    low, high = np.quantile(draws, [tail, 1 - tail]) - (draws.mean() - estimate if biased else 0.0)
    return Interval(estimate, float(low), float(high))


def _form(matrix: Floats, weights: Floats) -> Floats:
    """[resamples] w' M w."""
    form: Floats = ((weights @ matrix) * weights).sum(1)
    return form


def _unit(rows: Floats) -> Floats:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
