"""Convert models for larq-compute-engine, with binary convolutions."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Path
from keras_mpt.arguments import check_bool
from keras_mpt.convert.annotations import annotated
from keras_mpt.convert.conversion import convert
from keras_mpt.convert.flatbuffer import File, check_int8
from keras_mpt.convert.kernels import (
    NOT_TERNARY,
    Format,
    border_excess,
    call_plain,
    call_twin,
    finished,
    prepared,
    same_widths,
    sign,
    unmerged,
    why_no_signs,
)
from keras_mpt.convert.report import ConversionError, Report, errors_of
from keras_mpt.convert.saved import saved_model
from keras_mpt.convert.target import Session, Target
from keras_mpt.layers import MPTConv2D, MPTDense, MPTDepthwiseConv2D
from keras_mpt.models.rewrite import rewrite
from keras_mpt.requirements import extra
from keras_mpt.tickets import Ticket


def to_lce(
    model: keras.Model | Path | Ticket,
    path: Path,
    *,
    preprocess: Any = None,
    labels: Sequence[str] | None = None,
    samples: Any = None,
    require_binary: bool = False,
) -> Report:
    """Convert a model for larq-compute-engine: MPT-1/1 layers become binary convolutions, exactly.

    The engine's own converter treats a convolution as binary only if each weight is ±scale. The removed weights of a
    ticket would silently turn it into a float convolution. Here a ternary kernel T becomes two kernels of ±1 over
    doubled input channels: `scale * T = scale / 2 * P + scale / 2 * N`, where P has +1 and N has -1 for zeros of T.
    Zero padding, which the engine supports on ARM only, becomes padding with ones and a correction at the border. Dense
    layers become 1x1 convolutions. Other layers stay float; their kernels are stored in int8 where that is exact.

    Before the file is written, its outputs are compared with those of the Keras model: first of the pieces from signs
    to signs, given the model's own signs, then of the whole on `samples`. There, a sample may differ by more than
    rounding only if it has an activation so close to zero that rounding, as measured in the pieces, can flip its sign.
    The engine runs batches of one. A quantizer that depends on the whole batch, such as `magnitude_aware_sign`, gives
    other values on larger batches: check such a model with one sample.

    Args:
        model: A built functional or Sequential model; a `Ticket`; or its path, preset name or address.
        path: Path of the new file, usually with the ending `.tflite`.
        preprocess, labels: See `to_tflite`.
        samples: Inputs for the comparison, see `to_tflite`; default: 16 of standard normal numbers.
        require_binary: Whether to refuse a model if a layer with an input quantizer cannot be binary.

    Returns:
        A `Report`.

    Raises:
        ConversionError: A layer cannot be binary although `require_binary` is set, the engine cannot convert or run the
            model, or the outputs of file and model differ. No file is written. It is a ValueError.
        ValueError: `model` is subclassed or not built, or takes strings or inputs of unknown size; or an argument is
            not as described or does not fit the model.
        TypeError, OSError: See `to_tflite`.
        ImportError: larq-compute-engine is not installed.
        RuntimeError: The backend of Keras is not TensorFlow.

    Examples:
        >>> print(keras_mpt.convert.to_lce(model, "model.tflite", samples=images[:100]))
    """
    check_bool("require_binary", require_binary)
    return convert(model, path, LarqComputeEngine(require_binary), samples, preprocess, labels)


# The engine's converter passes on what its interpreter lacks.
_OTHERS = "Use another layer or activation in its place, or `to_tflite`, which has more"
_GELU = "Exact GELU needs it: use `keras.activations.gelu(x, approximate=True)` in its place, or `to_tflite`"
_INSTEAD = {"Erf": _GELU, "Erfc": _GELU, "TFLM_DECODE": "The file is one for TensorFlow Lite Micro: target='tflm'"}


class LarqComputeEngine(Target):
    """See `to_lce`."""

    name, engine = "lce", "larq-compute-engine"
    batch = 1

    def __init__(self, require_binary=False):
        with extra("lce", "Conversion for larq-compute-engine"):
            import larq_compute_engine
            from larq_compute_engine.tflite.python import interpreter
        self._engine, self._interpreter = larq_compute_engine, interpreter
        self.formats = (Binary(require_binary), Int8(), Float())

    def compile(self, graph):
        for x in graph.model.inputs:
            _check_size(x.shape, "inputs")
            if x.shape[0] != 1:
                raise ValueError(
                    "`model` must take batches of one, or of any size, to be converted for larq-compute-engine. "
                    f"Received: batch size {x.shape[0]}"
                )
        apart = dataclasses.replace(graph, model=_zero_padding_apart(graph.model))
        with errors_of(self.engine, "convert"), saved_model(apart) as folder:
            content = self._engine.convert_saved_model(folder)
        file = File(content)
        file.order(graph.inputs, graph.outputs)
        file.kernels_to_int8()
        binary_layers = [kernel.layer.name for kernel in graph.kernels if kernel.format.binary]
        expected = sum(kernel.calls for kernel in graph.kernels if kernel.format.binary)
        found = file.operations().get("LceBconv2d", 0)
        if found != expected:
            raise ConversionError(
                f"The engine's converter made {found} binary convolutions of {expected}: {binary_layers}."
            )
        check_int8(file, graph.kernels)
        return file.content()

    def annotated(self, content, facts):
        return annotated(content, facts)

    def operations(self, content):
        return File(content).operations()

    def session(self, content, runtime=None, threads=2):
        file = File(content)  # first: the interpreter crashes on damaged files
        missing = [name for name in file.custom_operations() if not name.startswith("Lce")]
        if missing:
            raise ConversionError(
                f"{self.engine} cannot run this model: it has no operation {' or '.join(missing)}. "
                f"{_INSTEAD.get(missing[0], _OTHERS)}."
            )
        return _Interpreted(file, self._interpreter.Interpreter(content, num_threads=threads))


class _Interpreted(Session):
    """A file in the engine's interpreter."""

    def __init__(self, file, interpreter):
        self.inputs, self.outputs = file.inputs(), file.outputs()
        self._predict = interpreter.interpreter.predict  # of one batch, not of a list

    def __call__(self, arrays):
        return self._predict(arrays)


