"""Append tensors and operations to a TensorFlow Lite file, without a converter."""

import numpy as np

from keras_mpt.convert.flatbuffer import bytes_of, opcode, packed_2bit

# The options of each operation, by the name of their table in the schema, and the version of its integer kernels.
_OPERATIONS = {
    "ADD": ("AddOptions", 2),
    "CAST": ("CastOptions", 1),
    "CONCATENATION": ("ConcatenationOptions", 2),
    "CONV_2D": ("Conv2DOptions", 3),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", 3),
    "DEQUANTIZE": ("DequantizeOptions", 2),
    "FULLY_CONNECTED": ("FullyConnectedOptions", 4),
    "MAX_POOL_2D": ("Pool2DOptions", 2),
    "MUL": ("MulOptions", 2),
    "PAD": ("PadOptions", 2),
    "PADV2": ("PadV2Options", 2),
    "QUANTIZE": ("QuantizeOptions", 1),
    "RESHAPE": ("ReshapeOptions", 1),
    "SLICE": ("SliceOptions", 2),
    "STRIDED_SLICE": ("StridedSliceOptions", 2),
}
_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}


class Writer:
    """A file of one subgraph, to which tensors and operations are appended.

    Args:
        content: Bytes of the initial file; default: an empty one.
    """

    def __init__(self, content=None):
        from tensorflow.lite.python import schema_py_generated as schema

        self.schema, self._constants = schema, {}
        if content is not None:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
            (self.graph,) = self.model.subgraphs
            return
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs, self.model.buffers = 3, [self.graph], [schema.BufferT()]
        self.model.operatorCodes, self.graph.tensors, self.graph.operators = [], [], []
        self.graph.inputs, self.graph.outputs = [], []

    def tensor(self, name, shape, dtype, data=None, scale=None, zero_point=0, axis=0):
        """Append a tensor; return its index.

        Args:
            name, shape: Name and shape.
            dtype: `"int8"`, `"float32"`, ..., or `"int2"`.
            data: Array of values for a constant. Equal constants that are not quantized share a tensor.
            scale: Number, or an array with one for each entry of `axis`; None: not quantized.
            zero_point: Number.
            axis: See `scale`.
        """
        key = None
        if data is not None and scale is None:
            key = dtype, tuple(shape), np.asarray(data, dtype).tobytes()
            if key in self._constants:
                return self._constants[key]
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), np.array(shape, np.int32), 0
        tensor.type = getattr(self.schema.TensorType, "INT2" if dtype == "int2" else _TYPES[dtype])
        if scale is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            quantization.zeroPoint = np.full(quantization.scale.size, zero_point, np.int64)
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        if data is not None:
            buffer = self.schema.BufferT()
            values = packed_2bit(data) if dtype == "int2" else np.ascontiguousarray(data, dtype)
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        index = len(self.graph.tensors) - 1
        if key is not None:
            self._constants[key] = index
        return index

    def operation(self, kind, inputs, output, version=None, **options):
        """Append an operation with one output and the options of the schema; return the output."""
        name, usual = _OPERATIONS[kind]
        table = getattr(self.schema, f"{name}T")()
        for key, value in options.items():
            if not hasattr(table, key):
                raise AttributeError(f"{name} has no {key}")
            setattr(table, key, value)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = opcode(self.model, self.schema, kind, version or usual)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        operator.builtinOptions, operator.builtinOptionsType = table, getattr(self.schema.BuiltinOptions, name)
        self.graph.operators.append(operator)
        return output

    def connect(self, inputs, outputs):
        """Set the inputs and outputs of the file, dicts from names to indices of tensors."""
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = [], []
        for entries, found in ((inputs, signature.inputs), (outputs, signature.outputs)):
            for name, index in entries.items():
                entry = self.schema.TensorMapT()
                entry.name, entry.tensorIndex = name.encode(), index
                found.append(entry)
        self.model.signatureDefs = [signature]
        self.graph.inputs = np.array(list(inputs.values()), np.int32)
        self.graph.outputs = np.array(list(outputs.values()), np.int32)

    def content(self):
        """Return the bytes of the file, with the operations in an order in which they can run."""
        self._sort()
        return bytes_of(self.model)

    def _sort(self):
        made = {output for operator in self.graph.operators for output in operator.outputs}
        waiting, ordered, there = list(self.graph.operators), [], set()
        while waiting:
            ready = [op for op in waiting if all(i not in made or i in there for i in op.inputs)]
            if not ready:
                raise ValueError("The operations of the file form a cycle.")
            ordered += ready
            there.update(output for op in ready for output in op.outputs)
            waiting = [op for op in waiting if not any(op is other for other in ready)]
        self.graph.operators = ordered
