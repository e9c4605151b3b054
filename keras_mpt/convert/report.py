"""Reports of conversions: formats and sizes by layer, and the comparison with the model."""

import builtins
import contextlib
import dataclasses
import functools
import gzip
import pathlib

from keras_mpt.models.tables import Table, Tabular, short


class ConversionError(ValueError):
    """A model cannot be converted as asked, or the outputs of file and model differ. No file is written."""


def first_line(error):
    """Return the first line of an error's message, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def errors_of(engine, what):
    """Convert an error inside an engine to one that names what the engine cannot do.

    Raises:
        ConversionError: An error was raised in the context.
    """
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # of any class, depending on the engine
        message = first_line(error).rpartition("): ")[2]  # without the trace of operations in front
        raise ConversionError(f"{engine} cannot {what} this model: {message}") from error


@dataclasses.dataclass
class Layer:
    """A layer with a kernel in the converted file.

    Attributes:
        name, type: Name and class of the layer.
        form: Format of the kernel: `"binary"`, `"exact int8"`, `"int8"`, `"sparse int8"`, ...
        why: Reason against a smaller or faster format; empty if there is none.
        weights: Number of weights of the kernel.
        bytes: Size of the kernel in the file.
        macs: Multiply-accumulates of the dense kernel for one sample.
        macs_1bit: Those of them between bits.
    """

    name: str
    type: str
    form: str
    why: str
    weights: int
    bytes: int = 0
    macs: int = 0
    macs_1bit: int = 0


@dataclasses.dataclass
class Report(Tabular):
    """Report of a conversion. `str()` gives a table; a notebook shows it as HTML.

    Attributes:
        path: Path of the file.
        target: Name of the target for `run` and `latency`, such as `"tflite"`.
        engine: Name of the engine in words.
        layers: List of a `Layer` for each kernel: `name` and `type` of the layer; `form`, the format, and `why`, the
            reason against a smaller or faster one; number of `weights` and their `bytes` in the file; `macs`, the
            multiply-accumulates for one sample, and `macs_1bit`, those between bits.
        operations: Number of operations of each kind, a dict by name.
        content: The converted file, bytes. With an ending for C++, `path` has them as an array.
        bytes: Size of the file.
        gzip: Size of the compressed file (level 9), computed when it is read or the report is printed.
        inputs, outputs: Lists of objects with `name`, `shape` and `dtype`, in the order of the model.
        runtimes: Names of the installed runtimes, which all ran the file.
        random: Whether the samples were random numbers.
        samples: Number of samples.
        max_error: Largest difference to the outputs of the Keras model, over samples without a flip.
        scale: Largest magnitude of these outputs.
        agreement: Fraction of the samples with the same largest output, up to rounding; with the same outputs, if
            these are integers.
        flips: Number of samples that differ by more than rounding because an activation took the other sign, one closer
            to zero than twice the largest error of its piece (see below), or because the two largest entries of an
            argmax are equal up to rounding.
        piece_error: Largest error of a piece from signs to signs, given the Keras model's own signs, relative to its
            largest output; None without signs.
        notes: Further facts, a list of `(heading, text)`.
    """

    path: pathlib.Path
    target: str
    engine: str
    layers: list
    operations: dict
    bytes: int
    content: builtins.bytes = b""
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    runtimes: list = dataclasses.field(default_factory=list)
    random: bool = False
    samples: int = 0
    max_error: float = 0.0
    scale: float = 0.0
    agreement: float = 1.0
    flips: int = 0
    piece_error: float | None = None
    notes: list = dataclasses.field(default_factory=list)

    @functools.cached_property
    def gzip(self):
        return len(gzip.compress(self.content, 9))

    def __repr__(self):
        kernels = f"{len(self.layers)} kernel{'s' * (len(self.layers) != 1)}"
        return f"<{type(self).__name__} of {self.path.name!r} for {self.engine}: {kernels}, {self.bytes:,} bytes>"

    def _table(self):
        header = ["Layer (type)", "Format", "Weights", "Bytes", "1-bit\nMACs", "32-bit\nMACs"]
        rows = [[f"{layer.name} ({layer.type})", layer.form, *map(_cell, _numbers(layer))] for layer in self.layers]
        totals = list(map(sum, zip(*map(_numbers, self.layers), strict=True))) or [0] * 4
        rows.append(["Total", "", *map(_cell, totals)])
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.operations.items())
        facts = [
            ("File", f"{self.path.name} for {self.engine}: {self.bytes:,} bytes, {self.gzip:,} compressed"),
            ("Inputs", "; ".join(map(str, self.inputs))),
            ("Outputs", "; ".join(map(str, self.outputs))),
            ("Operations", kinds),
            *self._checks(),
            *self.notes,
        ]
        floats = [layer for layer in self.layers if layer.form == "float32"]
        if 0 < len(floats) < len(self.layers):
            weights, size = sum(layer.weights for layer in floats), sum(layer.bytes for layer in floats)
            shares = f"{weights / totals[0]:.2%} of these weights, {size / totals[1]:.2%} of their bytes"
            facts.append(("Floats", f"{shares} ({', '.join(dict.fromkeys(layer.type for layer in floats))})"))
        reasons = {}
        for layer in self.layers:
            reasons.setdefault(layer.why, []).append(layer.name)
        for why, names in reasons.items():
            if why and len(names) == len(self.layers) > 1:
                facts.append(("Formats", f"all layers: {why}" + ", so no binary form" * (why == "float input")))
            elif why:
                facts += [(f"{name}: ", why) for name in names]
        return Table(f"Conversion to {self.engine}", header, rows, facts)

    def _checks(self):
        whose = f"{self.samples} random samples" if self.random else f"{self.samples} samples of yours"
        yield "Checked", f"on {whose} in {', '.join(self.runtimes)}"
        yield "", f"max error {self.max_error:.2g} (outputs up to {self.scale:.3g})"
        if self.piece_error is None:
            yield "", f"same largest output in {self.agreement:.2%}"
        else:
            yield "", f"same largest output in {self.agreement:.2%}, {self.flips} with an activation at zero flipped"
            yield "", f"from signs to signs, given the model's own: relative error {self.piece_error:.2g}"


def _numbers(layer):
    return layer.weights, layer.bytes, layer.macs_1bit, layer.macs - layer.macs_1bit


def _cell(number):
    return short(number) if number else "-"
