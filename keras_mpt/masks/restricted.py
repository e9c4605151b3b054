"""A mask that is stored and may change only so much at a step: the short restriction of Lottery Jackpots."""

import functools

import keras
import numpy as np
from keras import ops

from keras_mpt.masks.rule import SELECTORS, MaskRule, add_integer
from keras_mpt.ops import has_nan, magnitude_bits, mask_of_largest
from keras_mpt.ops.backend import nan_where, negated, sum_int32, traced_once
from keras_mpt.ops.selection import INFINITY_BITS


@keras.saving.register_keras_serializable(package="keras_mpt")
class Restricted(MaskRule):
    """Keep `n - floor(sparsity * n)` weights of each layer: a stored mask, in which a step swaps the strongest few.

    With S the scores (raw: signs count), M the stored mask and T the mask of the largest S, each training step wants to
    swap the `w = sum(T * (1 - M))` pruned weights whose scores passed the threshold for the kept ones that fell under
    it. It swaps `ceil(rate * w)` of them (the product is a float32): the pruned ones with the largest scores for the
    kept ones with the smallest. With a rate of 1, the mask is T. The rate is the layer's variable `swap_rate`, 1 unless
    `callbacks.ShortRestriction` lowers it from epoch to epoch. The number of ones is exact at every step.

    Gradient: `dL/dS = dL/dkernel * W` for every entry, kept or not, without the sign of S that other rules have.

    The mask changes in training only, before the forward pass, by the scores that the step before has left; not that of
    a layer that is not `trainable`. Each forward pass in training makes swaps: with gradient accumulation there are
    several for each change of the scores. A layer that was never trained and got no mask from `assign` has T. Files of
    Keras hold mask and rate, tickets the mask.

    Source: Zhang et al. 2023, "Lottery Jackpots Exist in Pre-trained Models", section 3, arXiv:2104.08700. The
    published code rounds the rate itself up, to 1; this is the formula of the paper.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: How thresholds are found, see `TopK`.

    Raises:
        ValueError: An argument is not as described.

    Example:

    >>> MPTConv2D(64, 3, mask=keras_mpt.masks.Restricted(0.9), kernel_quantizer=None)
    """

    variables = (*MaskRule.variables, "stored_mask", "mask_is_stored", "swap_rate")

    def add_weights(self, layer, shape):
        """Create the layer's variables.

        `stored_mask` holds zeros and ones (uint8) once `mask_is_stored` is 1; `swap_rate` is the fraction of the wanted
        swaps that a step makes; `quota` (number of ones), `threshold` (a hint) and `nan_steps` are those of `TopK`.

        Args:
            layer: The MPT layer that is being built.
            shape: Of its kernel.
        """
        super().add_weights(layer, shape)
        layer.mask_is_stored = add_integer(layer, "mask_is_stored")
        settings = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
        layer.stored_mask = layer.add_weight(
            name="stored_mask", shape=shape, dtype="uint8", initializer="zeros", **settings
        )
        layer.swap_rate = layer.add_weight(name="swap_rate", shape=(), dtype="float32", initializer="ones", **settings)

    def set_sparsity(self, layer, sparsity):
        """Let a built layer keep another number of weights from now on: the weakest go, or the strongest come.

        Args:
            layer: A built MPT layer.
            sparsity: Fraction of its weights removed, in `[0, 1)`.

        Raises:
            ValueError: A score is NaN, or the sparsity is out of its range; the layer is untouched.
        """
        if bool(has_nan(magnitude_bits(layer.scores))):
            raise ValueError(f"The scores of layer {layer.name!r} must be numbers for another mask. Received: NaN")
        super().set_sparsity(layer, sparsity)
        if int(ops.convert_to_numpy(layer.mask_is_stored)):
            none = ops.convert_to_tensor(0.0, dtype="float32")  # but those which the other number of ones asks for
            mask, _ = _mask_after_swaps(SELECTORS[self.selector])(*_tensors(layer), none)
            layer.stored_mask.assign(ops.cast(ops.reshape(mask, layer.scores.shape), "uint8"))

    def assign(self, layer, mask, scores=None):
        """Give a built layer a mask to go on from, which is stored; see `MaskRule`. Any scores will do."""
        super().assign(layer, mask, scores)
        layer.stored_mask.assign(np.asarray(mask).astype("uint8"))
        layer.mask_is_stored.assign(1)

    def settle(self, layer):
        """Count the scores that are NaN, so that a layer can refuse to be saved."""
        layer.nan_steps.assign(ops.cast(has_nan(magnitude_bits(layer.scores)), "int32"))

    def slope(self, scores):
        """Return the derivative that stands for that of the mask by the scores, times the weights: 1."""
        return ops.ones_like(scores)

    def __call__(self, layer, training=False):
        """Return the layer's mask, a float32 tensor of zeros and ones, and their number.

        Args:
            layer: A built MPT layer.
            training: Whether to make swaps, store the mask, and count the steps with NaN scores, for which the mask is
                all NaN and the stored one stays.
        """
        if training and layer.trainable:
            return self._once(layer, [layer.scores], lambda: self._step(layer))
        mask = _mask_in_use(SELECTORS[self.selector])(*_tensors(layer))
        return ops.reshape(mask, layer.scores.shape), ops.convert_to_tensor(layer.quota)

    def _step(self, layer):
        rate = ops.convert_to_tensor(layer.swap_rate)
        mask, threshold = _mask_after_swaps(SELECTORS[self.selector])(*_tensors(layer), rate)
        mask, invalid = ops.reshape(mask, layer.scores.shape), has_nan(magnitude_bits(layer.scores))
        layer.stored_mask.assign(ops.where(invalid, ops.convert_to_tensor(layer.stored_mask), ops.cast(mask, "uint8")))
        layer.mask_is_stored.assign(ops.where(invalid, ops.convert_to_tensor(layer.mask_is_stored), 1))
        layer.threshold.assign(threshold)
        layer.nan_steps.assign(ops.where(invalid, layer.nan_steps + 1, 0))
        return mask + nan_where(invalid), ops.convert_to_tensor(layer.quota)


