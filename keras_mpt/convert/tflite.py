"""Conversion for stock TensorFlow Lite (LiteRT): no custom operations, kernels small, results exact."""

import contextlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_mpt.convert.conversion import Target, convert
from keras_mpt.convert.flatbuffer import File, check_int8, sparse_size
from keras_mpt.convert.graph import NOT_TERNARY, border_excess, call_plain, finished, kernel_of, ternary, why_no_signs
from keras_mpt.convert.report import ConversionError, errors_of
from keras_mpt.layers import MPTConv2DTranspose, MPTConv3D, MPTDense, MPTDepthwiseConv2D

WEIGHTS = ("auto", "int8", "sparse_int8", "exact_int8", "float32", "float16", "dynamic_int8")


def to_tflite(model, path, *, weights="auto", samples=None):
    """Convert a model for TensorFlow Lite (LiteRT), without custom operations.

    `weights` says how the kernels of MPT layers are stored and used:

    - `"int8"`: one byte for each weight and a float for each output channel, from which the runtime makes the float
      kernel when the model is loaded: -1, 0 or 1 times a float, so the outputs have the same bits as with float32.
    - `"sparse_int8"`: the same, but of a kernel where that is smaller only what was kept is stored, and where. The file
      is smaller as it is, and larger than with `"int8"` once compressed.
    - `"exact_int8"`: layers that take signs compute with integers, several times as fast as with floats, and exactly.
      The runtime rounds float inputs to 8 bits, which 0 and 1 survive: `T * sign(x) = sum(T) - 2 * T * n` with n = 1
      where x < 0. Other layers as with `"int8"`.
    - `"float32"`, `"float16"`: as floats; float16 rounds alpha.
    - `"dynamic_int8"`: TensorFlow Lite's dynamic range quantization. Fast, but inputs are rounded to 8 bits: the
      report says how lossy that is; nothing is refused for it.
    - `"auto"`: for each layer the first of exact_int8, int8 and float32 that is exact; of those that stay
      float32, only what was kept is stored, where that is smaller.

    The file is run beside the Keras model before it is written, see `to_lce`.

    Args:
        model: A built functional or Sequential model with one input and one output, a `Ticket`, or a ticket's path.
        path: Where the file goes; `.tflite` is the usual ending.
        weights: See above.
        samples: Inputs to check with, `(number, ...)`; default: 16 of standard normal numbers.

    Returns:
        A `Report`.

    Raises:
        ConversionError: The kernels of a layer differ in magnitude, so that int8 is not exact, TensorFlow Lite cannot
            convert or run the model, or the file does not compute what the model does. There is no new file then. It
            is a ValueError.
        ValueError: `weights` is none of these; `model` is subclassed or not built, or has more than one input or
            output; or `samples` do not fit.
        FileNotFoundError, IsADirectoryError: There is no folder for `path`, or `path` is one.
        RuntimeError: Keras does not run on TensorFlow.

    Example:

    >>> print(keras_mpt.convert.to_tflite("conv4.mpt", "conv4.tflite", samples=images[:100]))
    """
    if weights not in WEIGHTS:
        raise ValueError(f"`weights` must be one of {', '.join(WEIGHTS)}. Received: weights={weights!r}")
    return convert(model, path, TensorFlowLite(weights), samples)


