"""A stored mask with restricted changes per step: the short restriction of Lottery Jackpots."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.masks.rule import SELECTORS, MaskRule
from keras_mpt.ops import has_nan, magnitude_bits, mask_of_largest
from keras_mpt.ops.backend import nan_where, negated, sum_int32, traced_once
from keras_mpt.ops.selection import INFINITY_BITS


@keras.saving.register_keras_serializable(package="keras_mpt")
class Restricted(MaskRule):
    """Keep `n - floor(sparsity * n)` weights of each layer, in a stored mask in which each step makes a few swaps.

    S are the scores (by value, not magnitude), M the stored mask and T the mask of the largest S. In a training step,
    `w = sum(T * (1 - M))` pruned weights have scores above the threshold, and as many kept weights have scores below
    it. The step swaps `ceil(rate * w)` of them (the product is a float32): the pruned ones with the largest scores for
    the kept ones with the smallest. With a rate of 1, the mask becomes T. The rate is the layer's variable `swap_rate`:
    1, unless `callbacks.ShortRestriction` reduces it from epoch to epoch. The number of ones is exact at every step.

    Gradient: `dL/dS = dL/dkernel * W` for every entry, kept or not, without the sign of S that other rules have.

    The mask changes only in training of a `trainable` layer, before the forward pass, according to the scores after the
    previous step. Each forward pass in training makes swaps: with gradient accumulation, there are several per change
    of the scores. Before training, and without a mask from `assign`, the mask is T. Keras' files store mask and rate,
    tickets the mask.

    Source: Zhang et al. 2023, "Lottery Jackpots Exist in Pre-trained Models", section 3, arXiv:2104.08700. The
    published code rounds the rate itself up to 1; this is the formula of the paper.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: Method to find thresholds, see `TopK`.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> MPTConv2D(64, 3, mask=keras_mpt.masks.Restricted(0.9), kernel_quantizer=None)
    """

    stores_mask = True

    def init(self, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the initial state of a kernel, see `MaskRule`.

        `stored_mask` holds zeros and ones (uint8) once `mask_is_stored` is 1; `swap_rate` is the fraction of the wanted
        swaps that a step makes.
        """
        return {
            **super().init(shape, *args, **kwargs),
            "mask_is_stored": np.int32(0),
            "stored_mask": np.zeros(shape, np.uint8),
            "swap_rate": np.float32(1),
        }

    def resized(self, scores: Tensor, state: dict[str, Tensor], kept: int) -> dict[str, Any]:
        """Return the changes for another number of kept weights: the weakest are removed, or the strongest added.

        Raises:
            ValueError: A score is NaN.
        """
        if bool(has_nan(magnitude_bits(scores))):
            raise ValueError("Scores must be numbers for another mask. Received: NaN")
        changes = super().resized(scores, state, kept)
        if int(ops.convert_to_numpy(state["mask_is_stored"])):
            none = ops.convert_to_tensor(0.0, dtype="float32")  # but those which the other number of ones asks for
            tensors = _tensors(scores, {**state, "quota": ops.convert_to_tensor(kept, dtype="int32")})
            mask, _ = _mask_after_swaps(SELECTORS[self.selector])(*tensors, none)
            changes["stored_mask"] = ops.cast(ops.reshape(mask, scores.shape), "uint8")
        return changes

    def assigned(self, mask: np.ndarray) -> dict[str, Any]:
        """Return the changes that store a mask, which fits any scores."""
        return {"stored_mask": mask.astype("uint8"), "mask_is_stored": np.int32(1)}

    def slope(self, scores: Tensor) -> Tensor:
        """Return the factor of the score gradient in place of `sign(S)`: 1."""
        return ops.ones_like(scores)

    def __call__(
        self, scores: Tensor, state: dict[str, Tensor], training: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        select = SELECTORS[self.selector]
        if not training:
            mask = _mask_in_use(select)(*_tensors(scores, state))
            return ops.reshape(mask, scores.shape), state["quota"], {}
        mask, threshold = _mask_after_swaps(select)(*_tensors(scores, state), state["swap_rate"])
        mask, invalid = ops.reshape(mask, scores.shape), has_nan(magnitude_bits(scores))
        changes = {
            "stored_mask": ops.where(invalid, state["stored_mask"], ops.cast(mask, "uint8")),
            "mask_is_stored": ops.where(invalid, state["mask_is_stored"], 1),
            "threshold": threshold,
            "nan_steps": invalid,
        }
        return mask + nan_where(invalid), state["quota"], changes


def _tensors(scores, state):
    """Return scores and stored mask as rows, whether it is stored, the quota, and the last threshold."""
    rows = (ops.reshape(tensor, (-1, tensor.shape[-1])) for tensor in (scores, state["stored_mask"]))
    return *rows, state["mask_is_stored"], state["quota"], state["threshold"]


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
