"""Activation quantizers: few-bit values forward, a pseudo-derivative backward.

Their names, settings, values and gradients are larq's (https://docs.larq.dev/larq/api/quantizers), computed with
`keras.ops`, so that they work on every Keras backend. In all formulas `dL/dy` is the gradient that arrives.

Common to all of them:

- The result has the shape and dtype of the input (float32, bfloat16, float16, float64).
- A called quantizer passes NaN on, as larq's do, so that a diverged training run shows. The `forward` of the sign and
  threshold functions alone, which a deployed model uses, maps NaN to a quantized value.
- Subnormal inputs count as zero or as themselves, whichever the backend's arithmetic does (TensorFlow and JAX flush
  them, PyTorch keeps them), which matters only where a function jumps at zero.
"""

import keras
import numpy as np
from keras import ops

from keras_mpt.arguments import check_bool, check_count
from keras_mpt.ops import straight_through
from keras_mpt.quantizers.base import Quantizer, positive_float

_LARGEST_FLOAT16 = 65504
_MOST_BITS = 32


class ActivationQuantizer(Quantizer):
    """Base class of the activation quantizers: `forward` is the function, `slope` replaces its derivative.

    Forward: `y = forward(x)`.
    Gradient: `dL/dx = dL/dy * slope(x)`.

    A call on a symbolic tensor of a functional model adds a `keras.layers.Activation` with the quantizer.

    Shapes:
        Any; the output has the input's.
    """

    def forward(self, x):
        """Return the quantized `x` by plain `keras.ops`, without a gradient of its own, also for symbolic tensors.

        Args:
            x: Tensor of floats, of any shape.

        Returns:
            A tensor in the shape and dtype of `x`.
        """
        raise NotImplementedError

    def slope(self, x):
        """Return what replaces the derivative at `x`.

        Args:
            x: Tensor of floats, of any shape.

        Returns:
            A tensor in the shape and dtype of `x`.
        """
        raise NotImplementedError

    def __call__(self, x):
        if isinstance(x, keras.KerasTensor):
            return keras.layers.Activation(self)(x)
        return straight_through(self._value, self.slope, ops.convert_to_tensor(x))

    def _value(self, x):
        return ops.where(ops.isnan(x), x, self.forward(x))


def _sign(x):
    # Two scalars behind one comparison: the form that larq-compute-engine recognizes as a binarization. They are of
    # numpy: numbers of Python get the dtype of Keras' global `floatx`, and converters lack the operation for float64.
    return ops.cast(ops.where(x >= 0, np.float32(1), np.float32(-1)), x.dtype)


def _within(x, clip_value):
    """Return 1 where `abs(x) <= clip_value`, else 0; 1 everywhere where `clip_value` is None."""
    return ops.ones_like(x) if clip_value is None else ops.cast(ops.abs(x) <= clip_value, x.dtype)


@keras.saving.register_keras_serializable(package="keras_mpt")
class SteSign(ActivationQuantizer):
    """Sign with the straight-through estimator, clipped.

    Forward: `y = 1 where x >= 0, -1 where x < 0`.
    Gradient: `dL/dx = dL/dy where abs(x) <= clip_value, else 0`.

    Args:
        clip_value: Number >= 0 beyond which the gradient is zero; None passes every gradient.

    Raises:
        ValueError: An argument is not as described.

    Shapes:
        Any; the output has the input's.

    Reference:
        Hubara et al., "Binarized Neural Networks", NeurIPS 2016, https://arxiv.org/abs/1602.02830

    Examples:
        >>> keras.ops.convert_to_numpy(SteSign()([-0.5, 0.0, 2.0])).tolist()
        [-1.0, 1.0, 1.0]
    """

    precision = 1

    def __init__(self, clip_value=1.0):
        self.clip_value = positive_float("clip_value", clip_value, or_zero=True, or_none=True)

    def forward(self, x):
        return _sign(x)

    def slope(self, x):
        return _within(x, self.clip_value)


@keras.saving.register_keras_serializable(package="keras_mpt")
class ApproxSign(ActivationQuantizer):
    """Sign with the derivative of a piecewise quadratic: the activation of MPT-1/1 networks.

    Forward: `y = 1 where x >= 0, -1 where x < 0`.
    Gradient: `dL/dx = dL/dy * 2 * (1 - abs(x)) where abs(x) <= 1, else 0`.

    Shapes:
        Any; the output has the input's.

    Reference:
        Liu et al., "Bi-Real Net", ECCV 2018, section 3.3, https://arxiv.org/abs/1808.00278

    Examples:
        >>> keras.ops.convert_to_numpy(ApproxSign()([-0.5, 0.0, 2.0])).tolist()
        [-1.0, 1.0, 1.0]
    """

    precision = 1

    def forward(self, x):
        return _sign(x)

    def slope(self, x):
        # Not relu(1 - |x|): at NaN this gives 0, as a clipped estimator should.
        magnitude = ops.abs(x)
        return ops.where(magnitude <= 1, 2 * (1 - magnitude), ops.zeros_like(x))


