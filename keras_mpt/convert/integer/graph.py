"""Find the pieces of a graph from signs to signs, and take them out."""

import dataclasses
import itertools

import keras
import numpy as np
from keras import ops

from keras_mpt._keras import call_of
from keras_mpt.convert import integer
from keras_mpt.convert.kernels import _IDLE, Quantize, apart, finished, split_by_output, why_no_signs
from keras_mpt.layers import MPTConv1D, MPTConv2D, MPTDense, MPTDepthwiseConv2D
from keras_mpt.models.rewrite import run, set_names_apart
from keras_mpt.ops import to_numpy

_ELEMENTWISE = ("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "tanh", "sigmoid", "hard_sigmoid", "hard_tanh")
_ELEMENTWISE += ("softplus", "softsign", "hard_shrink", "soft_shrink", "celu", "log_sigmoid")
_RESHAPES = (keras.layers.Flatten, keras.layers.Reshape)
_POOLS = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D)
_GLOBAL_POOLS = (keras.layers.GlobalMaxPooling1D, keras.layers.GlobalMaxPooling2D)


class Signed(keras.layers.Layer):
    """Placeholder in a graph for an MPT layer with an integer form, applied to signs.

    Args:
        kernel: The `Kernel` of the layer.
    """

    def __init__(self, kernel, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.kernel = kernel

    def compute_output_spec(self, signs):
        return keras.KerasTensor(self.kernel.layer.compute_output_shape(signs.shape), "float32")

    def call(self, signs):
        raise NotImplementedError("The integer form is removed from the graph before it is called.")


def signed(kernel, x):
    """Return the outputs of a kernel's layer on `x` as placeholders in a graph for `Program`."""
    return Signed(kernel)(Quantize(kernel.layer.input_quantizer)(x))


@dataclasses.dataclass(eq=False)
class Point:
    """A tensor whose signs are taken.

    Attributes:
        x: The symbolic tensor.
        signs: Symbolic placeholder for its signs.
        cut: Index of the graph's cut where they are taken; None if the graph has no cuts.
        call: The `Call` from which integers lead to it; None: it is float.
        steps: Operations after the signs of the call: `MaxPool`, `Flip`, `Reshape`.
    """

    x: keras.KerasTensor
    signs: keras.KerasTensor
    cut: "int | None" = None
    call: "Call | None" = None
    steps: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Call:
    """A call of an MPT layer that takes signs.

    Attributes:
        kernel: The `Kernel` of the layer.
        point: The `Point` whose signs it takes.
        sums: Symbolic placeholder for its scaled sums, before bias and activation.
        layer: Its `IntegerLayer`, with thresholds if its outputs become signs in integers.
        why: The reason if they do not, else empty.
    """

    kernel: object
    point: Point
    sums: keras.KerasTensor
    layer: integer.IntegerLayer
    why: str = ""


class Program:
    """The points of a graph, where signs are taken, and the calls of layers on signs.

    Args:
        graph: A `Graph` in which `signed` calls integer layers.

    Attributes:
        points: List of `Point`.
        calls: List of `Call`.
    """

    def __init__(self, graph):
        self.graph, self._points, self._calls = graph, {}, {}
        self._inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name) for x in graph.model.inputs]
        self._outputs = keras.tree.flatten(run(graph.model, self._inputs, self._taken_apart))
        self.points, self.calls = list(dict.fromkeys(self._points.values())), list(self._calls.values())
        self._connect()

    def float_graph(self, floats):
        """Return the float rest of the graph as a functional model.

        Args:
            floats: List of the calls in this rest, computed in the formats of their kernels.

        Returns:
            `(graph, inputs, outputs)`: a `Graph`; for each input, the index of an input of the whole graph, a `Point`
            for its signs as -1 and +1, or a `Call` for its scaled sums; for each output, the index of an output, or a
            `Point` whose signs are taken. Tensors without an operation are left out: see `passed`.
        """
        xs, integer_users = {}, {call.point for call in self.calls if call not in floats}
        self.coded = [point for point in self.points if point.call is not None or point in integer_users]

        def step(path, operation, args, kwargs):
            if id(operation) in self._points:
                point = self._points[id(operation)]
                xs.setdefault(point, args[0])
                return point.signs if point in self.coded else operation(*args, **kwargs)
            if id(operation) not in self._calls:
                return operation(*args, **kwargs)
            call = self._calls[id(operation)]
            if call not in floats:
                return finished(call.kernel, call.sums)
            return call.kernel.format.call(call.kernel, args[0] if call.point.call is not None else xs[call.point])

        outputs = keras.tree.flatten(run(self.graph.model, self._inputs, step))
        ends = dict(enumerate(outputs)) | {point: xs[point] for point in self.coded if point.call is None}
        stand_ins = dict(enumerate(self._inputs)) | {p: p.signs for p in self.points} | {c: c.sums for c in self.calls}
        entries = {id(x): entry for entry, x in stand_ins.items()}
        self.passed = {entry: entries[id(x)] for entry, x in ends.items() if id(x) in entries}
        ends = {entry: x for entry, x in ends.items() if entry not in self.passed}
        used = _sources(ends.values())
        inputs = {entry: x for entry, x in stand_ins.items() if id(x) in used}
        if not ends:
            return None, [], []
        set_names_apart(list(ends.values()))  # the addition of a bias may have the name of a layer
        graph = dataclasses.replace(
            self.graph,
            model=keras.Model(list(inputs.values()), apart(list(ends.values())), name=self.graph.model.name),
            kernels=[kernel for kernel in self.graph.kernels if kernel not in self._taken(floats)],
            inputs=_names(inputs, self.graph.inputs),
            outputs=_names(ends, self.graph.outputs),
            cuts=[],
        )
        return graph, list(inputs), list(ends)

    def _taken(self, floats):
        """Return the kernels that are not in the float graph."""
        return [call.kernel for call in self.calls if call not in floats]

    def signs(self, float_signs):
        """Return the signs of all points, int8 arrays by `Point`, from those of the float points."""
        found = dict(float_signs)
        for point in self.points:
            if point.call is not None:
                found[point] = _decide(point, found[point.call.point])
        return found

    def decided(self, signs):
        """Return the signs at cuts that are decided in integers, each from those before it.

        Args:
            signs: List of an int8 array for each cut of the graph.

        Returns:
            A dict of int8 arrays by the index of the cut.
        """
        points = [point for point in self.points if point.call is not None]
        return {point.cut: _decide(point, signs[point.call.point.cut]) for point in points}

    def _taken_apart(self, path, operation, args, kwargs):
        if isinstance(operation, Quantize) and operation.takes_signs:
            (x,) = args
            known = {id(point.x): point for point in self._points.values()}
            cut = next((i for i, cut in enumerate(self.graph.cuts) if cut.after is operation.input), None)
            point = known[id(x)] if id(x) in known else Point(x, keras.Input(batch_shape=x.shape, dtype="float32"), cut)
            self._points[id(operation)] = point
            return point.signs
        if not isinstance(operation, Signed):
            return operation(*args, **kwargs)
        (signs,), kernel = args, operation.kernel
        sums = keras.Input(batch_shape=kernel.layer.compute_output_shape(signs.shape), dtype="float32")
        point = next(point for point in self._points.values() if point.signs is signs)
        self._calls[id(operation)] = Call(kernel, point, sums, integer_layer(kernel, signs.shape))
        return sums

    def _connect(self):
        """Find the points that integers lead to from calls; for other calls, set the reason why sums stay numbers."""
        ends = {id(call.sums): call for call in self.calls}
        chains = {id(point): chain for point in self.points if (chain := _chain(point.x, ends)) is not None}
        while True:
            floats = [point.x for point in self.points if id(point) not in chains]
            needed, users = _sources([*self._outputs, *floats]), [call for call, _ in chains.values()]
            lost = [key for key, (call, _) in chains.items() if id(call.sums) in needed or users.count(call) > 1]
            if not lost:
                break
            for key in lost:
                del chains[key]
        turns = {}
        for point in self.points:
            if id(point) in chains:
                call, operations = chains[id(point)]
                try:
                    call.layer, point.steps, turns[point] = _decided(call, operations)
                    point.call = call
                except ValueError as error:
                    call.why = str(error)
        for point, turned in turns.items():
            self._turn(point, turned, turns)
        connected = [point.call for point in self.points]
        for call in self.calls:
            if call not in connected:
                call.why = call.why or "its results are needed as numbers, not only as signs"

    def _turn(self, point, turned, turns):
        """Invert some channels of the kernel of a point's call, or of its signs if its other calls invert others."""
        call, kernels = point.call, [call.kernel for call in self.calls]
        layer, all_turned = call.layer, [turned for other, turned in turns.items() if other.call.kernel is call.kernel]
        if len(all_turned) == kernels.count(call.kernel) and all(np.array_equal(turned, t) for t in all_turned):
            shaped = turned.reshape(layer.kernel.shape[2:]) if layer.depthwise else turned
            call.layer = dataclasses.replace(layer, kernel=layer.kernel * shaped)
        elif (turned < 0).any():
            thresholds = np.where(turned < 0, 1 - layer.thresholds, layer.thresholds)
            call.layer = dataclasses.replace(layer, thresholds=thresholds.astype(np.int32))
            point.steps = [integer.Flip(turned), *point.steps]