class Float(Format):
    """Float kernels, with padding that the engine's converter cannot misread."""

    def call(self, kernel, x):
        if isinstance(kernel.layer, (MPTConv2D, MPTDepthwiseConv2D)):
            _check_size(x.shape, f"inputs of layer {kernel.layer.name!r}")
        if _misread(kernel.layer, x.shape):
            return call_twin(kernel, unmerged(prepared(kernel, x)))
        return call_plain(kernel, x)


class Int8(Float):
    """Ternary kernels with one byte for each weight and a scale for each output channel."""

    name = "int8"
    int8 = True

    def unfit(self, kernel):
        return NOT_TERNARY if kernel.split is None else None

    def size(self, kernel):
        return kernel.array.size + 4 * kernel.array.shape[-1]


class Binary(Format):
    """Layers of signs as binary convolutions; a ternary kernel becomes two of them."""

    name = "binary"
    binary = True

    def __init__(self, required=False):
        self._required = required

    def unfit(self, kernel):
        reason = why_no_signs(kernel)
        if reason is not None and self._required and kernel.layer.input_quantizer is not None:
            raise ConversionError(f"Layer {kernel.layer.name!r} cannot be binary: {reason}.")
        return reason

    def call(self, kernel, x):
        _check_size(x.shape, f"inputs of layer {kernel.layer.name!r}")
        return binary(kernel, x)

    def size(self, kernel):
        shape, halves = kernel.array.shape, 2 if (kernel.array == 0).any() else 1
        return kernel.array.size // shape[-2] * 4 * -(-halves * shape[-2] // 32)


def _check_size(shape, what):
    if None in shape[1:]:
        raise ValueError(
            "`model` must have a known input size to be converted for larq-compute-engine, such as "
            f"keras.Input((32, 32, 3)). Received: {what} of shape {(None, *shape[1:])}"
        )


def binary(kernel, x):
    """Return the outputs of an MPT layer on the signs of `x`, by operations that become one binary convolution.

    A ternary kernel T is split into two kernels of ±1, where P has +1 and N has -1 for zeros of T:
    `scale * T = scale / 2 * P + scale / 2 * N`. They form one kernel over doubled input channels.
    """
    layer, (signs, scales) = kernel.layer, kernel.split
    if isinstance(layer, MPTDense):
        units = signs.shape[-1]
        leading = x.shape[1:-1]
        x = ops.reshape(x, (-1, 1, int(np.prod(leading, dtype=int)), x.shape[-1]))
        y = _convolve(x, signs[None, None], scales)
        y = ops.reshape(y, (-1, *leading, units))
    else:
        widths, value = layer.pad_widths(x.shape), layer.pad_values
        y = _convolve(x, signs, scales, layer.strides, layer.dilation_rate, widths, value)
    return finished(kernel, y)


def _misread(layer, shape):
    """Return whether the engine's converter would mistake the padding of a layer for TensorFlow's "SAME".

    Version 0.16 merges any explicit padding into a convolution with strides.
    """
    if not isinstance(layer, (MPTConv2D, MPTDepthwiseConv2D)) or layer.data_format != "channels_last":
        return False
    widths = layer.pad_widths(shape)
    return np.any(widths) and widths != same_widths(shape, layer.kernel_size, layer.strides, layer.dilation_rate)


def _zero_padding_apart(model):
    """Return the same model, except that no `ZeroPadding2D` can be merged with the next layer."""

    def step(path, operation, args, kwargs):
        outputs = operation(*args, **kwargs)
        return unmerged(outputs) if isinstance(operation, keras.layers.ZeroPadding2D) else outputs

    return rewrite(model, step)


def _convolve(x, kernel, scales, strides=1, dilation=1, widths=(), value=1.0):
    """Return `scales * (T * signs(x))`, `signs(x)` padded by `widths` with `value`."""
    zeros = kernel == 0
    parts = [kernel + zeros, kernel - zeros] if zeros.any() else [kernel]
    doubled = np.concatenate(parts, axis=2).astype(np.float32) * (scales / len(parts)).astype(np.float32)
    how = {"strides": strides, "padding": "valid", "dilation_rate": dilation, "data_format": "channels_last"}
    wide = ops.concatenate([x, x], axis=-1) if len(parts) == 2 else x
    if not np.any(widths):
        return ops.conv(sign(wide), doubled, **how)
    filling = -1.0 if value == -1 else 1.0
    if filling == 1 and widths == same_widths(x.shape, kernel.shape, strides, dilation):
        padded = ops.pad(sign(wide), widths, constant_values=filling)  # the engine's own padding
    else:
        padded = sign(ops.pad(wide, widths, constant_values=filling))
    y = ops.conv(padded, doubled, **how)
    return y if value == filling else y - border_excess(x, widths, filling - value, kernel * scales, **how)
