"""Sparsities of layers as functions of their kernels, for `to_mpt` and `to_jackpot`."""

import math
import numbers
from collections.abc import Callable

import numpy as np

from keras_mpt.arguments import LARGEST_COUNT, check_sparsity, is_number, received
from keras_mpt.masks.rule import largest
from keras_mpt.ops import kept_count, sparsity_of


def magnitude_sparsity(sparsity: float, least: float = 0) -> Callable:
    """Return a function that computes the sparsity of each layer from one threshold for all |W|.

    The `n - floor(sparsity * n)` largest of all `n` weights are kept; ties keep earlier layers, then the lower flat
    index. If `least` applies to some layers, the others keep fewer.

    Args:
        sparsity: Fraction of all weights removed, in `[0, 1)`.
        least: Lower bound for each layer. An integer >= 0 is a number of weights; a layer with less than twice as many
            keeps half of its weights. A float in `[0, 1)` is a fraction of the weights that the layer would keep if all
            layers had the same sparsity.

    Returns:
        A function from a dict of kernels by the layers' paths to one of sparsities, the `sparsity` of `to_mpt` and
        `to_jackpot`. It raises ValueError if a layer would keep no weight.

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        >>> jackpot = keras_mpt.models.to_jackpot(trained, keras_mpt.models.magnitude_sparsity(0.9, least=0.1))
    """
    _check(sparsity, least)

    def sparsities(kernels):
        floors = _floors(kernels, sparsity, least)
        ends = np.cumsum([kernel.size for kernel in kernels.values()])[:-1]
        magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
        for path, part in zip(kernels, np.split(magnitudes, ends), strict=True):
            part[largest(part, floors[path])] = np.inf
        mask = largest(magnitudes, max(kept_count(magnitudes.size, sparsity), sum(floors.values())))
        parts = zip(kernels, np.split(mask, ends), strict=True)
        return _sparsities(kernels, {path: np.count_nonzero(part) for path, part in parts}, sparsity)

    return sparsities


def uniform_sparsity(sparsity: float, least: float = 0) -> Callable:
    """Return a function that gives each layer the same sparsity, or a lower one to small layers with `least`.

    Args:
        sparsity: Fraction of the weights removed in each layer, in `[0, 1)`.
        least: See `magnitude_sparsity`.

    Returns:
        A function, see `magnitude_sparsity`.

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        >>> jackpot = keras_mpt.models.to_jackpot(trained, keras_mpt.models.uniform_sparsity(0.9, least=1000))
    """
    _check(sparsity, least)

    def sparsities(kernels):
        floors = _floors(kernels, sparsity, least)
        kept = {path: max(kept_count(kernel.size, sparsity), floors[path]) for path, kernel in kernels.items()}
        return _sparsities(kernels, kept, sparsity)

    return sparsities


def _check(sparsity, least):
    check_sparsity("sparsity", sparsity)
    if not is_number(least) or not 0 <= least < (LARGEST_COUNT if isinstance(least, numbers.Integral) else 1):
        raise ValueError(f"`least` must be an integer >= 0, or a float in [0, 1). {received('least', least)}")


def _floors(kernels, sparsity, least):
    """Return how many weights each layer keeps at least, by path."""
    if not isinstance(least, numbers.Integral):
        part = least * (1 - sparsity)
        return {path: math.ceil(part * kernel.size - 1e-9) for path, kernel in kernels.items()}
    return {path: min(least, -(-kernel.size // 2)) for path, kernel in kernels.items()}


def _sparsities(kernels, kept, sparsity):
    """Return the sparsities of layers by path, `sparsity` itself where that keeps as many weights."""
    empty = [path for path, count in kept.items() if not count]
    if empty:
        raise ValueError(
            "`sparsity` must leave each layer a weight: `skip` these layers, let each keep the `least`, or give all "
            f"the same sparsity (`uniform_sparsity`). Received: {sparsity=}, which keeps none of {', '.join(empty)}"
        )
    sizes = {path: kernel.size for path, kernel in kernels.items()}
    alike = {path for path, size in sizes.items() if kept[path] == kept_count(size, sparsity)}
    return {path: sparsity if path in alike else sparsity_of(kept[path], sizes[path]) for path in kept}
