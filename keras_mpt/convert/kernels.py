"""Kernels of MPT layers, formats of kernels in files, and calls of MPT layers as plain Keras operations."""

import functools
import math
import re

import keras
import numpy as np
from keras import ops

from keras_mpt import _keras, quantizers
from keras_mpt.layers import MPTConv2D, MPTDense, MPTDepthwiseConv2D, MPTGRUCell, MPTLSTMCell
from keras_mpt.models.copies import copied, copy_state
from keras_mpt.models.plain import bake
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import ApproxSign

NOT_TERNARY = "kept weights differ in magnitude"
_IDLE = (keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
_IDLE += (keras.layers.GaussianNoise, keras.layers.Identity, keras.layers.ActivityRegularization)  # in inference

sign = ApproxSign().forward  # in the form that larq-compute-engine's converter recognizes


def sparse_size(kernel, itemsize):
    """Return the approximate size of a sparse kernel in bytes: non-zero values, their positions, and ends of rows.

    Args:
        kernel: Array as in the file, with rows along the last axis.
        itemsize: Bytes of a value.
    """
    if kernel.ndim > 4:
        return math.inf  # the DENSIFY of the runtimes gives other values
    kept, width, rows = np.count_nonzero(kernel), kernel.shape[-1], kernel.size // kernel.shape[-1]
    return kept * (itemsize + (1 if width <= 256 else 2)) + rows * (2 if kept < 65536 else 4)


class Kernel:
    """A kernel of an MPT layer.

    Attributes:
        layer: The layer.
        subnet: Its `Subnet`.
        path: Path of the layer, or of the wrapper around it, in the model.
        array: The effective kernel as a float32 array, under any dtype policy.
        split: `(signs, scales)` of a ternary kernel, see `ternary`; None for others.
        calls: Number of calls of the layer on different tensors.
        format: The `Format` chosen by a target.
        why: Reason against a smaller or faster format; "" if there is none.
    """

    def __init__(self, subnet, path):
        self.layer, self.subnet, self.path = subnet.layer, subnet, path
        self.calls, self.format, self.why = 0, Format(), ""

    @property
    def name(self):
        """Name of the layer, or path of the wrapper around it."""
        return self.layer.name if self.path.endswith(self.layer.name) else self.path

    @functools.cached_property
    def array(self):
        return to_numpy(self.subnet.effective())

    @property
    def parts(self):
        """The arrays into which the Keras layer splits the kernel before it multiplies: gates may have their own."""
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
    """Base class of the ways to store a kernel in a file and to compute with it: as float32.

    Attributes:
        name: Name in reports.
        int8: Whether the weights are int8 in the file.
        binary: Whether the multiply-accumulates are between bits.
        lossy: Whether outputs may differ from those of the model.
    """

    name = "float32"
    int8 = False
    binary = False
    lossy = False

    def unfit(self, kernel):
        """Return the reason why a `Kernel` cannot have this format, "" to give none; None if it can."""
        return None

    def call(self, kernel, x):
        """Return the outputs of the layer on `x`, computed by plain Keras operations.

        Args:
            kernel: A `Kernel`.
            x: Input of the layer, a symbolic float32 tensor, not quantized.
        """
        return call_plain(kernel, x)

    def size(self, kernel):
        """Return the size of a kernel in the file, in bytes."""
        return 4 * kernel.array.size

    def store(self, file, kernels):
        """Rewrite the kernels of this format in a file from an engine's converter."""


class Quantize(keras.layers.Layer):
    """An activation quantizer in a graph of plain layers, as a single operation."""

    def __init__(self, quantizer, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.quantizer = quantizers.plain(quantizer)
        self.takes_signs = quantizers.is_sign(quantizer)

    def call(self, x):
        return self.quantizer(x)


class Argmax(keras.Operation):
    """`keras.ops.argmax` as runtimes have it. Keras' tells 0.0 from -0.0, by operations that these lack."""

    def __init__(self, axis, keepdims, name=None):
        super().__init__(name=name)
        self.axis, self.keepdims = axis, keepdims

    def call(self, x):
        import tensorflow as tf

        find = tf.argmin if isinstance(self, Argmin) else tf.argmax
        found = find(x, self.axis, output_type="int32")
        return tf.expand_dims(found, self.axis) if self.keepdims else found


class Argmin(Argmax):
    """`keras.ops.argmin` in the same way."""


def for_runtimes(operation):
    """Return an operation of `keras.ops`, or one in its place that runtimes have."""
    ours = {"Argmax": Argmax, "Argmin": Argmin}.get(type(operation).__name__)
    if ours is None or not type(operation).__module__.startswith("keras.") or operation.axis is None:
        return operation
    return ours(operation.axis, operation.keepdims, operation.name)


def leads_of(operation, x):
    """Return by how much the entry of an argmax leads, as a part of a sample's largest magnitude: a list of one.

    It is empty for other operations, and where rounding cannot make another entry lead.
    """
    ours = for_runtimes(operation)
    if not isinstance(ours, Argmax) or not keras.backend.is_float_dtype(x.dtype):
        return []
    x = ops.moveaxis(-x if isinstance(ours, Argmin) else x, ours.axis, -1)
    if (x.shape[-1] or 0) < 2:
        return []
    first, second = ops.split(ops.top_k(x, 2)[0], 2, axis=-1)
    largest = ops.max(ops.abs(x), axis=tuple(range(1, len(x.shape))), keepdims=True)
    return [(first - second) / ops.maximum(largest, 1e-30)]


def plain_name(path):
    """Return a path or name in letters, digits and underscores, not the first of them, as TensorFlow takes it."""
    name = re.sub(r"\W", "_", path, flags=re.ASCII)
    return name if name[:1].isalnum() else f"n{name}"


def prepared(kernel, x):
    """Return the input of the plain layer that replaces an MPT layer: quantized and padded."""
    quantizer = kernel.layer.input_quantizer
    return kernel.layer._prepare(x, None if quantizer is None else Quantize(quantizer))


def call_plain(kernel, x):
    """Return the outputs of the plain Keras layer with the effective kernel: exact, in floats.

    The attribute `mpt` of the plain layer is the `Kernel`.
    """
    inputs = prepared(kernel, x)
    if isinstance(kernel.layer, MPTDense) and _is_normalized(inputs):
        inputs = unmerged(inputs)  # merged with a scale, the kernel would have several magnitudes
    return call_twin(kernel, inputs)


def call_twin(kernel, inputs):
    """Return the outputs of the plain Keras layer on inputs from `prepared`."""
    twin = kernel.layer.plain(dtype="float32", name=plain_name(kernel.path))
    twin.mpt = kernel
    outputs = twin(inputs)
    bake(kernel.layer, twin)
    return outputs


def finished(kernel, y):
    """Apply bias and activation of a layer to the product with its kernel."""
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


class Unmerged(keras.Operation):
    """Return the input, by an operation that keeps converters from merging what is before and after."""

    def call(self, x):
        return ops.maximum(x, np.finfo(np.float32).min)


def unmerged(x):
    """Return `x` behind an `Unmerged`."""
    return Unmerged()(x)


def apart(outputs, inputs=()):
    """Return the outputs of a graph as different tensors: a converter keeps one of equal ones.

    Args:
        outputs: Symbolic tensors, in any structure.
        inputs: Symbolic inputs of the graph, from which outputs must differ as well.
    """
    found = {id(x) for x in inputs}

    def different(x):
        source = _awake(x)
        again = id(source) in found
        found.add(id(source))
        if again and not keras.backend.is_float_dtype(x.dtype):
            return keras.layers.Identity()(x)
        return unmerged(x) if again else x

    return keras.tree.map_structure(different, outputs)


def _awake(x):
    """Return the symbolic tensor before the layers that are idle in inference, to which another is equal."""
    operation, inputs = _keras.call_of(x)
    while isinstance(operation, _IDLE):
        x = inputs[0]
        operation, inputs = _keras.call_of(x)
    return x


def _is_normalized(x):
    """Return whether a symbolic tensor is the output of batch normalization, except for layers idle in inference."""
    return isinstance(_keras.call_of(_awake(x))[0], keras.layers.BatchNormalization)


def why_no_signs(kernel, kinds=(MPTConv2D, MPTDense), form="binary"):
    """Return why a layer has no form that computes with signs and a ternary kernel; None if it has one.

    Args:
        kernel: The `Kernel`.
        kinds: Classes of layers that have this form.
        form: Its name in words.
    """
    layer = kernel.layer
    if not isinstance(layer, kinds):
        return f"{type(layer).__name__} has no {form} form"
    if layer.input_quantizer is None:
        return "float input"
    if not kernel.takes_signs:
        return f"{type(layer.input_quantizer).__name__} does not give -1 or +1"
    if split_by_output(kernel) is None:
        return NOT_TERNARY
    if getattr(layer, "groups", 1) > 1:
        return f"{layer.groups} groups"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "channels first"
    return None


def split_by_output(kernel):
    """Return the signs of a kernel and the scales of its outputs (the last two axes of a depthwise kernel)."""
    if not isinstance(kernel.layer, MPTDepthwiseConv2D):
        return kernel.split
    return ternary(kernel.array.reshape(*kernel.array.shape[:-2], -1))


def ternary(kernel):
    """Split a kernel whose output channels (the last axis) hold only -scale, 0 and +scale.

    Args:
        kernel: float32 array `(..., outputs)`.

    Returns:
        `(signs, scales)`: an int8 array of -1, 0 and 1, and a float32 array with a scale for each channel, 1 for
        channels of zeros; None for other kernels.
    """
    magnitudes = np.abs(kernel).reshape(-1, kernel.shape[-1])
    scales = magnitudes.max(axis=0)
    if not np.all((magnitudes == 0) | (magnitudes == scales)):
        return None
    return np.sign(kernel).astype(np.int8), np.where(scales == 0, np.float32(1), scales)


def same_widths(shape, kernel_shape, strides, dilation):
    """Return the widths of TensorFlow's padding "SAME" for an input `(batch, height, width, channels)`."""
    widths = [(0, 0)]
    for size, kernel, stride, rate in zip(shape[1:3], kernel_shape, strides, dilation, strict=False):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * rate + 1 - size, 0)
        widths.append((total // 2, total - total // 2))
    return [*widths, (0, 0)]


def border_excess(x, widths, excess, kernel, **how):
    """Return how much too large a convolution is if the padding of its input is too large by `excess`.

    The result does not depend on the values of `x`. It is computed from `x` to keep converters from storing a constant
    for each output. The border is the same in all input channels, so one of them is enough.

    Args:
        x: Symbolic input `(batch, height, width, channels)`.
        widths: Padding `(before, after)` of every axis.
        excess: A number.
        kernel: Array `(height, width, channels, filters)`.
        **how: Further arguments of `keras.ops.conv`.
    """
    one = x[..., :1]
    inside = ops.cast(one < 0, "float32") + ops.cast(one >= 0, "float32")
    border = excess * (1.0 - ops.pad(inside, widths, constant_values=0.0))
    return ops.conv(border, kernel.sum(axis=2, keepdims=True, dtype=np.float64).astype(np.float32), **how)
