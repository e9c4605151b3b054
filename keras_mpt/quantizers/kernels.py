"""Kernel quantizers, which compute the effective kernel from a frozen kernel and a mask.

A kernel quantizer is called as `quantizer(kernel, mask, kept)` with the frozen kernel W (float32), the subnet mask M
(float32 of 0 and 1, in the shape of W) and the number of ones in M (an int32 scalar), and returns the effective kernel
in the shape and dtype of W. The layer defines the gradient of the scores, and quantizers have none.
"""

import keras
from keras import ops

from keras_mpt.quantizers.base import Quantizer, positive_float


class KernelQuantizer(Quantizer):
    """Base class of the kernel quantizers.

    Forward: `quantizer(kernel, mask, kept)`, the effective kernel of the layer.
    Gradient: none. The layer defines that of the scores; see `MPTLayer`.

    With `scales`, a quantizer computes the same kernel from the signs of the kept weights only, after `frozen(scales)`.
    For a quantizer that multiplies the signs by a single scale, a ticket stores the scale and the signs. For others, it
    stores the values of the kept weights.

    Attributes:
        scale_count: Number of scales; 0: the kernel needs the values of the kept weights. 1: it is
            `scale * sign(W) * M`.

    Shapes:
        Kernel and mask of one shape, `kept` a scalar; the result has the kernel's shape.
    """

    scale_count = 0

    def scales(self, kernel, mask, kept):
        """Return the scales of the kernel, a tuple of `scale_count` scalar tensors.

        Args:
            kernel, mask, kept: Arguments of a call.
        """
        return ()

    def frozen(self, scales):
        """Return a quantizer that uses these scales instead of computing them from the kernel.

        Args:
            scales: Sequence of `scale_count` numbers, or None for a quantizer that computes them.
        """
        return self

    def __call__(self, kernel, mask, kept):
        """Return the effective kernel, in the shape and dtype of `kernel`.

        Args:
            kernel: The frozen kernel W, a float32 tensor.
            mask: The mask M, a float32 tensor of zeros and ones in the shape of W.
            kept: Number of ones in M, an int32 scalar.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="keras_mpt")
class ScaledSign(KernelQuantizer):
    """Biprop's binary kernel: the signs of the kept entries, times one scale per layer.

    Forward: `alpha * sign(W * M)`, `alpha = sum(abs(W * M)) / sum(M)`.
    Of all scales, this alpha brings the result closest to `W * M` in the squared error.

    Args:
        scale: A fixed alpha, such as a loaded ticket has; None computes it from the kernel.

    Raises:
        ValueError: `scale` is neither a number >= 0 nor None.

    Shapes:
        Kernel and mask of one shape, `kept` a scalar; the result has the kernel's shape.

    Reference:
        Diffenderfer and Kailkhura, "Multi-Prize Lottery Ticket Hypothesis: Finding Accurate Binary Neural Networks by
        Pruning A Randomly Weighted Network", ICLR 2021, algorithm 1 (biprop), https://arxiv.org/abs/2103.09377

    Examples:
        >>> kernel, mask = keras.ops.array([-0.25, 0.75, 2.0]), keras.ops.array([1.0, 1.0, 0.0])
        >>> keras.ops.convert_to_numpy(ScaledSign()(kernel, mask, 2)).tolist()
        [-0.5, 0.5, 0.0]
    """

    precision = 1
    scale_count = 1

    def __init__(self, scale=None):
        self.scale = positive_float("scale", scale, or_zero=True, or_none=True)

    def __call__(self, kernel, mask, kept):
        pruned = kernel * mask
        return self._alpha(pruned, kept) * ops.sign(pruned)

    def alpha(self, kernel, mask, kept):
        """Return the scale, by default the mean magnitude of the kept entries, as a scalar."""
        return self._alpha(kernel * mask, kept)

    def scales(self, kernel, mask, kept):
        return (self.alpha(kernel, mask, kept),)

    def frozen(self, scales):
        (scale,) = scales or (None,)
        return type(self)(scale)

    def _alpha(self, pruned, kept):
        if self.scale is not None:
            return ops.convert_to_tensor(self.scale, dtype=pruned.dtype)
        return ops.sum(ops.abs(pruned)) / ops.cast(ops.maximum(kept, 1), pruned.dtype)  # 0 where nothing is kept


@keras.saving.register_keras_serializable(package="keras_mpt")
class Identity(KernelQuantizer):
    """Edge-Popup's kernel: the kept entries at their own values.

    Forward: `W * M`.

    Shapes:
        Kernel and mask of one shape; so has the result. `kept` is not used.

    Reference:
        Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020, section 3 (edge-popup),
        https://arxiv.org/abs/1911.13299

    Examples:
        >>> kernel, mask = keras.ops.array([-0.25, 0.75, 2.0]), keras.ops.array([1.0, 1.0, 0.0])
        >>> keras.ops.convert_to_numpy(Identity()(kernel, mask, 2)).tolist()
        [-0.25, 0.75, 0.0]
    """

    precision = 32

    def __call__(self, kernel, mask, kept):
        return kernel * mask
