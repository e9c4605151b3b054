"""Convert models for TensorFlow Lite (LiteRT): exact, with small kernels and without custom operations."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Path
from keras_mpt.arguments import check_choice, check_count
from keras_mpt.convert.annotations import annotated
from keras_mpt.convert.conversion import convert
from keras_mpt.convert.flatbuffer import File, check_int8
from keras_mpt.convert.integer.form import Integer, compile_integers
from keras_mpt.convert.kernels import NOT_TERNARY, Format, border_excess, finished, sparse_size, why_no_signs
from keras_mpt.convert.report import ConversionError, Report, errors_of
from keras_mpt.convert.saved import saved_model
from keras_mpt.convert.target import Session, Target
from keras_mpt.layers import MPTDense, MPTDepthwiseConv1D, MPTDepthwiseConv2D, MPTEinsumDense, MPTEmbedding
from keras_mpt.layers.composed_convolutions import MPTTransposedConv
from keras_mpt.requirements import extra
from keras_mpt.tickets import Ticket


def to_tflite(
    model: keras.Model | Path | Ticket,
    path: Path,
    *,
    weights: str = "auto",
    batch: int | None = 1,
    preprocess: Any = None,
    labels: Sequence[str] | None = None,
    samples: Any = None,
) -> Report:
    """Convert a model for TensorFlow Lite (LiteRT), without custom operations.

    `weights` is the name of a format for the kernels of MPT layers:

    - `"int8"`: One byte for each weight and a float for each output channel. When it loads the file, the runtime
      computes float kernels: -1, 0 or 1 times a float. So the outputs have the same bits as with float32.
    - `"sparse_int8"`: The same, with only the kept weights of a kernel and their positions if that is smaller. Such a
      file is smaller than with `"int8"`, but larger once compressed.
    - `"integer"`: A layer of signs, its normalization, pooling and the next sign are one integer operation. Conversion
      decides the sign of a sum that is exactly at the threshold, as the model does. Layers whose sums are added or are
      outputs compute with integers and return floats, as with `"exact_int8"`; the report lists them with the reason.
      The batch size must be fixed.
    - `"integer2_dense"`: The same with two bits for each weight if that is not slower: in dense layers that use each
      weight once for a batch, and have at least 2 % of the weights.
    - `"integer2"`: The same with two bits in convolutions as well, a quarter of the size, for layers with at least 2 %
      of the weights. On processors with dot products of 8-bit integers, these convolutions are two to four times
      slower, on others as fast.
    - `"exact_int8"`: Layers of signs compute with integers, exactly, and several times as fast as with floats. The
      runtime rounds float inputs to 8 bits, which keeps 0 and 1 exact: `T * sign(x) = sum(T) - 2 * T * n` with n = 1
      where x < 0. Other layers are as with `"int8"`.
    - `"float32"`, `"float16"`: Floats; float16 rounds alpha, and the report has the error.
    - `"dynamic_int8"`: TensorFlow Lite's dynamic range quantization. It is fast, but rounds inputs to 8 bits. The
      report has the error, which may have any size.
    - `"auto"`: For each layer, the first exact format of integer, exact_int8, int8 and float32; float32 kernels are
      sparse if that is smaller.

    Before the file is written, its outputs are compared with those of the Keras model, see `to_lce`.

    Args:
        model: A built functional or Sequential model; a `Ticket`; or its path, preset name or address. Inputs of
            integers or booleans keep their type, others are float32.
        path: Path of the new file, usually with the ending `.tflite`.
        weights: See above.
        batch: Batch size of the file, an integer > 0, unless a functional model fixes it; None: any, which some
            runtimes (LiteRT.js, GPU delegates) refuse.
        preprocess: Normalization in the file, which then takes uint8 images of 0 .. 255: a pair `(mean, std)` for
            `(images / 255 - mean) / std`, each a number or one for each channel (the last axis); a preset of
            `keras_mpt.zoo`; or, with the names of `keras.applications`, `"tf"` (-1 .. 1) or `"torch"` (that of
            ImageNet). None: the inputs of the file are those of the model.
        labels: Names of the classes, stored in the file, see `metadata`.
        samples: Inputs of the file for the comparison: an array `(number, ...)` for one input; a list of arrays in the
            order of the inputs, a dict by their names, or arrays as for `predict`; or batches of these, of which the
            first 100 samples are used: a `tf.data.Dataset`, `keras.utils.PyDataset`, `torch.utils.data.DataLoader`,
            another iterable, or a function that returns one, where a tuple is `(x, y)` or `(x, y, sample_weight)`.
            Default: 16 samples of standard normal numbers, or of random pixels for uint8.

    Returns:
        A `Report`.

    Raises:
        ConversionError: The weights of a layer differ in magnitude, so that int8 is not exact; `weights` requires
            integers and no layer can have them; TensorFlow Lite cannot convert or run the model; or the outputs of file
            and model differ. No file is written. It is a ValueError.
        ValueError: `weights`, `batch` or `preprocess` is not as described; `path` has the ending of another kind of
            file; `model` is subclassed, not built, takes strings, or has an output without an entry for each sample; or
            `preprocess`, `labels` or `samples` do not fit it.
        TypeError: `path` is not a path.
        TicketError: The file `model` is not a ticket, or damaged. It is a ValueError.
        OSError: The folder of `path` does not exist or cannot be written to, `path` is a folder, or the file `model`
            cannot be opened.
        RuntimeError: The backend of Keras is not TensorFlow.

    Examples:
        >>> print(keras_mpt.convert.to_tflite("conv4.mpt", "conv4.tflite", samples=images[:100]))
    """
    check_choice("weights", weights, WEIGHTS)
    if batch is not None:
        check_count("batch", batch)
    report = convert(model, path, TensorFlowLite(weights, batch), samples, preprocess, labels)
    if any("int8" in layer.form or "2 bits" in layer.form for layer in report.layers):
        report.notes.append(("Not for", "TensorFlow Lite Micro, which reads such kernels otherwise: see `to_tflm`"))
    return report


class Rounded(Format):
    """Float kernels that TensorFlow Lite's converter rounds, to the types `types`."""

    lossy = True

    def __init__(self, name, itemsize, types=()):
        self.name, self._itemsize, self.types = name, itemsize, types

    def size(self, kernel):
        return self._itemsize * kernel.array.size


