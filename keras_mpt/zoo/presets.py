"""Published tickets: list, verify and load them, offline."""

import dataclasses
import functools
import inspect
import json
import warnings

import numpy as np

from keras_mpt import tickets
from keras_mpt.arguments import check_choice, check_count, check_number, did_you_mean
from keras_mpt.files import sha256_of
from keras_mpt.pixels import Normalization
from keras_mpt.random import random_uniform
from keras_mpt.tickets.published import ENDING, folder


@dataclasses.dataclass(frozen=True, repr=False)
class Preset:
    """A published ticket and its metadata, an entry of `zoo/presets.json`.

    Attributes:
        name: Name of the preset and of its files in `zoo/`.
        architecture: Name of the function of `keras_mpt.zoo` that builds the network.
        dataset: `"cifar10"`, which is also the name of the architecture's default preset.
        default: Whether this is the default preset.
        arguments: Arguments of the function, JSON data.
        sha256: Checksum of the ticket file, in hex.
        mean: Mean of each channel, of pixels in [0, 1]; see `preprocess`.
        std: Standard deviation of each channel.
        classes: Names of the classes, in the order of the logits.
        data: Training and test data.
        recipe: The command that trained the ticket.
        accuracy: Accuracy of the ticket file on the whole test set, a fraction.
        epochs: Number of epochs of training.
        seed: Seed of the network.
        trained: Date and machine of the training, in words.
        counts: Number of `"weights"`, of `"kept"` weights, and of multiply-accumulates per image, removed weights
            included: `"macs_1bit"` of signs with signs, and `"macs_32bit"`, the others.
        dense: Result of the same network with all weights trained, in the last epoch: `{"accuracy", "epochs", "log"}`;
            None if it was not measured. For MPT-1/1, that is the float network of the same name: it has ReLUs instead
            of signs, and a Conv-n has no batch normalization.
        converted: The files that the ticket was converted to: `{"tflite" or "lce": {"bytes", "gzip", "accuracy",
            "flips"}}`, measured on the whole test set, with `"file"` and `"sha256"` if the file is published in `zoo/`
            of the repository. Newer entries have `"tied"`: the number of images whose two largest logits are equal up
            to rounding.
        golden: Logits for `golden_images()`, a list of lists.
        note: Remarks of its card.
        found: How the ticket was found, in words, if by more than a search over random weights: recycling, or a jackpot
            and its base.
        accuracy_flipped: Accuracy of the mean of the logits for an image and its mirror image; None if not measured.
    """

    name: str
    architecture: str
    dataset: str
    default: bool
    arguments: dict
    sha256: str
    mean: list
    std: list
    classes: list
    data: str
    recipe: str
    accuracy: float
    epochs: int
    seed: int
    trained: str
    counts: dict
    dense: dict | None
    converted: dict
    golden: list
    note: str = ""
    found: str = ""
    accuracy_flipped: float | None = None

    def __repr__(self):
        cells = dict(zip(_COLUMNS, self._row(), strict=True))
        floats = "float weights and " * (self.weights == "float")
        return (
            f"<Preset {self.name}: {floats}{cells['activations']} activations, {cells['kept']} kept, "
            f"{cells['bytes']} bytes, {cells['accuracy']} on {self.dataset}>"
        )

    def __hash__(self):
        return hash((self.name, self.sha256))

    def _row(self):
        macs = [self.counts["macs_1bit"], self.counts["macs_32bit"]]
        kept = self.counts["kept"] / self.counts["weights"]
        numbers = [f"{self.bytes:,}", *(f"{number / 1e6:,.0f} M" if number else "-" for number in macs)]
        return [self.name, self.activations, f"{kept:.0%}", *numbers, f"{self.accuracy:.2%}"]

    @property
    def path(self):
        """Path of the ticket file."""
        return folder() / f"{self.name}{ENDING}"

    @property
    def bytes(self):
        """Size of the ticket file in bytes."""
        return self.path.stat().st_size

    @property
    def activations(self):
        """`"binary"` or `"float"`."""
        return "float" if self.arguments.get("input_quantizer") is None else "binary"

    @property
    def weights(self):
        """`"binary"`, plus or minus one number for each kernel, or `"float"`."""
        return "float" if self.arguments.get("kernel_quantizer") == "identity" else "binary"

    @property
    def input_shape(self):
        """Shape of an image: height, width, channels."""
        from keras_mpt import zoo

        default = inspect.signature(getattr(zoo, self.architecture)).parameters["input_shape"].default
        return tuple(self.arguments.get("input_shape", default))

    def model(self, **kwargs):
        """Return the model of this ticket.

        Args:
            **kwargs: Arguments of the architecture that the ticket does not fix, such as `include_top`.

        Raises:
            TypeError, ValueError: See the architecture, such as `keras_mpt.zoo.conv4_mpt`.
        """
        from keras_mpt import zoo

        return getattr(zoo, self.architecture)(weights=self.name, **kwargs)

    def preprocess(self, images):
        """Return images normalized for the network: `(images / 255 - mean) / std`, float32.

        Args:
            images: Array `(..., channels)` of pixels from 0 to 255, as from `keras.datasets`.

        Raises:
            ValueError: The last axis is not the channels, or they are not real numbers.
        """
        images = np.asarray(images)
        if images.shape[-1:] != (len(self.mean),) or images.dtype.kind not in "buifV":  # V: bfloat16
            what = f"{images.dtype} of shape {images.shape}"
            raise ValueError(f"`images` must be numbers with {len(self.mean)} channels last. Received: {what}")
        pixels = images.astype(np.float32)
        least, most = (pixels.min(), pixels.max()) if pixels.size else (0, 255)
        if not (least >= 0 and most <= 255) or images.dtype.kind in "bf" and most <= 1:  # or NaN
            warnings.warn(f"`images` must be pixels from 0 to 255. Received: from {least:g} to {most:g}", stacklevel=2)
        return Normalization(tuple(self.mean), tuple(self.std))(pixels)

    def golden_images(self):
        """Return the images of the `golden` logits: random uint8 pixels `(number, height, width, channels)`."""
        shape = (len(self.golden), *self.input_shape)
        return (256 * random_uniform(int(np.prod(shape)), seed=0)).astype(np.uint8).reshape(shape)

    def published(self, runtime="keras"):
        """Return the path of the ticket, or of its converted file, which comes with a clone of the repository only.

        Args:
            runtime: `"keras"` for the ticket, `"tflite"` or `"lce"` for the converted file.

        Raises:
            ValueError: The preset has no such file.
            TicketError: The file differs from the published one.
            OSError: The file cannot be opened.
        """
        path, sha256 = self.path, self.sha256
        if runtime != "keras":
            if "file" not in self.converted.get(runtime, {}):
                there = ["keras", *(target for target, facts in self.converted.items() if "file" in facts)]
                raise ValueError(f"`runtime` must be one of {there} for {self.name}. Received: {runtime=}")
            path, sha256 = folder() / self.converted[runtime]["file"], self.converted[runtime]["sha256"]
        if sha256_of(path) != sha256:
            raise tickets.TicketError(f"{path} is not the file that was published (its checksum differs).")
        return path


