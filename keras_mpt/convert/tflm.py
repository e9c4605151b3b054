"""Convert models for TensorFlow Lite Micro, the runtime for microcontrollers, to integers or floats."""

import contextlib
import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_mpt._types import Path
from keras_mpt.arguments import check_bool, check_choice, check_path, printable
from keras_mpt.convert.conversion import convert
from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.integer.form import Integer, Stored
from keras_mpt.convert.kernels import NOT_TERNARY, Format, call_plain, unmerged
from keras_mpt.convert.report import ConversionError, Report, errors_of
from keras_mpt.convert.target import Session
from keras_mpt.convert.tflite import TensorFlowLite
from keras_mpt.requirements import extra
from keras_mpt.tickets import Ticket

WEIGHTS = ("integer", "float32", "int8")
_ALIGNMENT = 16
_SOURCES, _OTHER_SOURCES = (".cc", ".cpp", ".cxx"), (".c", ".h", ".hh", ".hpp")  # of which those are written
_TABLE_BYTES = 256  # of a compressed kernel, apart from its indices and values
_MOST = 32767  # of int16
_LONGEST_REASON = 500
_IRREGULAR = {  # how MicroMutableOpResolver spells operations, otherwise than from their names
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "TFLM_DECODE": "Decode",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
_KEYWORDS = frozenset(  # of C++, which a file may well be named
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class "
    "co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype "
    "default delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int "
    "long main mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register "
    "reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this "
    "thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor "
    "xor_eq".split()
)


def to_tflm(
    model: keras.Model | Path | Ticket,
    path: Path,
    *,
    weights: str = "integer",
    compress: bool = False,
    preprocess: Any = None,
    labels: Sequence[str] | None = None,
    samples: Any = None,
) -> Report:
    """Convert a model for TensorFlow Lite Micro, the runtime for microcontrollers.

    Do not use files from `to_tflite` there: the runtime refuses operations on floats and int8 together, and int8
    kernels with a scale for each channel silently give wrong outputs. `weights` names a format for the kernels:

    - `"integer"`, for MPT-1/1: Layers of signs are integer operations, see `to_tflite`. Sums that are outputs or are
      added are 16-bit integers. Other kernels, such as that of the stem, are float32.
    - `"float32"`, for any model.
    - `"int8"`, for ternary kernels: One byte for each weight and one scale for each layer, converted to floats in the
      arena in each run. The file needs less flash, and the arena more RAM.

    Before the file is written, its outputs in TensorFlow Lite Micro's own interpreter are compared with those of the
    Keras model. The report has the size of the arena on this machine, where pointers are larger than on a
    microcontroller, and the operations to register.

    Args:
        model: A built functional or Sequential model; a `Ticket`; or its path, preset name or address.
        path: Path of the new file. With the ending `.cc` or `.cpp`, it is a C++ array to compile in, named like the
            file (`model_...` if C++ does not allow the name); else a file as by `to_tflite`.
        weights: See above.
        compress: Whether to store integer kernels as look-up tables of one or two bits where that is smaller; the
            report names the others. It needs `"integer"`, and a TensorFlow Lite Micro with the operation DECODE (2025).
        preprocess, labels, samples: See `to_tflite`.

    Returns:
        A `Report`.

    Raises:
        ConversionError: A layer does not fit the format, the runtime lacks an operation, or the outputs of file and
            model differ. No file is written. It is a ValueError.
        ValueError: `weights` is unknown, or `compress` does not fit it; or see `to_tflite`.
        TypeError, OSError, RuntimeError: See `to_tflite`.
        ImportError: tflite-micro is not installed.

    Examples:
        >>> print(keras_mpt.convert.to_tflm("digits.mpt", "digits.cc", samples=images[:100]))
    """
    check_choice("weights", weights, WEIGHTS)
    check_bool("compress", compress)
    if check_path("path", path).suffix.lower() in _OTHER_SOURCES:
        raise ValueError(f"`path` must end in .cc or .cpp for a C++ array, or in .tflite. Received: {str(path)!r}")
    if compress and weights != "integer":
        raise ValueError(
            f"`compress` must be False for weights={weights!r}: only integers are compressed. Received: {compress=}"
        )
    return convert(model, path, Micro(weights, compress), samples, preprocess, labels)


class OneScale(Format):
    """Ternary kernels with one byte for each weight and one scale; batch normalization stays separate."""

    name = "int8"
    int8 = True

    def unfit(self, kernel):
        if kernel.split is None:
            return NOT_TERNARY
        kept = kernel.array != 0
        return None if len(np.unique(np.abs(kernel.array[kept]))) <= 1 else "kernels of its outputs differ in scale"

    def call(self, kernel, x):
        return unmerged(call_plain(kernel, x))

    def size(self, kernel):
        return kernel.array.size + 4

    def store(self, file, kernels):
        file.kernels_to_int8(one_scale=True)


class Micro(TensorFlowLite):
    """See `to_tflm`."""

    name, engine = "tflm", "TensorFlow Lite Micro"
    endings = (*_SOURCES, ".tflite")
    _otherwise = "float32"

    def __init__(self, weights="integer", compress=False):
        with extra("tflm", "Conversion for TensorFlow Lite Micro"):
            import tflite_micro
        self._micro = tflite_micro
        super().__init__("float32", 1)
        self._compress, self._wanted = compress, weights == "integer"
        self.formats = {
            "integer": (Integer(sums=int16_sums, sums_name="exact int16"), Format()),
            "float32": (Format(),),
            "int8": (OneScale(),),
        }[weights]

    def compile(self, graph):
        integers = any(isinstance(kernel.format, Integer) for kernel in graph.kernels)
        content = _without_casts(super().compile(graph))
        if integers and self._compress:
            content = self._compressed(content)
            sizes = _table_sizes(File(content)) if graph.cuts else {}  # pieces say nothing about the whole file
            for kernel in (each for each in graph.kernels if each.path in sizes):
                form = kernel.format
                kernel.format = Stored(form, form.name, form.bits, sizes[kernel.path])
        return content

    def notes(self, content):
        arena, file = f"{arena_bytes(content):,} bytes on this machine", File(content)
        notes = [("Arena", arena), ("Register", resolver(file.operations()))]
        names = [file.graph.tensors[index].name.decode().rpartition("/")[0] for index in _int8_kernels(file)]
        if self._compress and names:
            why = "too small, or outputs with more different values than others"
            notes.append(("8 bits", f"{', '.join(dict.fromkeys(names))}: {why}"))
        return notes

    def written(self, content, path):
        is_source = path.suffix.lower() in _SOURCES
        return c_array(content, _identifier(path.stem)).encode() if is_source else content

    def runtimes(self):
        return [self.engine]

    def session(self, content, runtime=None, threads=1):
        with errors_of(self.engine, "run"):
            return MicroSession(content, self._micro)

    def _compressed(self, content):
        """Return a file with int8 kernels as look-up tables, one for each channel, as a common one is wrong."""
        spec, file, tensors = self._micro.compression.spec, File(content), {}
        for index in _int8_kernels(file):
            if bits := _table_bits(file.constant(index, "int8")):
                lookup = spec.LookUpTableCompression(index_bitwidth=bits, mode=spec.PerChannel(axis=0))
                tensors[index] = spec.Tensor(subgraph=0, tensor=index, compression=[lookup])
        if not tensors:
            return content
        with errors_of(self.engine, "compress"):
            return bytes(self._micro.compression.compress(content, tensors.values()))


def _table_sizes(file):
    """Return the bytes of indices and look-up tables by the paths of layers. Tables of several count for the first."""
    sizes, seen = {}, set()
    for op in file.graph.operators:
        if file.kind(op) == "TFLM_DECODE":
            name = file.graph.tensors[op.inputs[0]].name.decode().rpartition("/")[0]
            buffers = {file.graph.tensors[index].buffer for index in op.inputs} - seen
            sizes[name] = sizes.get(name, 0) + sum(len(file.model.buffers[index].data) for index in buffers)
            seen |= buffers
    return sizes


def _int8_kernels(file):
    """Return the tensors with int8 kernels of convolutions and dense layers."""
    found = [int(op.inputs[1]) for op in file.graph.operators if file.kind(op) in ("CONV_2D", "FULLY_CONNECTED")]
    return [index for index in found if file.constant(index, "int8") is not None]


def _table_bits(kernel):
    """Return the bits of an index into look-up tables for a kernel; None if it should not be compressed.

    The runtime reads other values if the tables differ in length, and small kernels would grow.
    """
    lengths = {len(np.unique(row)) for row in kernel}
    bits = 2 if max(lengths) > 2 else 1
    size = bits * kernel.size / 8 + max(lengths) * len(kernel) + _TABLE_BYTES
    return bits if len(lengths) == 1 and size < kernel.size else None


class MicroSession(Session):
    """A file in TensorFlow Lite Micro's interpreter."""

    def __init__(self, content, micro):
        file = File(content)
        if _misread(file):
            raise ValueError(
                "The file has kernels with a scale for each channel to DEQUANTIZE, of which the runtime would use the "
                "first only: convert with `to_tflm`."
            )
        self.inputs, self.outputs = file.inputs(), file.outputs()
        make = micro.runtime.Interpreter.from_bytes
        self.interpreter = _with_reason(lambda: make(content, arena_size=_arena(file, content)))

    def __call__(self, arrays):
        for index, array in enumerate(arrays):
            self.interpreter.set_input(array, index)
        _with_reason(self.interpreter.invoke)
        return [self.interpreter.get_output(index) for index in range(len(self.outputs))]


def _with_reason(call):
    """Call a function of the interpreter. Its error gets the reason, which the interpreter only writes beside it."""
    try:
        return call()
    except Exception as error:
        with _standard_error() as written, contextlib.suppress(Exception):
            call()  # again: what is right should not wait for a log
        reason = " ".join(written[0].split())
        raise RuntimeError(printable(f"{str(error).rstrip('.')}. {reason}", _LONGEST_REASON)) from error


@contextlib.contextmanager
def _standard_error():
    """Yield a list that has, after the context, the text that compiled code wrote to the standard error in it."""
    written = []
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            log.seek(0)
            written.append(log.read().decode(errors="replace"))


def _misread(file):
    """Return whether an operation converts a tensor with different scales to floats: the runtime takes one."""
    found = [file.graph.tensors[op.inputs[0]] for op in file.graph.operators if file.kind(op) == "DEQUANTIZE"]
    scales = [tensor.quantization.scale for tensor in found if tensor.quantization is not None]
    return any(each is not None and len(np.unique(each)) > 1 for each in scales)


def _without_casts(content):
    """Return a file without casts from bytes to floats, which TensorFlow Lite Micro lacks."""
    file = File(content)
    return file.content() if file.byte_casts_to_dequantize() else content


def _arena(file, content):
    """Return a number of bytes that is more than enough."""
    tensors = sum(4 * int(np.prod(tensor.shape)) for tensor in file.graph.tensors if tensor.shape is not None)
    return 2 * (tensors + len(content)) + (1 << 20)


def int16_sums(writer, call, x, key, result):
    """Append the operations for a call's scaled sums in 16-bit integers.

    `T * s = 2 * T * v + key * sum(T)`, where v is 0 or -1 if signs are padded with +1, and 0 or 1 if with -1. With a
    padding of 0, it is `T * s` itself.
    """
    layer, file = call.layer, writer.file
    most = int((layer.rows != 0).sum(axis=0).max(initial=0))
    if most > _MOST:
        raise ConversionError(f"Layer {layer.name!r} has sums of {most} weights, more than 16-bit integers hold.")
    scale = 1.0 if key == 0 else 0.5
    unit = float(layer.scales[0]) if (layer.scales == layer.scales[0]).all() else 1.0
    x, shape, padding = writer.padded(layer, x, call.point.x.shape, key)
    wide = file.tensor(f"{layer.name}/wide", shape, "int16", scale=scale)
    file.operation("QUANTIZE", [x], wide)
    total = key * layer.rows.sum(axis=0, dtype=np.int64)
    bias = file.tensor(f"{layer.name}/bias", [layer.outputs], "int64", total, scale=unit)
    after = writer.output_shape(layer, shape, padding)
    sums = file.tensor(f"{layer.name}/sums", after, "int16", scale=unit)
    writer.apply(layer, wide, shape, padding, bias, sums, np.full(1, unit / scale, np.float32), 0, False, key)
    floats = sums
    if layer.axes == 1 and layer.kernel.ndim == 4:
        after = (*after[:2], after[3])
        size = file.tensor("shape", [3], "int32", after)
        floats = file.tensor(f"{layer.name}/sequence", after, "int16", scale=unit)
        file.operation("RESHAPE", [sums, size], floats, newShape=list(after))
    if unit != 1.0 or (layer.scales == 1).all():
        file.operation("DEQUANTIZE", [floats], result)
        return
    units = writer.floats(f"{layer.name}/units", after)
    file.operation("DEQUANTIZE", [floats], units)
    file.operation("MUL", [units, writer.number("scales", layer.scales)], result, 1)


def c_array(content, name):
    """Return C++ source with the bytes of a file as an array."""
    rows = [content[begin : begin + 12] for begin in range(0, len(content), 12)]
    lines = ",\n    ".join(", ".join(f"0x{byte:02x}" for byte in row) for row in rows)
    return (
        f"#include <cstdint>\n\nalignas({_ALIGNMENT}) extern const uint8_t {name}[] = {{\n    {lines}\n}};\n"
        f"extern const unsigned int {name}_len = {len(content)};\n"
    )


def resolver(operations):
    """Return C++ that registers exactly the operations of a file."""
    names = [_IRREGULAR.get(name) or "".join(map(str.capitalize, name.split("_"))) for name in sorted(operations)]
    names = [re.sub(r"(\d)d$", r"\1D", name) for name in names]
    adds = " ".join(f"resolver.Add{name}();" for name in names)
    return f"tflite::MicroMutableOpResolver<{len(names)}> resolver; {adds}"


def arena_bytes(content):
    """Return the size of a file's arena on this machine, in bytes.

    Raises:
        ConversionError: The interpreter does not tell it.
    """
    session = Micro().session(content)
    session([np.zeros(tensor.shape, tensor.dtype) for tensor in session.inputs])
    with _standard_error() as written:
        session.interpreter.print_allocations()
    found = re.search(r"Arena allocation total (\d+)", written[0])
    if found is None:
        raise ConversionError("TensorFlow Lite Micro does not tell the size of the arena.")
    return int(found.group(1))


def _identifier(stem):
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"model_{name}" if name[:1].isdigit() or name in _KEYWORDS else name
