"""A model as a plain float32 graph in which the caller decides what becomes of each MPT layer."""

import functools
import itertools

import keras
import numpy as np
from keras import ops

from keras_mpt import quantizers
from keras_mpt.cloning import copied, copy_state, first_input
from keras_mpt.functional import check_opened
from keras_mpt.layers import MPTConv2D, MPTDense, MPTLayer
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import ActivationQuantizer, ApproxSign, SteSign, SwishSign
from keras_mpt.quantizers.larq_objects import is_larq, ours
from keras_mpt.traversal import check_functional, functional_graph

sign = ApproxSign().forward  # -1 or +1, in the form that larq-compute-engine's converter knows
_SIGNS = (ApproxSign, SteSign, SwishSign)
_IDLE = (keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
_IDLE += (keras.layers.GaussianNoise, keras.layers.Identity, keras.layers.ActivityRegularization)  # in inference
NOT_TERNARY = "kept weights differ in magnitude"
_calls = itertools.count()


def rebuild(model, mpt, signs=None, note=None):
    """Return a functional float32 model of plain Keras layers and operations; nested models are dissolved.

    Arguments and errors are those of `run`.
    """
    graph_of(model)
    inputs = [keras.Input(batch_shape=x.shape, dtype="float32", name=x.name) for x in model.inputs]
    return keras.Model(inputs, run(model, inputs, mpt, signs, note), name=model.name)


def graph_of(model):
    """Return the graph of a model that can be rebuilt.

    Raises:
        ValueError: `model` is not a built functional or Sequential model.
    """
    check_functional(model, "converted")
    return functional_graph(model)


def run(model, inputs, mpt, signs=None, note=None):
    """Return the outputs of a model on symbolic tensors, of plain float32 Keras layers and operations.

    Args:
        model: A built functional or Sequential model.
        inputs: List of symbolic tensors.
        mpt: Called as `mpt(layer, x)` for each call of an MPT layer with the symbolic tensor that it gets, before its
            input quantizer. Returns what takes the layer's place.
        signs: Called as `signs(x)` for each activation layer that takes signs, if they shall be taken otherwise.
        note: Called as `note(layer, x)` for each call of another layer.

    Raises:
        ValueError: `model` is subclassed, or an MPT layer hides in a custom layer.
    """
    graph, twins, names, calls = graph_of(model), {}, set(), {}

    def step(prefix, operation):
        return functools.partial(apply, prefix, operation)

    def apply(prefix, operation, *args, **kwargs):
        inner = functional_graph(operation)
        if inner is not None:
            return inner._run_through_graph(
                first_input(args, kwargs), functools.partial(step, f"{prefix}{operation.name}_")
            )
        if isinstance(operation, MPTLayer):
            call = operation, first_input(args, kwargs)
            if (key := tuple(map(id, call))) not in calls:  # of one tensor, a layer makes one
                calls[key] = call, mpt(*call)
            return calls[key][1]
        if isinstance(operation, keras.layers.Activation) and _is_quantizer(operation.activation):
            quantizer = operation.activation
            return (signs if signs and is_sign(quantizer) else quantizers.plain(quantizer))(first_input(args, kwargs))
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        check_opened(operation, "converted")
        if id(operation) not in twins:
            name = f"{prefix}{operation.name}"
            while name in names:  # of a nested model and of the model itself
                name += "_"
            names.add(name)
            twins[id(operation)] = copied(operation, dtype="float32", name=name)
        twin = twins[id(operation)]
        if note is not None:
            note(operation, first_input(args, kwargs))
        outputs = twin(*args, **kwargs)
        copy_state(operation, twin)
        return outputs

    return graph._run_through_graph(inputs, functools.partial(step, ""))


def call_plain(layer, x):
    """Return the outputs of an MPT layer as a plain Keras layer with its effective kernel: float, exact."""
    inputs = layer.prepare_plain(x)
    if isinstance(layer, MPTDense) and _is_normalized(inputs):
        inputs = unmerged(inputs)  # merged with a scale, the kernel would have one magnitude no more
    return call_twin(layer, inputs)


def call_twin(layer, inputs):
    """Return the outputs of the plain Keras layer on inputs that `prepare_plain` made."""
    twin = layer.plain()
    twin.dtype_policy = keras.DTypePolicy("float32")
    twin.name = f"{layer.name}_call{next(_calls)}"  # a shared layer has one for each call
    outputs = twin(inputs)
    biases = [] if layer.bias is None else [to_numpy(layer.bias, "float32")]
    twin.set_weights([kernel_of(layer), *biases])
    return outputs


def unmerged(x):
    """Return `x`, between which and what is behind a converter merges nothing."""
    return ops.maximum(x, np.finfo(np.float32).min)


def _is_normalized(x):
    """Return whether a symbolic tensor comes from batch normalization, at most through what does nothing here."""
    operation, node, _ = x._keras_history
    while isinstance(operation, _IDLE):
        (x,) = operation._inbound_nodes[node].input_tensors
        operation, node, _ = x._keras_history
    return isinstance(operation, keras.layers.BatchNormalization)


def kernel_of(layer):
    """Return the effective kernel of an MPT layer as float32, whatever its dtype policy."""
    return to_numpy(layer.subnets[0].effective())


def finished(layer, y):
    """Return the outputs of a layer from what its kernel gave: with bias and activation."""
    if layer.bias is not None:
        y = y + to_numpy(layer.bias, "float32")
    return y if layer.activation is keras.activations.linear else layer.activation(y)


def why_no_signs(layer):
    """Return why a layer is not a convolution or dense layer that takes signs with a ternary kernel, None if it is."""
    if not isinstance(layer, (MPTConv2D, MPTDense)):
        return f"{type(layer).__name__} has no binary form"
    if layer.input_quantizer is None:
        return "float input"
    if not is_sign(layer.input_quantizer):
        return f"{type(layer.input_quantizer).__name__} does not give -1 or +1"
    if ternary(kernel_of(layer)) is None:
        return NOT_TERNARY
    if isinstance(layer, MPTConv2D) and layer.groups > 1:
        return f"{layer.groups} groups"
    if isinstance(layer, MPTConv2D) and layer.data_format != "channels_last":
        return "channels first"
    return None


def is_sign(quantizer):
    """Return whether an input quantizer gives -1 or +1, with +1 for 0."""
    return type(ours(quantizer)) in _SIGNS


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


def _is_quantizer(activation):
    return isinstance(activation, ActivationQuantizer) or is_larq(activation)
