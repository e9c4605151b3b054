"""Freeze the decision for a part of the weights: a smaller search, and smaller files."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.arguments import check_fraction, received
from keras_mpt.masks.rule import SELECTORS, MaskRule
from keras_mpt.ops import entropy_bits, kept_count, magnitude_bits, to_numpy, top_k_mask
from keras_mpt.ops.selection import ALL_BITS
from keras_mpt.random import partition

# In the state `frozen`: which bits of a score make the key by which it is searched. Keys of frozen ones are 0 or less.
SEARCHED, PRUNED, LOCKED = ALL_BITS, 0, -(2**31)
_STREAM = 5  # from a kernel's first stream: 0 to 3 are its weights and scores, 4 gives a model's layers their seeds


@keras.saving.register_keras_serializable(package="keras_mpt")
class PartiallyFrozen(MaskRule):
    """Always prune a random part of each layer, always keep another one, and apply `TopK` to the rest.

    Of n weights, `p = floor(pruned * n)` are removed and `l = floor(locked * n)` are kept, independent of their scores.
    The layer's seed selects them, the same on every backend. Of the other weights, those with the `k - l` largest
    `|scores|` are kept, with `k = n - floor(sparsity * n)`; ties keep the lower flat index. So the layer keeps k
    weights, as with `TopK`.

    Gradient: `dL/dS = dL/dkernel * W * sign(S)` for every entry, as with other rules; the scores of frozen weights have
    no effect.

    A ticket stores the mask of the searched weights only: `m = n - p - l` of them take `m H((k - l) / m)` bits with
    `H(d) = -d log2(d) - (1 - d) log2(1 - d)`. Each layer has its own parts and threshold.

    Source: Otsuka et al. 2024, "Partially Frozen Random Networks Contain Compact Strong Lottery Tickets",
    arXiv:2402.14029, which introduced the terms.

    Args:
        sparsity: Total fraction of the weights removed, in `[0, 1)`.
        pruned: Fraction of the weights that are always removed, from 0 to `sparsity`.
        locked: Fraction of the weights that are always kept, from 0 to less than `1 - sparsity`.
        selector: Method to find the threshold, see `TopK`.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> MPTConv2D(64, 3, mask=keras_mpt.masks.PartiallyFrozen(0.8, pruned=0.5, locked=0.1), seed=1)
    """

    def __init__(self, sparsity: float, pruned: float = 0.0, locked: float = 0.0, selector: str = "search") -> None:
        super().__init__(sparsity, selector)
        check_fraction("pruned", pruned)
        check_fraction("locked", locked)
        if pruned > sparsity:
            raise ValueError(f"`pruned` must be at most `sparsity`, {sparsity!r}. {received('pruned', pruned)}")
        if locked >= 1 - sparsity:
            most = 1 - sparsity
            raise ValueError(f"`locked` must be less than 1 - `sparsity`, {most!r}. {received('locked', locked)}")
        self.pruned, self.locked = float(pruned), float(locked)

    def frozen_counts(self, size: int) -> tuple[int, int]:
        """Return the numbers of pruned and of locked weights out of `size`."""
        kept = kept_count(size, self.sparsity)
        pruned, locked = (math.floor(fraction * size + 1e-9) for fraction in (self.pruned, self.locked))
        return min(pruned, size - kept), min(locked, kept - 1)

    def init(self, shape: tuple[int, ...], seed: int = 0, stream: int = 0, inputs: int = -2) -> dict[str, Any]:
        """Return the initial state of a kernel, see `MaskRule`.

        `frozen` (int32) is > 0 where a weight is searched, 0 where it is pruned, < 0 where it is locked. `locked` and
        `searched` are the numbers of such weights: with them, `set_weights` copies the masks of another layer.
        """
        size, counts = math.prod(shape), self.frozen_counts(math.prod(shape))
        pruned, locked = partition(size, counts, seed, stream + _STREAM)
        frozen = np.full(size, SEARCHED, np.int32)
        frozen[pruned], frozen[locked] = PRUNED, LOCKED
        first = super().init(shape, seed, stream, inputs)
        searched, locked = np.int32(size - sum(counts)), np.int32(counts[1])
        return {**first, "frozen": frozen.reshape(shape), "locked": locked, "searched": searched}

    def __call__(
        self, scores: Tensor, state: dict[str, Tensor], training: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        kept, frozen, searched = state["quota"], state["frozen"], state["searched"]
        keys, select = magnitude_bits(scores, frozen), SELECTORS[self.selector]
        wanted = kept - state["locked"]
        mask, threshold, invalid = top_k_mask(keys, wanted, state["threshold"], select, frozen, searched)
        return mask, kept, {"threshold": threshold, "nan_steps": invalid}

    def resized(self, scores: Tensor, state: dict[str, Tensor], kept: int) -> dict[str, Any]:
        """Return the changes that let a kernel keep another number of weights: more than are locked.

        Raises:
            ValueError: It is too large, or too small.
        """
        self._check_kept(math.prod(scores.shape), kept, 1, "a sparsity")
        return super().resized(scores, state, kept)

    def assigned(self, mask: np.ndarray) -> dict[str, Any]:
        self._check_kept(mask.size, np.count_nonzero(mask), 0, "a mask")
        return super().assigned(mask)

    def _check_kept(self, size, kept, more, what):
        """Raise ValueError unless the rule can keep so many weights, at least `more` of the searched ones."""
        pruned, locked = self.frozen_counts(size)
        if not locked + more <= kept <= size - pruned:
            raise ValueError(
                f"Of its {size} weights {pruned} are pruned for good and {locked} locked, so that {locked + more} to "
                f"{size - pruned} may be kept. Received: {what} that keeps {kept}"
            )

    def check_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> None:
        frozen = to_numpy(state["frozen"])
        found = frozen.size - np.count_nonzero(frozen), np.count_nonzero(frozen < 0)
        ours = self.frozen_counts(frozen.size)
        if found != ours:
            raise ValueError(
                f"Of its {frozen.size} weights {ours[0]} are pruned for good and {ours[1]} locked. "
                f"Received: {found[0]} and {found[1]}, from a layer with other fractions"
            )

    def searched(self, state: dict[str, Tensor]) -> Tensor:
        return ops.greater(state["frozen"], 0)

    def mask_bits(self, size: int, kept: int) -> float:
        pruned, locked = self.frozen_counts(size)
        return entropy_bits(size - pruned - locked, kept - locked)

    def coding(self, shape: tuple[int, ...], seed: int, stream: int) -> tuple[str, dict]:
        pruned, locked = self.frozen_counts(math.prod(shape))
        return "searched", {"pruned": pruned, "locked": locked, "seed": seed, "stream": stream + _STREAM}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pruned": self.pruned, "locked": self.locked}

    def __repr__(self):
        return (
            f"PartiallyFrozen({self.sparsity!r}, pruned={self.pruned!r}, locked={self.locked!r}, "
            f"selector={self.selector!r})"
        )
