"""The integer form as operations of TensorFlow Lite: one for each layer with its normalization and the next sign.

Signs are stored as two int8 values. Their zero point is the value with which the next layers pad, so that convolutions
can pad by themselves. For a padding of 0, they are -2 and +2, and the clamp to [-1, 1] fused into an operation turns
sums into signs. For +1 or -1, they are -128 and 127, and the limits of int8 do so. Kernels are -1, 0 and 1, which fit
into two bits. The bias moves the threshold between two sums. The smallest distance of a scaled sum to it is as large as
that between the signs, so that rounding has no effect.
"""

import dataclasses
import itertools
import math

import numpy as np

from keras_mpt.convert import integer
from keras_mpt.convert.integer.graph import Call
from keras_mpt.convert.integer.writer import Writer
from keras_mpt.convert.kernels import same_widths

_LARGE = 2.0**100  # factor from floats to signs: magnitudes below its inverse count as zero
_NONE, _CLAMP = 0, 2  # fused activations: none, RELU_N1_TO_1
_SAME, _VALID = 0, 1


@dataclasses.dataclass(frozen=True)
class Coding:
    """A way to store signs in int8."""

    zero: int  # zero point, and value of the padding
    minus: int
    plus: int
    scale: float
    activation: int

    @property
    def step(self):
        return self.plus - self.minus


CODINGS = {
    0: Coding(0, -2, 2, 0.5, _CLAMP),
    1: Coding(127, -128, 127, 1 / 255, _NONE),
    -1: Coding(-128, -128, 127, 1 / 255, _NONE),
}


def decoded(codes):
    """Return the signs of int8 codes."""
    return np.where(codes > 0, 1, -1).astype(np.int8)


def coding_of(pads):
    """Return the key of the coding for signs that are padded with these values."""
    return 0 if 0 in pads else 1 if 1 in pads or not pads else -1


