"""Top-k selection with a threshold per layer."""

import keras

from keras_mpt._types import Tensor
from keras_mpt.masks.rule import SELECTORS, MaskRule
from keras_mpt.ops import magnitude_bits, top_k_mask


@keras.saving.register_keras_serializable(package="keras_mpt")
class TopK(MaskRule):
    """Keep the `n - floor(sparsity * n)` largest `|scores|` of each layer, exactly; ties keep the lower flat index.

    Gradient: `dL/dS = dL/dkernel * W * sign(S)` for every entry, kept or not; see `MPTLayer`.

    Source: Edge-Popup, Ramanujan et al. 2020, section 3.2, arXiv:1911.13299; also in Biprop, Diffenderfer &
    Kailkhura 2021, algorithm 1, arXiv:2103.09377.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: Method to find the threshold; all give the same mask. `"search"` counts a few times, starting from the
            last step's threshold; `"sort"` sorts the bits of the scores, for devices on which launches dominate.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> MPTConv2D(64, 3, mask=keras_mpt.masks.TopK(0.8, selector="sort"))
    """

    ranks_magnitudes = True

    def __call__(
        self, scores: Tensor, state: dict[str, Tensor], training: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        kept, select = state["quota"], SELECTORS[self.selector]
        mask, threshold, invalid = top_k_mask(magnitude_bits(scores), kept, state["threshold"], select)
        return mask, kept, {"threshold": threshold, "nan_steps": invalid}