def _decide(point, signs):
    """Return the signs of a point that follows from a call, from the signs that the call takes."""
    signs = point.call.layer(signs)
    for step in point.steps:
        signs = step(signs)
    return signs


def _names(entries, own):
    """Return names of inputs or outputs: those of the graph, and new ones."""
    others = (name for i in itertools.count() if (name := f"keras_mpt_{i}") not in own)
    return [own[entry] if isinstance(entry, int) else next(others) for entry in entries]


def why_not_integer(kernel):
    """Return why a layer has no integer form; None if it has one."""
    reason = why_no_signs(kernel, (MPTDense, MPTConv1D, MPTConv2D, MPTDepthwiseConv2D), "integer")
    pad_values = getattr(kernel.layer, "pad_values", 0)
    if reason is None and pad_values not in (-1, 0, 1):
        return f"padded with {pad_values:g}"
    return reason


def integer_layer(kernel, shape):
    """Return the `IntegerLayer` of a kernel, without thresholds, for inputs of a shape.

    Raises:
        ValueError: The padding depends on an unknown size.
    """
    layer, (signs, scales) = kernel.layer, split_by_output(kernel)
    signs = signs.reshape(kernel.array.shape)
    if isinstance(layer, MPTDense):
        return integer.IntegerLayer(kernel.path, signs, scales=scales)
    axes = layer.rank
    widths, ones = layer.pad_widths(shape)[1 : 1 + axes], (1,) * (2 - axes)
    return integer.IntegerLayer(
        kernel.path,
        signs[:, None] if axes == 1 else signs,
        scales=scales,
        strides=(*_pair(layer.strides, axes), *ones),
        dilation=(*_pair(layer.dilation_rate, axes), *ones),
        widths=(*widths, *(((0, 0),) * (2 - axes))),
        pad_value=int(layer.pad_values),
        depthwise=isinstance(layer, MPTDepthwiseConv2D),
        axes=axes,
    )


