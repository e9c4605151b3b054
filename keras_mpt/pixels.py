"""Normalization of pixels, of arrays and as a part of converted files."""

import dataclasses

import numpy as np
from keras import ops

from keras_mpt.arguments import did_you_mean, received

# The modes of `keras.applications.imagenet_utils.preprocess_input`.
MODES = {
    "tf": ((0.5,), (0.5,)),
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class Normalization:
    """`(pixels / 255 - mean) / std`, in float32.

    Attributes:
        mean, std: Tuples with a number for each channel, or one for all.
    """

    mean: tuple
    std: tuple

    def __str__(self):
        mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"(pixels / 255 - [{mean}]) / [{std}], in the file"

    def __call__(self, pixels):
        """Return normalized images.

        Args:
            pixels: Images `(..., channels)` of numbers from 0 to 255, an array or a symbolic tensor.
        """
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if isinstance(pixels, np.ndarray):
            return (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return (ops.cast(pixels, "float32") / np.float32(255) - mean) / std

    def check(self, model):
        """Raise ValueError unless a model takes images of floats whose last axis has these channels."""
        shapes = {x.name: tuple(x.shape) for x in model.inputs}
        if len(shapes) != 1:
            raise ValueError(f"`preprocess` must be None for a model with {len(shapes)} inputs: {list(shapes)}")
        ((name, shape),) = shapes.items()
        if not model.inputs[0].dtype.startswith(("float", "bfloat")):
            raise ValueError(f"`preprocess` must be None for a model of integers: input {name!r}")
        channels = max(len(self.mean), len(self.std))
        if channels > 1 and shape[-1] != channels:
            raise ValueError(
                f"`preprocess` must have a mean and a standard deviation for each channel of input {name!r}, the last "
                f"axis of {shape}. Received: {channels}"
            )


def normalization(value):
    """Return the argument `preprocess` of a conversion as a `Normalization`, None if it is None.

    Raises:
        ValueError: `preprocess` is not as `to_tflite` describes.
    """
    if value is None or isinstance(value, Normalization):
        return value
    if isinstance(value, str):
        if value not in MODES:
            raise _wrong(value, did_you_mean(value, MODES))
        return Normalization(*MODES[value])
    if hasattr(value, "mean") and hasattr(value, "std") and hasattr(value, "classes"):  # a preset
        value = value.mean, value.std
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise _wrong(value)
    try:
        mean, std = (np.atleast_1d(np.asarray(numbers, np.float64)) for numbers in value)
    except (TypeError, ValueError) as error:
        raise _wrong(value) from error
    fine = all(numbers.ndim == 1 and numbers.size and np.isfinite(numbers).all() for numbers in (mean, std))
    if not fine or not (std > 0).all() or len({mean.size, std.size} - {1}) > 1:
        raise _wrong(value)
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def _wrong(value, hint=""):
    return ValueError(
        "`preprocess` must be None, a pair (mean, std) of images / 255, each a number or one for each channel, std > "
        f"0, a preset of keras_mpt.zoo, or one of {list(MODES)}.{hint} {received('preprocess', value)}"
    )
