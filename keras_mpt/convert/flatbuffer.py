"""Read and rewrite TensorFlow Lite files: count operations, store ternary kernels in int8."""

import collections
import copy

import numpy as np

from keras_mpt.convert.kernels import sparse_size, ternary
from keras_mpt.convert.report import ConversionError
from keras_mpt.convert.tensors import Tensor
from keras_mpt.requirements import extra

# Operations with a kernel, and the axis of its output channels. It is the second input; for GATHER, the first.
_KERNEL_AXES = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "CONV_3D": 4}
_KERNEL_AXES |= {"CONV_3D_TRANSPOSE": 3, "BATCH_MATMUL": -1, "GATHER": 0}


def check_int8(file, kernels):
    """Check that a file stores the kernels with an int8 format in int8.

    Args:
        file: A `File`.
        kernels: A `Kernel` for each MPT layer.

    Raises:
        ConversionError: Fewer or smaller kernels are int8. (More are allowed: a converter pads some, and kernels of
            other layers may be ternary. Equal kernels count once, because a converter may merge them.)
    """
    parts = {part.tobytes(): (part, kernel) for kernel in kernels if kernel.format.int8 for part in kernel.parts}
    sizes = sorted((part.size for part, _ in parts.values()), reverse=True)
    found = sorted(file.int8_kernels(), reverse=True)
    if len(found) < len(sizes) or any(there < size for there, size in zip(found, sizes, strict=False)):
        raise ConversionError(
            f"The file must store the kernels of {list(dict.fromkeys(kernel.name for _, kernel in parts.values()))} in "
            f"int8, with {sizes} weights. Received: {len(found)} int8 kernels with {found} weights."
        )


