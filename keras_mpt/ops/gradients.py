"""Straight-through gradients."""

from collections.abc import Callable

from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.ops.backend import no_gradient


def straight_through(value: Callable, slope: Callable, x: Tensor, *constants: Tensor) -> Tensor:
    """Return `value(x, *constants)` with the gradient of a straight-through estimator.

    Forward: `y = value(x, *constants)`.
    Gradient: `dL/dx = dL/dy * slope(x, *constants)`; the constants get none.

    Args:
        value: Function of `x` and the constants. Its result has the shape and dtype of `x`.
        slope: Function of the same arguments that returns the estimated derivative, in the same shape.
        x: Float tensor to differentiate with respect to.
        *constants: Further tensors, passed to both functions.

    Returns:
        A tensor, exactly `value(x, *constants)`.
    """

    @ops.custom_gradient
    def estimator(x, *constants):
        def gradient(*args, upstream=None):
            if upstream is None:  # PyTorch passes it as a keyword, others as the only argument
                (upstream,) = args
            return (upstream * slope(x, *constants), *(no_gradient(c) for c in constants))

        return value(x, *constants), gradient

    return estimator(x, *constants)
