"""Transposed and separable convolutions with frozen random kernels."""

import math
import types

import keras

from keras_mpt.layers.base import MPTLayer


class MPTTransposedConv(MPTLayer):
    """Mixin of the transposed convolutions, whose kernels have the filters before the channels."""

    def _fan_in(self, shape, kernel="kernel"):
        return math.prod(shape[:-2]) * shape[-1]

    def _input_axis(self, kernel="kernel"):
        return -1


class MPTSeparableConv(MPTLayer):
    """Mixin of the separable convolutions, which have two kernels."""

    _kernels = types.MappingProxyType({"depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise"})

    def _fan_in(self, shape, kernel="depthwise_kernel"):
        return math.prod(shape[:-2] if kernel == "depthwise_kernel" else shape[:-1])

    def _input_axis(self, kernel="depthwise_kernel"):
        return None if kernel == "depthwise_kernel" else -2


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv1DTranspose(MPTTransposedConv, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, steps, channels)`. Output shape: `(batch, new_steps, filters)`. Kernel:
    `(size, filters, channels)`; `fan_in` counts all but the filters.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv2DTranspose(MPTTransposedConv, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`. Kernel:
    `(height, width, filters, channels)`; `fan_in` counts all but the filters.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv3DTranspose(MPTTransposedConv, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, depth, height, width, channels)`. Output shape: `(batch, new_depth, new_height, new_width,
    filters)`. Kernel: `(depth, height, width, filters, channels)`; `fan_in` counts all but the filters.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTSeparableConv1D(MPTSeparableConv, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with two frozen random kernels, each with its own mask.

    An input quantizer is applied to the inputs of the depthwise kernel only.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, steps, channels)`. Output shape: `(batch, new_steps, filters)`.
    Kernels: `depthwise_kernel` `(size, channels, depth_multiplier)`, `pointwise_kernel`
    `(1, channels * depth_multiplier, filters)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTSeparableConv2D(MPTSeparableConv, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with two frozen random kernels, each with its own mask.

    An input quantizer is applied to the inputs of the depthwise kernel only.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.
    Kernels: `depthwise_kernel` `(height, width, channels, depth_multiplier)`, `pointwise_kernel`
    `(1, 1, channels * depth_multiplier, filters)`.
    """
