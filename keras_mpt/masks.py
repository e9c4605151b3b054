"""Mask rules: which weights stay, decided from the scores inside the compiled step.

A rule is stateless and may be shared by layers; what it must remember from step to step lives in variables of the
layer, which `add_weights` creates and calling the rule reads.
"""

import math

import keras
from keras import ops

from keras_mpt.ops import has_nan, kept_count, magnitude_bits, mask_at, search_threshold, sort_threshold

_SELECTORS = {"search": search_threshold, "sort": sort_threshold}


@keras.saving.register_keras_serializable(package="keras_mpt")
class TopK:
    """Keep the `n - floor(sparsity * n)` largest `|scores|` of each layer, exactly; ties keep the lower flat index.

    Source: Edge-Popup, Ramanujan et al. 2020, section 3.2, arXiv:1911.13299; the same in Biprop, Diffenderfer &
    Kailkhura 2021, algorithm 1, arXiv:2103.09377.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: How the threshold is found; the mask is the same. `"search"` counts a few times, starting from the
            last step's threshold; `"sort"` sorts the bits of the scores, for devices where launches dominate.

    Example:

    >>> MPTConv2D(64, 3, mask=keras_mpt.masks.TopK(0.8, selector="sort"))
    """

    def __init__(self, sparsity, selector="search"):
        kept_count(1 << 31, sparsity)  # complains about a bad sparsity here, not at the first build
        if selector not in _SELECTORS:
            raise ValueError(f"`selector` must be one of {sorted(_SELECTORS)}. Received: selector={selector!r}")
        self.sparsity = float(sparsity)
        self.selector = selector

    def add_weights(self, layer, shape):
        """Create the layer's `kept` (number of ones), `threshold` (a hint) and `nan_steps` variables."""
        state = {"shape": (), "dtype": "int32", "trainable": False, "aggregation": "only_first_replica"}
        kept = kept_count(math.prod(shape), self.sparsity)
        layer.kept = layer.add_weight(name="kept", initializer=keras.initializers.Constant(kept), **state)
        layer.threshold = layer.add_weight(name="threshold", initializer="zeros", **state)
        layer.nan_steps = layer.add_weight(name="nan_steps", initializer="zeros", **state)

    def __call__(self, layer, training=False):
        """Return the layer's mask, a float32 tensor of zeros and ones (all NaN if a score is NaN).

        Args:
            layer: A built MPT layer.
            training: Whether to remember the threshold for the next step and count the steps with NaN scores.
        """
        keys = magnitude_bits(layer.scores)
        kept, last_threshold = ops.convert_to_tensor(layer.kept), ops.convert_to_tensor(layer.threshold)
        threshold, count = _SELECTORS[self.selector](keys, kept, last_threshold)
        if training:
            layer.threshold.assign(threshold)
            layer.nan_steps.assign(ops.where(has_nan(keys), layer.nan_steps + 1, 0))
        return mask_at(keys, kept, threshold, count)

    def get_config(self):
        return {"sparsity": self.sparsity, "selector": self.selector}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"TopK({self.sparsity!r}, selector={self.selector!r})"