class File:
    """A TensorFlow Lite file as an object."""

    def __init__(self, content):
        if bytes(content[4:8]) != b"TFL3":
            raise ValueError("The file is not a TensorFlow Lite file, usually .tflite: it lacks the identifier.")
        with extra("tensorflow", "Reading converted files"):
            from tensorflow.lite.python import schema_py_generated as schema

        self._schema = schema
        self._names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
            self.graph = self.model.subgraphs[0]  # others are bodies of loops, such as those of recurrent layers
        except Exception as error:  # the reader checks nothing
            raise ValueError("The file is damaged: a TensorFlow Lite file begins, and cannot be read on.") from error
        self._small = {}  # int8 tensors by graph and float32 constant

    def content(self):
        """Return the bytes of the file."""
        return bytes_of(self.model)

    def kind(self, operator):
        """Return the name of an operator's kind, such as "CONV_2D" or "LceBconv2d"."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        if code.customCode:
            return code.customCode.decode()
        return self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def operations(self):
        """Return the number of operations of each kind, a dict by name."""
        operators = [operator for graph in self.model.subgraphs for operator in graph.operators]
        return dict(sorted(collections.Counter(map(self.kind, operators)).items()))

    def custom_operations(self):
        """Return the names of operations that TensorFlow Lite does not have, a list."""
        return [name for name in self.operations() if name not in self._names.values()]

    def inputs(self):
        """Return a `Tensor` for each input."""
        return self._tensors(self.graph.inputs, "inputs")

    def outputs(self):
        """Return a `Tensor` for each output."""
        return self._tensors(self.graph.outputs, "outputs")

    def metadata(self, name):
        """Return the bytes of an entry of the metadata; None if there is no such entry."""
        for entry in self.model.metadata or []:
            if entry.name == name.encode():
                return bytes(self.model.buffers[entry.buffer].data)
        return None

    def annotate(self, name, data):
        """Add an entry to the metadata, which runtimes ignore."""
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name.encode(), self._buffer(np.frombuffer(data, np.uint8))
        self.model.metadata = [*(self.model.metadata or []), entry]

    def order(self, inputs, outputs):
        """Reorder inputs and outputs by these names: converters sort them. Outputs that are always equal may be one."""
        (signature,) = self.model.signatureDefs
        for kind, names in (("inputs", inputs), ("outputs", outputs)):
            named = {entry.name.decode(): entry for entry in getattr(signature, kind)}
            entries = [named[name] for name in names]
            setattr(signature, kind, entries)
            setattr(self.graph, kind, np.array([entry.tensorIndex for entry in entries], np.int32))

    def _tensors(self, indices, kind):
        found, names = [], collections.defaultdict(list)
        for signature in self.model.signatureDefs or []:  # none: a file without names
            for entry in getattr(signature, kind):
                names[entry.tensorIndex].append(entry.name)
        types = {code: name.lower() for name, code in vars(self._schema.TensorType).items() if name[0] != "_"}
        for index in indices:
            tensor = self.graph.tensors[index]
            signature = tensor.shapeSignature  # has -1 for any size, the shape 1
            shape = tensor.shape if signature is None or not len(signature) else signature
            shape = () if shape is None else shape
            name = names[index].pop(0) if names[index] else tensor.name
            found.append(Tensor(name.decode(), tuple(None if n < 0 else int(n) for n in shape), types[tensor.type]))
        return found

    def constant(self, index, dtype="float32"):
        """Return a constant tensor of this dtype as an array; None for any other tensor."""
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if tensor.type != getattr(self._schema.TensorType, dtype.upper()) or data is None or not len(data):
            return None
        return np.frombuffer(bytes(data), np.dtype(dtype).newbyteorder("<")).reshape(tensor.shape)

    def kernels(self):
        """Yield `(operator, kind, kernel, axis of the output channels)` for each operator with a float kernel.

        Meanwhile, `graph` is the graph of the operator.
        """
        for operator, kind, index in self._operators():
            kernel = self.constant(index)
            if kernel is not None:
                axis = _KERNEL_AXES[kind]
                if kind == "BATCH_MATMUL":
                    axis = kernel.ndim - (2 if operator.builtinOptions.adjY else 1)
                yield operator, kind, kernel, axis

    def _operators(self):
        """Yield `(operator, kind, index of the kernel)` for each operator that may have a kernel."""
        whole = self.graph
        try:
            for graph in self.model.subgraphs:
                self.graph = graph
                for operator in list(self.graph.operators):
                    if (kind := self.kind(operator)) in _KERNEL_AXES:
                        yield operator, kind, _kernel_of(operator, kind)
        finally:
            self.graph = whole

    def integer_kernels(self, layers):
        """Use int8 kernels in the convolutions and dense layers that have given kernels and boolean inputs.

        The runtime rounds their float inputs to 8 bits, which keeps 0 and 1 exact.

        Args:
            layers: List of the kernels without scales: int8 arrays of -1, 0 and 1 `(..., outputs)`. Other kernels stay
                as they are.

        Returns:
            Number of changed operators.
        """
        done = 0
        for operator, kind, kernel, axis in self.kernels():
            if kind not in ("CONV_2D", "FULLY_CONNECTED") or not self._is_boolean(operator.inputs[0]):
                continue
            split, index = ternary(np.moveaxis(kernel, axis, -1)), operator.inputs[1]
            if split is None or not any(_rescaled(split[0], signs) for signs in layers):
                continue
            small = self._int8_tensor(index, np.moveaxis(split[0], -1, axis), split[1], axis)
            operator.inputs = np.array([operator.inputs[0], small, *operator.inputs[2:]], np.int32)
            operator.opcodeIndex = self._opcode(kind, version={"CONV_2D": 5, "FULLY_CONNECTED": 12}[kind])
            if not self._users(index):  # the converter merges equal kernels
                self._drop(index)
            done += 1
        return done

    def int8_kernels(self):
        """Return the sizes of the kernels in int8, one for each operator that uses one."""
        int8, found = self._schema.TensorType.INT8, []
        for _, _, index in self._operators():
            made = {operator.outputs[0] for operator in self.graph.operators if self.kind(operator) == "DEQUANTIZE"}
            if index in made or self.graph.tensors[index].type == int8:
                found.append(int(np.prod(self.graph.tensors[index].shape)))
        return found

    def _is_boolean(self, index):
        """Return whether a float tensor is a cast of booleans, possibly padded with 0 or 1, or reshaped."""
        for operator in self.graph.operators:
            if index in operator.outputs:
                kind = self.kind(operator)
                if kind == "PADV2" and not np.all(np.isin(self.constant(operator.inputs[2]), (0, 1))):
                    return False
                if kind in ("PAD", "PADV2", "RESHAPE", "SPACE_TO_BATCH_ND"):
                    return self._is_boolean(operator.inputs[0])
                return kind == "CAST" and self.graph.tensors[operator.inputs[0]].type == self._schema.TensorType.BOOL
        return False

    def kernels_to_int8(self, sparse=False, one_scale=False):
        """Store each float kernel with ternary output channels as int8 with a scale for each channel.

        A DEQUANTIZE operation gives the same float32 kernel, bit for bit: -1, 0 or 1 times a float.

        Args:
            sparse: Whether to store only non-zero weights and their positions if that is smaller, with a DENSIFY
                operation.
            one_scale: Whether to change only kernels with a single scale, and store that.
        """
        for operator, kind, kernel, axis in self.kernels():
            split = ternary(np.moveaxis(kernel, axis, -1))
            if split is None:
                continue
            if one_scale:
                kept = np.unique(np.abs(kernel[kernel != 0]))
                if len(kept) != 1:
                    continue
                split = split[0], kept
            signs, index = np.moveaxis(split[0], -1, axis), _kernel_of(operator, kind)
            position, small = self._users(index)[0], self._int8_tensor(index, signs, split[1], axis)
            self._insert(position, "DEQUANTIZE", 5, small, index)
            self._drop(index)
            if sparse and sparse_size(signs, 1) < signs.size:
                self._insert(position, "DENSIFY", 1, self._sparse_tensor(small, signs), small)

    def byte_casts_to_dequantize(self):
        """Replace casts from uint8 to float by DEQUANTIZE with the scale 1; return the number of such casts."""
        done, types = 0, self._schema.TensorType
        for operator in self.graph.operators:
            if self.kind(operator) != "CAST":
                continue
            tensor, result = (self.graph.tensors[ends[0]] for ends in (operator.inputs, operator.outputs))
            if (tensor.type, result.type) == (types.UINT8, types.FLOAT32):
                tensor.quantization = self._quantization(np.ones(1), 0)
                operator.opcodeIndex = self._opcode("DEQUANTIZE", 1)
                operator.builtinOptions, operator.builtinOptionsType = None, self._schema.BuiltinOptions.NONE
                done += 1
        return done

    def kernels_to_int2(self, layers):
        """Store given float kernels of dense layers in two bits, with a scale for each output.

        A DEQUANTIZE operation gives the same floats, in each run.

        Args:
            layers: See `integer_kernels`.
        """
        for operator, kind, kernel, axis in self.kernels():
            split, index = ternary(np.moveaxis(kernel, axis, -1)), operator.inputs[1]
            given = kind == "FULLY_CONNECTED" and split is not None
            if given and any(_rescaled(split[0], signs) for signs in layers):
                position, signs = self._users(index)[0], np.moveaxis(split[0], -1, axis)
                small = self._int8_tensor(index, signs, split[1], axis)
                self.graph.tensors[small].type = self._schema.TensorType.INT2
                self.model.buffers[self.graph.tensors[small].buffer].data = packed_2bit(signs)
                self._insert(position, "DEQUANTIZE", 5, small, index)
                self._drop(index)

    def floats_to_sparse(self):
        """Store only non-zero weights of a float kernel and their positions, for a DENSIFY, if that is smaller."""
        for operator, kind, kernel, _ in self.kernels():
            if sparse_size(kernel, 4) < kernel.nbytes:
                index = _kernel_of(operator, kind)
                self._insert(self._users(index)[0], "DENSIFY", 1, self._sparse_tensor(index, kernel), index)

    def _users(self, index):
        """Return the positions of the operators with this input."""
        return [i for i, operator in enumerate(self.graph.operators) if index in operator.inputs]

    def _insert(self, position, name, version, source, result):
        """Insert an operation with one input and one output."""
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._opcode(name, version)
        operator.inputs, operator.outputs = np.array([source], np.int32), np.array([result], np.int32)
        self.graph.operators.insert(position, operator)

    def _sparse_tensor(self, index, values):
        """Add a sparse tensor with the non-zero values of a constant, row by row; return its index."""
        schema, dense = self._schema, self.graph.tensors[index]
        rows = values.reshape(-1, values.shape[-1])
        dimensions = []
        for size in values.shape:
            dimensions.append(schema.DimensionMetadataT())
            dimensions[-1].format, dimensions[-1].denseSize = schema.DimensionType.DENSE, size
        last = dimensions[-1]
        last.format, last.denseSize = schema.DimensionType.SPARSE_CSR, 0
        last.arraySegmentsType, last.arraySegments = self._vector(np.append(0, np.cumsum((rows != 0).sum(axis=1))))
        last.arrayIndicesType, last.arrayIndices = self._vector(np.nonzero(rows)[1])
        tensor = copy.copy(dense)
        tensor.name = dense.name + b"/sparse"
        tensor.buffer = self._buffer(rows[rows != 0])
        tensor.sparsity = schema.SparsityParametersT()
        tensor.sparsity.traversalOrder = np.arange(values.ndim, dtype=np.int32)
        tensor.sparsity.blockMap = np.zeros(0, np.int32)
        tensor.sparsity.dimMetadata = dimensions
        self._drop(index)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _vector(self, values):
        """Return the code of the smallest type that holds the values, and a vector of that type."""
        dtype = next(d for d in (np.uint8, np.uint16, np.int32) if values.max(initial=0) <= np.iinfo(d).max)
        name = {np.uint8: "Uint8Vector", np.uint16: "Uint16Vector", np.int32: "Int32Vector"}[dtype]
        vector = getattr(self._schema, f"{name}T")()
        vector.values = values.astype(dtype)
        return getattr(self._schema.SparseIndexVector, name), vector

    def _int8_tensor(self, index, signs, scales, axis):
        """Return the index of the int8 tensor that replaces a constant, for all of its operators."""
        if (key := (id(self.graph), index)) in self._small:
            return self._small[key]
        schema, tensor = self._schema, self.graph.tensors[index]
        small = copy.copy(tensor)
        small.name = tensor.name + b"/int8"
        small.type = schema.TensorType.INT8
        small.buffer = self._buffer(np.ascontiguousarray(signs, np.int8))
        small.quantization = self._quantization(scales, axis)
        self.graph.tensors.append(small)
        self._small[key] = len(self.graph.tensors) - 1
        return self._small[key]

    def _quantization(self, scales, axis):
        """Return the quantization parameters of a tensor: scales of an axis, with zero point 0."""
        quantization = self._schema.QuantizationParametersT()
        quantization.scale, quantization.quantizedDimension = scales.astype(np.float32), axis
        quantization.zeroPoint = np.zeros(scales.size, np.int64)
        return quantization

    def _buffer(self, values):
        """Add a buffer with the bytes of an array; return its index."""
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _drop(self, index):
        """Remove the values of a constant from the file unless another tensor shares them."""
        tensor = self.graph.tensors[index]
        others = (other for graph in self.model.subgraphs for other in graph.tensors if other is not tensor)
        if not any(other.buffer == tensor.buffer for other in others):
            self.model.buffers[tensor.buffer].data = None
        tensor.buffer = 0

    def _opcode(self, name, version):
        return opcode(self.model, self._schema, name, version)


def _kernel_of(operator, kind):
    return operator.inputs[0 if kind == "GATHER" else 1]


def _rescaled(signs, others):
    """Return whether two ternary kernels differ only by factors of output channels (the last axis), 0 included."""
    if signs.shape[-1] != others.shape[-1] or signs.size != others.size:
        return False
    a, b = (kernel.reshape(-1, kernel.shape[-1]) for kernel in (signs, others))
    return bool(np.all((a == b).all(axis=0) | (a == -b).all(axis=0) | (a == 0).all(axis=0)))


def packed_2bit(values):
    """Pack integers from -2 to 1 into bytes, four in each, the first in the lowest bits."""
    flat = np.asarray(values).reshape(-1).astype(np.uint8) & 3
    flat = np.append(flat, np.zeros(-flat.size % 4, np.uint8)).reshape(-1, 4)
    return (flat << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1).astype(np.uint8)


def opcode(model, schema, name, version):
    """Return the index of an operation code of this version or a later one; append a missing one."""
    builtin = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin and code.version >= version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def bytes_of(model):
    """Return the bytes of a file. Equal arrays, such as scales of channels, are written once."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def CreateNumpyVector(self, x):  # noqa: N802
            key = x.dtype.str, x.tobytes()
            if key not in written:
                written[key] = super().CreateNumpyVector(x)
            return written[key]

    written, builder = {}, Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
