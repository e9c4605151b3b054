"""Integer kernels in files for TensorFlow Lite: choose the layers, write them and the float rest to a file."""

import dataclasses
import math

from keras_mpt.convert.integer.graph import Program, signed, why_not_integer
from keras_mpt.convert.integer.tflite import IntegerWriter, coding_of, float_sums
from keras_mpt.convert.kernels import Format

_WORTH = 0.02  # of a network's weights: with fewer, two bits save too little for the time that they take


class Integer(Format):
    """Ternary kernels of layers of signs: from signs to signs or sums, without floats.

    Args:
        two_bits: Layers to store in two bits if they have at least 2 % of the weights: `"dense"` (dense layers with
            one row at a time) or `"all"`; None: no layers.
        sums: Function that appends the layers whose sums are needed as numbers, see `IntegerWriter`.
        sums_name: Name of their format in reports.
    """

    name = "integer"

    def __init__(self, two_bits=None, sums=float_sums, sums_name="exact int8"):
        self.two_bits, self.sums, self.sums_name = two_bits, sums, sums_name

    def unfit(self, kernel):
        return why_not_integer(kernel)

    def call(self, kernel, x):
        return signed(kernel, x)

    def size(self, kernel):
        return kernel.array.size + 4 * kernel.array.shape[-1]


class Stored(Integer):
    """The final format of an `Integer` kernel in a file.

    Args:
        form: The `Integer`.
        name: Name in reports.
        bits: Bits of a weight.
        weights_size: Bytes of all weights; None: what the bits take.
    """

    def __init__(self, form, name, bits, weights_size=None):
        super().__init__(form.two_bits, form.sums, form.sums_name)
        self.name, self.bits, self.weights_size = name, bits, weights_size

    def size(self, kernel):
        bits_size = -(-kernel.array.size * self.bits // 8)
        return (bits_size if self.weights_size is None else self.weights_size) + 4 * kernel.array.shape[-1]


@dataclasses.dataclass
class Layout:
    """The form of each call of a `Program`.

    Attributes:
        form: The `Integer`.
        codings: Keys of the codings of signs, by `Point`.
        floats: List of the calls in the float graph.
        two_bits: List of the calls with kernels in two bits.
    """

    form: Integer
    codings: dict
    floats: list
    two_bits: list

    def stored(self, call):
        """Return the final format of the kernel of a call that is not in the float graph."""
        two_bits = call in self.two_bits
        sums = "exact" if two_bits else self.form.sums_name
        kind = sums if call.layer.thresholds is None else "integer"
        return Stored(self.form, f"{kind}, 2 bits" if two_bits else kind, 2 if two_bits else 8)


def lay_out(program, form):
    """Return the `Layout` of a `Program` whose kernels have the format `form`, an `Integer`."""
    pads = {point: set() for point in program.points}
    for call in program.calls:
        if call.layer.padded:
            pads[call.point].add(call.layer.pad_value)
    codings = {point: coding_of(values) for point, values in pads.items()}
    sizes = [size for point in program.points for size in point.x.shape]
    if None in sizes:
        for call in program.calls:
            call.why = "the batch or input size is not known"
    floats = [c for c in program.calls if None in sizes or not _is_operation(c, codings[c.point], form.sums)]
    shared = {id(call.kernel) for call in floats}  # a kernel has one format
    floats = [call for call in program.calls if id(call.kernel) in shared]
    for point in program.points:
        if point.call in floats:  # its outputs are floats then
            point.call, point.steps = None, []
    least = _WORTH * sum(call.kernel.array.size for call in program.calls)
    small = [call for call in program.calls if call not in floats and _fits_two_bits(call, form.two_bits, least)]
    return Layout(form, codings, floats, small)


def _is_operation(call, coding, sums):
    """Return whether the layer of a call becomes one integer operation.

    For sums, float inputs are rounded to 8 bits, which keeps 0 and one other value exact, but not three values.
    """
    if call.layer.thresholds is not None or sums is not float_sums:
        return True
    return coding != 0 and not call.layer.depthwise


def _fits_two_bits(call, which, least):
    inputs, outputs = call.layer.rows.shape
    # multiplying by two bits is slower, reading them is faster: the latter counts where each weight is used once
    once = call.layer.kernel.ndim == 2 and math.prod(call.point.x.shape[:-1]) == 1
    chosen = which == "all" or which == "dense" and once
    # the runtimes take several inputs in a byte, and a scale for each of several outputs
    return chosen and not call.layer.depthwise and inputs % 4 == 0 and outputs > 1 and inputs * outputs >= least


def compile_integers(target, graph):
    """Return the bytes of a file of a graph in which kernels have the format `Integer`, and its `Program`.

    Args:
        target: The target, whose `compile` is called for the float rest.
        graph: The `Graph`. If it is a whole one, with cuts, its kernels get their final formats.
    """
    kernels = [kernel for kernel in graph.kernels if isinstance(kernel.format, Integer)]
    before = [(kernel.format, kernel.why) for kernel in kernels]
    writer = integer_writer(target, graph)
    if not graph.cuts:
        for kernel, (form, why) in zip(kernels, before, strict=True):
            kernel.format, kernel.why = form, why
    return writer.file.content(), writer.program


def integer_writer(target, graph):
    """Return the finished `IntegerWriter` of a graph, see `compile_integers`, with its `program`."""
    form = next(kernel.format for kernel in graph.kernels if isinstance(kernel.format, Integer))
    program = Program(graph)
    layout = lay_out(program, form)
    for call in program.calls:
        if call in layout.floats:
            call.kernel.format = _other_format(target, call.kernel)
        else:
            call.kernel.format = layout.stored(call)
        call.kernel.why = call.why
    left, inputs, outputs = program.float_graph(layout.floats)
    writer = IntegerWriter(program, None if left is None else target.compile(left), layout, form.sums)
    writer.finish(inputs, outputs)
    return writer


def _other_format(target, kernel):
    """Return the first format of a target that fits a kernel and is not `Integer`."""
    return next(f for f in target.formats if not isinstance(f, Integer) and f.unfit(kernel) is None)
