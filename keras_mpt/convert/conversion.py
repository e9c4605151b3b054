"""The steps of every conversion: build a plain graph, compile it, check the file against the model, write it."""

import gzip
import os
import pathlib
import warnings

import keras
import numpy as np

from keras_mpt import summaries
from keras_mpt.convert import verify
from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.graph import call_plain, rebuild
from keras_mpt.convert.report import ConversionError, Layer, Report, errors_of
from keras_mpt.files import check_another, check_folder, replacing
from keras_mpt.tickets import Ticket, load_ticket


class Target:
    """What a model is converted to. Subclasses say what becomes of each layer, and how to compile and run a file."""

    name = ""  # as an argument
    engine = ""  # in words
    lossy = False  # whether differences to the model are reported only

    def form(self, layer):
        """Return the form that an MPT layer takes, and why not a smaller or faster one ("" if there is no reason)."""
        raise NotImplementedError

    def call(self, layer, form, x):
        """Return the outputs of an MPT layer on the symbolic tensor `x` in a form."""
        raise NotImplementedError

    def compile(self, model, forms):
        """Return a plain functional model as the bytes of a file."""
        raise NotImplementedError

    def size(self, layer, form):
        """Return the bytes that a layer's kernel takes."""
        raise NotImplementedError

    def check(self, file, forms):
        """Raise ConversionError unless the layers have these forms in a `File`."""

    def runtimes(self):
        """Return the names of the runtimes that are here, the first one being the default of `run`."""
        return [self.engine]

    def run(self, content, samples, runtime=None):
        """Return the outputs of a file on samples."""
        raise NotImplementedError

    def invoker(self, content, sample, threads):
        """Return a function that runs a file once on a sample in a batch of one."""
        raise NotImplementedError


def convert(model, path, target, samples=None):
    """Convert a model or ticket, check the result, write it; return the `Report`.

    Raises:
        ConversionError: The file does not compute what the model does. `path` is untouched.
        ValueError: See `Target` and `rebuild`.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Conversion needs Keras' TensorFlow backend. Received: {keras.backend.backend()}. Save a ticket and "
            "convert that with KERAS_BACKEND=tensorflow, for example by `python -m keras_mpt convert`."
        )
    path = pathlib.Path(path)
    check_folder(path)
    if isinstance(model, (str, os.PathLike, Ticket)):
        check_another(path, model.path if isinstance(model, Ticket) else model)
        model = load_ticket(model)
    samples = verify.samples_for(model, samples)

    layers, forms = {}, []

    def mpt(layer, x):
        form, why = target.form(layer)
        forms.append((layer, form))
        _note(layers, layer, x, form, why, target.size(layer, form))
        return target.call(layer, form, x)

    def note(layer, x):
        if getattr(layer, "kernel", None) is not None:
            _note(layers, layer, x, "float32", "", 4 * int(np.prod(layer.kernel.shape)))

    content = target.compile(rebuild(model, mpt, note=note), forms)
    file = File(content)
    target.check(file, forms)
    report = Report(
        path=path,
        target=target.name,
        engine=target.engine,
        layers=list(layers.values()),
        operations=file.operations(),
        bytes=len(content),
        gzip=len(gzip.compress(content, 9)),
        runtimes=target.runtimes(),
    )
    _check(report, target, content, verify.Reference(model), samples)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return report


def _note(layers, layer, x, form, why, size):
    kernel = getattr(layer, "frozen_kernel", None)
    weights = int(np.prod((layer.kernel if kernel is None else kernel).shape))
    entry = layers.setdefault(
        id(layer), Layer(layer.name, type(layer).__name__, form, why, weights=weights, bytes=size)
    )
    macs = weights * (summaries.positions(layer, [[[x.shape], [layer.compute_output_shape(x.shape)]]]) or 0)
    entry.macs += macs
    entry.macs_1bit += macs if form == "binary" else 0


def _check(report, target, content, reference, samples):
    """Run a file in each runtime and write into the report how its outputs agree with the model's."""
    some = samples[: verify.PIECES]
    margins = _check_pieces(report, target, reference, some, reference.outputs(some)[1])
    agreements = {runtime: verify.Agreement(margins) for runtime in report.runtimes}
    rebuilt = verify.Agreement(margins)
    for begin in range(0, len(samples), verify.BATCH):
        batch = samples[begin : begin + verify.BATCH]
        expected, taps = reference.outputs(batch)
        if (own := reference.own_outputs(batch)) is not None:
            rebuilt.add(own, taps, expected)
        for runtime, agreement in agreements.items():
            with errors_of(runtime, "run"):
                outputs = target.run(content, batch, runtime)
            agreement.add(expected, taps, outputs, target.lossy)
    found = agreements.values()
    report.samples, report.scale = len(samples), max(agreement.scale for agreement in found)
    report.agreement = min(agreement.same for agreement in found) / len(samples)
    report.flips = max(agreement.flips for agreement in found)
    report.max_error = max(agreement.max_error for agreement in found)
    if report.flips > max(1, verify.FLIPS * len(samples)):
        warnings.warn(
            f"The file differs from the model in {report.flips} of {len(samples)} samples, each with an activation at "
            "zero. Rounding alone flips few: are there signs of sums that are often exactly zero, as in an untrained "
            "network or without batch normalization before them? Such samples say little about the file as a whole.",
            stacklevel=4,
        )


def _check_pieces(report, target, reference, samples, taps):
    """Check what a target makes of the pieces between signs, each on the model's own signs.

    Returns:
        For each time that signs are taken, how close to zero rounding may flip one.
    """
    if not taps or target.lossy:
        return [0.0] * len(taps)
    forms = []

    def call(layer, x):
        form = target.form(layer)[0]
        forms.append((layer, form))
        return target.call(layer, form, x)

    plain, inputs, sizes = reference.pieces(samples, taps, call_plain)
    converted, _, _ = reference.pieces(samples, taps, call)
    expected = plain.predict(inputs, verbose=0)
    content = target.compile(converted, forms)
    with errors_of(target.engine, "run"):
        found = target.run(content, inputs)
    report.piece_error, margins = 0.0, []
    ends = np.cumsum(sizes)[:-1]
    pieces = zip(*(np.split(array, ends, axis=1) for array in (expected, found)), strict=True)
    names = [*(f"before the signs of {name!r}" for name in reference.takers), "before the outputs"]
    for name, (ours, theirs) in zip(names, pieces, strict=True):
        error, scale = float(np.abs(ours - theirs).max()), max(float(np.abs(ours).max()), 1e-30)
        if not error <= verify.ROUNDING * scale:
            raise ConversionError(
                f"The file differs from the model by {error:.3g} (values up to {scale:.3g}) {name}, given the signs "
                "before."
            )
        report.piece_error = max(report.piece_error, error / scale)
        margins.append(verify.AT_ZERO * max(error, verify.LEAST_ERROR * scale))
    return margins[:-1]
