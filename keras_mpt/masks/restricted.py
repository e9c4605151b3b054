"""A mask that is stored and may change only so much at a step: the short restriction of Lottery Jackpots."""

import keras
import numpy as np
from keras import ops

from keras_mpt.masks.rule import SELECTORS, MaskRule, add_integer
from keras_mpt.ops import has_nan, magnitude_bits, mask_of_largest
from keras_mpt.ops.selection import INFINITY_BITS


@keras.saving.register_keras_serializable(package="keras_mpt")
class Restricted(MaskRule):
    """Keep `n - floor(sparsity * n)` weights of each layer: a stored mask, in which a step swaps the strongest few.

    With S the scores (raw: signs count), M the stored mask and T the mask of the largest S, each training step wants to
    swap the `w = sum(T * (1 - M))` pruned weights whose scores passed the threshold for the kept ones that fell under
    it. It swaps `ceil(rate * w)` of them: the pruned ones with the largest scores for the kept ones with the smallest.
    With a rate of 1, the mask is T. The rate is the layer's variable `swap_rate`, 1 unless
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

    Example:

    >>> MPTConv2D(64, 3, mask=keras_mpt.masks.Restricted(0.9), kernel_quantizer=None)
    """

    def add_weights(self, layer, shape):
        """Create the layer's variables.

        `stored_mask` holds zeros and ones (uint8) once `mask_is_stored` is 1; `swap_rate` is the fraction of the wanted
        swaps that a step makes; `quota` (number of ones), `threshold` (a hint) and `nan_steps` are those of `TopK`.
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

        Raises:
            ValueError: A score is NaN; the layer is untouched.
        """
        if bool(has_nan(magnitude_bits(layer.scores))):
            raise ValueError(f"The scores of layer {layer.name!r} must be numbers for another mask. Received: NaN")
        super().set_sparsity(layer, sparsity)
        if int(ops.convert_to_numpy(layer.mask_is_stored)):
            layer.stored_mask.assign(ops.cast(self._swapped(layer, self._wanted(layer)[0], rate=0.0), "uint8"))

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
        stored = _is_stored(layer)
        mask = ops.cond(stored, lambda: _stored(layer), lambda: self._wanted(layer)[0])
        return mask, ops.convert_to_tensor(layer.quota)

    def _step(self, layer):
        stored, (wanted, threshold) = _is_stored(layer), self._wanted(layer)
        mask = ops.cond(
            stored, lambda: self._swapped(layer, wanted, ops.convert_to_tensor(layer.swap_rate)), lambda: wanted
        )
        invalid = has_nan(magnitude_bits(layer.scores))
        layer.stored_mask.assign(ops.cast(ops.where(invalid, _stored(layer), mask), "uint8"))
        layer.mask_is_stored.assign(ops.where(invalid, ops.convert_to_tensor(layer.mask_is_stored), 1))
        layer.threshold.assign(threshold)
        layer.nan_steps.assign(ops.where(invalid, layer.nan_steps + 1, 0))
        return ops.where(invalid, float("nan"), mask), ops.convert_to_tensor(layer.quota)

    def _wanted(self, layer):
        """Return the mask of the largest scores, and the threshold."""
        scores = ops.convert_to_tensor(layer.scores)
        return mask_of_largest(
            scores,
            ops.ones_like(scores, dtype="bool"),
            ops.convert_to_tensor(layer.quota),
            SELECTORS[self.selector],
            ops.convert_to_tensor(layer.threshold),
        )

    def _swapped(self, layer, wanted, rate):
        """Return the stored mask after the strongest swaps, with as many ones as the wanted mask."""
        scores, stored = ops.convert_to_tensor(layer.scores), ops.equal(ops.convert_to_tensor(layer.stored_mask), 1)
        wanted_now, select = ops.equal(wanted, 1), SELECTORS[self.selector]
        gains = ops.logical_and(wanted_now, ops.logical_not(stored))
        losses = ops.logical_and(stored, ops.logical_not(wanted_now))
        gained, lost = (ops.sum(ops.cast(candidates, "int32")) for candidates in (gains, losses))
        swaps = ops.minimum(gained, lost)  # they differ where the quota was changed
        made = ops.ceil(ops.cast(rate, "float32") * ops.cast(swaps, "float32"))
        made = ops.minimum(ops.cast(made, "int32"), swaps)

        def strongest():
            threshold = ops.convert_to_tensor(layer.threshold)  # gains are above it, losses below
            coming, _ = mask_of_largest(scores, gains, made + gained - swaps, select, threshold)
            going, _ = mask_of_largest(-scores, losses, made + lost - swaps, select, INFINITY_BITS - threshold)
            return _stored(layer) + coming - going

        return ops.cond(ops.equal(made, swaps), lambda: wanted, strongest)


def _stored(layer):
    return ops.cast(ops.convert_to_tensor(layer.stored_mask), "float32")


def _is_stored(layer):
    return ops.equal(ops.convert_to_tensor(layer.mask_is_stored), 1)
