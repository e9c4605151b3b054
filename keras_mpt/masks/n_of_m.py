"""n:m sparsity: the same number of kept weights in every group."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.arguments import check_choice, check_integer, received
from keras_mpt.masks.rule import MaskRule
from keras_mpt.ops import magnitude_bits, n_of_m_mask, to_numpy

_LONGEST = 32  # the ranks are found by comparing each pair of a group


@keras.saving.register_keras_serializable(package="keras_mpt")
class NofM(MaskRule):
    """Keep exactly n of each m weights: in each group those with the largest `|scores|`; ties keep the lower index.

    A group is m consecutive input channels, starting at a multiple of m, for one output at one position of the kernel:
    along the second last axis of a kernel `(..., inputs, outputs)`, as hardware for 2:4 sparsity requires. With
    `axis="flat"`, it is m weights with consecutive flat indices, for any kernel.

    Gradient: `dL/dS = dL/dkernel * W * sign(S)` for every entry, kept or not, as for `TopK`.

    In a ticket, a mask takes `log2(C(m, n)) / m` bits per weight: 0.646 for 2 of 4, 0.5 for 1 or 3 of 4. The sparsity
    is fixed at `1 - n / m`.

    Source: Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    arXiv:2102.04010, for weights that are learned.

    Args:
        n: Number of kept weights per group, an integer from 1 to `m - 1`.
        m: Number of weights per group, an integer from 2 to 32. It must divide the number of input channels.
        axis: `"inputs"` or `"flat"`, the kind of groups.

    Raises:
        ValueError: An argument is not as described; when a layer is built: `m` does not divide the channels (the
            weights for `"flat"`), or the kernel has its inputs elsewhere, as those of embeddings, depthwise and
            transposed convolutions.

    Examples:
        >>> MPTConv2D(64, 3, mask=keras_mpt.masks.NofM(2, 4))
    """

    def __init__(self, n: int, m: int, axis: str = "inputs") -> None:
        check_integer("m", m, 2, _LONGEST)
        check_integer("n", n, 1, m - 1)
        check_choice("axis", axis, ["inputs", "flat"])
        super().__init__(1 - n / m)
        self.n, self.m, self.axis = int(n), int(m), axis

    def init(self, shape: tuple[int, ...], seed: int = 0, stream: int = 0, inputs: int = -2) -> dict[str, Any]:
        if self.axis == "inputs" and inputs != -2:
            raise ValueError(
                "Groups are along the axis before the last, where this kernel does not have its input channels: use "
                f'axis="flat". Received: a kernel of shape {tuple(shape)}'
            )
        size = shape[-2] if self.axis == "inputs" else math.prod(shape)
        if size % self.m:
            what = "input channels" if self.axis == "inputs" else "weights"
            raise ValueError(f"`m` must divide the number of {what}, {size}. {received('m', self.m)}")
        return {**super().init(shape, seed, stream, inputs), "quota": np.int32(self._kept(shape))}

    def __call__(
        self, scores: Tensor, state: dict[str, Tensor], training: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        mask, invalid = n_of_m_mask(magnitude_bits(scores), self.n, self.m, self._stride(scores.shape))
        # Not the quota, which `set_weights` may have copied from a layer with another rule.
        return mask, ops.convert_to_tensor(self._kept(scores.shape), dtype="int32"), {"nan_steps": invalid}

    def resized(self, scores: Tensor, state: dict[str, Tensor], kept: int) -> dict[str, Any]:
        """Return no changes for the number of ones that all masks have.

        Raises:
            ValueError: It is another one.
        """
        always = self._kept(scores.shape)
        if kept != always:
            raise ValueError(
                f"The rule {self!r} always has {always} of {math.prod(scores.shape)} weights. "
                f"Received: a sparsity that keeps {kept}"
            )
        return {}

    def check_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> None:
        quota, always = int(to_numpy(state["quota"])), self._kept(shape)
        if quota != always:
            raise ValueError(f"Masks of the rule {self!r} keep {always} weights. Received: a number of {quota}")

    def _kept(self, shape):
        """Return the number of ones of all masks of this shape."""
        return math.prod(shape) // self.m * self.n

    def _stride(self, shape):
        """Return the distance between the flat indices of a group's entries."""
        return shape[-1] if self.axis == "inputs" else 1

    def mask_bits(self, size: int, kept: int) -> float:
        return size / self.m * math.log2(math.comb(self.m, self.n))

    def coding(self, shape: tuple[int, ...], seed: int, stream: int) -> tuple[str, dict]:
        return "groups", {"n": self.n, "m": self.m, "stride": self._stride(shape)}

    def get_config(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m, "axis": self.axis}

    def __repr__(self):
        return f"NofM({self.n}, {self.m}, axis={self.axis!r})"
