"""Published tickets: found, verified and loaded without a network."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import warnings

import numpy as np

from keras_mpt import remote, tickets
from keras_mpt.arguments import did_you_mean
from keras_mpt.initializers import random_uniform
from keras_mpt.tickets import config
from keras_mpt.tickets.saving import check_size

_ENDING = ".mpt"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published ticket and what is known of it. The data are those of `zoo/presets.json`.

    Attributes:
        name: Of the preset, and of its files in `zoo/`.
        architecture: Name of the function of `keras_mpt.zoo` that builds the network.
        dataset: `"cifar10"`, which is also the name of the architecture's default preset.
        default: Whether it is that.
        arguments: What the function is called with, JSON data.
        sha256: Of the ticket file, in hex.
        mean: Of the pixels of each channel, in [0, 1]; see `preprocess`.
        std: Standard deviation of these.
        classes: Names of the classes, in the order of the logits.
        data: What it was trained and tested on.
        recipe: The command that trained it.
        accuracy: Of the ticket file on the whole test set, a fraction.
        epochs: How long it was trained.
        seed: Of the network.
        trained: On what and when it was trained, in words.
        dense: What the same network reached with all weights trained, in the last epoch: `{"accuracy", "epochs",
            "log"}`; None if that was not measured. For MPT-1/1 it is the float network of that name, not one of the
            same layers: it has ReLUs instead of signs, and Conv-n has no batch normalization then.
        converted: What the ticket was converted to: `{"tflite" or "lce": {"bytes", "gzip", "accuracy", "flips"}}`, on
            the whole test set; with `"file"` and `"sha256"` where the file is published, in `zoo/` of the repository.
            Newer ones have `"tied"`: how many images have two largest logits that are equal up to rounding.
        golden: Logits of `golden_images()`, as a list of lists.
        note: What else its card says.
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
    dense: dict | None
    converted: dict
    golden: list
    note: str

    @property
    def path(self):
        """Where the ticket file is."""
        return folder() / f"{self.name}{_ENDING}"

    def model(self, **kwargs):
        """Return the model of this ticket.

        Args:
            **kwargs: Arguments of the architecture that may differ from the ticket's, such as `include_top`.

        Raises:
            ValueError: See the architecture, such as `keras_mpt.zoo.conv4_mpt`.
        """
        from keras_mpt import zoo

        return getattr(zoo, self.architecture)(weights=self.name, **kwargs)

    def preprocess(self, images):
        """Return images as the network takes them: `(images / 255 - mean) / std`, float32.

        Args:
            images: Array `(..., 3)` of pixels from 0 to 255, such as `tensorflow_datasets` and Keras give.

        Raises:
            ValueError: The last axis is not that of the channels.
        """
        images = np.asarray(images)
        if images.shape[-1:] != (len(self.mean),):
            raise ValueError(f"`images` must have {len(self.mean)} channels last. Received: shape {images.shape}")
        if images.dtype.kind == "f" and images.size and images.max() <= 1:
            warnings.warn(f"`images` must be pixels from 0 to 255. Received: none above {images.max():g}", stacklevel=2)
        pixels = images.astype(np.float32) / np.float32(255)
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def golden_images(self):
        """Return the images that `golden` belongs to: random uint8 pixels `(number, height, width, channels)`."""
        shape = (len(self.golden), *self.arguments.get("input_shape", (32, 32, 3)))
        return (256 * random_uniform(int(np.prod(shape)), seed=0)).astype(np.uint8).reshape(shape)

    def published(self, runtime="keras"):
        """Return the path of the ticket or, for `"tflite"` or `"lce"`, of its phone file, which only a clone has.

        Args:
            runtime: `"keras"`, `"tflite"` or `"lce"`.

        Raises:
            ValueError: There is no such file of the preset: phone files are published of binary activations only.
            TicketError: It is not the file that was published.
            OSError: It cannot be opened.
        """
        path, sha256 = self.path, self.sha256
        if runtime != "keras":
            if "file" not in self.converted.get(runtime, {}):
                there = ["keras", *(target for target, facts in self.converted.items() if "file" in facts)]
                raise ValueError(f"`runtime` must be one of {there} for {self.name}. Received: {runtime=}")
            path, sha256 = folder() / self.converted[runtime]["file"], self.converted[runtime]["sha256"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise tickets.TicketError(f"{path} is not the file that was published (its checksum differs).")
        return path

    def load_into(self, model, part=False):
        """Load the ticket into a network of this architecture. Its MPT layers are frozen then.

        Args:
            model: Such a network, with the preset's `arguments`.
            part: Whether it may lack the last layers, as it does with `include_top=False`.

        Raises:
            TicketError: The file is not the one that was published, or the network is another one.
            OSError: The file cannot be opened.
        """
        tickets.restore(model, self.published(), part=part)


@dataclasses.dataclass(frozen=True)
class File:
    """A ticket file given by its path.

    Attributes:
        ticket: Its content.
        arguments: What the function of the architecture was called with, as far as the ticket says it.
    """

    ticket: tickets.Ticket
    arguments: dict

    def check_size(self, make):
        """Raise TicketError if the network that `make()` makes is larger than the ticket, without memory for it."""
        check_size(self.ticket, make)

    def load_into(self, model, part=False):
        """Load the ticket into a network; see `Preset.load_into`."""
        tickets.restore(model, self.ticket, part=part)


def folder():
    """Return the folder of the published tickets: in the installed package, or `zoo/` of a checkout."""
    installed = pathlib.Path(__file__).parent / "tickets"
    return installed if installed.is_dir() else pathlib.Path(__file__).parents[2] / "zoo"


@functools.cache
def _presets():
    text = (folder() / "presets.json").read_text(encoding="utf-8")
    return tuple(Preset(**entry) for entry in json.loads(text))


def list_presets(architecture=None):
    """Return the published tickets, as a list of `Preset`.

    Args:
        architecture: Only those of this one, such as `"conv4_mpt"`.

    Raises:
        ValueError: `keras_mpt.zoo` has no such architecture.

    Example:

    >>> for preset in keras_mpt.zoo.list_presets():
    ...     print(preset.name, preset.accuracy)
    """
    from keras_mpt import zoo

    known = [name for name in zoo.__all__ if name.endswith("_mpt")]
    if architecture not in (None, *known):
        raise ValueError(f"`architecture` must be one of keras_mpt.zoo: {', '.join(known)}. Received: {architecture!r}")
    return [preset for preset in _presets() if architecture in (None, preset.architecture)]


def get_preset(name):
    """Return the `Preset` of a name.

    Args:
        name: Of a published ticket, such as `"conv4_mpt32_s50"`; see `list_presets`.

    Returns:
        A `Preset`.

    Raises:
        ValueError: There is none; the message suggests a near one.
    """
    for preset in list_presets():
        if preset.name == name:
            return preset
    names = [preset.name for preset in list_presets()]
    raise ValueError(f"`name` must be a preset's.{_choices(name, names)} Received: {name!r}")


def resolve(architecture, weights):
    """Return what `weights=weights` stands for: a `Preset` of the architecture, or a `File`.

    Args:
        architecture: Name of the function.
        weights: A preset's name, the dataset of a default preset, or the path or address of a ticket file.

    Raises:
        ValueError: There is no such preset, or the ticket says that it is one of another architecture.
        TicketError: The file is no ticket, or its arguments are not plain data.
        OSError: The file cannot be opened.
    """
    if remote.is_remote(weights):
        return _file(architecture, weights)
    if isinstance(weights, os.PathLike) or str(weights).endswith(_ENDING):
        return _file(architecture, pathlib.Path(weights))
    presets = list_presets(architecture)
    for preset in presets:
        if weights in ([preset.name, preset.dataset] if preset.default else [preset.name]):
            return preset
    names = [name for preset in presets for name in ([preset.dataset] if preset.default else []) + [preset.name]]
    raise ValueError(
        f"`weights` must be None, a preset of {architecture} or the path of a {_ENDING} file."
        f"{_choices(weights, names)} Received: weights={weights!r}"
    )


def _file(architecture, path):
    ticket = tickets.Ticket.read(path)
    made_by, arguments = (ticket.provenance.get(key) for key in ("architecture", "arguments"))
    if not isinstance(made_by, str) or not isinstance(arguments, dict):
        return File(ticket, {})
    if made_by != architecture:
        raise ValueError(f"`weights` must be a ticket of {architecture}. Received: {str(path)!r}, one of {made_by}")
    try:
        config.check(arguments)  # quantizers and initializers are made of them
    except ValueError as error:
        raise tickets.TicketError(f"{path}: the arguments in its provenance cannot be used: {error}") from error
    return File(ticket, arguments)


def _choices(name, names):
    return f"{did_you_mean(name, names)} There {'are ' + ', '.join(map(repr, names)) if names else 'is none'}."
