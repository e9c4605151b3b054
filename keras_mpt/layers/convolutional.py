"""Convolutions over frozen random kernels."""

import math

import keras
from keras import ops

from keras_mpt.layers.base import MPTLayer


class MPTConv(MPTLayer):
    """Mixin of the convolutions that can pad with another value than zero, so that padded inputs stay binary.

    Args:
        pad_values: What `padding="same"` pads the (quantized) inputs with, as in larq. With 1.0 the inputs of a
            binary convolution are ±1 everywhere.
        *args, **kwargs: See `MPTLayer` and the Keras layer.
    """

    def __init__(self, *args, pad_values=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(pad_values, bool) or not isinstance(pad_values, (int, float)) or not math.isfinite(pad_values):
            raise ValueError(f"`pad_values` must be a finite number. Received: pad_values={pad_values!r}")
        if pad_values != 0 and self.padding != "same":
            raise ValueError(f'`pad_values` needs padding="same". Received: {pad_values=}, padding={self.padding!r}')
        self.pad_values = pad_values
        self._pads_itself = pad_values != 0
        if self._pads_itself:
            self.padding = "valid"  # for Keras' own convolution, which sees the inputs after `_prepare` padded them

    def _fan_in(self, shape):
        return math.prod(shape[:-1])

    def _pad_widths(self, shape):
        """Return (before, after) for every axis of an input of this shape, as TensorFlow's "SAME" pads."""
        widths = [(0, 0)] * len(shape)
        first = 1 if self.data_format == "channels_last" else 2
        window = zip(self.kernel_size, self.strides, self.dilation_rate, strict=True)
        for axis, (kernel, stride, dilation) in enumerate(window, start=first):
            if shape[axis] is None and stride > 1:
                raise ValueError(
                    f"`pad_values` with strides needs a known input size. Received: input shape {tuple(shape)}, "
                    f"strides={self.strides}"
                )
            reach = (kernel - 1) * dilation
            last = 0 if stride == 1 else (shape[axis] - 1) // stride * stride + 1 - shape[axis]
            total = max(reach + last, 0)
            widths[axis] = (total // 2, total - total // 2)
        return widths

    def _prepare(self, inputs, quantizer):
        inputs = super()._prepare(inputs, quantizer)
        if not self._pads_itself:
            return inputs
        return ops.pad(inputs, self._pad_widths(inputs.shape), constant_values=self.pad_values)

    def compute_output_shape(self, input_shape):
        if self._pads_itself:
            widths = self._pad_widths(input_shape)
            input_shape = tuple(n if n is None else n + sum(w) for n, w in zip(input_shape, widths, strict=True))
        return super().compute_output_shape(input_shape)

    def get_config(self):
        config = {**super().get_config(), "pad_values": self.pad_values}
        if self._pads_itself:
            config["padding"] = "same"
        return config


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv1D(MPTConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose kernel is a chosen part of a frozen random one. Arguments: `MPTConv`, `MPTLayer`.

    Input shape: `(batch, steps, channels)`. Kernel: `(size, channels // groups, filters)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv2D(MPTConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel is a chosen part of a frozen random one. Arguments: `MPTConv`, `MPTLayer`.

    Input shape: `(batch, height, width, channels)`. Kernel: `(height, width, channels // groups, filters)`.

    Example:

    >>> layer = keras_mpt.layers.MPTConv2D(
    ...     64, 3, padding="same", sparsity=0.8, input_quantizer="approx_sign", pad_values=1.0, seed=1
    ... )
    >>> layer(np.ones((2, 32, 32, 3), "float32")).shape
    (2, 32, 32, 64)
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv3D(MPTConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose kernel is a chosen part of a frozen random one. Arguments: `MPTConv`, `MPTLayer`.

    Input shape: `(batch, depth, height, width, channels)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTDepthwiseConv2D(MPTConv, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` over a frozen random kernel. Arguments: see `MPTConv` and `MPTLayer`.

    The initializer's name is Keras' `depthwise_initializer`. Kernel: `(height, width, channels, depth_multiplier)`.
    """

    _kernel_argument = "depthwise"

    def _fan_in(self, shape):
        return math.prod(shape[:-2])


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv2DTranspose(MPTLayer, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` over a frozen random kernel. Arguments: see `MPTLayer`.

    Kernel: `(height, width, filters, channels)`; `fan_in` counts height, width and channels.
    """

    def _fan_in(self, shape):
        return math.prod(shape[:-2]) * shape[-1]
