"""Read the samples that users pass: arrays, or batches of them from a data set, with labels or without."""

import itertools
import os

import keras
import numpy as np

from keras_mpt._keras import functional_graph
from keras_mpt.arguments import shown

_INFINITE = -1  # number of batches of a `tf.data.Dataset` that repeats


def check_finite_length(argument, data):
    """Raise ValueError if data is a data set that never ends, as far as it tells."""
    if isinstance(data, keras.utils.PyDataset) and data.num_batches is None:
        raise ValueError(f"`{argument}` must be finite. Received: {shown(data)} without a length")
    if hasattr(data, "cardinality") and int(data.cardinality()) == _INFINITE:
        raise ValueError(f"`{argument}` must be finite, see `take`. Received: {shown(data)}, which repeats without end")


def inputs_of(model):
    """Return the inputs of a model and their structure.

    Of a subclassed model, the inputs are None, and the structure, if known, has their numbers of axes.
    """
    graph = functional_graph(model)
    if graph is not None:
        return model.inputs, graph.input
    shapes = (model.get_build_config() or {}).get("input_shape")
    return None, None if shapes is None else keras.tree.map_shape_structure(len, shapes)


def are_arrays(data, structure=None):
    """Return whether data is arrays, in the structure of a model's inputs for example, and not batches of them.

    Otherwise, a list of tuples is a list of batches, and a tuple is one batch with its labels.
    """
    if isinstance(data, (list, tuple)):
        batch = isinstance(data, tuple) or any(isinstance(item, tuple) for item in data)
        return not batch or _alike(data, structure)
    return isinstance(data, dict) or hasattr(data, "__array__") or hasattr(data, "shape")


def batches(argument, data, inputs=None, structure=None, size=None):
    """Yield batches of inputs; those without samples are left out.

    Args:
        argument: Name of the argument, for errors.
        data: An array for one input; a list of arrays in the order of the inputs; a dict by their names, or arrays in
            the structure of the model's inputs (the only tuple there may be); or batches of these (a `tf.data.Dataset`,
            `keras.utils.PyDataset`, `torch.utils.data.DataLoader`, another iterable, or a function that returns one),
            where a tuple is `(x, y)` or `(x, y, sample_weight)`.
        inputs: List of objects with `name`, `shape` (the batch first) and `dtype`. None: not known.
        structure: Structure of the inputs of the model, see `inputs_of`.
        size: Largest number of samples in a batch of arrays, which have equal sizes as nearly as can be; None: all
            samples are one batch.

    Yields:
        Lists of an array for each input, of its dtype; structures like those in data if the inputs are not known.

    Raises:
        ValueError: There is no sample, or data does not fit the inputs.
    """
    data = data() if callable(data) else data
    if isinstance(data, (str, bytes, os.PathLike)):
        raise ValueError(f"`{argument}` must be arrays: read the file, with numpy.load for example. Received: {data!r}")
    if isinstance(data, tuple) and not are_arrays(data, structure):
        whose = "" if inputs is None else f" for each of {_names(inputs)}"
        raise ValueError(
            f"`{argument}` must be inputs only: an array, or a list or dict of one{whose}. "
            f"Received: a tuple of {len(data)}, such as (inputs, labels)"
        )
    count, empty = 0, isinstance(data, list) and not data
    whole = are_arrays(data, structure)
    expected = None if structure is None and inputs is None else len(inputs or keras.tree.flatten(structure))
    for batch in [data] * (not empty) if whole else _iterated(argument, data, expected):
        arrays = _read(argument, batch, inputs, structure)
        number = _number(argument, arrays)
        count += number
        if number:
            yield from [arrays] if size is None or not whole else _parts(arrays, number, size)
    if not count:
        wanted = "be at least one" if argument == "samples" else "have samples"
        raise ValueError(f"`{argument}` must {wanted}. Received: none")


def _iterated(argument, data, expected):
    """Yield the inputs of the batches of a data set, without labels. `expected`: number of inputs, None: not known."""
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        data = map(data.__getitem__, itertools.count() if count is None else range(count))
    elif not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise ValueError(
            f"`{argument}` must be an array, a list or dict of arrays, or an iterable of batches of these. Received: "
            f"{type(data).__name__} {shown(data)}"
        )
    is_loader = hasattr(data, "collate_fn")  # of PyTorch, whose batches are lists instead of tuples
    for batch in data:
        labelled = isinstance(batch, tuple)
        if isinstance(batch, list) and batch:
            several = is_loader if expected is None else len(batch) > expected
            labelled = several or isinstance(batch[0], (list, tuple, dict))
        yield batch[0] if labelled and batch else batch


