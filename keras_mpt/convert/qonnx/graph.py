"""Nodes of a QONNX graph, and tensors between them with the integers that they consist of."""

import dataclasses
import re

import numpy as np
from keras import ops

from keras_mpt.convert.integer import thresholds
from keras_mpt.convert.report import ConversionError

OPSET = 13
GENERAL = "qonnx.custom_op.general"
CHANNELS_LAST = "qonnx.custom_op.channels_last"
_LAID_OUT = ("Conv", "MaxPool", "BatchNormalization")  # operations with a channels-last form in QONNX
_EXACT = 2**24  # float32 holds all integers up to here


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values of a tensor are `step` times integers of magnitude `bound` at most."""

    step: float
    bound: int

    def times(self, count):
        """Return the grid of sums of `count` values; None if float32 cannot hold them exactly."""
        grid = Grid(self.step, self.bound * int(count))
        return grid if grid.bound < _EXACT else None


@dataclasses.dataclass(frozen=True)
class Affine:
    """`scale * x + offset` for each channel. `evaluate` computes it in float32 as Keras does."""

    scale: np.ndarray
    offset: np.ndarray
    evaluate: object

    @property
    def turns(self):
        """Whether it only changes signs."""
        return bool((np.abs(self.scale) == 1).all() and not self.offset.any())


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a graph and the operations still to apply to it, which may become a threshold.

    Attributes:
        name: Name in the graph.
        shape: Shape in Keras without the batch, channels last, before `chain` and `after`.
        grid: The `Grid` of its values; None for any floats.
        chain: Operations to apply to each channel, from first to last: an `Affine`, or None for ReLU.
        after: Functions of a tensor to call after the chain, such as a pooling.
        result: Shape after all these; None if it is `shape`.
        before: For signs, the tensor from which they are taken, if its values are odd multiples of half a `grid` step.
        order: Indices of the features in Keras' order, if it differs.
    """

    name: str
    shape: tuple
    grid: Grid | None = None
    chain: tuple = ()
    after: tuple = ()
    result: tuple | None = None
    before: object = None
    order: np.ndarray | None = None

    @property
    def seen(self):
        """Shape for the next layer."""
        return self.shape if self.result is None else self.result

    @property
    def increasing(self):
        """Whether the chain never decreases."""
        return all(link is None or (link.scale >= 0).all() for link in self.chain)

    @property
    def turns(self):
        """-1 for each channel with inverted signs, else 1; None if other operations are left."""
        if len(self.chain) != 1 or self.after or self.chain[0] is None or not self.chain[0].turns:
            return None
        return self.chain[0].scale

    def linked(self, link):
        """Return the tensor with another operation in its chain."""
        return dataclasses.replace(self, chain=(*self.chain, link))

    def followed(self, function, shape):
        """Return the tensor with another function after its chain."""
        return dataclasses.replace(self, after=(*self.after, function), result=tuple(shape))


def scaled(scale):
    scale = np.asarray(scale, np.float32)
    return Affine(scale.astype(np.float64), np.zeros(scale.shape), lambda x: x * scale)


def shifted(offset):
    offset = np.asarray(offset, np.float32)
    return Affine(np.ones(offset.shape), offset.astype(np.float64), lambda x: x + offset)


def normalized(layer):
    """Return batch normalization in inference as an `Affine`."""
    mean, variance = (ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance))
    gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else None
    beta = ops.convert_to_numpy(layer.beta) if layer.center else None
    scale = (1.0 if gamma is None else gamma.astype(np.float64)) / np.sqrt(variance.astype(np.float64) + layer.epsilon)
    offset = (0.0 if beta is None else beta.astype(np.float64)) - mean * scale
    how = {"axis": -1, "offset": beta, "scale": gamma, "epsilon": layer.epsilon}
    return Affine(scale, offset, lambda x: ops.batch_normalization(x, mean, variance, **how))


def half_way(tensor):
    """Return where the signs of a tensor with a grid change after its chain.

    Returns:
        `(direction, threshold)` for each channel: the sign for the integer n is that of `direction * (n - threshold)`.
        `direction` is 1 or -1, and `threshold` is half-way between integers.
    """
    channels, functions = tensor.shape[-1], [_function(link) for link in tensor.chain]
    most, steps = np.full(channels, tensor.grid.bound), np.full(channels, tensor.grid.step, np.float32)
    turns, limits, _ = thresholds(most, steps, functions)
    return turns.astype(int), turns * (limits - 0.5)


def _function(link):
    """Return an operation of a chain as a function of arrays, computed in float32 by Keras."""
    function = ops.relu if link is None else link.evaluate
    return lambda values: ops.convert_to_numpy(function(ops.convert_to_tensor(values)))


