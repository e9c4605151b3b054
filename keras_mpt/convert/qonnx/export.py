"""The QONNX target: the function, its report, and the session."""

import collections
import dataclasses
import numbers
import os
from typing import Any

import keras
import numpy as np

from keras_mpt._types import Path
from keras_mpt.arguments import is_count
from keras_mpt.convert import conversion, tensors
from keras_mpt.convert.kernels import NOT_TERNARY, Format, call_twin
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.qonnx.graph import CHANNELS_LAST, Graph
from keras_mpt.convert.qonnx.layers import Emitter, Padding, Signs
from keras_mpt.convert.report import ConversionError, Report
from keras_mpt.convert.target import Session, Target
from keras_mpt.layers import MPTConv2D, MPTDense, MPTDepthwiseConv2D
from keras_mpt.requirements import extra
from keras_mpt.tickets import Ticket, load_ticket

DATA_FORMATS = ("channels_first", "channels_last")
_SUPPORTED = (MPTConv2D, MPTDepthwiseConv2D, MPTDense)


def to_qonnx(
    model: keras.Model | Path | Ticket,
    path: Path,
    *,
    data_format: str = "channels_first",
    input_precision: tuple[int, int] | None = None,
    activation_precision: tuple[int, int] | None = None,
    samples: Any = None,
) -> "QonnxReport":
    """Convert a model to QONNX (ONNX with quantizers), which FINN and hls4ml compile for FPGAs.

    Signs become `BipolarQuant` (the sign of 0 is +1), and ternary kernels become a narrow `Quant` of 2 bits with scale
    1: alpha moves to the next operation. Before a sign, alpha, bias and batch normalization become a threshold for each
    channel, half-way between two possible integers, so that every runtime decides as Keras does in float32. A threshold
    is a `BatchNormalization` with scale 1 or -1, mean 0 and variance 1. Any other batch normalization keeps its floats.

    Before the file is written, qonnx runs it to compare its outputs with those of the Keras model, see `to_lce`. Its
    data types are checked to be BIPOLAR and TERNARY of FINN.

    Args:
        model: A built functional or Sequential model of images or features; a `Ticket`; or its path, preset name or
            address.
        path: Path of the new file, usually with the ending `.onnx`.
        data_format: `"channels_first"` for FINN, or `"channels_last"`, which hls4ml takes without a further step. It
            determines the order of flattened features.
        input_precision: `(bits, integer_bits)`, integers from 1 to 16 and from -32 to 32: inputs are rounded like
            `ap_fixed<bits, integer_bits>`; None: floats. File and model are compared on rounded inputs. Then the signs
            of the first layer's outputs are thresholds of integers as well.
        activation_precision: The same for outputs of ReLU, without a sign. The report has the error, which may have
            any size.
        samples: Inputs for the comparison, see `to_tflite`; default: 16 of standard normal numbers.

    Returns:
        A `QonnxReport`.

    Raises:
        ConversionError: A layer cannot be exported to QONNX, or, with channels last, read by hls4ml; or the outputs of
            file and model differ. No file is written. It is a ValueError.
        ValueError: `model` is subclassed, not built, or takes strings or inputs of unknown size; an argument is not as
            described; or `samples` do not fit.
        TypeError, OSError: See `to_tflite`.
        ImportError: qonnx is not installed.
        RuntimeError: The backend of Keras is not TensorFlow.

    Examples:
        >>> report = keras_mpt.convert.to_qonnx("conv2.mpt", "conv2.onnx", input_precision=(8, 3), samples=images[:100])
    """
    if data_format not in DATA_FORMATS:
        raise ValueError(f"`data_format` must be one of {', '.join(DATA_FORMATS)}. Received: {data_format=}")
    if input_precision is not None:
        input_precision = _checked_precision("input_precision", input_precision)
    if activation_precision is not None:
        activation_precision = _checked_precision("activation_precision", activation_precision)
    target, random = Qonnx(data_format, input_precision, activation_precision), samples is None
    if input_precision is not None:
        if isinstance(model, (str, os.PathLike, Ticket)):
            conversion.check_another(path, model.path if isinstance(model, Ticket) else model)
            model = load_ticket(conversion.read_ticket(model))
        samples = [rounded(array, input_precision) for array in conversion.samples_for(Plan(model), samples)]
    report = conversion.convert(model, path, target, samples)
    return QonnxReport(**{**vars(report), **target.sizes, "random": random}, cost=target.cost)


