"""Convert kernels and vectors between the layouts of Keras and PyTorch.

The kernel of a convolution is `(outputs, inputs, height, width)` in PyTorch and `(height, width, inputs, outputs)` in
Keras. A dense layer is a 1x1 convolution `(outputs, inputs, 1, 1)` in PyTorch's code; the `(outputs, inputs)` of a
linear layer is accepted as well. Flattened feature maps as its inputs are in the order channels, height, width in
PyTorch, and height, width, channels in Keras: each function takes the `Order` of the layer's model.
"""

import math

import keras

DENSE = (keras.layers.Dense,)
CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
KERNELS = DENSE + CONVOLUTIONS + DEPTHWISE


def kernel_from_torch(layer, array, shape, order):
    """Convert a kernel of PyTorch to the layer's `shape`.

    Raises:
        ValueError: It has the wrong shape.
    """
    expected = torch_shape(layer, shape)
    if array.shape != expected and not (isinstance(layer, DENSE) and array.shape == expected[:2]):
        raise ValueError(f"must have shape {expected} for layer {layer.name!r}. Received: shape {array.shape}")
    if isinstance(layer, DENSE):
        return _channels_last(array.reshape(expected[:2]), order.flattened(layer)).T
    if isinstance(layer, DEPTHWISE):
        return array.reshape(shape[-2:] + expected[2:]).transpose(*range(2, len(shape)), 0, 1)
    return array.transpose(*range(2, len(shape)), 1, 0)


def kernel_to_torch(layer, array, order):
    """Convert a kernel of the layer to PyTorch's layout."""
    expected = torch_shape(layer, array.shape)
    if isinstance(layer, DENSE):
        return _channels_first(array.T, order.flattened(layer)).reshape(expected)
    if isinstance(layer, DEPTHWISE):
        return array.transpose(-2, -1, *range(array.ndim - 2)).reshape(expected)
    return array.transpose(-1, -2, *range(array.ndim - 2))


def torch_shape(layer, shape):
    """Return the shape of the kernel in PyTorch for the layer's `shape`."""
    if isinstance(layer, DENSE):
        return (shape[1], shape[0], 1, 1)
    if isinstance(layer, DEPTHWISE):
        return (shape[-2] * shape[-1], 1, *shape[:-2])
    return (shape[-1], shape[-2], *shape[:-2])


def vector_from_torch(layer, array, shape, order):
    """Convert a bias, or a parameter or statistic of batch normalization, from PyTorch to the layer's order."""
    if array.shape != tuple(shape):
        raise ValueError(f"must have shape {tuple(shape)} for layer {layer.name!r}. Received: shape {array.shape}")
    return _channels_last(array[None], _flattened(layer, order))[0]


def vector_to_torch(layer, array, order):
    return _channels_first(array[None], _flattened(layer, order))[0]


def _flattened(layer, order):
    return order.flattened(layer) if isinstance(layer, keras.layers.BatchNormalization) else None


def _channels_last(rows, shape):
    return rows if shape is None else _swapped(rows, shape[-1], math.prod(shape[:-1]))


def _channels_first(rows, shape):
    return rows if shape is None else _swapped(rows, math.prod(shape[:-1]), shape[-1])


def _swapped(rows, first, second):
    return rows.reshape(-1, first, second).transpose(0, 2, 1).reshape(rows.shape)
