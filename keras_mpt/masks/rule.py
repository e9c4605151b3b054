"""What every mask rule has."""

import math
import weakref

import keras
import numpy as np
from keras import ops
from keras.src.backend.common import global_state  # no public way to know the call or the loading that is under way

from keras_mpt.arguments import check_sparsity
from keras_mpt.ops import kept_count, search_threshold, sort_threshold
from keras_mpt.ops.backend import current_trace

SELECTORS = {"search": search_threshold, "sort": sort_threshold}
_KEPT_SCORE, _PRUNED_SCORE = 1.0, 0.99  # where Lottery Jackpots start


class MaskRule:
    """Base class of the rules that make masks of scores.

    Calling a rule, `rule(layer, training)`, returns the layer's mask and how many ones it has. What it must remember
    from step to step lives in variables of the layer, which `add_weights` creates.

    Attributes:
        variables: Names of these variables, which tickets do not hold: they hold the mask.
        ranks_magnitudes: Whether the mask is that of the largest `|scores|`.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: How thresholds are found; the mask is the same. `"search"` counts a few times, starting from the last
            step's threshold; `"sort"` sorts the bits of the scores, for devices where launches dominate.

    Raises:
        ValueError: An argument is not as described.
    """

    variables = ("quota", "threshold", "nan_steps")
    ranks_magnitudes = False

    def __init__(self, sparsity, selector="search"):
        check_sparsity("sparsity", sparsity)
        if selector not in list(SELECTORS):
            raise ValueError(f"`selector` must be one of {sorted(SELECTORS)}. Received: selector={selector!r}")
        self.sparsity, self.selector = float(sparsity), selector
        self._found = weakref.WeakKeyDictionary()  # by the call of a model in which it was found

    def add_weights(self, layer, shape):
        """Create the layer's variables `quota` (number of ones), `threshold` (a hint) and `nan_steps`.

        Args:
            layer: The MPT layer that is being built.
            shape: Of its kernel.
        """
        layer.quota = add_integer(layer, "quota", self._first_quota(layer, shape))
        layer.threshold = add_integer(layer, "threshold")
        layer.nan_steps = add_integer(layer, "nan_steps")

    def _first_quota(self, layer, shape):
        return kept_count(math.prod(shape), self.sparsity)

    def set_sparsity(self, layer, sparsity):
        """Let a built layer keep another number of weights from now on; the rule's own `sparsity` stays.

        Args:
            layer: A built MPT layer.
            sparsity: Fraction of its weights removed, in `[0, 1)`.

        Raises:
            ValueError: The sparsity is out of its range.
        """
        layer.quota.assign(kept_count(math.prod(layer.scores.shape), sparsity))

    def assign(self, layer, mask, scores=None):
        """Give a built layer a mask to start or go on from.

        Args:
            layer: A built MPT layer.
            mask: Array of zeros and ones, or booleans, of the kernel's shape.
            scores: float32 array of that shape; None: 1.0 where the mask is true, else 0.99, as Lottery Jackpots do.
                The rule must make the mask of them, unless it stores masks.

        Raises:
            ValueError: Shapes or values are not as described; the layer is untouched.
        """
        shape, mask = tuple(layer.scores.shape), np.asarray(mask)
        if mask.shape != shape or not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"`mask` must be zeros and ones of shape {shape} for layer {layer.name!r}. Received: shape "
                f"{mask.shape}, values {np.unique(mask)[:4]}"
            )
        scores = first_scores(mask != 0) if scores is None else np.asarray(scores, np.float32)
        if scores.shape != shape or np.isnan(scores).any():
            raise ValueError(
                f"`scores` must be numbers of shape {shape} for layer {layer.name!r}. Received: shape {scores.shape}, "
                f"{np.count_nonzero(np.isnan(scores))} NaN"
            )
        kept = np.count_nonzero(mask)
        layer.quota.assign(kept)
        layer.scores.assign(scores)
        layer.threshold.assign(smallest_kept(scores, kept))

    def settle(self, layer):
        """Bring up to date what goes into a file."""
        self(layer, training=True)

    def is_trained(self, layer):
        """Return whether training changes the layer's mask; if not, it changes none of the rule's variables."""
        return layer.trainable

    def kept(self, layer):
        """Return the number of ones in a built layer's mask: its int32 variable `quota`."""
        return layer.quota

    def slope(self, scores):
        """Return what stands for the derivative of the mask by the scores: `sign(S)`, since |S| decides."""
        return ops.sign(scores)

    def __call__(self, layer, training=False):
        raise NotImplementedError

    def _once(self, key, scores, find):
        """Return what `find()` returns, which is called once in each call of a model unless the scores change.

        Keras has an object for each call: a `StatelessScope` (the training step of JAX), in which a changed score is
        another tensor, or else the context of the outermost layer's call, in which no score changes.

        Args:
            key: Whose call of `find` it is, a layer or None.
            scores: List of the layers' variables.
            find: Function without arguments.
        """
        call = global_state.get_global_attribute("stateless_scope")
        call = call or global_state.get_global_attribute("current_call_ctx")
        if call is None:
            return find()
        trace, values = current_trace(), [variable.value for variable in scores]
        found, last_trace, last_values = self._found.get(call, {}).get(key, (None, None, ()))
        if last_values and trace == last_trace and all(a is b for a, b in zip(values, last_values, strict=True)):
            return found
        found = find()
        self._found.setdefault(call, {})[key] = found, trace, values
        return found

    def __getstate__(self):
        return {**vars(self), "_found": None}  # what belongs to calls is not copied, nor can it be pickled

    def __setstate__(self, state):
        vars(self).update(state, _found=weakref.WeakKeyDictionary())

    def get_config(self):
        return {"sparsity": self.sparsity, "selector": self.selector}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({self.sparsity!r}, selector={self.selector!r})"


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


def first_scores(mask):
    """Return scores that make a mask, and from which a search can start: 1.0 where it is true, else 0.99."""
    return np.where(mask, np.float32(_KEPT_SCORE), np.float32(_PRUNED_SCORE))


def largest(values, kept):
    """Return the mask of the `kept` largest entries of an array; of equal ones those with the lower flat index."""
    flat = values.ravel()
    if not kept:
        return np.zeros(values.shape, bool)
    cut = np.partition(flat, -kept)[-kept]
    mask = flat > cut
    mask[np.flatnonzero(flat == cut)[: kept - np.count_nonzero(mask)]] = True
    return mask.reshape(values.shape)


def smallest_kept(scores, kept):
    """Return the bits of the smallest of the `kept` largest magnitudes of a float32 array: the threshold."""
    keys = np.abs(scores).ravel().view(np.int32)
    return np.partition(keys, -kept)[-kept] if kept else np.int32(2**31 - 1)
