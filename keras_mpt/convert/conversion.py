"""Convert a model: plan, compile, compare the file with the model, write it."""

import math
import os

import keras

from keras_mpt import pixels
from keras_mpt.arguments import check_path
from keras_mpt.convert import annotations, tensors, verify
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.report import Layer, Report, errors_of
from keras_mpt.files import check_another, check_ending, check_folder, replacing
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.models.copies import inside_wrapper
from keras_mpt.models.data import inputs_of
from keras_mpt.models.summaries import kernels, positions, with_inside
from keras_mpt.tickets import Ticket, load_ticket


def convert(model, path, target, samples=None, preprocess=None, labels=None):
    """Convert a model or ticket, check the result, write it; return the `Report`. See `to_tflite`.

    Raises:
        ConversionError: The outputs of file and model differ. `path` does not change.
        ValueError: See `Target`, `Plan`, `normalization`, `check_labels` and `arrays_for`.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Conversion needs Keras' TensorFlow backend. Received: {keras.backend.backend()}. Save a ticket and "
            "convert that with KERAS_BACKEND=tensorflow, for example by `python -m keras_mpt convert`."
        )
    path = check_path("path", path)
    check_folder(path)
    preprocess, ticket = pixels.normalization(preprocess), None
    is_ticket = isinstance(model, (str, os.PathLike, Ticket))
    if is_ticket:
        check_another(path, model.path if isinstance(model, Ticket) else model)
    check_ending(path, *target.endings)
    if is_ticket:
        ticket = read_ticket(model)
        model = load_ticket(ticket)
    plan = Plan(model, preprocess)
    labels = annotations.check_labels(labels, plan.model)
    for kernel in plan.kernels:
        target.choose(kernel)
    random, samples = samples is None, samples_for(plan, samples)

    content = target.compile(plan.graph(target.batch))
    content = target.annotated(content, annotations.facts_of(ticket, labels, preprocess))
    with errors_of(target.engine, "run"):
        session = target.session(content)
    report = Report(
        path=path,
        target=target.name,
        engine=target.engine,
        layers=_entries(plan),
        operations=target.operations(content),
        bytes=len(content),
        content=content,
        inputs=list(session.inputs),
        outputs=list(session.outputs),
        runtimes=target.runtimes(),
        random=random,
        notes=[] if preprocess is None else [("Preprocess", str(preprocess))],
    )
    verify.check(report, target, plan, samples)
    report.notes += target.notes(content)
    written = target.written(content, path)
    with replacing(path) as unfinished:
        unfinished.write_bytes(written)
    return report


def read_ticket(model):
    """Return the argument `model` of a conversion, a `Ticket` or what `Ticket.read` takes, as a `Ticket`."""
    return model if isinstance(model, Ticket) else Ticket.read(model, "model")


def samples_for(plan, samples):
    """Return the given samples as a list of arrays, see `arrays_for`; random ones for None."""
    inputs = [
        tensors.Tensor(x.name, (None, *x.shape[1:]), made.dtype)
        for x, made in zip(plan.model.inputs, plan.reference.model.inputs, strict=True)
    ]
    if samples is None:
        return tensors.generated(inputs)
    arrays = tensors.arrays_for(inputs, samples, inputs_of(plan.model)[1])
    tensors.check_finite(arrays)
    return arrays


def _entries(plan):
    """Return the entries of a report: one for each kernel of MPT layers and for each other layer with matrices."""
    found, entries = {kernel.subnet.number: kernel for kernel in plan.kernels}, []
    for layer, calls in (pair for wrapper in plan.layers for pair in with_inside(*wrapper)):
        uses = positions(layer, calls)
        if isinstance(layer, PlainTwin):
            counts = zip(layer.subnets, uses or [0] * len(layer.subnets), strict=True)
            entries += [_entry(layer, found[subnet.number], count) for subnet, count in counts]
        elif not inside_wrapper(layer) and (sizes := [math.prod(w.shape) for w in layer.weights if len(w.shape) > 1]):
            macs = sum(math.prod(w.shape) * n for w, n in zip(kernels(layer), uses, strict=True)) if uses else 0
            entries.append(Layer(layer.name, type(layer).__name__, "float32", "", sum(sizes), 4 * sum(sizes), macs))
    return entries


def _entry(layer, kernel, uses):
    """Return the entry of a kernel of an MPT layer. `uses`: how often one sample uses each weight."""
    several = [layer.name, *([kernel.layer.name] if kernel.layer is not layer else [])]
    if len(kernel.layer.subnets) > 1:
        several = [layer.name, kernel.subnet.name]
    name, weights, form = "/".join(several), kernel.array.size, kernel.format
    macs = weights * uses
    size = form.size(kernel)
    return Layer(name, type(layer).__name__, form.name, kernel.why, weights, size, macs, macs * form.binary)