def _pair(value, axes):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def _sources(ends):
    """Return the ids of symbolic tensors and of all tensors before them."""
    waiting, found = list(ends), set()
    while waiting:
        x = waiting.pop()
        if id(x) not in found:
            found.add(id(x))
            waiting += call_of(x)[1]
    return found


def _chain(x, ends):
    """Return `(call, operations)` if a tensor is an elementwise function of the sums of a call, else None.

    `operations` is a list of `(operation, input shape, output shape)`.
    """
    operations = []
    while id(x) not in ends:
        operation, arguments = call_of(x)
        if len(arguments) != 1 or not _keeps_apart(operation, x.shape):
            return None
        operations.insert(0, (operation, arguments[0].shape, x.shape))
        x = arguments[0]
    reshaped = False
    for operation, _, _ in operations:
        reshaped = reshaped or isinstance(operation, _RESHAPES)
        if reshaped and not isinstance(operation, (*_RESHAPES, *_IDLE)):
            return None  # the last axis no longer holds the outputs of the layer
    return ends[id(x)], operations


def _keeps_apart(operation, shape):
    """Return whether an operation computes each value or channel separately, takes maxima, or reshapes."""
    if isinstance(operation, keras.layers.BatchNormalization):
        return operation.axis in (-1, len(shape) - 1)
    if isinstance(operation, keras.layers.Activation):
        return getattr(operation.activation, "__name__", "") in _ELEMENTWISE
    if isinstance(operation, (*_POOLS, *_GLOBAL_POOLS, keras.layers.Flatten)):  # which transposes what is otherwise
        return operation.data_format == "channels_last"
    return isinstance(operation, (keras.layers.ReLU, keras.layers.LeakyReLU, *_IDLE, *_RESHAPES))


