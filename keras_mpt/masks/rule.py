"""The base of the mask rules."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.arguments import check_choice, check_sparsity
from keras_mpt.ops import entropy_bits, kept_count, search_threshold, sort_threshold

SELECTORS = {"search": search_threshold, "sort": sort_threshold}
_BLOCK = 1 << 20  # weights at a time, to take little memory
_KEPT_SCORE, _PRUNED_SCORE = 1.0, 0.99  # where Lottery Jackpots start


class MaskRule:
    """Base class of the mask rules: functions with settings and without side effects.

    `rule(scores, state, training)` returns the mask of a kernel, the number of its ones, and the changes of the state.
    The layer owns the state: it creates variables from `rule.init(shape)`, and stores the changes in training. Rules
    with equal settings are equal; any number of layers and models may use the same rule.

    Attributes:
        ranks_magnitudes: Whether the mask keeps the largest `|scores|`.
        stores_mask: Whether the state has a mask that training changes. Then the rule is called once per step.
        shared: Whether kernels of a model with equal rules are pruned together, see `together`.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: Method to find thresholds; all give the same mask. `"search"` counts a few times, starting from the
            last step's threshold; `"sort"` sorts the bits of the scores, for devices on which launches dominate.

    Raises:
        ValueError: An argument is not as described.
    """

    ranks_magnitudes = False
    stores_mask = False
    shared = False

    def __init__(self, sparsity: float, selector: str = "search") -> None:
        check_sparsity("sparsity", sparsity)
        check_choice("selector", selector, sorted(SELECTORS))
        self.sparsity, self.selector = float(sparsity), selector

    def init(self, shape: tuple[int, ...], seed: int = 0, stream: int = 0, inputs: int = -2) -> dict[str, Any]:
        """Return the initial state of a kernel.

        Args:
            shape: Shape of the kernel.
            seed: Seed of the layer, for a rule that draws random numbers.
            stream: First stream of the seed for the kernel; see `Subnet.stream`.
            inputs: Axis of the input channels, counted from the end; None if each output has one input.

        Raises:
            ValueError: The rule does not support such a kernel.

        Returns:
            Dict from names to numpy scalars and arrays with the dtypes of the variables: `quota` (the wanted number of
            ones), `threshold` (the start of a search) and `nan_steps`. For names that end with `_steps`, a call returns
            whether the step was such a step, and the variable counts consecutive ones.
        """
        quota = -1 if self.shared else kept_count(math.prod(shape), self.sparsity)
        return {"quota": np.int32(quota), "threshold": np.int32(0), "nan_steps": np.int32(0)}

    def __call__(
        self, scores: Tensor, state: dict[str, Tensor], training: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the mask of a kernel, the number of its ones, and the changes of its state.

        Args:
            scores: float32 tensor in the shape of the kernel.
            state: Dict of tensors, see `init`; for a shared rule, with the result of `together` for the kernel.
            training: Whether this is a training step.

        Returns:
            `(mask, kept, changes)`: a float32 tensor of zeros and ones in the shape of `scores` (all NaN if a score
            is NaN), an int32 scalar, and a dict with some of the state's names.
        """
        raise NotImplementedError

    def together(self, scores: list[Tensor], states: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return what a call needs from all kernels of a shared rule, a dict for each kernel.

        Args:
            scores: List of float32 tensors.
            states: List of dicts of tensors.
        """
        raise NotImplementedError

    def resized(self, scores: Tensor, state: dict[str, Tensor], kept: int) -> dict[str, Any]:
        """Return the changes of a kernel's state for another number of kept weights.

        Args:
            scores, state: As for a call.
            kept: The wanted number of ones, an integer.

        Raises:
            ValueError: There is no such mask.
        """
        return {"quota": np.int32(kept)}

    def assigned(self, mask: np.ndarray) -> dict[str, Any]:
        """Return the changes of a kernel's state for a given mask, except those of quota and threshold.

        Args:
            mask: Array of booleans.

        Raises:
            ValueError: The rule cannot make a mask with so many ones.
        """
        return {}

    def check_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ValueError if a state that was loaded is that of another rule.

        Args:
            state: Dict of tensors, see `init`.
            shape: Shape of the kernel.
        """

    def searched(self, state: dict[str, Tensor]) -> Tensor | None:
        """Return a tensor of booleans: the weights that the rule chooses from. None: all.

        Args:
            state: Dict of tensors, see `init`.
        """
        return None

    def mask_bits(self, size: int, kept: int) -> float:
        """Return the size of a mask in bits, a float.

        Args:
            size: Number of weights of the kernel.
            kept: Number of ones.
        """
        return entropy_bits(size, kept)

    def coding(self, shape: tuple[int, ...], seed: int, stream: int) -> tuple[str, dict] | None:
        """Return how tickets code a kernel's masks: a name in `tickets.coding.CODINGS` and a dict of its settings.

        None: a coding for any mask.

        Args:
            shape, seed, stream: As for `init`.
        """
        return None

    def slope(self, scores: Tensor) -> Tensor:
        """Return the straight-through derivative of the mask by the scores: `sign(S)`, since |S| decides."""
        return ops.sign(scores)

    def get_config(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity, "selector": self.selector}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MaskRule":
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), repr(sorted(self.get_config().items()))))

    def __repr__(self):
        return f"{type(self).__name__}({self.sparsity!r}, selector={self.selector!r})"


def first_scores(mask):
    """Return initial scores that give a mask: 1.0 where it is true, else 0.99."""
    return np.where(mask, np.float32(_KEPT_SCORE), np.float32(_PRUNED_SCORE))


def largest(values, kept):
    """Return the mask of the `kept` largest entries of an array; ties keep the lower flat index."""
    flat = values.ravel()
    if not kept:
        return np.zeros(values.shape, bool)
    cut = np.partition(flat, -kept)[-kept]
    mask = flat > cut
    mask[np.flatnonzero(flat == cut)[: kept - np.count_nonzero(mask)]] = True
    return mask.reshape(values.shape)


def smallest_kept(scores, kept):
    """Return the bits of the smallest of the `kept` largest magnitudes of a float32 array: the threshold."""
    if not kept:
        return np.int32(2**31 - 1)
    keys = np.abs(scores).ravel().view(np.int32)  # an array of its own
    keys.partition(-kept)
    return keys[-kept]


def is_of_largest(mask, scores, threshold):
    """Return whether a mask is that of the largest magnitudes; of equal ones those with the lower flat index.

    Args:
        mask, scores: Arrays of one shape, of booleans and float32.
        threshold: What `smallest_kept` returns for as many ones as the mask has.
    """
    parts = [slice(begin, begin + _BLOCK) for begin in range(0, mask.size, _BLOCK)]
    mask, scores = mask.ravel(), scores.ravel()
    above = sum(np.count_nonzero(np.abs(scores[part]).view(np.int32) > threshold) for part in parts)
    room = np.count_nonzero(mask) - above  # for those at the threshold
    for part in parts:
        keys = np.abs(scores[part]).view(np.int32)
        ties = mask[part][keys == threshold]
        if not mask[part][keys > threshold].all() or not ties[:room].all():
            return False
        room -= min(room, ties.size)
    return True
