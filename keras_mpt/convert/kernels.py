"""Kernels of MPT layers as files keep them, and the calls of these layers in plain Keras operations."""

import functools

import keras
import numpy as np
from keras import ops

from keras_mpt import _keras, quantizers
from keras_mpt.layers import MPTConv2D, MPTDense, MPTGRUCell, MPTLSTMCell
from keras_mpt.models.copies import copied, copy_state
from keras_mpt.models.plain import bake
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import ApproxSign

NOT_TERNARY = "kept weights differ in magnitude"
_IDLE = (keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
_IDLE += (keras.layers.GaussianNoise, keras.layers.Identity, keras.layers.ActivityRegularization)  # in inference

sign = ApproxSign().forward  # -1 or +1, in the form that larq-compute-engine's converter knows


class Kernel:
    """A kernel of an MPT layer.

    Attributes:
        layer: The layer.
        subnet: Its `Subnet`.
        path: The path of the layer in the model, or of the one around it.
        array: What it convolves or multiplies with, a float32 array, whatever its dtype policy.
        split: `(signs, scales)` if the array is ternary, see `ternary`; else None.
        calls: How often the layer is called, on different tensors.
        format: The `Format` that a target has chosen.
        why: Why not a smaller or faster one; "" if there is no reason.
    """

    def __init__(self, subnet, path):
        self.layer, self.subnet, self.path = subnet.layer, subnet, path
        self.calls, self.format, self.why = 0, Format(), ""

    @property
    def name(self):
        """The name of the layer, or the path of the one around it."""
        return self.layer.name if self.path.endswith(self.layer.name) else self.path

    @functools.cached_property
    def array(self):
        return to_numpy(self.subnet.effective())

    @property
    def parts(self):
        """The arrays that Keras' layer makes of it before it multiplies: gates may have their own."""
        cell, gates = self.layer, {MPTLSTMCell: 4, MPTGRUCell: 3}.get(type(self.layer), 1)
        if gates > 1 and cell.implementation == 1:
            return np.split(self.array, gates, axis=1)
        if type(cell) is MPTGRUCell and self.subnet.name == "recurrent_kernel" and not cell.reset_after:
            return np.split(self.array, [2 * cell.units], axis=1)
        return [self.array]

    @functools.cached_property
    def split(self):
        return ternary(self.array)

    @property
    def takes_signs(self):
        """Whether the layer takes the signs of its inputs."""
        return self.layer.input_quantizer is not None and quantizers.is_sign(self.layer.input_quantizer)


class Format:
    """How a file stores a kernel and computes with it; a subclass for each way.

    Attributes:
        name: As the report shows it.
        int8: Whether the file has the weights as int8.
        binary: Whether the multiply-accumulates are between bits.
    """

    name = "float32"
    int8 = False
    binary = False

    def unfit(self, kernel):
        """Return why a `Kernel` cannot have this format ("" without a reason worth telling), None if it can."""
        return None

    def call(self, kernel, x):
        """Return the outputs of the kernel's layer on `x`, in plain Keras operations.

        Args:
            kernel: A `Kernel`.
            x: What the layer is called on, a symbolic float32 tensor, not quantized yet.
        """
        return call_plain(kernel, x)

    def size(self, kernel):
        """Return how many bytes a kernel takes in the file."""
        return 4 * kernel.array.size

    def store(self, file, kernels):
        """Bring the kernels of this format into their form in a file, after an engine's converter has written it."""


class Quantize(keras.layers.Layer):
    """An activation quantizer in a graph of plain layers: one operation to be found again."""

    def __init__(self, quantizer, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.quantizer = quantizers.plain(quantizer)
        self.takes_signs = quantizers.is_sign(quantizer)

    def call(self, x):
        return self.quantizer(x)


def prepared(kernel, x):
    """Return what the plain layer in the place of an MPT layer is called on: quantized and padded."""
    quantizer = kernel.layer.input_quantizer
    return kernel.layer._prepare(x, None if quantizer is None else Quantize(quantizer))


def call_plain(kernel, x):
    """Return the outputs of an MPT layer as a plain Keras layer with its effective kernel: float, exact.

    The plain layer has the `Kernel` as its attribute `mpt`.
    """
    inputs = prepared(kernel, x)
    if isinstance(kernel.layer, MPTDense) and _is_normalized(inputs):
        inputs = unmerged(inputs)  # merged with a scale, the kernel would have one magnitude no more
    return call_twin(kernel, inputs)


def call_twin(kernel, inputs):
    """Return the outputs of the plain Keras layer on inputs that `prepared` made."""
    twin = kernel.layer.plain(dtype="float32", name=kernel.path.replace("/", "_"))
    twin.mpt = kernel
    outputs = twin(inputs)
    bake(kernel.layer, twin)
    return outputs


def finished(kernel, y):
    """Return the outputs of a layer from what its kernel gave: with bias and activation."""
    layer = kernel.layer
    activation = layer.activation
    if layer.bias is not None:
        y = y + to_numpy(layer.bias, "float32")
    if not isinstance(activation, keras.layers.Layer):
        return y if activation is keras.activations.linear else activation(y)
    twin = copied(activation, dtype="float32")
    y = twin(y)
    if activation.built:
        copy_state(activation, twin)
    return y


def unmerged(x):
    """Return `x`, between which and what is behind a converter merges nothing."""
    return ops.maximum(x, np.finfo(np.float32).min)


def _is_normalized(x):
    """Return whether a symbolic tensor comes from batch normalization, at most through what does nothing here."""
    operation, inputs = _keras.call_of(x)
    while isinstance(operation, _IDLE):
        operation, inputs = _keras.call_of(inputs[0])
    return isinstance(operation, keras.layers.BatchNormalization)


def why_no_signs(kernel):
    """Return why a layer is not a convolution or dense layer that takes signs with a ternary kernel, None if it is."""
    layer = kernel.layer
    if not isinstance(layer, (MPTConv2D, MPTDense)):
        return f"{type(layer).__name__} has no binary form"
    if layer.input_quantizer is None:
        return "float input"
    if not kernel.takes_signs:
        return f"{type(layer.input_quantizer).__name__} does not give -1 or +1"
    if kernel.split is None:
        return NOT_TERNARY
    if isinstance(layer, MPTConv2D) and layer.groups > 1:
        return f"{layer.groups} groups"
    if isinstance(layer, MPTConv2D) and layer.data_format != "channels_last":
        return "channels first"
    return None


def ternary(kernel):
    """Return `(signs, scales)` of a kernel whose output channels (the last axis) hold -scale, 0 and +scale only.

    Args:
        kernel: float32 array `(..., outputs)`.

    Returns:
        int8 array of -1, 0 and 1, and float32 array of the outputs; None if the kernel is not of this kind. A channel
        of zeros has scale 1.
    """
    magnitudes = np.abs(kernel).reshape(-1, kernel.shape[-1])
    scales = magnitudes.max(axis=0)
    if not np.all((magnitudes == 0) | (magnitudes == scales)):
        return None
    return np.sign(kernel).astype(np.int8), np.where(scales == 0, np.float32(1), scales)


def border_excess(x, widths, excess, kernel, **how):
    """Return what a convolution has too much if its input is padded with a value that is too large by `excess`.

    It does not depend on `x`, but is made of it, lest a converter store one value for each output. All input channels
    have the same border: one stands for all.

    Args:
        x: Symbolic tensor `(batch, height, width, channels)` in the place of the input.
        widths: (before, after) for every axis.
        excess: A number.
        kernel: Array `(height, width, channels, filters)`.
        **how: Further arguments of `keras.ops.conv`.
    """
    one = x[..., :1]
    inside = ops.cast(one < 0, "float32") + ops.cast(one >= 0, "float32")
    border = excess * (1.0 - ops.pad(inside, widths, constant_values=0.0))
    return ops.conv(border, kernel.sum(axis=2, keepdims=True, dtype=np.float64).astype(np.float32), **how)