@keras.saving.register_keras_serializable(package="keras_mpt")
class SwishSign(ActivationQuantizer):
    """Sign with the derivative of SignSwish, which is smooth and slightly negative around `abs(beta * x) = 3.4`.

    Forward: `y = 1 where x >= 0, -1 where x < 0`.
    Gradient: `dL/dx = dL/dy * beta * (2 - beta*x * tanh(beta*x / 2)) / (1 + cosh(beta*x))`,
    and its limit, zero, for infinite `beta * x` (larq gives NaN there).

    Args:
        beta: Number > 0; the larger, the narrower the gradient's peak.

    Raises:
        ValueError: An argument is not as described.

    Shapes:
        Any; the output has the input's.

    Reference:
        Darabi et al., "BNN+: Improved Binary Network Training", 2018, https://arxiv.org/abs/1812.11800

    Examples:
        >>> keras.ops.convert_to_numpy(SwishSign(beta=2.0)([-0.5, 0.0, 2.0])).tolist()
        [-1.0, 1.0, 1.0]
    """

    precision = 1

    def __init__(self, beta=5.0):
        self.beta = positive_float("beta", beta)

    def forward(self, x):
        return _sign(x)

    def slope(self, x):
        # cosh overflows long before 1000 in every float type, which makes the quotient zero; unclipped, an infinite
        # numerator would make it NaN.
        z = ops.clip(self.beta * x, -1000.0, 1000.0)
        return self.beta * (2 - z * ops.tanh(0.5 * z)) / (1 + ops.cosh(z))


@keras.saving.register_keras_serializable(package="keras_mpt")
class SteHeaviside(ActivationQuantizer):
    """Step between 0 and 1 with the straight-through estimator, clipped.

    Forward: `y = 1 where x > 0, 0 where x <= 0`.
    Gradient: `dL/dx = dL/dy where abs(x) <= clip_value, else 0`.

    Args:
        clip_value: Number >= 0 beyond which the gradient is zero; None passes every gradient.

    Raises:
        ValueError: An argument is not as described.

    Shapes:
        Any; the output has the input's.

    Reference:
        The estimator is that of Hubara et al., NeurIPS 2016, https://arxiv.org/abs/1602.02830

    Examples:
        >>> keras.ops.convert_to_numpy(SteHeaviside()([-0.5, 0.0, 2.0])).tolist()
        [0.0, 0.0, 1.0]
    """

    precision = 1

    def __init__(self, clip_value=1.0):
        self.clip_value = positive_float("clip_value", clip_value, or_zero=True, or_none=True)

    def forward(self, x):
        return ops.cast(x > 0, x.dtype)

    def slope(self, x):
        return _within(x, self.clip_value)


@keras.saving.register_keras_serializable(package="keras_mpt")
class SteTern(ActivationQuantizer):
    """Ternary values with the straight-through estimator, clipped.

    Forward: `y = (1 where x >= t, else 0) - (1 where x <= -t, else 0)`, with `t = threshold_value`, or
    `t = 0.7 * mean(abs(x))` over the whole tensor where `ternary_weight_networks`.
    Gradient: `dL/dx = dL/dy where abs(x) <= clip_value, else 0`; the threshold carries none.

    Args:
        threshold_value: Number >= 0, the threshold `t`; unused where `ternary_weight_networks`.
        ternary_weight_networks: Whether the threshold follows the mean magnitude.
        clip_value: Number >= 0 beyond which the gradient is zero; None passes every gradient.

    Raises:
        ValueError: An argument is not as described.

    Shapes:
        Any; the output has the input's.

    Reference:
        Li et al., "Ternary Weight Networks", 2016, https://arxiv.org/abs/1605.04711

    Examples:
        >>> keras.ops.convert_to_numpy(SteTern()([-0.5, 0.01, 2.0])).tolist()
        [-1.0, 0.0, 1.0]
    """

    precision = 2

    def __init__(self, threshold_value=0.05, ternary_weight_networks=False, clip_value=1.0):
        self.threshold_value = positive_float("threshold_value", threshold_value, or_zero=True)
        self.ternary_weight_networks = check_bool("ternary_weight_networks", ternary_weight_networks)
        self.clip_value = positive_float("clip_value", clip_value, or_zero=True, or_none=True)

    def forward(self, x):
        threshold = 0.7 * ops.mean(ops.abs(x)) if self.ternary_weight_networks else self.threshold_value
        threshold = ops.cast(threshold, x.dtype)
        # A difference instead of nested conditions: zero stays zero at threshold 0.
        return ops.cast(x >= threshold, x.dtype) - ops.cast(x <= -threshold, x.dtype)

    def slope(self, x):
        return _within(x, self.clip_value)