_COLUMNS = ("preset", "activations", "kept", "bytes", "1-bit MACs", "float MACs", "accuracy")


class Presets(tuple):
    """A tuple of presets that prints as a table."""

    def __repr__(self):
        lines = [_COLUMNS, *(preset._row() for preset in self)]
        first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
        return "\n".join(
            name.ljust(first) + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
            for name, *cells in lines
        )


@functools.cache
def published():
    """Return all published tickets."""
    text = (folder() / "presets.json").read_text(encoding="utf-8")
    return Presets(Preset(**entry) for entry in json.loads(text))


def list_presets(architecture=None, *, activations=None, max_bytes=None, min_accuracy=None):
    """Return the published tickets: a sequence of `Preset` that prints as a table.

    Args:
        architecture: Only tickets of this architecture, such as `"conv4_mpt"`.
        activations: Only tickets with these activations, `"binary"` or `"float"`.
        max_bytes: Only tickets of at most this file size in bytes.
        min_accuracy: Only tickets of at least this accuracy, a fraction.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> print(keras_mpt.zoo.list_presets(activations="binary", max_bytes=400_000))
        >>> best = max(keras_mpt.zoo.list_presets(), key=lambda preset: preset.accuracy)
    """
    from keras_mpt import zoo

    known = [name for name in zoo.__all__ if name.endswith("_mpt")]
    if not isinstance(architecture, (str, type(None))) or architecture not in (None, *known):
        raise ValueError(f"`architecture` must be one of keras_mpt.zoo: {', '.join(known)}. Received: {architecture!r}")
    check_choice("activations", activations, [None, "binary", "float"])
    if max_bytes is not None:
        check_count("max_bytes", max_bytes)
    if min_accuracy is not None:
        check_number("min_accuracy", min_accuracy, least=0, most=1)
    return Presets(
        preset
        for preset in published()
        if architecture in (None, preset.architecture)
        and activations in (None, preset.activations)
        and (max_bytes is None or preset.bytes <= max_bytes)
        and (min_accuracy is None or preset.accuracy >= min_accuracy)
    )


def get_preset(name):
    """Return the preset with this name.

    Args:
        name: Name of a published ticket, such as `"conv4_mpt32_s50"`; see `list_presets`.

    Returns:
        A `Preset`.

    Raises:
        ValueError: No preset has this name. The message suggests a similar one.
    """
    by_name = {preset.name: preset for preset in published()}
    if isinstance(name, str) and name in by_name:
        return by_name[name]
    raise ValueError(f"`name` must be a preset's.{choices(name, list(by_name))} Received: {name!r}")


def choices(name, names):
    """Return the end of an error message about a wrong name: the names that exist."""
    return f"{did_you_mean(name, names)} There {'are ' + ', '.join(map(repr, names)) if names else 'is none'}."