def _tensors(layer):
    """Return scores and stored mask as rows, whether it is stored, the quota, and the last threshold."""
    rows = (ops.reshape(variable, (-1, variable.shape[-1])) for variable in (layer.scores, layer.stored_mask))
    return *rows, *map(ops.convert_to_tensor, (layer.mask_is_stored, layer.quota, layer.threshold))


@functools.cache
def _mask_in_use(select):
    @traced_once
    def mask_in_use(scores, stored, is_stored, quota, threshold):
        return ops.cond(
            ops.equal(is_stored, 1),
            lambda: ops.cast(stored, "float32"),
            lambda: _wanted(scores, quota, select, threshold)[0],
        )

    return mask_in_use


@functools.cache
def _mask_after_swaps(select):
    @traced_once
    def mask_after_swaps(scores, stored, is_stored, quota, last_threshold, rate):
        wanted, threshold = _wanted(scores, quota, select, last_threshold)
        mask = ops.cond(
            ops.equal(is_stored, 1),
            lambda: _swapped(scores, ops.equal(stored, 1), ops.equal(wanted, 1), rate, select, last_threshold),
            lambda: wanted,
        )
        return mask, threshold

    return mask_after_swaps


def _wanted(scores, quota, select, threshold):
    """Return the mask of the largest scores, and the threshold."""
    return mask_of_largest(scores, ops.ones_like(scores, dtype="bool"), quota, select, threshold)


def _swapped(scores, stored, wanted, rate, select, threshold):
    """Return the stored mask after the strongest swaps, with as many ones as the wanted mask."""
    gains = ops.logical_and(wanted, ops.logical_not(stored))
    losses = ops.logical_and(stored, ops.logical_not(wanted))
    gained, lost = (sum_int32(ops.cast(candidates, "int32")) for candidates in (gains, losses))
    swaps = ops.minimum(gained, lost)  # they differ where the quota was changed
    made = ops.ceil(rate * ops.cast(swaps, "float32"))
    made = ops.minimum(ops.cast(made, "int32"), swaps)

    def strongest():
        # gains are above the threshold, losses below
        coming, _ = mask_of_largest(scores, gains, made + gained - swaps, select, threshold)
        going, _ = mask_of_largest(negated(scores), losses, made + lost - swaps, select, INFINITY_BITS - threshold)
        return ops.cast(stored, "float32") + coming - going

    return ops.cond(ops.equal(made, swaps), lambda: ops.cast(wanted, "float32"), strongest)