@keras.saving.register_keras_serializable(package="keras_mpt")
class MagnitudeAwareSign(ActivationQuantizer):
    """Sign scaled by each channel's mean magnitude, with the straight-through estimator, clipped.

    Forward: `y = a * (1 where x >= 0, -1 where x < 0)`, `a = mean(abs(x))` over all axes but the last.
    Gradient: `dL/dx = dL/dy * a where abs(x) <= clip_value, else 0`; the scale `a` carries none of its own.

    The scale depends on the other samples of the batch, also in inference.

    Args:
        clip_value: Number >= 0 beyond which the gradient is zero; None passes every gradient.

    Raises:
        ValueError: An argument is not as described.

    Shapes:
        Any, channels last; the output has the input's.

    Reference:
        Liu et al., "Bi-Real Net", ECCV 2018, section 3.3, https://arxiv.org/abs/1808.00278

    Examples:
        >>> keras.ops.convert_to_numpy(MagnitudeAwareSign()([[-0.5, 1.0], [0.25, 2.0]])).tolist()
        [[-0.375, 1.5], [0.375, 1.5]]
    """

    precision = 1

    def __init__(self, clip_value=1.0):
        self.clip_value = positive_float("clip_value", clip_value, or_zero=True, or_none=True)

    def forward(self, x):
        return self._scale(x) * _sign(x)

    def slope(self, x):
        # Selected, not multiplied: an infinite scale times a clipped zero would be NaN.
        return ops.where(_within(x, self.clip_value) > 0, self._scale(x), ops.zeros_like(x))

    def _scale(self, x):
        axes = tuple(range(len(x.shape) - 1))
        return ops.mean(ops.abs(x), axis=axes) if axes else ops.abs(x)


@keras.saving.register_keras_serializable(package="keras_mpt")
class DoReFa(ActivationQuantizer):
    """`k_bit` evenly spaced values in [0, 1], with the straight-through estimator.

    Forward: `y = round(n * clip(x, 0, 1)) / n`, with `n = 2**k_bit - 1` and halves rounded to even.
    Gradient: `dL/dx = dL/dy where 0 <= x <= 1, else 0`.

    Args:
        k_bit: Integer from 1 to 32, bits per value.
        mode: `"activations"`, the only one. larq's other mode quantizes trained weights, of which a network of
            frozen weights has none.

    Shapes:
        Any; the output has the input's.

    Raises:
        ValueError: An argument is not as described.

    Reference:
        Zhou et al., "DoReFa-Net", 2016, section 2.4, https://arxiv.org/abs/1606.06160

    Examples:
        >>> (3 * keras.ops.convert_to_numpy(DoReFa(k_bit=2)([-0.5, 0.4, 2.0]))).tolist()
        [0.0, 1.0, 3.0]
    """

    def __init__(self, k_bit=2, mode="activations"):
        check_count("k_bit", k_bit)
        if k_bit > _MOST_BITS:
            raise ValueError(f"`k_bit` must be at most {_MOST_BITS}. Received: {k_bit=}")
        if not isinstance(mode, str) or mode != "activations":
            raise ValueError(
                "`mode` must be 'activations' (larq's 'weights' is for trained weights, and those here are frozen). "
                f"Received: {mode!r}"
            )
        self.k_bit = int(k_bit)
        self.mode = mode

    @property
    def precision(self):
        return self.k_bit

    def forward(self, x):
        n = 2**self.k_bit - 1
        if n > _LARGEST_FLOAT16 and keras.backend.standardize_dtype(x.dtype) == "float16":
            return ops.cast(self.forward(ops.cast(x, "float32")), "float16")
        return ops.round(ops.clip(x, 0.0, 1.0) * n) / n

    def slope(self, x):
        return ops.cast(ops.logical_and(x >= 0, x <= 1), x.dtype)
