"""Exact selection of the largest magnitudes of each small group."""

import functools
import math

from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.ops.backend import nan_where, traced_once
from keras_mpt.ops.selection import has_nan


def n_of_m_mask(keys: Tensor, n: int, m: int, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Return the 0/1 mask of the `n` largest keys of each group of `m`; ties keep the lower index.

    Group g has the entries `(g // stride) * m * stride + g % stride + i * stride` for i < m, by the flat index.

    Args:
        keys: int32 tensor of any shape, each >= 0 (see `magnitude_bits`).
        n, m: Integers, `0 < n < m <= 128`.
        stride: Distance between the entries of a group; `m * stride` divides the number of keys.

    Returns:
        `(mask, invalid)`: a float32 tensor in the shape of `keys`, and a boolean scalar: whether a score is NaN. Then
        the mask is all NaN, see `top_k_mask`.
    """
    groups = ops.reshape(keys, (math.prod(keys.shape) // (m * stride), m, stride))
    mask, invalid = _n_of_m(n, m)(groups)
    return ops.reshape(mask, keys.shape), invalid


@functools.cache
def _n_of_m(n, m):
    @traced_once
    def n_of_m(groups):
        members = [groups[:, i] for i in range(m)]
        # The rank of a member counts the larger ones, and the equal ones with a lower index.
        ranks = list(range(m))
        for i in range(m):
            for j in range(i + 1, m):
                larger = ops.cast(ops.greater(members[j], members[i]), "int8")
                ranks[i] = ranks[i] + larger
                ranks[j] = ranks[j] - larger
        stay = ops.stack([ops.less(rank, n) for rank in ranks], axis=1)
        invalid = has_nan(groups)
        return ops.cast(stay, "float32") + nan_where(invalid), invalid

    return n_of_m