class SparseFloat(Format):
    """Float kernels, sparse if that is smaller."""

    def size(self, kernel):
        return min(sparse_size(_rows(kernel), 4), 4 * kernel.array.size)

    def store(self, file, kernels):
        file.floats_to_sparse()


class Int8(Format):
    """Ternary kernels with one byte for each weight and a scale for each output channel."""

    name = "int8"
    int8 = True

    def unfit(self, kernel):
        return NOT_TERNARY if kernel.split is None else None

    def size(self, kernel):
        return kernel.array.size + 4 * _outputs(kernel)

    def store(self, file, kernels):
        file.kernels_to_int8()


class Int2(Int8):
    """Ternary kernels of small dense layers with two bits for each weight, converted to floats in each run."""

    name = "2 bits"
    int8 = False
    _LARGEST = 1 << 17  # weights

    def unfit(self, kernel):
        reason = super().unfit(kernel)
        small = isinstance(kernel.layer, MPTDense) and kernel.array.size <= self._LARGEST
        return reason if reason is not None or small else ""

    def size(self, kernel):
        return -(-kernel.array.size // 4) + 4 * _outputs(kernel)

    def store(self, file, kernels):
        file.kernels_to_int2([kernel.split[0] for kernel in kernels])


class SparseInt8(Int8):
    """The same with sparse kernels, if they are smaller."""

    name = "sparse int8"

    def unfit(self, kernel):
        if kernel.split is None:
            return NOT_TERNARY
        return None if sparse_size(_rows(kernel), 1) < kernel.array.size else ""

    def size(self, kernel):
        return sparse_size(_rows(kernel), 1) + 4 * _outputs(kernel)

    def store(self, file, kernels):
        file.kernels_to_int8(sparse=True)


class ExactInt8(Int8):
    """Layers of signs that compute with integers: `T * sign(x) = sum(T) - 2 * T * n` with n = 1 where x < 0."""

    name = "exact int8"

    def unfit(self, kernel):
        return why_no_signs(kernel)

    def call(self, kernel, x):
        return exact(kernel, x)

    def store(self, file, kernels):
        found = file.integer_kernels([kernel.split[0] for kernel in kernels])
        expected, names = sum(kernel.calls for kernel in kernels), [kernel.layer.name for kernel in kernels]
        if found != expected:
            raise ConversionError(f"The file must compute {expected} layers with integers: {names}. Received: {found}")


WEIGHTS = {
    "integer": (Integer(), ExactInt8(), Int8(), SparseFloat()),
    "integer2_dense": (Integer("dense"), ExactInt8(), Int2(), Int8(), SparseFloat()),
    "integer2": (Integer("all"), ExactInt8(), Int2(), Int8(), SparseFloat()),
    "auto": (Integer(), ExactInt8(), Int8(), SparseFloat()),
    "int8": (Int8(),),
    "sparse_int8": (SparseInt8(), Int8()),
    "exact_int8": (ExactInt8(), Int8()),
    "float32": (Format(),),
    "float16": (Rounded("float16", 2, ["float16"]),),
    "dynamic_int8": (Rounded("dynamic int8", 1),),
}


class TensorFlowLite(Target):
    """See `to_tflite`."""

    name, engine = "tflite", "TensorFlow Lite"
    _otherwise = "auto"

    def __init__(self, weights="auto", batch=1):
        self.formats, self.batch = WEIGHTS[weights], batch
        self.lossy = self.formats[0].lossy
        self._wanted, self._found = weights.startswith("integer"), False  # integers
        self._program = None  # of the last whole graph

    def choose(self, kernel):
        super().choose(kernel)
        self._found = self._found or isinstance(kernel.format, Integer)

    def compile(self, graph):
        if self._wanted and not self._found:
            reasons = dict.fromkeys(f"{kernel.name!r}: {kernel.why}" for kernel in graph.kernels)  # each once
            reasons = "; ".join(reasons) or "There is no MPT layer"
            raise ConversionError(f"No layer can be integers; `weights` may be {self._otherwise!r} instead. {reasons}.")
        if any(isinstance(kernel.format, Integer) for kernel in graph.kernels):
            content, program = compile_integers(self, graph)
            if graph.cuts:
                self._program = program
            return content
        import tensorflow as tf

        with errors_of(self.engine, "convert"), saved_model(graph) as folder:
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if self.lossy:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [getattr(tf, name) for name in self.formats[0].types]
            content = converter.convert()
        file = File(content)
        file.order(graph.inputs, graph.outputs)
        for form in self.formats:
            form.store(file, [kernel for kernel in graph.kernels if kernel.format is form])
        check_int8(file, graph.kernels)
        return file.content()

    def decided(self, signs):
        return {} if self._program is None else self._program.decided(signs)

    def annotated(self, content, facts):
        return annotated(content, facts)

    def operations(self, content):
        return File(content).operations()

    def runtimes(self):
        return list(_interpreters())

    def session(self, content, runtime="tf.lite", threads=2):
        return Interpreted(content, _interpreters()[runtime or "tf.lite"], threads)


_MADE_FOR = {"Lce": "lce", "TFLM": "tflm"}  # custom operations


class Interpreted(Session):
    """A file in an interpreter of TensorFlow Lite."""

    def __init__(self, content, interpreter, threads):
        file = File(content)
        for begin, target in _MADE_FOR.items():
            if any(name.startswith(begin) for name in file.custom_operations()):
                raise ValueError(f"`target` must be {target!r}: the file has its operations. Received: target='tflite'")
        self.inputs, self.outputs = file.inputs(), file.outputs()
        with warnings.catch_warnings():  # that LiteRT will replace it
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
            self._interpreter = interpreter(model_content=content, num_threads=threads)
        self._shapes = None

    def __call__(self, arrays):
        inputs, shapes = self._interpreter.get_input_details(), [array.shape for array in arrays]
        if shapes != self._shapes:
            for details, tensor, shape in zip(inputs, self.inputs, shapes, strict=True):
                if None in tensor.shape:
                    self._interpreter.resize_tensor_input(details["index"], shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for details, array in zip(inputs, arrays, strict=True):
            self._interpreter.set_tensor(details["index"], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(details["index"]) for details in self._interpreter.get_output_details()]


def _interpreters():
    """Return the installed interpreters by name."""
    with extra("tensorflow", "Running TensorFlow Lite files"):
        import tensorflow as tf

    found = {"tf.lite": tf.lite.Interpreter}
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return found
    return {**found, "LiteRT": Interpreter}


def _rows(kernel):
    """Return a kernel with the rows that it has in a file: inputs of an output; for depthwise layers, channels.

    The kernel of a three-dimensional convolution keeps five axes. The rows of an embedding are those of its table.
    """
    layer, array = kernel.layer, kernel.array
    if array.ndim == 5 or isinstance(layer, MPTEmbedding):
        return array
    if _is_depthwise(kernel):
        return array.reshape(-1, array.shape[-2] * array.shape[-1])
    if isinstance(layer, MPTEinsumDense):
        given, made = layer.equation.replace(" ", "").split("->")
        axes = given.split(",")[1].replace("...", "")
        order = sorted(range(array.ndim), key=lambda axis: axes[axis] not in made)  # outputs first
        outputs = math.prod(size for axis, size in zip(axes, array.shape, strict=True) if axis in made)
        return array.transpose(order).reshape(outputs, -1)
    if not isinstance(layer, MPTTransposedConv):
        array = np.swapaxes(array, -1, -2)
    return np.moveaxis(array, -2, 0).reshape(array.shape[-2], -1, array.shape[-1])


def _outputs(kernel):
    """Return the number of output channels of a kernel in a file, each with a scale."""
    if kernel.array.ndim == 5:
        return kernel.array.shape[-2 if isinstance(kernel.layer, MPTTransposedConv) else -1]
    return _rows(kernel).shape[1 if _is_depthwise(kernel) else 0]


def _is_depthwise(kernel):
    depthwise = isinstance(kernel.layer, (MPTDepthwiseConv1D, MPTDepthwiseConv2D))
    return depthwise or kernel.subnet.name == "depthwise_kernel"


def exact(kernel, x):
    """Return the outputs of an MPT layer on the signs of `x`, computed from n: 1 where x < 0, else 0."""
    layer, (signs, scales) = kernel.layer, kernel.split
    negative = ops.cast(x < 0, "float32")
    weights, total = -2 * scales * signs, scales * signs.sum(axis=tuple(range(signs.ndim - 1)))
    if isinstance(layer, MPTDense):
        y = ops.matmul(negative, weights.astype(np.float32)) + total.astype(np.float32)
    else:
        widths, value = layer.pad_widths(x.shape), layer.pad_values
        how = {"strides": layer.strides, "padding": "valid", "dilation_rate": layer.dilation_rate}
        how["data_format"] = "channels_last"
        padded = ops.pad(negative, widths, constant_values=float(value == -1)) if np.any(widths) else negative
        y = ops.conv(padded, weights.astype(np.float32), **how) + total.astype(np.float32)
        if np.any(widths) and value not in (-1, 1):
            y = y - border_excess(x, widths, 1.0 - value, signs * scales, **how)
    return finished(kernel, y)
