"""The order of the features that a layer gets: Keras flattens the channels last, PyTorch first."""

import math

import keras

from keras_mpt import _keras
from keras_mpt.convert.pytorch.arrays import DENSE, KERNELS

_MOVES = ("Permute", "Transpose", "Moveaxis", "Swapaxes")  # of `keras.layers` and `keras.ops`


class Order:
    """The order of features in a functional or Sequential model, nested models included.

    Args:
        model: The model.
    """

    def __init__(self, model):
        self._inputs, self._same = {}, {}
        self._add(_keras.functional_graph(model))

    def _add(self, graph):
        """Note the inputs of each layer's first call, and which tensors inside nested models are those around them."""
        for tensor in _keras.symbolic_tensors(graph):
            operation, inputs = _keras.call_of(tensor)
            inner = _keras.functional_graph(operation)
            if inner is None:
                self._inputs.setdefault(id(operation), inputs)
                continue
            for x, source in zip(inner.inputs, inputs, strict=False):
                self._same.setdefault(id(x), source)
            if len(inner.outputs) == 1:
                self._same.setdefault(id(tensor), inner.outputs[0])
            self._add(inner)

    def flattened(self, layer):
        """Return the shape (without the batch) of the maps that were flattened for a layer, None if there are none.

        Raises:
            ValueError: The shape, or the order of its axes, cannot be determined.
        """
        if id(layer) not in self._inputs:
            raise ValueError(f"must go to a functional or Sequential model. Received: layer {layer.name!r} elsewhere")
        tensor = self._source(self._inputs[id(layer)][0])
        while len(tensor.shape) == 2:
            operation, inputs = self._call(tensor)
            shapes = {tuple(x.shape[1:]) for x in inputs}
            if not inputs or isinstance(operation, DENSE):
                return None
            if shapes == {tuple(tensor.shape[1:])}:  # entry by entry
                tensor = inputs[0]
                continue
            shape = shapes.pop()
            if shapes or None in shape:
                break
            if math.prod(shape) == tensor.shape[1]:
                operation = self._moved(operation, inputs[0])
                if operation is None:
                    return shape
                if _moves_channels_first(operation, len(shape)):
                    return None
                break
            if shape[-1] == tensor.shape[1]:  # pooled
                return None
            break
        else:
            return None
        raise ValueError(
            f"goes to layer {layer.name!r}, of which the order of the inputs cannot be told: between flattening and "
            f"the layer there is {operation.name!r}"
        )

    def _moved(self, operation, x):
        """Return the operation that moves the axes of maps before they are flattened, None if there is none."""
        if getattr(operation, "data_format", "channels_last") != "channels_last":
            return operation
        while True:
            operation, inputs = self._call(x)
            if type(operation).__name__ in _MOVES:
                return operation
            if isinstance(operation, KERNELS) or len(inputs) != 1 or inputs[0].shape != x.shape:
                return None
            x = inputs[0]

    def _call(self, tensor):
        operation, inputs = _keras.call_of(tensor)
        return operation, [self._source(x) for x in inputs]

    def _source(self, tensor):
        """Return the tensor of an operation that is no nested model, to which a tensor is equal."""
        while id(tensor) in self._same:
            tensor = self._same[id(tensor)]
        return tensor


def _moves_channels_first(operation, axes):
    """Return whether an operation gives maps PyTorch's order of axes."""
    first = (axes, *range(1, axes))
    if isinstance(operation, keras.layers.Permute):
        return tuple(operation.dims) == first
    return type(operation).__name__ == "Transpose" and tuple(operation.axes or ()) == (0, *first)
