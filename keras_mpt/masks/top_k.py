"""One threshold for each layer."""

import math

import keras
from keras import ops

from keras_mpt.ops import has_nan, kept_count, magnitude_bits, mask_at, search_threshold, sort_threshold

SELECTORS = {"search": search_threshold, "sort": sort_threshold}


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
        self.sparsity, self.selector = check_arguments(sparsity, selector)

    def add_weights(self, layer, shape):
        """Create the layer's `quota` (number of ones), `threshold` (a hint) and `nan_steps` variables."""
        layer.quota = add_integer(layer, "quota", kept_count(math.prod(shape), self.sparsity))
        layer.threshold = add_integer(layer, "threshold")
        layer.nan_steps = add_integer(layer, "nan_steps")

    def set_sparsity(self, layer, sparsity):
        """Let a built layer keep another number of weights from now on; the rule's own `sparsity` stays."""
        layer.quota.assign(kept_count(math.prod(layer.scores.shape), sparsity))

    def kept(self, layer):
        """Return the number of ones in a built layer's mask: its int32 variable `quota`."""
        return layer.quota

    def __call__(self, layer, training=False):
        """Return the layer's mask, a float32 tensor of zeros and ones (all NaN if a score is NaN), and their number.

        Args:
            layer: A built MPT layer.
            training: Whether to remember the threshold for the next step and count the steps with NaN scores.
        """
        keys = magnitude_bits(layer.scores)
        kept, last_threshold = ops.convert_to_tensor(layer.quota), ops.convert_to_tensor(layer.threshold)
        threshold, count = SELECTORS[self.selector](keys, kept, last_threshold)
        if training:
            layer.threshold.assign(threshold)
            layer.nan_steps.assign(ops.where(has_nan(keys), layer.nan_steps + 1, 0))
        return mask_at(keys, kept, threshold, count), kept

    def get_config(self):
        return {"sparsity": self.sparsity, "selector": self.selector}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"TopK({self.sparsity!r}, selector={self.selector!r})"


def check_arguments(sparsity, selector):
    kept_count(1 << 31, sparsity)  # complains about a bad sparsity here, not at the first build
    if selector not in SELECTORS:
        raise ValueError(f"`selector` must be one of {sorted(SELECTORS)}. Received: selector={selector!r}")
    return float(sparsity), selector


def add_integer(layer, name, value=0):
    """Add a variable to a layer: an int32 scalar that is never trained."""
    return layer.add_weight(
        name=name,
        shape=(),
        dtype="int32",
        initializer=keras.initializers.Constant(value),
        trainable=False,
        aggregation="only_first_replica",
    )
