"""Convolutions with frozen random kernels."""

import math
import numbers
import types

import keras
from keras import ops

from keras_mpt.arguments import is_count, is_number
from keras_mpt.layers.base import MPTLayer


class MPTConv(MPTLayer):
    """Mixin of the convolutions, with explicit padding and any padding value.

    Args:
        padding: A name that the Keras layer knows, such as `"valid"` (default) or `"same"`; or the number of entries
            to add on both sides of the quantized inputs, an integer or a tuple with one for each spatial axis. That is
            how PyTorch pads; `"same"` with strides may pad less before than after.
        pad_values: Value of the padding, as in larq. With 1.0, all inputs of a binary convolution are ±1.
        *args, **kwargs: See `MPTLayer` and the Keras layer.

    Raises:
        ValueError: `padding` is neither a name nor integers >= 0, one for each spatial axis; `pad_values` is not
            finite, or not 0 with a `padding` that has a name other than `"same"`; or see `MPTLayer`.
    """

    def __init__(self, *args, pad_values=0.0, **kwargs):
        kwargs = self._by_name(args, kwargs)
        padding = kwargs.pop("padding", "valid")
        named = isinstance(padding, str)
        super().__init__(**kwargs, padding=padding if named else "valid")
        if not is_number(pad_values):
            raise ValueError(f"`pad_values` must be a finite number. Received: pad_values={pad_values!r}")
        if pad_values != 0 and named and self.padding != "same":
            raise ValueError(
                '`pad_values` needs padding="same" or explicit padding. '
                f"Received: {pad_values=}, padding={self.padding!r}"
            )
        self.pad_values = float(pad_values)
        self._given_padding = self.padding if named else _one_for_each_axis(padding, self.rank)
        self._pads_itself = not named or pad_values != 0
        if self._pads_itself:
            self.padding = "valid"  # for Keras' own convolution, which sees the inputs after `_prepare` padded them

    def pad_widths(self, shape):
        """Return the padding before and after each axis of an input.

        Args:
            shape: Shape of the input, including batch and channels; None where a size is unknown.

        Returns:
            List of pairs of integers, one for each axis.

        Raises:
            ValueError: The padding is `"same"` with strides, and a size that it depends on is unknown.
        """
        widths = [(0, 0)] * len(shape)
        if self._given_padding == "valid":
            return widths
        first = 1 if self.data_format == "channels_last" else 2
        if self._given_padding == "causal":
            widths[first] = (self.dilation_rate[0] * (self.kernel_size[0] - 1), 0)
            return widths
        if self._given_padding != "same":
            widths[first : first + self.rank] = [(width, width) for width in self._given_padding]
            return widths
        window = zip(self.kernel_size, self.strides, self.dilation_rate, strict=True)
        for axis, (kernel, stride, dilation) in enumerate(window, start=first):
            reach = (kernel - 1) * dilation
            if not reach:
                continue
            if shape[axis] is None and stride > 1:
                raise ValueError(
                    f"`pad_values` with strides needs a known input size. Received: input shape {tuple(shape)}, "
                    f"strides={self.strides}"
                )
            last = 0 if stride == 1 else (shape[axis] - 1) // stride * stride + 1 - shape[axis]
            total = max(reach + last, 0)
            widths[axis] = (total // 2, total - total // 2)
        return widths

    def _prepare(self, inputs, quantizer):
        inputs = super()._prepare(inputs, quantizer)
        if not self._pads_itself:
            return inputs
        if keras.backend.is_int_dtype(inputs.dtype):  # such as pixels, which may not hold what pads them
            inputs = ops.cast(inputs, self.compute_dtype)
        widths = self.pad_widths(inputs.shape)
        return ops.pad(inputs, widths, constant_values=self.pad_values) if any(map(any, widths)) else inputs

    def compute_output_shape(self, input_shape):
        if self._pads_itself:
            widths = self.pad_widths(input_shape)
            input_shape = tuple(n if n is None else n + sum(w) for n, w in zip(input_shape, widths, strict=True))
        return super().compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "padding": self._given_padding, "pad_values": self.pad_values}


class MPTDepthwiseConv(MPTConv):
    """Mixin of the depthwise convolutions, in which each output has one input channel."""

    _kernels = types.MappingProxyType({"kernel": "depthwise"})

    def _fan_in(self, shape, kernel="kernel"):
        return math.prod(shape[:-2])

    def _input_axis(self, kernel="kernel"):
        return None


def _one_for_each_axis(padding, rank):
    widths = padding if isinstance(padding, (tuple, list)) else (padding,) * rank
    fine = (is_count(n) or (isinstance(n, numbers.Integral) and n == 0 and not isinstance(n, bool)) for n in widths)
    if len(widths) != rank or not all(fine):
        raise ValueError(
            f"`padding` must be a name, an integer >= 0, or a tuple of {rank} such integers, one for each spatial "
            f"axis. Received: padding={padding!r}"
        )
    return tuple(int(n) for n in widths)


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv1D(MPTConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTConv`.

    Raises:
        ValueError: See `MPTConv` and `MPTLayer`.

    Input shape: `(batch, steps, channels)`. Output shape: `(batch, new_steps, filters)`. Kernel:
    `(size, channels // groups, filters)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv2D(MPTConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTConv`.

    Raises:
        ValueError: See `MPTConv` and `MPTLayer`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`. Kernel:
    `(height, width, channels // groups, filters)`.

    Examples:
        >>> layer = keras_mpt.layers.MPTConv2D(
        ...     64, 3, padding="same", sparsity=0.8, input_quantizer="approx_sign", pad_values=1.0, seed=1
        ... )
        >>> layer(np.ones((2, 32, 32, 3), "float32")).shape
        (2, 32, 32, 64)
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTConv3D(MPTConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTConv`.

    Raises:
        ValueError: See `MPTConv` and `MPTLayer`.

    Input shape: `(batch, depth, height, width, channels)`. Output shape: `(batch, new_depth, new_height, new_width,
    filters)`. Kernel: `(depth, height, width, channels // groups, filters)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTDepthwiseConv2D(MPTDepthwiseConv, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a masked, frozen random kernel, drawn by `depthwise_initializer`.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTConv`.

    Raises:
        ValueError: See `MPTConv` and `MPTLayer`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, channels *
    depth_multiplier)`. Kernel: `(height, width, channels, depth_multiplier)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTDepthwiseConv1D(MPTDepthwiseConv, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a masked, frozen random kernel, drawn by `depthwise_initializer`.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTConv`.

    Raises:
        ValueError: See `MPTConv` and `MPTLayer`.

    Input shape: `(batch, steps, channels)`. Output shape: `(batch, new_steps, channels * depth_multiplier)`. Kernel:
    `(size, channels, depth_multiplier)`.
    """
