"""The steps of every conversion: plan, compile, check the file against the model, write it."""

import gzip
import math
import os

import keras

from keras_mpt.arguments import check_path
from keras_mpt.convert import tensors, verify
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.report import Layer, Report, errors_of
from keras_mpt.files import check_another, check_folder, replacing
from keras_mpt.models.summaries import has_macs, positions
from keras_mpt.tickets import Ticket, load_ticket


def convert(model, path, target, samples=None):
    """Convert a model or ticket, check the result, write it; return the `Report`.

    Raises:
        ConversionError: The file does not compute what the model does. `path` is untouched.
        ValueError: See `Target`, `Plan` and `arrays_for`.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Conversion needs Keras' TensorFlow backend. Received: {keras.backend.backend()}. Save a ticket and "
            "convert that with KERAS_BACKEND=tensorflow, for example by `python -m keras_mpt convert`."
        )
    path = check_path("path", path)
    check_folder(path)
    if isinstance(model, (str, os.PathLike, Ticket)):
        check_another(path, model.path if isinstance(model, Ticket) else model)
        model = load_ticket(model)
    plan = Plan(model)
    for kernel in plan.kernels:
        target.choose(kernel)
    random, samples = samples is None, samples_for(plan, samples)

    graph = plan.graph(target.batch)
    content = target.compile(graph)
    with errors_of(target.engine, "run"):
        session = target.session(content)
    report = Report(
        path=path,
        target=target.name,
        engine=target.engine,
        layers=_entries(plan),
        operations=target.operations(content),
        bytes=len(content),
        gzip=len(gzip.compress(content, 9)),
        inputs=list(session.inputs),
        outputs=list(session.outputs),
        runtimes=target.runtimes(),
        random=random,
    )
    verify.check(report, target, plan, content, samples)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return report


def samples_for(plan, samples):
    """Return the samples to check with, a list of arrays: those given, see `arrays_for`, or random ones."""
    inputs = [
        tensors.Tensor(x.name, (None, *x.shape[1:]), made.dtype)
        for x, made in zip(plan.model.inputs, plan.reference.model.inputs, strict=True)
    ]
    if samples is None:
        return tensors.generated(inputs)
    arrays = tensors.arrays_for(inputs, samples)
    tensors.check_finite(arrays)
    return arrays


def _entries(plan):
    """Return a report's entry for each layer with matrices."""
    kernels, entries = {id(kernel.layer): kernel for kernel in plan.kernels}, []
    for layer, shapes in plan.layers:
        kernel = kernels.get(id(layer))
        matrices = [w for w in layer.weights if len(w.shape) > 1] if kernel is None else [layer.frozen_kernel]
        weights = sum(math.prod(matrix.shape) for matrix in matrices)
        entry = Layer(layer.name, type(layer).__name__, "float32", "", weights, 4 * weights)
        calls = [[[shape], [layer.compute_output_shape(shape)]] for shape in shapes] if has_macs(layer) else []
        entry.macs = weights * (positions(layer, calls) or 0)
        if kernel is not None:
            entry.form, entry.why, entry.bytes = kernel.format.name, kernel.why, kernel.format.size(kernel)
            entry.macs_1bit = entry.macs * kernel.format.binary
        entries.append(entry)
    return entries
