"""Number of kept weights, and entropy of a mask."""

import math

from keras_mpt.arguments import check_integer, check_number, check_sparsity

_LARGEST = 2**63 - 1


def kept_count(size: int, sparsity: float) -> int:
    """Return how many of `size` weights are kept at `sparsity`: `size - floor(sparsity * size + 1e-9)`.

    Args:
        size: Number of weights, an integer.
        sparsity: Fraction of the weights that is removed, in `[0, 1)`.

    Raises:
        ValueError: `sparsity` is outside `[0, 1)`, `size` is not an integer > 0, or no weight would be kept.
    """
    check_sparsity("sparsity", sparsity)
    check_integer("size", size, 1, _LARGEST)
    kept = size - math.floor(sparsity * size + 1e-9)
    if kept < 1:
        raise ValueError(
            f"`sparsity` must leave at least one weight. Received: sparsity={sparsity!r}, which keeps none of {size}"
        )
    return kept


def sparsity_of(kept: int, size: int) -> float:
    """Return a sparsity at which `kept` of `size` weights are kept: the inverse of `kept_count`.

    It removes half a weight more, so that rounding cannot change the floor of `sparsity * size`.

    Args:
        kept: Number of kept weights, from 1 to `size`.
        size: Number of weights.

    Returns:
        A float in `[0, 1)`.

    Raises:
        ValueError: An argument is not as described.
    """
    check_integer("size", size, 1, _LARGEST)
    check_integer("kept", kept, 1, size)
    return 0.0 if kept == size else (size - kept + 0.5) / size


def entropy_bits(size: int, kept: int) -> float:
    """Return the entropy of a mask of `size` independent entries, `kept` of them ones: `size * H(kept / size)`.

    `H(d) = -d log2(d) - (1 - d) log2(1 - d)`

    Args:
        size: Number of entries, an integer >= 0.
        kept: Number of ones, from 0 to `size`, also as a float, the sum of a mask.

    Returns:
        Bits, a float.

    Raises:
        ValueError: An argument is not as described.
    """
    check_integer("size", size, most=_LARGEST)
    check_number("kept", kept, 0, size)
    kept = float(kept)  # float32 is not enough
    return 0.0 - sum(n * math.log2(n / size) for n in (kept, size - kept) if n)  # never -0.0
