"""Pure tensor functions: exact selection of the largest magnitudes, straight-through gradients.

All functions work on every Keras backend, eagerly and inside compiled steps (TensorFlow graphs and XLA, JAX `jit`), and
give the same bits on all of them.
"""

from keras_mpt.ops.backend import to_numpy
from keras_mpt.ops.counts import entropy_bits, kept_count, sparsity_of
from keras_mpt.ops.gradients import straight_through
from keras_mpt.ops.groups import n_of_m_mask
from keras_mpt.ops.selection import (
    has_nan,
    magnitude_bits,
    mask_at,
    mask_of_largest,
    search_threshold,
    sort_threshold,
    split_kept,
    top_k_mask,
)

__all__ = [
    "entropy_bits",
    "has_nan",
    "kept_count",
    "magnitude_bits",
    "mask_at",
    "mask_of_largest",
    "n_of_m_mask",
    "search_threshold",
    "sort_threshold",
    "sparsity_of",
    "split_kept",
    "straight_through",
    "to_numpy",
    "top_k_mask",
]