def _decided(call, operations):
    """Return the `IntegerLayer` of a call with thresholds, the steps after it, and the channels to invert."""
    layer, functions, steps, pooled = call.layer, [_finish(call.kernel.layer)], [], []
    for operation, before, after in operations:
        if isinstance(operation, (*_POOLS, *_GLOBAL_POOLS)):
            pooled.append(len(functions))
            steps.append(_pool(operation, before))
            if isinstance(operation, _GLOBAL_POOLS):
                steps.append(integer.Reshape(tuple(after[1:])))
        elif isinstance(operation, _RESHAPES):
            steps.append(integer.Reshape(tuple(after[1:])))
        elif not isinstance(operation, _IDLE):
            functions.append(_function(operation, len(before)))
    turns, thresholds, directions = integer.thresholds((layer.rows != 0).sum(axis=0), layer.scales, functions)
    directions.append(np.ones_like(turns))  # after all functions
    flips = {directions[index].tobytes() for index in pooled}
    if len(flips) > 1:
        raise ValueError("it is pooled before and after batch normalization that inverts channels")
    if pooled and (directions[pooled[0]] < 0).any():
        flip = directions[pooled[0]]
        turns, thresholds = turns * flip, np.where(flip < 0, 1 - thresholds, thresholds).astype(np.int32)
        last = max(i for i, step in enumerate(steps) if isinstance(step, integer.MaxPool))
        steps.insert(last + 1, integer.Flip(flip))
    return dataclasses.replace(layer, thresholds=thresholds), steps, turns


def _finish(layer):
    """Return bias and activation of an MPT layer as a function of its sums."""
    if layer.activation is not keras.activations.linear:
        if getattr(layer.activation, "__name__", "") not in _ELEMENTWISE:
            raise ValueError("its activation is not elementwise")

    def finish(values):
        bias = 0 if layer.bias is None else to_numpy(layer.bias, "float32")
        return to_numpy(layer.activation(ops.convert_to_tensor(values + bias)))

    return finish


def _function(operation, rank):
    def function(values):
        shaped = values.reshape(len(values), *(1,) * (rank - 2), values.shape[-1])
        return to_numpy(operation(ops.convert_to_tensor(shaped))).reshape(values.shape)

    return function


def _pool(operation, shape):
    axes = len(shape) - 2
    if isinstance(operation, _GLOBAL_POOLS):
        size, strides, same = shape[1:-1], (1,) * axes, False
    else:
        size, strides = _pair(operation.pool_size, axes), _pair(operation.strides, axes)
        same = operation.padding == "same"
    one = (1,) * (2 - axes)
    return integer.MaxPool((*size, *one), (*strides, *one), same, axes)