def requantized(layer, source, result):
    """Return `(scales of the kernel, bias)` with which an operation gives the coded signs of a layer.

    With u the input less its zero point, `T * u = step / 2 * (T * s + zero * sum(T))`, where `zero` is the negative
    padding value.

    Args:
        layer: An `IntegerLayer` with thresholds.
        source, result: Keys of `CODINGS`.
    """
    before, after = CODINGS[source], CODINGS[result]
    total = layer.rows.sum(axis=0, dtype=np.int64)
    threshold = layer.thresholds.astype(np.int64)
    if source == 0:
        first, gap = 2 * threshold, 2  # the least result for +1, and the distance between results
    else:
        first, gap = 255 * -((source * total - threshold) // 2), 255  # rounded up
    if result == 0:
        bias, factor = gap // 2 - first, max(1.0, 4 / gap)
    else:
        bias, factor = (0 if result == 1 else gap) - first, 1.0 if gap == 255 else 128.0
    return factor * after.scale / before.scale, bias.astype(np.int32)


class IntegerWriter:
    """Appends the integer form of a `Program` to the file of its float graph.

    Args:
        program: A `Program`.
        content: Bytes of the file of its `float_graph`; None if that is None.
        layout: Its `Layout`.
        sums: Function `(writer, call, tensor of coded signs, key of the coding, index of the result)` that appends the
            operations for the scaled sums of a call as float32.
    """

    def __init__(self, program, content, layout, sums):
        self.file, self.program, self.layout = Writer(content), program, layout
        self._sums, self._coded, self._counter = sums, {}, itertools.count()

    def finish(self, inputs, outputs):
        """Append all operations.

        Args:
            inputs, outputs: From `float_graph`.
        """
        graph, file, passed = self.program.graph, self.file, self.program.passed
        given = dict(zip(inputs, map(int, file.graph.inputs), strict=True))
        made = dict(zip(outputs, map(int, file.graph.outputs), strict=True))
        for index, x in enumerate(graph.model.inputs):
            if index not in given:
                given[index] = file.tensor(graph.inputs[index], x.shape, x.dtype)
        for point in self.program.coded:
            if isinstance(passed.get(point), int):
                made[point] = given[passed[point]]
            elif point in passed:  # signs of signs, or of sums
                made[point] = self._floats_of(passed[point], self.floats("passed", point.x.shape))
            self._coded[point] = self._point(point, made)
        for entry, tensor in given.items():
            if not isinstance(entry, int):
                self._floats_of(entry, tensor)
        for index, x in enumerate(graph.model.outputs):
            if index in passed and isinstance(passed[index], int):
                made[index] = given[passed[index]]
            elif index in passed:
                made[index] = self._floats_of(passed[index], self.floats("output", x.shape))
        count = len(graph.model.inputs), len(graph.model.outputs)
        file.connect(
            {graph.inputs[i]: given[i] for i in range(count[0])}, {graph.outputs[i]: made[i] for i in range(count[1])}
        )

    def sign_outputs(self):
        """Make the coded signs of the program's points, in the order of `program.coded`, the outputs of the file.

        It is for inspection, because only outputs can be read after a run. See `decoded`.
        """
        tensors = [self._coded[point] for point in self.program.coded]
        inputs = {
            name: int(tensor) for name, tensor in zip(self.program.graph.inputs, self.file.graph.inputs, strict=True)
        }
        self.file.connect(inputs, {f"signs_{i}": tensor for i, tensor in enumerate(tensors)})

    def _floats_of(self, entry, result):
        """Append the conversion of a point's signs or a call's sums to floats; return `result`."""
        point = entry.point if isinstance(entry, Call) else entry
        x, key = self._coded[point], self.layout.codings[point]
        if isinstance(entry, Call):
            self._sums(self, entry, x, key, result)
        else:
            self.signs_to_floats(x, key, result)
        return result

    def _point(self, point, made):
        key = self.layout.codings[point]
        if point.call is None:
            return self._floats_to_signs(made[point], point.x.shape, key)
        call, source = point.call, self.layout.codings[point.call.point]
        x, shape = self._coded[call.point], call.point.x.shape
        x, shape = self.layer(call.layer, x, shape, source, key, call in self.layout.two_bits)
        for step in point.steps:
            x, shape = self._step(step, x, shape, key, call.layer.name)
        return x

    def _step(self, step, x, shape, key, name):
        if isinstance(step, integer.Reshape):
            return self.reshape(x, (shape[0], *step.shape), key), (shape[0], *step.shape)
        wide = shape if len(shape) == 4 else (shape[0], math.prod(shape[1:-1]), 1, shape[-1])
        x = self.reshape(x, wide, key) if wide != shape else x
        if isinstance(step, integer.MaxPool):
            sizes = [
                -(-size // stride) if step.same else (size - window) // stride + 1
                for size, window, stride in zip(wide[1:3], step.size, step.strides, strict=True)
            ]
            result = (wide[0], *sizes, wide[3])
            x = self.file.operation(
                "MAX_POOL_2D", [x], self.signs(result, key, f"{name}/pool"),
                padding=_SAME if step.same else _VALID, strideH=step.strides[0], strideW=step.strides[1],
                filterHeight=step.size[0], filterWidth=step.size[1],
            )  # fmt: skip
        else:
            result, flips = wide, step.turns[None, None, :, None]
            turned = integer.IntegerLayer(f"{name}/flip", flips, np.ones(wide[3], np.int32), depthwise=True)
            x, _ = self.layer(turned, x, wide, key, key)
        if len(shape) == 4:
            return x, result
        narrow = (*result[:2], result[3]) if isinstance(step, integer.MaxPool) else shape
        return self.reshape(x, narrow, key), narrow

    def signs(self, shape, key, name):
        """Return a new tensor of coded signs."""
        coding = CODINGS[key]
        name = f"{name}_{next(self._counter)}"
        return self.file.tensor(name, shape, "int8", scale=coding.scale, zero_point=coding.zero)

    def reshape(self, x, shape, key):
        """Append a reshaping of coded signs."""
        size = self.file.tensor("shape", [len(shape)], "int32", shape)
        return self.file.operation("RESHAPE", [x, size], self.signs(shape, key, "reshape"), newShape=list(shape))

    def layer(self, layer, x, shape, source, result, two_bits=False):
        """Append a layer from coded signs to coded signs; return the tensor and its shape."""
        scale, bias = requantized(layer, source, result)
        x, shape, padding = self.padded(layer, x, shape, source, lay_out=not two_bits)
        after, outputs = self.output_shape(layer, shape, padding), layer.outputs
        # one scale is enough and saves 12 bytes for each channel, but 2-bit kernels need all of them
        scales = np.full(outputs if two_bits else 1, scale, np.float32)
        bias = self.file.tensor(
            f"{layer.name}/bias", [outputs], "int32", bias, scale=np.float32(CODINGS[source].scale) * scales
        )
        y, activation = self.signs(after, result, layer.name), CODINGS[result].activation
        self.apply(layer, x, shape, padding, bias, y, scales, activation, two_bits, source)
        if layer.axes == 1 and layer.kernel.ndim == 4:
            after = (*after[:2], after[3])
            y = self.reshape(y, after, result)
        return y, after

    def padded(self, layer, x, shape, source, lay_out=True):
        """Return the input of a layer, its shape with two axes, and the padding of the operation.

        Args:
            lay_out: Whether the operation may pad.
        """
        if layer.kernel.ndim == 2:
            return x, shape, _VALID
        if layer.axes == 1:
            shape = (*shape[:2], 1, shape[2])
            x = self.reshape(x, shape, source)
        if not layer.padded:
            return x, shape, _VALID
        widths = [(0, 0), *layer.widths, (0, 0)]
        same = widths == same_widths(shape, layer.kernel.shape, layer.strides, layer.dilation)
        if lay_out and source == layer.pad_value and same:
            return x, shape, _SAME
        shape = tuple(size + sum(width) for size, width in zip(shape, widths, strict=True))
        inputs = [x, self.file.tensor("widths", (4, 2), "int32", widths)]
        kind = "PAD"
        if source != layer.pad_value:
            code, kind = CODINGS[source], "PADV2"
            value = code.plus if layer.pad_value == 1 else code.minus
            inputs.append(self.file.tensor("value", (1,), "int8", [value], scale=code.scale, zero_point=code.zero))
        return self.file.operation(kind, inputs, self.signs(shape, source, f"{layer.name}/pad")), shape, _VALID

    def output_shape(self, layer, shape, padding):
        """Return the shape of a layer's results, with two axes."""
        if layer.kernel.ndim == 2:
            return (*shape[:-1], layer.outputs)
        sizes = [
            -(-size // stride) if padding == _SAME else (size - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                shape[1:3], layer.kernel.shape[:2], layer.strides, layer.dilation, strict=True
            )
        ]
        return (shape[0], *sizes, layer.outputs)

    def apply(self, layer, x, shape, padding, bias, y, scales, activation, two_bits, like, dtype="int8", version=None):
        """Append the operation of a layer, with its kernel in int8 or two bits.

        Args:
            like: Key of the coding of `x`.
        """
        name, kind = f"{layer.name}/kernel", "int2" if two_bits else "int8"
        if layer.kernel.ndim == 2 or two_bits:
            if layer.kernel.ndim == 4:
                x = self._columns(layer, x, shape, self.output_shape(layer, shape, padding), like)
            rows = layer.rows.T
            kernel = self.file.tensor(name, rows.shape, kind, rows, scale=scales)
            return self.file.operation(
                "FULLY_CONNECTED", [x, kernel, bias], y, version or (13 if two_bits else None),
                fusedActivationFunction=activation, keepNumDims=len(self.file.graph.tensors[y].shape) > 2,
            )  # fmt: skip
        options = {"padding": padding, "strideH": layer.strides[0], "strideW": layer.strides[1]}
        options |= {"dilationHFactor": layer.dilation[0], "dilationWFactor": layer.dilation[1]}
        if layer.depthwise:
            height, width, channels, multiplier = layer.kernel.shape
            values = layer.kernel.reshape(1, height, width, channels * multiplier)
            kernel = self.file.tensor(name, values.shape, kind, values, scale=scales, axis=3)
            return self.file.operation(
                "DEPTHWISE_CONV_2D", [x, kernel, bias], y, version, fusedActivationFunction=activation,
                depthMultiplier=multiplier, **options,
            )  # fmt: skip
        values = np.moveaxis(layer.kernel, -1, 0)
        kernel = self.file.tensor(name, values.shape, kind, values, scale=scales)
        return self.file.operation(
            "CONV_2D", [x, kernel, bias], y, version, fusedActivationFunction=activation, **options
        )

    def _columns(self, layer, x, shape, after, key):
        """Append operations that arrange the inputs of each output side by side."""
        height, width, channels, _ = layer.kernel.shape
        parts, ones = [], all(stride == 1 for stride in layer.strides)
        if (height, width) == (1, 1) and ones:
            return x
        size = (*after[:3], channels)
        for i, j in itertools.product(range(height), range(width)):
            begin = [0, i * layer.dilation[0], j * layer.dilation[1], 0]
            part = self.signs(size, key, f"{layer.name}/part")
            start = self.file.tensor("begin", [4], "int32", begin)
            if ones:
                inputs = [x, start, self.file.tensor("size", [4], "int32", size)]
                parts.append(self.file.operation("SLICE", inputs, part))
                continue
            strides = (1, *layer.strides, 1)
            end = [b + (n - 1) * stride + 1 for b, n, stride in zip(begin, size, strides, strict=True)]
            constants = [self.file.tensor(n, [4], "int32", v) for n, v in (("end", end), ("strides", strides))]
            parts.append(self.file.operation("STRIDED_SLICE", [x, start, *constants], part))
        if len(parts) == 1:
            return parts[0]
        columns = self.signs((*after[:3], channels * len(parts)), key, f"{layer.name}/columns")
        return self.file.operation("CONCATENATION", parts, columns, axis=3)

    def floats(self, name, shape):
        """Return a new float32 tensor."""
        return self.file.tensor(f"{name}_{next(self._counter)}", shape, "float32")

    def number(self, name, value):
        """Return a new float32 constant."""
        value = np.asarray(value, np.float32)
        return self.file.tensor(f"{name}_{next(self._counter)}", value.shape, "float32", value)

    def _floats_to_signs(self, x, shape, key):
        """Append the coding of the signs of floats, +1 for 0."""
        large, clamped = self.number("large", _LARGE), self.floats("clamped", shape)
        if key == 1:  # 0 becomes the zero point, which is +1
            x = self.file.operation("MUL", [x, large], clamped, 1, fusedActivationFunction=_CLAMP)
        else:
            x = self.file.operation("MUL", [x, large], self.floats("enlarged", shape), 1)
            x = self.file.operation("ADD", [x, self.number("one", 1)], clamped, 1, fusedActivationFunction=_CLAMP)
        return self.file.operation("QUANTIZE", [x], self.signs(shape, key, "signs"))

    def signs_to_floats(self, x, key, result):
        """Append the conversion of coded signs to -1 and +1 as float32."""
        if key == 0:
            self.file.operation("DEQUANTIZE", [x], result)
            return
        shape = self.file.graph.tensors[x].shape
        halves = self.file.operation("DEQUANTIZE", [x], self.floats("halves", shape))
        doubled = self.file.operation("MUL", [halves, self.number("two", 2)], self.floats("doubled", shape), 1)
        self.file.operation("ADD", [doubled, self.number("shift", key)], result, 1)


def float_sums(writer, call, x, key, result):
    """Append the operations for a call's scaled sums: integers, exactly.

    The float inputs are rounded to 8 bits, which keeps 0 and one other value exact:
    `scale * T * s = 2 * scale * T * v + key * scale * sum(T)`, where v is 0 or -1 if signs are padded with +1,
    else 0 or 1.
    """
    layer, file = call.layer, writer.file
    two_bits = call in writer.layout.two_bits
    shape = call.point.x.shape
    total = key * layer.scales * layer.rows.sum(axis=0)
    bias = writer.number(f"{layer.name}/bias", total)
    x, shape, padding = writer.padded(layer, x, shape, key, lay_out=not two_bits)
    if two_bits and layer.kernel.ndim == 4:
        x = writer._columns(layer, x, shape, writer.output_shape(layer, shape, padding), key)
    floats = writer.floats("bits", file.graph.tensors[x].shape)
    file.operation("DEQUANTIZE", [x], floats)
    after = writer.output_shape(layer, shape, padding)
    flat = layer if layer.kernel.ndim == 2 or not two_bits else dataclasses.replace(layer, kernel=layer.rows)
    one = layer.axes == 1 and layer.kernel.ndim == 4
    y = writer.floats(layer.name, after) if one else result
    version = 13 if two_bits else 12 if flat.kernel.ndim == 2 else 5
    writer.apply(flat, floats, shape, padding, bias, y, 2 * layer.scales, _NONE, two_bits, key, version=version)
    if one:
        size = file.tensor("shape", [3], "int32", (*after[:2], after[3]))
        file.operation("RESHAPE", [y, size], result, newShape=[*after[:2], after[3]])