class Graph:
    """Nodes of one batch size and data format.

    Args:
        batch: Batch size.
        channels_last: Whether images have their channels last, for hls4ml, or first, for FINN.
        for_hls4ml: Whether to refuse what hls4ml does not support.
    """

    def __init__(self, batch=1, channels_last=False, for_hls4ml=False):
        self.batch, self.channels_last, self._for_hls4ml = batch, channels_last, for_hls4ml
        self._nodes, self._constants, self._values, self._names, self._settled = [], [], [], set(), {}
        self._ternary = []

    def dims(self, shape):
        """Return the shape in this graph, with batch, for a Keras shape without."""
        if len(shape) < 2 or self.channels_last:
            return [self.batch, *shape]
        return [self.batch, shape[-1], *shape[:-1]]

    def unique(self, name):
        """Return a new name that is valid in C++."""
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        name = name if re.match("[A-Za-z]", name) else f"n{name}"
        number, found = 1, name
        while found in self._names:
            number, found = number + 1, f"{name}_{number}"
        self._names.add(found)
        return found

    def constant(self, name, array, dtype=np.float32):
        """Add a constant; return its name."""
        from onnx import numpy_helper

        name = self.unique(name)
        self._constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        self._values.append(self._info(name, self._constants[-1].dims, self._constants[-1].data_type))
        return name

    def node(self, operation, inputs, shape, name, domain="", dims=None, **attributes):
        """Add a node with an output of a Keras shape, or of `dims`; return the name of the output."""
        from onnx import helper

        if self.channels_last and operation in _LAID_OUT and shape and len(shape) == 3:
            domain = CHANNELS_LAST
        name = self.unique(name)
        output = self.unique(f"{name}_out")
        self._nodes.append(helper.make_node(operation, inputs, [output], name=name, domain=domain, **attributes))
        self._values.append(self._info(output, self.dims(shape) if dims is None else dims))
        return output

    def quantized(self, source, shape, name, bits, step=1.0, signed=True, narrow=False, dims=None):
        """Add a Quant node for a tensor or constant; return the name of its output."""
        constants = [
            self.constant(f"{name}_{what}", value)
            for what, value in (("scale", step), ("zero", 0.0), ("bits", float(bits)))
        ]
        how = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
        return self.node("Quant", [source, *constants], shape, name, GENERAL, dims, **how)

    def ternary(self, kernel, name):
        """Add a kernel of -1, 0 and 1, quantized to 2 bits; return its name."""
        source = self.constant(f"{name}_kernel", kernel)
        self._ternary.append(source)
        return self.quantized(source, (), f"{name}_ternary", 2, narrow=True, dims=kernel.shape)

    def bipolar(self, x, name):
        """Return the signs of a tensor without a chain: -1 where it is negative, else 1."""
        inputs = [x.name, self.constant(f"{name}_one", 1.0)]
        output = self.node("BipolarQuant", inputs, x.shape, name, GENERAL)
        return dataclasses.replace(x, name=output, grid=Grid(1.0, 1))

    def with_zero(self, x, name):
        """Return a tensor that can be padded with 0: signs with 2 bits.

        hls4ml stores 1-bit signs as 0 and 1, and would widen these. For it, odd integers are saturated to 2 bits.

        Raises:
            ConversionError: hls4ml does not support it.
        """
        if x.grid != Grid(1.0, 1):
            return x
        source = x
        if self._for_hls4ml:
            if x.before is None:
                raise ConversionError(
                    f"{name!r} cannot be exported to QONNX with channels last: hls4ml cannot pad signs of floats with "
                    "zeros, or of what was pooled after them. Of images, give `input_precision`; else train with "
                    "`pad_values=1.0`."
                )
            twice = np.full(x.before.shape[-1], 2 / x.before.grid.step)
            source = self.affine(x.before, twice, 0 * twice, f"{name}_odd")
        output = self.quantized(source.name, x.shape, f"{name}_with_zero", 2, narrow=True)
        return dataclasses.replace(x, name=output, before=None)

    def affine(self, x, scale, offset, name):
        """Return `scale * x + offset` for each channel, as batch normalization with mean 0 and variance 1."""
        if x.order is not None:
            scale, offset = scale[x.order], offset[x.order]
        values = {"scale": scale, "offset": offset, "mean": np.zeros(len(scale)), "variance": np.ones(len(scale))}
        inputs = [x.name, *(self.constant(f"{name}_{what}", value) for what, value in values.items())]
        output = self.node("BatchNormalization", inputs, x.shape, name, epsilon=0.0)
        return Tensor(output, x.shape, order=x.order)

    def settled(self, x, name):
        """Return a tensor with its chain and functions applied."""
        if not x.chain and not x.after:
            return x
        if id(x) not in self._settled:
            self._settled[id(x)] = x, self._behind(self._floats(x, name), x.after)
        return self._settled[id(x)][1]

    def _floats(self, x, name):
        done = dataclasses.replace(x, chain=(), after=(), result=None)
        channels = np.ones(x.shape[-1])
        scale, offset, pending = channels, 0 * channels, False
        for link in (*x.chain, ...):
            if isinstance(link, Affine):
                scale, offset, pending = link.scale * scale, link.scale * offset + link.offset, True
                continue
            if pending:
                done = self.affine(done, scale, offset, f"{name}_norm")
                scale, offset, pending = channels, 0 * channels, False
            if link is None:
                output = self.node("Relu", [done.name], x.shape, f"{name}_relu")
                done = Tensor(output, x.shape, order=x.order)
        return done

    def _behind(self, x, after):
        for function in after:
            x = function(x)
        return x

    def signs(self, x, name, widths=None, value=0.0):
        """Return the padded signs of a tensor.

        Ones are padded before the sign, as zeros, which every runtime supports and whose sign is 1. A falling threshold
        gives inverted signs, which the next kernel inverts again.

        Args:
            x: The `Tensor`.
            name: Name of the nodes.
            widths: `(before, after)` for height and width; None: no padding.
            value: Value of the padding.
        """
        inside = widths is not None and value in (-1.0, 1.0)
        turned = not inside and all(getattr(function, "keeps_turns", False) for function in x.after)
        direction = np.ones(x.shape[-1])
        if x.chain and x.grid is not None:
            direction, threshold = half_way(x)
            bare = dataclasses.replace(x, chain=(), after=(), result=None)
            scale = np.abs(direction) if turned else direction
            done = self.affine(bare, scale, -scale * threshold * x.grid.step, f"{name}_threshold")
            before = dataclasses.replace(done, grid=x.grid)
            if self.channels_last and not inside and (scale < 0).any():  # hls4ml would ignore the scale
                done = self.padded(done, [(0, 0), (0, 0)], 0.0, f"{name}_apart")
            done = dataclasses.replace(done, before=before)
        else:
            done = self._floats(x, name)
        if x.after or not inside:
            done = self.bipolar(done, f"{name}_sign")
            if turned and (direction < 0).any():
                done = done.linked(scaled(direction))
            done = self._behind(done, x.after)
            if any(getattr(function, "pads", False) for function in x.after):  # with other values than signs
                done = self.bipolar(done, f"{name}_sign")
        if inside:
            done = self.bipolar(self.padded(done, widths, min(value, 0.0), f"{name}_pad"), f"{name}_sign")
        elif widths is not None:
            done = self.padded(self.settled(done, name), widths, value, f"{name}_pad")
        return done

    def padded(self, x, widths, value, name):
        """Return a tensor without a chain, padded with a value."""
        x = self.with_zero(x, name) if value == 0 else x
        height, width, channels = x.shape
        shape = height + sum(widths[0]), width + sum(widths[1]), channels
        before, after = ([0, *(w[end] for w in widths)] for end in (0, 1))
        if self.channels_last:
            pads = [*before, 0, *after, 0]
        else:
            pads = [0, *before, 0, *after]
        inputs = [x.name, self.constant(f"{name}_widths", pads, np.int64)]
        inputs += [self.constant(f"{name}_value", value)] if value else []
        grid = x.grid if x.grid and value == 0 else None
        return Tensor(self.node("Pad", inputs, shape, name, mode="constant"), shape, grid)

    def finished(self, x, name):
        """Return a tensor as an output: settled, with features in Keras' order."""
        x = self.settled(x, name)
        if x.order is None:
            return x
        inputs = [x.name, self.constant(f"{name}_order", np.argsort(x.order), np.int64)]
        return Tensor(self.node("Gather", inputs, x.shape, f"{name}_in_order", axis=1), x.shape)

    def model(self, name, inputs, outputs):
        """Return the ModelProto.

        Args:
            name: Name of the graph.
            inputs: List of tensors.
            outputs: Dict of tensors by the names of the outputs.
        """
        from onnx import StringStringEntryProto, TensorAnnotation, helper

        names = {x.name: x.name for x in inputs}
        for output, x in outputs.items():
            if x.name in names:  # an input, or another output as well
                x = Tensor(self.node("Identity", [x.name], x.shape, f"{output}_same"), x.shape)
            names[x.name] = output
        self._drop_unused(set(names))
        for node in self._nodes:
            for tensors in (node.input, node.output):
                tensors[:] = [names.get(tensor, tensor) for tensor in tensors]
        ends = [self._info(x, self.dims(y.shape)) for x, y in [*((x.name, x) for x in inputs), *outputs.items()]]
        values = [value for value in self._values if value.name not in names]
        count = len(inputs)
        graph = helper.make_graph(self._nodes, name, ends[:count], ends[count:], self._constants, value_info=values)
        for kernel in self._ternary:  # qonnx infers 2 bits, which include -2
            kind = StringStringEntryProto(key="finn_datatype", value="TERNARY")
            graph.quantization_annotation.append(
                TensorAnnotation(tensor_name=kernel, quant_parameter_tensor_names=[kind])
            )
        domains = {"": OPSET, GENERAL: 1, **({CHANNELS_LAST: OPSET} if self.channels_last else {})}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="keras_mpt")

    def _drop_unused(self, used):
        """Drop nodes and constants that are not needed for the tensors with these names."""
        kept = []
        for node in reversed(self._nodes):
            if used & set(node.output):
                used = used | set(node.input)
                kept.append(node)
        self._nodes = kept[::-1]
        self._constants = [constant for constant in self._constants if constant.name in used]
        self._values = [value for value in self._values if value.name in used]

    def _info(self, name, dims, kind=1):
        from onnx import helper

        return helper.make_tensor_value_info(name, kind, dims)
