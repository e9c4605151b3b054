"""Norms of kept weights, and correlations of scores."""

import dataclasses

import numpy as np

from keras_mpt.analysis.sources import paired, subnets_by_path
from keras_mpt.ops import to_numpy


@dataclasses.dataclass(frozen=True)
class Norms:
    """Norms of the frozen weights W of a kernel that its mask M keeps, and of the others.

    Attributes:
        kept: Frobenius norm `sqrt(sum(W**2 * M))`.
        dropped: Frobenius norm `sqrt(sum(W**2 * (1 - M)))`.
        kept_mean: Mean magnitude of the kept weights, `sum(|W| * M) / sum(M)`, Biprop's alpha; 0 if there are none.
        dropped_mean: Mean magnitude of the dropped weights; 0 if there are none.
    """

    kept: float
    dropped: float
    kept_mean: float
    dropped_mean: float


def weight_norms(model):
    """Return the norms of kept and of dropped weights.

    A ticket file may not have the dropped weights. Load one that was saved with `scores=True`.

    Source: Gorbett & Whitley 2023, section on norms, arXiv:2303.15953.

    Args:
        model: A built model with MPT layers.

    Returns:
        Dict from the kernels' paths to `Norms`, see `masks`.

    Raises:
        TypeError: `model` is no model.
        ValueError: It has no MPT layers, or one is not built.
    """
    norms = {}
    for path, subnet in subnets_by_path("model", model).items():
        magnitudes, mask = np.abs(to_numpy(subnet.frozen_kernel), dtype=np.float64), to_numpy(subnet.mask) != 0
        parts = magnitudes[mask], magnitudes[~mask]
        norms[path] = Norms(*map(np.linalg.norm, parts), *(part.mean() if part.size else 0.0 for part in parts))
    return norms


def score_correlation(first, second):
    """Return Pearson's correlation of the magnitudes |S| of two models' scores, by which masks are chosen.

    Args:
        first: Built model.
        second: One of the same architecture.

    Returns:
        Dict from the first one's paths of kernels to floats in [-1, 1]; NaN where all magnitudes are equal.

    Raises:
        TypeError: One is no model.
        ValueError: A model has no MPT layers or is not built, or they have kernels of other shapes.
    """
    pairs = paired(_magnitudes("first", first), _magnitudes("second", second))
    return {path: _correlation(*pair) for path, pair in pairs.items()}


def _magnitudes(argument, model):
    subnets = subnets_by_path(argument, model)
    return {path: np.abs(to_numpy(subnet.scores), dtype=np.float64) for path, subnet in subnets.items()}


def _correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(np.sum(x * y) / norm, -1, 1)) if norm else float("nan")  # rounding may exceed 1
