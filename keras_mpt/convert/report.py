"""What a conversion did, layer by layer, and how its result was checked."""

import contextlib
import dataclasses
import pathlib

from keras_mpt.models.tables import Table, Tabular, short


class ConversionError(ValueError):
    """A model cannot be converted as asked, or the file does not compute what the model does. No file is left."""


@contextlib.contextmanager
def errors_of(engine, what):
    """Turn an error of an engine, which is about its own insides, into one that says what the engine cannot do.

    Raises:
        ConversionError: There was one.
    """
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # the engines have no class of their own for them
        message, *_ = str(error).strip().splitlines() or [type(error).__name__]
        message = message.rpartition("): ")[2]  # behind the operations that led there
        raise ConversionError(f"{engine} cannot {what} this model: {message}") from error


@dataclasses.dataclass
class Layer:
    """A layer with a kernel in the converted file.

    Attributes:
        name, type: Of the layer.
        form: How its kernel is stored and used: `"binary"`, `"exact int8"`, `"int8"`, `"sparse int8"`, ...
        why: The reason why not in a smaller or faster form; empty if there is none.
        weights: Of the kernel.
        bytes: Of the kernel in the file.
        macs: Multiply-accumulates for one sample, of the dense kernel.
        macs_1bit: Those of them that are between bits.
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
    """What a conversion did; `str()` gives a table, a notebook shows it, too.

    Attributes:
        path: Of the file.
        target: `"lce"` or `"tflite"`, as `run` and `latency` take it.
        engine: Its name in words.
        layers: A list with an entry for each layer with a kernel: `name` and `type` of the layer; `form`, how its
            kernel is stored and used, and `why` not in a smaller or faster form; its number of `weights`, their
            `bytes` in the file; `macs`, multiply-accumulates for one sample, and `macs_1bit`, those between bits.
        operations: How often each kind of operation is in the file.
        bytes: Size of the file.
        gzip: Its size compressed.
        inputs, outputs: Of the file, in the order of the model: objects with `name`, `shape` and `dtype`.
        runtimes: Names of what the file was run in: those that are installed.
        random: Whether the samples that it was run on were random numbers.
        samples: How many there were.
        max_error: Largest difference to the outputs of the Keras model, over samples without a flip.
        scale: Largest magnitude of these outputs.
        agreement: Fraction of the samples with the same largest output, up to rounding.
        flips: How many samples differ by more than rounding because an activation took the other sign: one closer to
            zero than twice the largest error of such a piece (see below).
        piece_error: Largest error of a piece from signs to signs, given the Keras model's own signs, relative to its
            largest output; None without signs.
        notes: What else there is to know, a list of `(heading, text)`.
    """

    path: pathlib.Path
    target: str
    engine: str
    layers: list
    operations: dict
    bytes: int
    gzip: int
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

    def _table(self):
        header = ["Layer (type)", "Form", "Weights", "Bytes", "1-bit\nMACs", "32-bit\nMACs"]
        rows = [[f"{layer.name} ({layer.type})", layer.form, *map(_cell, _numbers(layer))] for layer in self.layers]
        totals = [sum(column) for column in zip(*map(_numbers, self.layers), strict=True)]
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
                facts.append(("Forms", f"all layers: {why}" + ", so no binary form" * (why == "float input")))
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