def _read(argument, data, inputs, structure):
    """Return a batch as a list of arrays in the order of the inputs, or in its own structure if these are unknown."""
    if inputs is None and isinstance(structure, int) and isinstance(data, (list, tuple)):
        return _numpy(argument, _only(data, structure))
    if inputs is None:
        return keras.tree.map_structure(lambda values: _numpy(argument, values), data)
    found = _matched(argument, data, inputs, structure)
    return [_array(argument, tensor, values) for tensor, values in zip(inputs, found, strict=True)]


def _matched(argument, data, inputs, structure):
    """Return the values for each input, a list."""
    names = _names(inputs)
    flat = isinstance(structure, dict) and len(structure) == len(inputs)
    if isinstance(data, dict) and flat and data.keys() == structure.keys():  # as for `predict`
        return [data[key] for key in sorted(structure)]
    if isinstance(data, (dict, list, tuple)) and _alike(data, structure):
        return keras.tree.flatten(data)
    if isinstance(data, dict) and set(data) == set(names):
        return [data[name] for name in names]
    if isinstance(data, dict):
        raise ValueError(f"`{argument}` must be a dict with the inputs {names}. Received: {sorted(map(str, data))}")
    if len(inputs) == 1:
        return [_only(data, len(inputs[0].shape))]
    if not isinstance(data, (list, tuple)) or len(data) != len(inputs):
        received = f"{len(data)} arrays" if isinstance(data, (list, tuple)) else f"an array of shape {np.shape(data)}"
        raise ValueError(
            f"`{argument}` must be a list or dict of an array for each input {names}. Received: {received}"
        )
    return data


def _only(data, axes):
    """Return the values for the only input, of so many axes, which may be in a list."""
    inside = isinstance(data, (list, tuple)) and len(data) == 1 and np.ndim(data[0]) == axes
    return data[0] if inside else data


def _alike(data, structure):
    """Return whether data has the structure of the inputs of a model."""
    try:
        keras.tree.assert_same_structure(structure, data)
    except (TypeError, ValueError):
        return False
    return structure is not None


def _array(argument, tensor, values):
    """Return the values for an input as an array of its dtype."""
    values, shape = _numpy(argument, values, tensor), tensor.shape[1:]
    if values.ndim != len(shape) + 1 or any(n not in (None, m) for n, m in zip(shape, values.shape[1:], strict=True)):
        wanted, alone = ", ".join(map(str, ("number", *shape))), values.ndim == len(shape)
        raise ValueError(
            f"`{argument}` must have shape ({wanted}) for input {tensor.name!r}. Received: shape {values.shape}"
            + " of one sample, without a batch" * alone
        )
    if tensor.dtype == "string":
        return values
    dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype  # which numpy lacks
    try:
        if values.dtype.kind == "c":
            raise TypeError("the imaginary part would be lost")
        with np.errstate(invalid="ignore"):
            array = values.astype(dtype, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` must be real numbers for input {tensor.name!r}. Received: dtype {values.dtype}"
        ) from error
    if values.dtype != array.dtype and not keras.backend.is_float_dtype(dtype) and (array != values).any():
        raise ValueError(
            f"`{argument}` must be {tensor.dtype} for input {tensor.name!r}. Received: {values.dtype} from "
            f"{values.min()} to {values.max()}"
        )
    return array


def _numpy(argument, values, tensor=None):
    try:
        return keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of different lengths, tensors with gradients
        whose = "" if tensor is None else f" for input {tensor.name!r}"
        raise ValueError(f"`{argument}` must be an array{whose}. Received: {type(values).__name__}, {error}") from error


def _number(argument, arrays):
    """Return the number of samples."""
    sizes = [len(array) if array.ndim else None for array in keras.tree.flatten(arrays)]
    if len(set(sizes)) != 1 or None in sizes:
        raise ValueError(f"`{argument}` must be as many for each input. Received: {sizes}")
    return sizes[0]


def _parts(arrays, number, size):
    """Yield structures of slices of arrays, whose sizes differ by one at most."""
    edges = np.linspace(0, number, -(-number // size) + 1).astype(int)
    for begin, end in itertools.pairwise(edges):
        yield keras.tree.map_structure(lambda array, begin=begin, end=end: array[begin:end], arrays)


def _names(inputs):
    return [tensor.name for tensor in inputs]
