"""Inputs and outputs of models and files: names, shapes, dtypes, and samples."""

import dataclasses
import zipfile

import keras
import numpy as np

from keras_mpt.models import data

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


def generated(inputs, number=_GENERATED):
    """Return random samples, so many where the batch may have any size: standard normal numbers, or integers.

    Inputs of integers get pixels for uint8, else 0 and 1, which are valid indices. Axes of any size get 32 entries.
    """
    random, samples = np.random.default_rng(0), []
    for tensor in inputs:
        size = (tensor.shape[0] or number, *(n or 32 for n in tensor.shape[1:]))
        if tensor.dtype == "bool" or keras.backend.is_int_dtype(tensor.dtype):
            values = random.integers(0, 256 if tensor.dtype == "uint8" else 2, size)
        else:
            values = random.normal(size=size)
        samples.append(values.astype(tensor.dtype))
    return samples


def arrays_for(inputs, samples, structure=None):
    """Return samples as a list of arrays, one for each input, with the dtype of the input.

    Args:
        inputs: List of a `Tensor` for each input.
        samples: Arrays or batches of them, see `data.batches`; of batches, the first 100 samples are used.
        structure: Structure of the model's inputs, if there is a model.

    Raises:
        ValueError: The samples do not fit.
    """
    samples = samples() if callable(samples) else samples
    parts, most = [], None if data.are_arrays(samples, structure) else _TAKEN
    for arrays in data.batches("samples", samples, inputs, structure):
        parts.append(arrays)
        if most is not None and sum(len(part[0]) for part in parts) >= most:
            break
    return [np.concatenate(arrays)[:most] for arrays in zip(*parts, strict=True)]


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