def rounded(array: Any, precision: tuple[int, int]) -> np.ndarray:
    """Round an array to `(bits, integer_bits)`, half to even, and clip it, as the first node of a file does.

    The results are multiples of `2^(integer_bits - bits)`, from `-2^(integer_bits - 1)` to one step less than
    `2^(integer_bits - 1)`.

    Args:
        array: Array of numbers, of any shape.
        precision: `(bits, integer_bits)`, integers from 1 to 16 and from -32 to 32, see `to_qonnx`.

    Returns:
        A float32 array of the same shape.

    Raises:
        ValueError: `precision` is not a pair of such integers.
    """
    bits, integers = _checked_precision("precision", precision)
    step, most = 2.0 ** (integers - bits), 2 ** (bits - 1)
    return (np.clip(np.round(np.asarray(array, np.float64) / step), -most, most - 1) * step).astype(np.float32)


def _checked_precision(name, value):
    """Return a pair of Python's integers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not is_count(value[0]) or value[0] > 16:
        raise ValueError(f"`{name}` must be (bits, integer_bits), of at most 16 bits. Received: {name}={value!r}")
    if isinstance(value[1], bool) or not isinstance(value[1], numbers.Integral) or abs(value[1]) > 32:
        raise ValueError(f"`{name}` must be (bits, integer_bits), two integers. Received: {name}={value!r}")
    return int(value[0]), int(value[1])


@dataclasses.dataclass(repr=False)
class QonnxReport(Report):
    """A `Report` with the cost on an FPGA.

    Attributes:
        cost: Dict from `qonnx.util.inference_cost`: `total_bops`, the bit operations of kept weights; `total_macs`;
            `total_mem_w_bits`; and more.
    """

    cost: dict = dataclasses.field(default_factory=dict)

    def _checks(self):
        yield from super()._checks()
        macs, bops, bits = (int(self.cost[f"total_{what}"]) for what in ("macs", "bops", "mem_w_bits"))
        yield "Cost", f"of kept weights: {macs:,} MACs, {bops:,} bit operations, {bits:,} bits of weights"


class _Exported(Format):
    """A kernel in QONNX: float32 numbers, with a quantizer behind ternary ones."""

    def call(self, kernel, x):
        layer = kernel.layer
        if not isinstance(layer, _SUPPORTED):
            names = ", ".join(kind.__name__ for kind in _SUPPORTED)
            _refuse(layer, f"{type(layer).__name__} is not one of {names}")
        if layer.input_quantizer is not None and not kernel.takes_signs:
            _refuse(layer, f"its {type(layer.input_quantizer).__name__} does not give -1 or +1")
        widths, value = [(0, 0)], 0.0
        if not isinstance(layer, MPTDense):
            if layer.data_format != "channels_last":
                _refuse(layer, "its channels come first")
            if layer.plain().padding == "valid":
                widths, value = layer.pad_widths(x.shape), float(layer.pad_values)
        pads, name = bool(np.any(widths)), kernel.path.replace("/", "_")
        if kernel.takes_signs:
            x = Signs(widths if pads and value else None, value, f"{name}_input")(x)
        if pads and not (kernel.takes_signs and value):
            x = Padding(widths, value, f"{name}_pad")(x)
        return call_twin(kernel, x)


def _refuse(layer, why):
    raise ConversionError(f"Layer {layer.name!r} cannot be exported to QONNX: {why}.")


class _Ternary(_Exported):
    name = "ternary"

    def unfit(self, kernel):
        return NOT_TERNARY if kernel.split is None else None


class _Binary(_Ternary):
    name, binary = "binary", True

    def unfit(self, kernel):
        return super().unfit(kernel) or (None if kernel.takes_signs else "float input")


class Qonnx(Target):
    """See `to_qonnx`."""

    name, engine, batch = "qonnx", "qonnx", 1
    endings = (".onnx",)
    formats = (_Binary(), _Ternary(), _Exported())

    def __init__(self, data_format="channels_first", input_precision=None, activation_precision=None):
        with extra("qonnx", "Conversion to QONNX"):
            import onnxruntime
            import qonnx.core.modelwrapper  # noqa: F401
        onnxruntime.set_default_logger_severity(3)  # qonnx runs each node separately, with an old operation set
        self._channels_last = data_format == "channels_last"
        self._input_precision, self._activation_precision = input_precision, activation_precision
        self.lossy = activation_precision is not None
        self.sizes, self.cost = {}, None

    def compile(self, graph):
        whole = self.cost is None  # compiled before the pieces
        model = self._model(graph, self._channels_last, whole)
        content = model.SerializeToString()
        if whole:
            _check_types(content)
            self.cost = _cost(self._model(graph, False).SerializeToString())  # the cost is counted with channels first
            self.sizes = {kind: [_tensor(x) for x in getattr(model.graph, kind[:-1])] for kind in ("inputs", "outputs")}
        return content

    def _model(self, graph, channels_last, whole=True):
        made = Graph(graph.model.inputs[0].shape[0] or 1, channels_last, for_hls4ml=channels_last and whole)
        emitter = Emitter(made, self._input_precision if whole else None, self._activation_precision)
        return emitter.run(graph.model, graph.inputs, graph.outputs)

    def operations(self, content):
        return dict(collections.Counter(node.op_type for node in _loaded(content).graph.node))

    def session(self, content, runtime=None, threads=2):
        return _Session(content)


def _loaded(content):
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ValueError("The file is not an ONNX model.") from error


def _wrapped(content):
    from qonnx.core.modelwrapper import ModelWrapper

    return ModelWrapper(_loaded(content))


def _check_types(content):
    """Raise ConversionError unless qonnx infers FINN's types: 1 bit for signs, 2 bits for ternary kernels."""
    from qonnx.transformation.infer_datatypes import InferDataTypes

    model = _wrapped(content).transform(InferDataTypes())
    kernels, wanted = {x.name for x in model.graph.initializer}, {}
    for node in model.graph.node:
        if node.op_type == "BipolarQuant":
            wanted[node.output[0]] = "BIPOLAR"
        elif node.op_type == "Quant" and node.input[0] in kernels:
            wanted |= {node.input[0]: "TERNARY", node.output[0]: "INT2"}
    for name, kind in wanted.items():
        if (found := model.get_tensor_datatype(name).name) != kind:
            raise ConversionError(f"{name!r} must be of FINN's type {kind}. Received: {found}")


