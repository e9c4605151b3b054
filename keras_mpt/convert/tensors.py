"""Inputs and outputs of models and files: names, shapes, dtypes, and samples."""

import dataclasses
import os
import zipfile

import keras
import numpy as np

BATCH = 100  # samples; memory holds all activations of a batch
_GENERATED = 16
_TAKEN = 100  # samples of a data set


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a model or file.

    Attributes:
        name: Name.
        shape: Tuple with the batch size first; None is any size.
        dtype: Name of the dtype, such as "float32".
    """

    name: str
    shape: tuple
    dtype: str

    def __str__(self):
        return f"{self.name} ({', '.join('?' if n is None else str(n) for n in self.shape)}) {self.dtype}"


def generated(inputs):
    """Return random samples: standard normal numbers, or integers for inputs of integers.

    Integers are pixels for uint8, else 0 and 1, which are valid indices. Axes of any size get 32 entries.
    """
    random, samples = np.random.default_rng(0), []
    for tensor in inputs:
        size = (_GENERATED, *(n or 32 for n in tensor.shape[1:]))
        if tensor.dtype == "bool" or keras.backend.is_int_dtype(tensor.dtype):
            values = random.integers(0, 256 if tensor.dtype == "uint8" else 2, size)
        else:
            values = random.normal(size=size)
        samples.append(values.astype(tensor.dtype))
    return samples


def arrays_for(inputs, samples):
    """Return samples as a list of arrays, one for each input, with the dtype of the input.

    Args:
        inputs: List of a `Tensor` for each input.
        samples: An array for one input; a list of arrays in the order of the inputs; a dict by name; or an iterable of
            batches of these (a tf.data set, a generator), or a function that returns one, of which the first 100
            samples are used. Tuples in a data set are inputs and labels.

    Raises:
        ValueError: The samples do not fit.
    """
    samples = samples() if callable(samples) else samples
    if isinstance(samples, (str, bytes, os.PathLike)):
        raise ValueError(f"`samples` must be arrays: read the file, with numpy.load for example. Received: {samples!r}")
    if isinstance(samples, tuple):
        raise ValueError(
            f"`samples` must be inputs only: an array, or a list or dict of one for each of {_names(inputs)}. "
            f"Received: a tuple of {len(samples)}, such as (inputs, labels)"
        )
    if not isinstance(samples, (dict, list)) and not hasattr(samples, "__array__"):
        samples = _taken(inputs, samples)
    arrays = [_array(tensor, values) for tensor, values in zip(inputs, _matched(inputs, samples), strict=True)]
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"`samples` must be as many for each input. Received: {[len(array) for array in arrays]}")
    if not len(arrays[0]):
        raise ValueError("`samples` must be at least one. Received: none")
    return arrays


def from_file(path):
    """Return the samples in a numpy file: an array, or a dict by the names of the inputs from an archive.

    Raises:
        ValueError: The file is not a numpy file of numbers.
    """
    try:
        samples = np.load(path, allow_pickle=False)
        samples = samples if isinstance(samples, np.ndarray) else dict(samples)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`samples` must be a file of numpy.save, or of numpy.savez with the inputs' names. Received: {path}"
        ) from error
    for array in samples.values() if isinstance(samples, dict) else [samples]:
        if array.dtype.kind not in "buif":
            raise ValueError(f"`samples` must be a file of real numbers. Received: {path} with {array.dtype}")
    return samples


def check_finite(arrays):
    """Raise ValueError unless all samples are finite."""
    for array in arrays:
        if not np.isfinite(array).all():
            first = int(np.argmax(~np.isfinite(array).reshape(len(array), -1).all(axis=1)))
            raise ValueError(
                f"`samples` must be finite, to compare outputs. Received: NaN or infinity in sample {first}"
            )


def batches(arrays, batch=None):
    """Yield `(number, arrays)` of batches: of up to `BATCH` samples, or of `batch`, filled with the last one."""
    size = batch or BATCH
    for begin in range(0, len(arrays[0]), size):
        parts = [array[begin : begin + size] for array in arrays]
        number = len(parts[0])
        if batch and number < batch:
            parts = [np.concatenate([part, np.repeat(part[-1:], batch - number, axis=0)]) for part in parts]
        yield number, parts


def outputs_of(call, arrays, batch=None):
    """Return the outputs of `call(arrays)` on samples, batch by batch, as a list of arrays."""
    found = [[np.asarray(y)[:number] for y in call(parts)] for number, parts in batches(arrays, batch)]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _matched(inputs, samples):
    """Return samples as a list in the order of the inputs."""
    names = _names(inputs)
    if isinstance(samples, dict):
        if sorted(samples) != sorted(names):
            raise ValueError(f"`samples` must be a dict with the inputs {names}. Received: {sorted(map(str, samples))}")
        return [samples[name] for name in names]
    if len(inputs) == 1:
        alone = isinstance(samples, list) and len(samples) == 1 and np.ndim(samples[0]) == len(inputs[0].shape)
        return samples if alone else [samples]
    if not isinstance(samples, list) or len(samples) != len(inputs):
        received = f"{len(samples)} arrays" if isinstance(samples, list) else f"an array of shape {np.shape(samples)}"
        raise ValueError(f"`samples` must be a list or dict of an array for each input {names}. Received: {received}")
    return samples


def _taken(inputs, batches):
    """Return the first samples of an iterable of batches."""
    found, count = [], 0
    try:
        for part in batches:
            part = _matched(inputs, part[0] if _has_labels(part, len(inputs)) else part)
            found.append([np.asarray(values) for values in part])
            count += len(found[-1][0])
            if count >= _TAKEN:
                break
    except TypeError as error:
        raise ValueError(
            "`samples` must be an array, a list or dict of arrays, or an iterable of batches of these. Received: "
            f"{type(batches).__name__}"
        ) from error
    if not found:
        raise ValueError("`samples` must be at least one. Received: none")
    return [np.concatenate(parts)[:_TAKEN] for parts in zip(*found, strict=True)]


def _has_labels(part, count):
    """Return whether a batch is one of inputs and labels, of which PyTorch's loaders make lists."""
    if isinstance(part, list) and part:
        return len(part) > count or isinstance(part[0], (list, tuple, dict))
    return isinstance(part, tuple)


def _array(tensor, values):
    values, shape = np.asarray(values), tensor.shape[1:]
    if values.ndim != len(shape) + 1 or any(n not in (None, m) for n, m in zip(shape, values.shape[1:], strict=True)):
        wanted = ", ".join(map(str, ("number", *shape)))
        raise ValueError(
            f"`samples` must have shape ({wanted}) for input {tensor.name!r}. Received: shape {values.shape}"
        )
    try:
        if values.dtype.kind == "c":
            raise TypeError("the imaginary part would be lost")
        with np.errstate(invalid="ignore"):
            array = values.astype(tensor.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`samples` must be real numbers for input {tensor.name!r}. Received: dtype {values.dtype}"
        ) from error
    if values.dtype != array.dtype and not keras.backend.is_float_dtype(tensor.dtype) and (array != values).any():
        raise ValueError(
            f"`samples` must be {tensor.dtype} for input {tensor.name!r}. Received: {values.dtype} from "
            f"{values.min()} to {values.max()}"
        )
    return array


def _names(inputs):
    return [tensor.name for tensor in inputs]
