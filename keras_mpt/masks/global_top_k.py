"""One threshold for all kernels of a model: global pruning."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.arguments import received
from keras_mpt.masks.rule import SELECTORS, MaskRule
from keras_mpt.ops import has_nan, kept_count, magnitude_bits, mask_at, split_kept


@keras.saving.register_keras_serializable(package="keras_mpt")
class GlobalTopK(MaskRule):
    """Keep the `n - floor(sparsity * n)` largest `|scores|` of the `n` weights of all kernels that share the rule.

    All kernels of a model with equal rules share the rule, also after loading or cloning the model. The threshold is
    computed exactly at every step, before the first of the layers is called. The scores decide how many weights each
    kernel keeps. If it keeps none, it is 0 (see `callbacks.CheckScores`). Ties keep the layer whose name comes first,
    then the lower flat index.

    The model of a layer is the outermost one in which it was called, with everything connected to it in Keras' graph. A
    layer on its own counts as a model.

    Source: Diffenderfer et al. 2021, "A Winning Hand: Compressing Deep Networks Can Improve Out-Of-Distribution
    Robustness", arXiv:2106.09129 (global Biprop), which starts with half of the weights: see
    `callbacks.SparsitySchedule`.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: Method to find the threshold, see `TopK`.
        group: Name that distinguishes several such rules in a model.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> rule = keras_mpt.masks.GlobalTopK(0.8)
        >>> model = keras.Sequential([MPTConv2D(64, 3, mask=rule), keras.layers.Flatten(), MPTDense(10, mask=rule)])
    """

    ranks_magnitudes = True
    shared = True

    def __init__(self, sparsity: float, selector: str = "search", group: str = "global") -> None:
        super().__init__(sparsity, selector)
        if not isinstance(group, str):
            raise ValueError(f"`group` must be a name. {received('group', group)}")
        self.group = group

    def init(self, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the initial state of a kernel, see `MaskRule`.

        Only the sum of the quotas counts. They are -1 until they are set; until then, `sparsity` determines the number
        of kept weights, which depends on the other kernels. `empty_steps` counts steps without a kept weight.
        """
        return {**super().init(shape, *args, **kwargs), "empty_steps": np.int32(0)}

    def together(self, scores: list[Tensor], states: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return how many weights each kernel keeps, the threshold, and how many are not below it."""
        keys = [magnitude_bits(each) for each in scores]
        quotas = ops.stack([state["quota"] for state in states])
        unset = kept_count(sum(math.prod(each.shape) for each in keys), self.sparsity)
        total = ops.where(ops.any(ops.less(quotas, 0)), unset, ops.sum(quotas))
        threshold, count = SELECTORS[self.selector](keys, ops.cast(total, "int32"), states[0]["threshold"])
        kept, counts = split_kept(keys, ops.cast(total, "int32"), threshold, count)
        return [{"kept": kept[i], "threshold": threshold, "count": counts[i]} for i in range(len(keys))]

    def __call__(
        self, scores: Tensor, state: dict[str, Tensor], training: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        keys, kept = magnitude_bits(scores), state["kept"]
        mask = mask_at(keys, kept, state["threshold"], state["count"])
        changes = {"threshold": state["threshold"], "nan_steps": has_nan(keys), "empty_steps": ops.equal(kept, 0)}
        return mask, kept, changes

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "group": self.group}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GlobalTopK":
        return cls(**{name: value for name, value in config.items() if name != "size"})  # as files of 0.1 have it

    def __repr__(self):
        return f"GlobalTopK({self.sparsity!r}, selector={self.selector!r}, group={self.group!r})"
