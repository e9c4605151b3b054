"""Nodes of a QONNX graph for each Keras layer."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_mpt.convert.kernels import Quantize, Unmerged, same_widths, ternary
from keras_mpt.convert.qonnx.graph import Grid, Tensor, normalized, scaled, shifted
from keras_mpt.convert.report import ConversionError
from keras_mpt.models.rewrite import run
from keras_mpt.ops import to_numpy


class Signs(keras.Operation):
    """Placeholder for the signs of its input, padded with a value."""

    def __init__(self, widths=None, value=0.0, name=None):
        super().__init__(name=name)
        self.widths, self.value = widths, value

    def call(self, x):
        return x if self.widths is None else ops.pad(x, self.widths, constant_values=self.value)


class Padding(Signs):
    """Placeholder for its input, padded with a value."""


class Emitter:
    """Adds the layers of a plain model to a graph as nodes.

    Args:
        graph: A `graph.Graph`.
        input_precision: `(bits, integer_bits)` of inputs; None: floats.
        activation_precision: The same for outputs of ReLU, without a sign.
    """

    def __init__(self, graph, input_precision=None, activation_precision=None):
        self.graph = graph
        self._input_precision, self._activation_precision = input_precision, activation_precision

    def run(self, model, inputs, outputs):
        """Return the ModelProto of a plain model with these names of inputs and outputs."""
        sources = []
        for name, x in zip(inputs, model.inputs, strict=True):
            if None in x.shape[1:]:
                raise ValueError(
                    "`model` must have a known input size to be exported to QONNX, such as keras.Input((32, 32, 3)). "
                    f"Received: inputs of shape {tuple(x.shape)}"
                )
            sources.append(Tensor(self.graph.unique(name), tuple(x.shape[1:])))
        xs = sources
        if self._input_precision is not None:
            xs = [self._fixed(x, self._input_precision, x.name, signed=True) for x in sources]
        names = [self.graph.unique(name) for name in outputs]
        found = keras.tree.flatten(run(model, xs, self.emit))
        ends = {name: self.graph.finished(x, name) for x, name in zip(found, names, strict=True)}
        return self.graph.model(model.name, sources, ends)

    def emit(self, path, operation, args, kwargs):
        """Return the output of an operation on tensors."""
        if type(operation) is Signs:
            return self.graph.signs(args[0], operation.name, _spatial(operation.widths), operation.value)
        if type(operation) is Padding:
            return self._padding(operation, args[0], _spatial(operation.widths), operation.value)
        if isinstance(operation, Quantize):
            if not operation.takes_signs:
                self.refuse(operation, "it quantizes to other values than -1 and +1")
            return self.graph.signs(args[0], operation.name)
        if type(operation) is Unmerged:  # in front of an output that is one already: `Graph.model` tells them apart
            return args[0]
        kind = type(operation).__name__
        emit = _EMITTERS.get(kind) if type(operation).__module__.startswith("keras.") else None
        if emit is None:
            self.refuse(operation, f"{kind} is not one of {', '.join(sorted(_EMITTERS))}")
        return emit(self, operation, *keras.tree.flatten(args))

    def refuse(self, operation, why):
        raise ConversionError(f"Layer {operation.name!r} cannot be exported to QONNX: {why}.")

    def _fixed(self, x, precision, name, signed):
        bits, integers = precision
        x, step = self.graph.settled(x, name), 2.0 ** (integers - bits)
        output = self.graph.quantized(x.name, x.shape, f"{name}_quant", bits, step, signed)
        return dataclasses.replace(x, name=output, grid=Grid(step, 2 ** (bits - signed)))

    def _padding(self, operation, x, widths, value=0.0):
        shape = (*(n + sum(w) for n, w in zip(x.seen, widths, strict=False)), x.seen[-1])
        return x.followed(_Pad(self.graph, operation.name, widths, value), shape)

    def _conv(self, layer, x):
        self._check_image(layer, x)
        name, widths, border = layer.name, [(0, 0), (0, 0)], 0.0
        if layer.padding == "same":
            widths = _spatial(same_widths((None, *x.seen), layer.kernel_size, layer.strides, layer.dilation_rate))
        elif x.after and isinstance(x.after[-1], _Pad):
            widths, border = x.after[-1].widths, x.after[-1].value
            shape = (*(n - sum(w) for n, w in zip(x.seen, widths, strict=False)), x.seen[-1])
            x = dataclasses.replace(x, after=x.after[:-1], result=shape)
        kernel, groups = to_numpy(layer.kernel), getattr(layer, "groups", 1)
        if groups == 1 and x.turns is not None:
            x, kernel = dataclasses.replace(x, chain=()), kernel * x.turns[:, None].astype(np.float32)
        x = self.graph.settled(x, name)
        if np.any(widths):
            x = self.graph.with_zero(x, name) if border == 0 else self._lowered(x, border, f"{name}_border")
        if type(layer).__name__ == "DepthwiseConv2D":
            groups = kernel.shape[2]
            kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
        shape = [n + sum(w) for n, w in zip(x.shape, widths, strict=False)]
        window = zip(shape, kernel.shape, layer.strides, layer.dilation_rate, strict=False)
        shape = (*((n - (k - 1) * rate - 1) // stride + 1 for n, k, stride, rate in window), kernel.shape[-1])
        how = {
            "kernel_shape": kernel.shape[:2],
            "strides": layer.strides,
            "dilations": layer.dilation_rate,
            "pads": [w[end] for end in (0, 1) for w in widths],
            "group": groups,
        }
        axes = (3, 0, 1, 2) if self.graph.channels_last else (3, 2, 0, 1)
        return self._kernel_layer(layer, "Conv", x, kernel, shape, lambda k: k.transpose(axes), border, **how)

    def _lowered(self, x, value, name):
        """Return `x - value`: padded with zeros, it is `x` padded with the value, up to a constant for each filter."""
        ones = np.ones(x.shape[-1])
        grid = None
        if x.grid is not None and (value / x.grid.step).is_integer():
            grid = Grid(x.grid.step, x.grid.bound + int(abs(value) / x.grid.step))
        return dataclasses.replace(self.graph.affine(x, ones, -value * ones, name), grid=grid)

    def _dense(self, layer, x):
        if len(x.seen) != 1:
            self.refuse(layer, f"its inputs have shape {x.seen}, not one of features")
        kernel = to_numpy(layer.kernel)
        if x.turns is not None:
            x, kernel = dataclasses.replace(x, chain=()), kernel * x.turns[:, None].astype(np.float32)
        x = self.graph.settled(x, layer.name)
        shape = (kernel.shape[-1],)
        return self._kernel_layer(
            layer, "MatMul", x, kernel, shape, lambda k: k if x.order is None else k[x.order], 0.0
        )

    def _kernel_layer(self, layer, operation, x, kernel, shape, layout, border, **how):
        """Return the output of a layer with a kernel on a settled tensor: integers if possible.

        A tensor from `_lowered` is too low by `border`.
        """
        name, found, grid = layer.name, ternary(kernel), None
        if found is None:
            source = self.graph.constant(f"{name}_kernel", layout(kernel))
        else:
            signs, scales = found
            source = self.graph.ternary(layout(signs), name)
            if x.grid is not None:
                grid = x.grid.times(np.abs(signs).reshape(-1, signs.shape[-1]).sum(axis=0, dtype=int).max())
        y = Tensor(self.graph.node(operation, [x.name, source], shape, name, **how), shape, grid)
        if border:
            y = y.linked(shifted(border * (kernel if found is None else signs).sum(axis=(0, 1, 2), dtype=np.float64)))
        if found is not None and not (scales == 1).all():
            y = y.linked(scaled(scales))
        if layer.use_bias:
            y = y.linked(shifted(to_numpy(layer.bias)))
        return self._activation(layer, y)

    def _activation(self, layer, x):
        activation = layer.activation
        if activation in (None, keras.activations.linear):
            return x
        if activation is not keras.activations.relu:
            self.refuse(layer, f"its activation {getattr(activation, '__name__', activation)!r} is not relu")
        return self._rectified(layer.name, x)

    def _rectified(self, name, x):
        x = (self.graph.settled(x, name) if x.after else x).linked(None)
        if self._activation_precision is None:
            return x
        return self._fixed(x, self._activation_precision, name, signed=False)

    def _relu(self, layer, x):
        if layer.max_value is not None or layer.negative_slope or layer.threshold:
            self.refuse(layer, "it is a ReLU with a maximum, a slope or a threshold")
        return self._rectified(layer.name, x)

    def _norm(self, layer, x):
        if layer.axis not in (-1, len(x.seen)):
            self.refuse(layer, f"it normalizes axis {layer.axis}, not the last one")
        return (self.graph.settled(x, layer.name) if x.after else x).linked(normalized(layer))

    def _max_pool(self, layer, x):
        self._check_image(layer, x)
        shape, how = self._window(layer, x)

        def pooled(x):
            output = self.graph.node("MaxPool", [x.name], shape, layer.name, **how)
            return dataclasses.replace(x, name=output, shape=shape, result=None, before=None)

        return pooled(x) if x.increasing and not x.after else x.followed(pooled, shape)

    def _average_pool(self, layer, x):
        self._check_image(layer, x)
        shape, how = self._window(layer, x)
        if np.any(how["pads"]):
            self.refuse(layer, "it averages over padding")
        x = self._affine_only(layer, x)
        return self._average(x, layer.name, shape, "AveragePool", {"pads": [0] * 4, **how})

    def _global_average(self, layer, x):
        self._check_image(layer, x)
        x = self._affine_only(layer, x)
        height, width, channels = x.shape
        how = {"kernel_shape": (height, width), "strides": (height, width), "pads": [0] * 4}
        y = self._average(x, layer.name, (1, 1, channels), "GlobalAveragePool", how)
        if layer.keepdims:
            return y
        output = self.graph.node("Flatten", [y.name], (channels,), f"{layer.name}_flat", axis=1)
        return dataclasses.replace(y, name=output, shape=(channels,))

    def _average(self, x, name, shape, operation, how):
        """Return averages of windows. With channels last there is no such operation: use sums, by a kernel of ones."""
        count, channels = int(np.prod(how["kernel_shape"])), x.shape[-1]
        if not self.graph.channels_last:
            how = {} if operation == "GlobalAveragePool" else how
            output, grid = self.graph.node(operation, [x.name], shape, name, **how), x.grid and x.grid.times(count)
            grid = grid and Grid(grid.step / count, grid.bound)
            return dataclasses.replace(x, name=output, shape=shape, grid=grid)
        ones = self.graph.ternary(np.ones((channels, *how["kernel_shape"], 1)), name)
        how = {**how, "dilations": (1, 1), "group": channels}
        output = self.graph.node("Conv", [x.name, ones], shape, name, **how)
        chain = (scaled(np.full(channels, 1 / count)), *x.chain)
        return dataclasses.replace(x, name=output, shape=shape, grid=x.grid and x.grid.times(count), chain=chain)

    def _affine_only(self, layer, x):
        return self.graph.settled(x, layer.name) if x.after or None in x.chain else x

    def _window(self, layer, x):
        widths = [(0, 0), (0, 0)]
        if layer.padding == "same":
            widths = _spatial(same_widths((None, *x.seen), layer.pool_size, layer.strides, (1, 1)))
        pads = [w[end] for end in (0, 1) for w in widths]
        how = {"kernel_shape": layer.pool_size, "strides": layer.strides, "pads": pads}
        return tuple(layer.compute_output_shape((1, *x.seen))[1:]), how

    def _flatten(self, layer, x):
        if len(x.seen) == 1:
            return x
        self._check_image(layer, x)
        flat = _Flat(self.graph, layer.name)
        waits = x.after or x.chain and x.turns is None
        return x.followed(flat, (int(np.prod(x.seen)),)) if waits else flat(x)

    def _add(self, layer, *xs):
        name, xs = layer.name, keras.tree.flatten(xs)
        if not all(isinstance(x, Tensor) for x in xs):
            self.refuse(layer, "it adds a constant")
        xs = [self.graph.settled(x, name) for x in xs]
        if any(x.shape != xs[0].shape or (x.order is None) != (xs[0].order is None) for x in xs):
            self.refuse(layer, f"it adds tensors of shapes {', '.join(str(x.shape) for x in xs)}")
        total = xs[0]
        for x in xs[1:]:
            output = self.graph.node("Add", [total.name, x.name], x.shape, name)
            total = Tensor(output, x.shape, order=x.order)
        return total

    def _zero_padding(self, layer, x):
        self._check_image(layer, x)
        return self._padding(layer, x, layer.padding)

    def _check_image(self, layer, x):
        if len(x.seen) != 3:
            self.refuse(layer, f"its inputs have shape {x.seen}, not that of an image")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            self.refuse(layer, "its channels come first")


@dataclasses.dataclass(frozen=True)
class _Pad:
    """Padding that can become part of the next convolution."""

    graph: object
    name: str
    widths: list
    value: float
    pads = True

    def __call__(self, x):
        return self.graph.padded(self.graph.settled(x, self.name), self.widths, self.value, self.name)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """Flatten for images. With channels first, the order of features differs from Keras."""

    graph: object
    name: str
    keeps_turns = True

    def __call__(self, x):
        height, width, channels = x.shape
        shape, order = (height * width * channels,), None
        if not self.graph.channels_last and height * width > 1:
            order = np.arange(shape[0]).reshape(x.shape).transpose(2, 0, 1).ravel()
        y = Tensor(self.graph.node("Flatten", [x.name], shape, self.name, axis=1), shape, x.grid, order=order)
        return y if x.turns is None else y.linked(scaled(np.tile(x.turns, height * width)))


def _spatial(widths):
    """Return the widths of height and width from those of all axes."""
    return None if widths is None else [tuple(w) for w in widths[1:3]]


def _same(emitter, layer, x):
    return x


_EMITTERS = {
    "InputLayer": _same,
    "Dropout": _same,
    "SpatialDropout2D": _same,
    "GaussianNoise": _same,
    "GaussianDropout": _same,
    "Identity": _same,
    "ActivityRegularization": _same,
    "Cast": _same,
    "Conv2D": Emitter._conv,
    "DepthwiseConv2D": Emitter._conv,
    "Dense": Emitter._dense,
    "BatchNormalization": Emitter._norm,
    "ReLU": Emitter._relu,
    "Activation": Emitter._activation,
    "MaxPooling2D": Emitter._max_pool,
    "AveragePooling2D": Emitter._average_pool,
    "GlobalAveragePooling2D": Emitter._global_average,
    "Flatten": Emitter._flatten,
    "Add": Emitter._add,
    "ZeroPadding2D": Emitter._zero_padding,
}