class TensorFlowLite(Target):
    """See `to_tflite`."""

    name, engine = "tflite", "TensorFlow Lite"

    def __init__(self, weights="auto"):
        self._weights = weights
        self.lossy = weights in ("float16", "dynamic_int8")

    def form(self, layer):
        if self._weights in ("float32", "float16", "dynamic_int8"):
            return self._weights.replace("_", " "), ""
        if ternary(kernel_of(layer)) is None:
            if self._weights != "auto":
                raise ConversionError(f"Layer {layer.name!r} cannot be stored as {self._weights}: {NOT_TERNARY}.")
            return "float32", NOT_TERNARY
        if self._weights == "sparse_int8":
            kernel = _rows(layer)
            return ("sparse int8" if sparse_size(kernel, 1) < kernel.size else "int8"), ""
        why = "" if self._weights == "int8" else why_no_signs(layer)
        return ("exact int8", "") if why is None else ("int8", why)

    def call(self, layer, form, x):
        return exact(layer, x) if form == "exact int8" else call_plain(layer, x)

    def compile(self, model, forms):
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if self.lossy:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if self._weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        with _no_messages_of_keras(), errors_of(self.engine, "convert"):
            content = converter.convert()
        if self._weights in ("auto", "int8", "sparse_int8", "exact_int8"):
            file = File(content)
            exact_layers = [layer for layer, form in forms if form == "exact int8"]
            found = file.integer_kernels([ternary(kernel_of(layer))[0] for layer in exact_layers])
            if found != len(exact_layers):
                names = [layer.name for layer in exact_layers]
                raise ConversionError(f"{found} layers compute with integers, not {len(names)}: {names}.")
            file.kernels_to_int8(sparse=self._weights == "sparse_int8")
            if self._weights == "auto":
                file.floats_to_sparse()
            content = file.content()
        return content

    def size(self, layer, form):
        kernel = _rows(layer)
        last = {MPTDepthwiseConv2D: 1, MPTConv3D: -1}  # the axis of the outputs, each with a scale
        outputs = kernel.shape[next((axis for kind, axis in last.items() if isinstance(layer, kind)), 0)]
        if form == "sparse int8":
            return sparse_size(kernel, 1) + 4 * outputs
        if form in ("int8", "exact int8"):
            return kernel.size + 4 * outputs
        if self._weights == "auto":
            return min(sparse_size(kernel, 4), 4 * kernel.size)
        return {"float16": 2, "dynamic int8": 1}.get(form, 4) * kernel.size

    def check(self, file, forms):
        check_int8(file, forms)

    def runtimes(self):
        return list(_interpreters())

    def run(self, content, samples, runtime="tf.lite"):
        interpreter, inputs, outputs = self._prepared(content, samples.shape, 2, runtime)
        interpreter.set_tensor(inputs, samples)
        interpreter.invoke()
        return interpreter.get_tensor(outputs)

    def invoker(self, content, sample, threads):
        interpreter, inputs, _ = self._prepared(content, sample.shape, threads, "tf.lite")
        interpreter.set_tensor(inputs, sample)
        return interpreter.invoke

    def _prepared(self, content, shape, threads, runtime):
        with warnings.catch_warnings():  # TensorFlow's says that LiteRT will replace it
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
            interpreter = _interpreters()[runtime](model_content=content, num_threads=threads)
        (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(inputs["index"], shape)
        interpreter.allocate_tensors()
        return interpreter, inputs["index"], outputs["index"]


def _interpreters():
    """Return the interpreters that are installed, by name."""
    import tensorflow as tf

    found = {"tf.lite": tf.lite.Interpreter}
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return found
    return {**found, "LiteRT": Interpreter}


@contextlib.contextmanager
def _no_messages_of_keras():
    """Keep off the terminal where Keras' export, a step of the conversion, puts its temporary files."""
    interactive = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if interactive:
            keras.config.enable_interactive_logging()


def _rows(layer):
    """Return a layer's kernel as rows like those in a file: of inputs for each output, of channels if depthwise.

    That of a Conv3D has five axes there, the last one of outputs.
    """
    kernel = kernel_of(layer)
    if isinstance(layer, MPTConv3D):
        return kernel
    if isinstance(layer, MPTDepthwiseConv2D):
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])
    if not isinstance(layer, MPTConv2DTranspose):
        kernel = np.swapaxes(kernel, -1, -2)
    return np.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1, kernel.shape[-1])


def exact(layer, x):
    """Return the outputs of an MPT layer on the signs of `x`, computed from n = 1 where x < 0, else 0."""
    signs, scales = ternary(kernel_of(layer))
    negative = ops.cast(x < 0, "float32")
    kernel, total = -2 * scales * signs, scales * signs.sum(axis=tuple(range(signs.ndim - 1)))
    if isinstance(layer, MPTDense):
        y = ops.matmul(negative, kernel.astype(np.float32)) + total.astype(np.float32)
    else:
        widths, value = layer.pad_widths(x.shape), layer.pad_values
        padding = {"strides": layer.strides, "padding": "valid", "dilation_rate": layer.dilation_rate}
        padded = ops.pad(negative, widths, constant_values=float(value == -1)) if np.any(widths) else negative
        y = ops.conv(padded, kernel.astype(np.float32), **padding) + total.astype(np.float32)
        if np.any(widths) and value not in (-1, 1):
            y = y - border_excess(x, widths, 1.0 - value, signs * scales, **padding)
    return finished(layer, y)
