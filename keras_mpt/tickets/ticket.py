"""A ticket as data: the content of a file, without building its model."""

import contextlib
import dataclasses
import math
import pathlib

import keras
import numpy as np

from keras_mpt._types import Path
from keras_mpt.models.tables import Tabular
from keras_mpt.tickets import container, header, kernels, report
from keras_mpt.tickets.container import TicketError
from keras_mpt.tickets.header import DTYPES
from keras_mpt.tickets.limits import FREE_WEIGHTS, VARIABLES_PER_KERNEL, VARIABLES_PER_VARIABLE
from keras_mpt.tickets.published import find

_LONGEST_CAUSE = 5000


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket(Tabular):
    """The content of a ticket file. `str()` gives a table of its layers and their sizes; a notebook shows it as HTML.

    Attributes:
        path: Path of the file.
        size: Size of the file in bytes.
        config: Config of the model, JSON data.
        provenance: The argument of `save_ticket`, a dict.
        created: Time of saving, ISO 8601.
        software: Versions of the software that saved it.
        settings: Keras' global settings at that time: see docs/ticket-format.md, section 3.
        layers: Entries of the layers, keyed by path (`"conv1"`, or `"block/conv1"` in a nested model): dicts with the
            keys `path`, `class`, `kernel`, `scores` and `variables`, and `subnets` for further kernels. See
            docs/ticket-format.md, section 4.
        blobs: Bytes by name.
        note: What `save_ticket` tells besides, which is not in the file: that `base` was of no use.
    """

    path: pathlib.Path
    size: int
    config: dict
    provenance: dict
    created: str
    software: dict
    settings: dict
    layers: dict
    blobs: dict
    note: str = ""

    @classmethod
    def read(cls, path: Path, argument: str = "path") -> "Ticket":
        """Read a file and verify its checksums.

        Args:
            path: Path of a ticket file or of a folder with a `ticket.mpt`, name of a preset of `keras_mpt.zoo`, or
                address such as `hf://owner/name` or `https://host/x.mpt`.
            argument: What errors call the path: the argument of your function that it comes from.

        Returns:
            A `Ticket`.

        Raises:
            TicketError: The file is not a ticket, of another version, or damaged.
            TypeError: `path` is not a path.
            ValueError, OSError, ImportError: See `load_ticket`.
        """
        path = find(path, argument)
        return cls.read_as(path, path)

    @classmethod
    def read_as(cls, path: Path, name: Path) -> "Ticket":
        """Read an unfinished file under its future name, which errors and `path` use."""
        version, content, blobs, size = container.read(path, name)
        with naming(name):
            header.check(content, blobs, size, version)
            ticket = cls(
                path=pathlib.Path(name),
                size=size,
                config=content["model"],
                provenance=content["provenance"],
                created=content["created"],
                software=content["software"],
                settings=content.get("settings", {}),
                layers={entry["path"]: entry for entry in content["layers"]},
                blobs=blobs,
            )
            str(ticket)  # a ticket that can be read can be shown
        return ticket

    def _most(self):
        """Return the largest number of variables that building the model may create, and of their entries together."""
        kernels = [kernel for entry in self.layers.values() for _, kernel, _ in header.kernels_of(entry)]
        others = [variable for entry in self.layers.values() for variable in entry["variables"]]
        number = VARIABLES_PER_KERNEL * len(kernels) + VARIABLES_PER_VARIABLE * len(others)
        # Of a kernel: itself, scores, the stored mask of some rules, and a few numbers.
        entries = sum(3 * math.prod(kernel["shape"]) + VARIABLES_PER_KERNEL for kernel in kernels)
        return number, FREE_WEIGHTS + entries + sum(math.prod(variable["shape"]) for variable in others)

    def kernel(self, path: str, base: keras.Model | None = None, name: str | None = None) -> kernels.Kernel:
        """Return the kernel of an MPT layer as arrays.

        Args:
            path: Path of the layer, one of `layers`.
            base: The Keras model whose kernels the ticket refers to, if any.
            name: Name of a further kernel of a layer with several; None: the first one, whose name the file lacks.

        Returns:
            An object with the attributes `frozen` (float32), `mask` (bool) and `effective` (float32), arrays in the
            shape of the kernel.

        Raises:
            TicketError: There is no such kernel, or it cannot be decoded, for example without `base`.
            TypeError: `base` is not a Keras model.
        """
        if path not in self.layers or self.layers[path]["kernel"] is None:
            there = [path for path, entry in self.layers.items() if entry["kernel"] is not None]
            raise TicketError(f"{self.path}: layer {path!r} has no kernel in the file; these have: {there}")
        for number, (known, *_) in enumerate(header.kernels_of(self.layers[path])):
            if known == name:
                return self._kernel(path, kernels.content_table(base), number)
        raise TicketError(f"{self.path}: layer {path!r} has no kernel {name!r} in the file")

    def _kernel(self, path, base, number=0):
        with self._reading(path):
            _, kernel, _ = list(header.kernels_of(self.layers[path]))[number]
            return kernels.decode(kernel, self.blobs, base)

    def _scores(self, path, number=0):
        """Return the scores of a kernel, None if they were not stored."""
        with self._reading(path):
            _, kernel, blob = list(header.kernels_of(self.layers[path]))[number]
            if blob is None:
                return None
            scores = np.frombuffer(self.blobs[blob], "<f4").reshape(kernel["shape"])
            if np.isnan(scores).any():
                raise ValueError(f"a score of layer {path!r} is NaN")
            return scores

    def _variables(self, path):
        """Return a layer's other variables as arrays."""
        arrays, begin = [], 0
        with self._reading(path):
            for variable in self.layers[path]["variables"]:
                stored, count = np.dtype(DTYPES[variable["stored"]]), math.prod(variable["shape"])
                data = np.frombuffer(self.blobs.get(f"{path}/variables", b""), stored, count, begin)
                begin += data.nbytes
                if variable["stored"] == "bfloat16":
                    data = (data.astype(np.uint32) << 16).view(np.float32)
                if variable["stored"] == "bool" and (data.view(np.uint8) > 1).any():
                    raise ValueError(f"variable {variable['name']!r} must be booleans, 0 or 1")
                arrays.append(data.reshape(variable["shape"]))
        return arrays

    def _reading(self, path):
        return naming(self.path, f"layer {path!r} cannot be read")

    def _table(self):
        return report.table(self)

    def __repr__(self):
        return f"<Ticket {str(self.path)!r}: {len(self.layers)} layers, {self.size:,} bytes>"


@contextlib.contextmanager
def naming(file, what=None):
    """Turn any exception into a TicketError that names the file, since a file may contain anything."""
    try:
        yield
    except TicketError:
        raise
    except Exception as error:
        why = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        why = f"{what}: {why}" if what else why
        cause = error if len(str(error)) < _LONGEST_CAUSE else None  # a traceback would show all of it
        found = TicketError(f"{file}: {why}")
        found.layer = getattr(error, "layer", None)
        raise found from cause


def pack(array, stored):
    """Return the bytes of an array, converted to one of the stored types.

    Raises:
        ValueError: The type is unknown, or too narrow for a value.
    """
    if stored not in DTYPES:
        raise ValueError(f"variables of type {stored} cannot be stored")
    if stored == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        packed = array.astype(DTYPES[stored])
    lost = np.isfinite(array) & ~np.isfinite(packed)
    if lost.any():
        raise ValueError(f"a value of {float(np.abs(array[lost]).max()):g} is beyond the range of {stored}")
    return packed.tobytes()