def _cost(content):
    from qonnx.util.inference_cost import inference_cost

    return inference_cost(_wrapped(content))["total_cost"]


def _tensor(info):
    return tensors.Tensor(info.name, tuple(d.dim_value for d in info.type.tensor_type.shape.dim), "float32")


class _Session(Session):
    """A QONNX file in qonnx, for batches of any size. Images have their channels last, as in Keras."""

    def __init__(self, content):
        self._model = _wrapped(content)
        graph = self._model.graph
        last = any(opset.domain == CHANNELS_LAST for opset in self._model.model.opset_import)
        self._first = [len(_tensor(x).shape) == 4 and not last for x in (*graph.input, *graph.output)]
        found = [_tensor(x) for x in (*graph.input, *graph.output)]
        for i, first in enumerate(self._first):
            shape = np.roll(found[i].shape[1:], -1).tolist() if first else found[i].shape[1:]
            found[i] = dataclasses.replace(found[i], shape=(None, *shape))
        self.inputs, self.outputs = found[: len(graph.input)], found[len(graph.input) :]

    def __call__(self, arrays):
        from qonnx.core.onnx_exec import execute_onnx

        arrays = [np.asarray(array, np.float32) for array in arrays]
        graph, count = self._model.graph, len(arrays)
        constants = {x.name for x in graph.initializer}
        constants |= {node.output[0] for node in graph.node if node.input[0] in constants}
        for info in (*graph.input, *graph.output, *graph.value_info):
            dims = info.type.tensor_type.shape.dim
            if info.name not in constants:
                dims[0].dim_value = len(arrays[0])
        arrays = [np.moveaxis(x, -1, 1) if first else x for x, first in zip(arrays, self._first, strict=False)]
        found = execute_onnx(self._model, dict(zip((x.name for x in graph.input), arrays, strict=True)))
        outputs = [found[x.name] for x in graph.output]
        return [np.moveaxis(y, 1, -1) if first else y for y, first in zip(outputs, self._first[count:], strict=True)]
