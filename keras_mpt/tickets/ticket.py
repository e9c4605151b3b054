"""A ticket as data: what a file holds, readable without making a model of it."""

import contextlib
import dataclasses
import math
import pathlib

import numpy as np

from keras_mpt.models.tables import Tabular
from keras_mpt.tickets import container, kernels, report
from keras_mpt.tickets.container import TicketError

# So many weights may be in a file, and no more, that a short one cannot ask for much memory.
FREE_WEIGHTS = 1 << 22
WEIGHTS_PER_BYTE = 512
_MOST_AXES = 32

_NUMPY = {
    **{f"{kind}{bits}": f"<{kind[0]}{bits // 8}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "bool": "|b1",
    "bfloat16": "<u2",  # the upper half of a float32
}


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket(Tabular):
    """The content of a ticket file. `str()` gives a table of where its bytes go; a notebook shows it, too.

    Attributes:
        path: Of the file.
        size: Of the file, in bytes.
        config: The model's config, JSON data.
        provenance: What was said about its making when it was saved.
        created: When that was, ISO 8601.
        software: Versions of what it was made with.
        layers: The entries of the layers by the layers' paths (`"conv1"`, or `"block/conv1"` in a nested model), dicts
            with the keys `path`, `class`, `kernel`, `scores` and `variables`: see docs/ticket-format.md, section 4.
        blobs: Dict of name to bytes.
    """

    path: pathlib.Path
    size: int
    config: dict
    provenance: dict
    created: str
    software: dict
    layers: dict
    blobs: dict

    @classmethod
    def read(cls, path):
        """Read a file, checksums verified.

        Args:
            path: Of a file that `save_ticket` wrote.

        Returns:
            A `Ticket`.

        Raises:
            TicketError: It is no ticket, of another version, or damaged.
            OSError: It cannot be opened.
        """
        header, blobs = container.read(path)
        path = pathlib.Path(path)
        with naming(path, "the header is malformed"):
            ticket = cls(
                path=path,
                size=path.stat().st_size,
                config=header["model"],
                provenance=dict(header["provenance"]),
                created=header["created"],
                software=dict(header["software"]),
                layers={entry["path"]: entry for entry in header["layers"]},
                blobs=blobs,
            )
            if len(ticket.layers) < len(header["layers"]):
                raise ValueError("two layers have the same path")
            ticket._check_sizes()
            str(ticket)  # what can be read can be shown: finds entries that are not of their type
        return ticket

    def _check_sizes(self):
        """Raise ValueError if the layers are more than the blobs can fill."""
        weights = 0
        for path, entry in self.layers.items():
            if entry["kernel"] is not None:
                size, kept = _size(entry["kernel"]["shape"]), _size([entry["kernel"]["kept"]])
                if kept > size:
                    raise ValueError(f"layer {path!r} keeps {kept} of {size} weights")
                weights += size
            stored = sum(_size(v["shape"]) * np.dtype(_NUMPY[v["stored"]]).itemsize for v in entry["variables"])
            if stored != len(self.blobs.get(f"{path}/variables", b"")):
                raise ValueError(f"the variables of layer {path!r} take {stored} bytes, but their blob does not")
        if weights > FREE_WEIGHTS + WEIGHTS_PER_BYTE * self.size:
            raise ValueError(f"{weights} weights in {self.size} bytes are more than the format allows")

    def _entries(self):
        """Return how many entries the variables of the model have at most."""
        kernels = [entry["kernel"]["shape"] for entry in self.layers.values() if entry["kernel"] is not None]
        others = [variable["shape"] for entry in self.layers.values() for variable in entry["variables"]]
        # Of a kernel: itself, scores, the stored mask of some rules, and a few numbers.
        return 3 * sum(map(_size, kernels)) + 8 * len(kernels) + sum(map(_size, others))

    def kernel(self, path, base=None):
        """Return the kernel of an MPT layer as arrays.

        Args:
            path: The layer's path, one of `layers`.
            base: The network that the kernels come from, a Keras model, where the ticket refers to one.

        Returns:
            An object with the attributes `frozen` (float32), `mask` (bool) and `effective` (float32), arrays of the
            kernel's shape.

        Raises:
            TicketError: There is no such kernel, or it cannot be decoded.
        """
        if path not in self.layers or self.layers[path]["kernel"] is None:
            there = [path for path, entry in self.layers.items() if entry["kernel"] is not None]
            raise TicketError(f"{self.path}: layer {path!r} has no kernel in the file; these have: {there}")
        return self._kernel(path, kernels.content_table(base))

    def _kernel(self, path, base):
        with self._reading(path):
            return kernels.decode(self.layers[path]["kernel"], self.blobs, base)

    def _scores(self, path):
        """Return the scores of an MPT layer, None if they were not stored."""
        entry = self.layers[path]
        with self._reading(path):
            if entry["scores"] is None:
                return None
            return np.frombuffer(self.blobs[entry["scores"]], "<f4").reshape(entry["kernel"]["shape"])

    def _variables(self, path):
        """Return the arrays of a layer's other variables."""
        arrays, begin = [], 0
        with self._reading(path):
            for variable in self.layers[path]["variables"]:
                stored = np.dtype(_NUMPY[variable["stored"]])
                data = np.frombuffer(self.blobs[f"{path}/variables"], stored, _size(variable["shape"]), begin)
                begin += data.nbytes
                if variable["stored"] == "bfloat16":
                    data = (data.astype(np.uint32) << 16).view(np.float32)
                arrays.append(data.reshape(variable["shape"]))
        return arrays

    def _reading(self, path):
        return naming(self.path, f"layer {path!r} cannot be read")

    def _table(self):
        return report.table(self)

    def __repr__(self):
        return f"<Ticket {str(self.path)!r}: {len(self.layers)} layers, {self.size:,} bytes>"


@contextlib.contextmanager
def naming(file, what):
    """Turn whatever fails inside, for a file can hold anything, into a TicketError that names the file."""
    try:
        yield
    except TicketError:
        raise
    except Exception as error:
        why = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise TicketError(f"{file}: {what}: {why}") from error


def _size(shape):
    if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"{str(shape)[:100]} is no shape")
    return math.prod(shape)


def pack(array, stored):
    """Return the bytes of an array in one of the types of variables.

    Raises:
        ValueError: The type is none of these, or too small for a value.
    """
    if stored not in _NUMPY:
        raise ValueError(f"variables of type {stored} cannot be stored")
    if stored == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        packed = array.astype(_NUMPY[stored])
    lost = np.isfinite(array) & ~np.isfinite(packed)
    if lost.any():
        raise ValueError(f"a value of {float(np.abs(array[lost]).max()):g} is beyond the range of {stored}")
    return packed.tobytes()
