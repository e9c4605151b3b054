"""The steps of every conversion: build a plain graph, compile it, check the file against the model, write it."""

import gzip
import os
import pathlib

import keras
import numpy as np
from keras import ops

from keras_mpt import summaries
from keras_mpt.convert import verify
from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.graph import call_plain, rebuild
from keras_mpt.convert.report import ConversionError, Layer, Report
from keras_mpt.files import check_folder, replacing
from keras_mpt.tickets import Ticket, load_ticket


class Target:
    """What a model is converted to. Subclasses say what becomes of each layer, and how to compile and run a file."""

    name = ""
    checked = ()  # forms that are checked layer by layer, on the model's own signs
    lossy = False  # whether differences to the model are reported only
    signs = None  # see `rebuild`

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
        return [self.name]

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
    if isinstance(model, (str, os.PathLike)):
        model = load_ticket(model)
    elif isinstance(model, Ticket):
        model = load_ticket(model.path)
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

    content = target.compile(rebuild(model, mpt, target.signs, note), forms)
    file = File(content)
    target.check(file, forms)
    report = Report(
        path=path,
        target=target.name,
        layers=list(layers.values()),
        operations=file.operations(),
        bytes=len(content),
        gzip=len(gzip.compress(content, 9)),
        runtimes=list(target.runtimes()),
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
    agreements = {runtime: verify.Agreement() for runtime in report.runtimes}
    for begin in range(0, len(samples), verify.BATCH):
        batch = samples[begin : begin + verify.BATCH]
        expected, taps = reference.outputs(batch)
        for runtime, agreement in agreements.items():
            agreement.add(expected, taps, target.run(content, batch, runtime), target.lossy)
        if begin == 0:
            _check_layers(report, reference.layers, [tap[:2] for tap in taps], target)
    found = agreements.values()
    report.samples, report.scale = len(samples), max(agreement.scale for agreement in found)
    report.agreement = min(agreement.same for agreement in found) / len(samples)
    report.flips = max(agreement.flips for agreement in found)
    report.max_error = max(agreement.max_error for agreement in found)


def _check_layers(report, layers, taps, target):
    """Run each binary layer by itself on the signs that the model gives it.

    All are in one file, one after the other in a flat input and a flat output, for that is compiled once.
    """
    checked = [(layer, tap, target.form(layer)[0]) for layer, tap in zip(layers, taps, strict=True)]
    checked = [(layer, np.where(tap >= 0, 1, -1), form) for layer, tap, form in checked if form in target.checked]
    if not checked:
        return
    flat = np.concatenate([tap.reshape(len(tap), -1) for _, tap, _ in checked], axis=1).astype(np.float32)

    def model(call):
        inputs, outputs, begin = keras.Input(flat.shape[1:]), [], 0
        for layer, tap, form in checked:
            size = int(np.prod(tap.shape[1:]))
            x = ops.reshape(inputs[:, begin : begin + size], (-1, *tap.shape[1:]))
            y = call(layer, form, x)
            outputs.append(ops.reshape(y, (-1, int(np.prod(y.shape[1:])))))
            begin += size
        return keras.Model(inputs, ops.concatenate(outputs, axis=1)), [y.shape[1] for y in outputs]

    plain, sizes = model(lambda layer, form, x: call_plain(layer, x))
    converted, _ = model(target.call)
    expected = plain.predict(flat, verbose=0)
    found = target.run(target.compile(converted, [(layer, form) for layer, _, form in checked]), flat)
    report.layer_error, begin = 0.0, 0
    for (layer, _, form), size in zip(checked, sizes, strict=True):
        ours, theirs = found[:, begin : begin + size], expected[:, begin : begin + size]
        error = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
        report.layer_error = max(report.layer_error, error)
        if not error <= verify.LAYER_ROUNDING:
            raise ConversionError(f"Layer {layer.name!r} as {form} has a relative error of {error:.3g}.")
        begin += size
