"""Compare a converted file with its Keras model."""

import warnings

import keras
import numpy as np

from keras_mpt import quantizers
from keras_mpt._keras import layers_inside
from keras_mpt.convert.report import ConversionError, errors_of
from keras_mpt.convert.tensors import batches, outputs_of
from keras_mpt.models.rewrite import packed

ROUNDING = 1e-4  # of a sample's largest output: possible if sums are in another order
AT_ZERO = 2  # times the largest measured error: closer to zero, rounding may flip a sign
LEAST_SCALE = 0.01  # of the largest output of a batch: smaller outputs are differences of large numbers
LEAST_ERROR = 5e-7  # of the largest pre-activation: possible even if no error was measured
FLIPS = 0.05  # of the samples: if more flip, the cause is not rounding alone
PIECES = 8  # samples for the pieces


def check(report, target, plan, samples):
    """Run a file in each runtime, compare its outputs with those of the model, and complete the report.

    Args:
        report: The `Report` to complete.
        target: The `Target`.
        plan: The `Plan`.
        samples: List of arrays, one for each input.

    Raises:
        ConversionError: The outputs differ.
    """
    batch = _batch(plan, target)
    margins = _check_pieces(report, target, plan, [array[:PIECES] for array in samples])
    own, others = _own_outputs(plan), _other_floats(plan.model)
    if others:
        text = f"the model computes in {' and '.join(others)}; the file, and what it was compared with, in float32"
        report.notes.append(("Precision", text))
    rebuilt = Agreement(margins, "The graph to convert")
    found = {}
    for runtime in report.runtimes:
        with errors_of(runtime, "run"):
            found[runtime] = target.session(report.content, runtime), Agreement(margins, f"In {runtime}, the file")
    for _, parts in batches(samples):
        expected, taps = reference_outputs(plan, parts, batch)
        if own is not None:
            rebuilt.add(outputs_of(own, parts, batch), taps, expected)
        for runtime, (session, agreement) in found.items():
            with errors_of(runtime, "run"):
                outputs = outputs_of(session, parts, session.inputs[0].shape[0])
            agreement.add(expected, taps, outputs, target.lossy)
    agreements = [agreement for _, agreement in found.values()]
    report.samples, report.scale = len(samples[0]), max(agreement.scale for agreement in agreements)
    report.agreement = min(agreement.same for agreement in agreements) / report.samples
    report.flips = max(agreement.flips for agreement in agreements)
    report.max_error = max(agreement.max_error for agreement in agreements)
    if report.flips > max(1, FLIPS * report.samples):
        warnings.warn(
            f"The file differs from the model in {report.flips} of {report.samples} samples, each with an activation "
            "at zero, or an argmax of entries that are equal. Rounding alone flips few: are there signs of sums that "
            "are often exactly zero, as in an untrained network or without batch normalization before them? Such "
            "samples say little about the file as a whole.",
            stacklevel=5,
        )


def reference_outputs(plan, samples, batch=None):
    """Return the outputs of a plan's float graph on samples, and the tensors before its cuts and leads: two lists."""
    found = outputs_of(_caller(plan.reference.model), samples, batch)
    count = len(plan.model.outputs)
    return found[:count], found[count:]


def _check_pieces(report, target, plan, samples):
    """Compare the pieces between signs, given the model's own signs.

    No rounding can change a sign there, so an error in a piece is found whatever the activations are.

    Returns:
        List of a margin for each cut and lead: closer to zero, rounding may flip a sign or choose another index.
    """
    of_leads = [AT_ZERO * ROUNDING] * len(plan.reference.leads)
    if not plan.cuts or target.lossy:
        return [0.0] * plan.cuts + of_leads
    graph = plan.graph(target.batch)  # again: a target may change the one that it compiles
    outputs, taps = reference_outputs(plan, samples, _batch(plan, target))
    taps, leads = taps[: len(graph.cuts)], taps[len(graph.cuts) :]
    clear = ~_near_zero(leads, of_leads) if leads else slice(None)
    compiled = target.compile(graph.pieces())
    signs = [np.where(tap >= 0, 1, -1).astype(np.float32) for tap in taps]
    with errors_of(target.engine, "run"):
        session = target.session(compiled)
        found = outputs_of(session, [*samples, *signs], session.inputs[0].shape[0])
    report.piece_error, margins = 0.0, []
    names = [*("before the outputs" for _ in outputs), *(f"before the signs of {cut.name!r}" for cut in graph.cuts)]
    for name, ours, theirs in zip(names, [*outputs, *taps], found, strict=True):
        rounding = ROUNDING if np.issubdtype(ours.dtype, np.floating) else 0
        ours, theirs = _numbers(ours), _numbers(theirs)
        error, scale = float(_differences(ours, theirs)[clear].max(initial=0.0)), max(float(_sizes(ours).max()), 1e-30)
        if not error <= rounding * scale:
            raise ConversionError(
                f"In {report.runtimes[0]}, the file differs from the model by {error:.3g} (values up to {scale:.3g}) "
                f"{name}, given the signs before."
            )
        report.piece_error = max(report.piece_error, error / scale)
        margins.append(AT_ZERO * max(error, LEAST_ERROR * scale))
    margins = margins[len(outputs) :]
    for index, decided in target.decided([each.astype(np.int8) for each in signs]).items():
        wrong = (decided != signs[index]) & (np.abs(taps[index]) > margins[index])
        if wrong.any():
            raise ConversionError(
                f"{wrong.sum()} of {wrong.size} signs of {graph.cuts[index].name!r} are decided otherwise in integers, "
                "given the signs before."
            )
    return margins + of_leads


def _near_zero(taps, margins):
    """Return which samples have an entry within the margin of a tensor."""
    near = [np.abs(tap).reshape(len(tap), -1).min(axis=1) <= by for tap, by in zip(taps, margins, strict=True)]
    return np.any(near, axis=0)


def _batch(plan, target):
    """Return the batch size for the model: its own; that of the file if its outputs depend on it; None: any."""
    layers, names = layers_inside(plan.model), ("input_quantizer", "activation")
    depends = any(not quantizers.is_elementwise(getattr(layer, name, None)) for layer in layers for name in names)
    return plan.batch or (target.batch if depends else None)


def _caller(model):
    """Return a function that calls a model on a list of arrays, and returns a list of arrays."""

    def call(arrays):
        inputs = [keras.ops.convert_to_tensor(array) for array in arrays]
        outputs = model(packed(model, inputs), training=False)
        return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(outputs)]

    return call


def _other_floats(model):
    """Return the types of floats with which a model computes, except float32."""
    found = [layer.compute_dtype for layer in layers_inside(model)] + [x.dtype for x in model.inputs]
    return [dtype for dtype in dict.fromkeys(found) if keras.backend.is_float_dtype(dtype) and dtype != "float32"]


def _own_outputs(plan):
    """Return such a function for the Keras model itself; None if it computes with other floats than float32."""
    if _other_floats(plan.model):
        return None
    own = _caller(plan.model)
    return own if plan.preprocess is None else lambda arrays: own([plan.preprocess(array) for array in arrays])


class Agreement:
    """Agreement of a file's outputs with those of the model, over batches of samples.

    Args:
        margins: For each cut and lead, the margin around zero in which rounding decides.
        title: What differs from the model, for errors: a runtime may be wrong where another one is right.

    Attributes:
        same: Number of samples with the same largest output, up to rounding; with the same outputs, if these are
            integers.
        flips: Number of samples that differ by more than rounding, with an entry within a margin.
        max_error: Largest difference over the other samples.
        scale: Largest magnitude of the model's outputs.
    """

    def __init__(self, margins, title="The file"):
        self._margins, self._title = margins, title
        self.same, self.flips, self.max_error, self.scale = 0, 0, 0.0, 0.0

    def add(self, expected, taps, found, lossy=False):
        """Count a batch.

        Args:
            expected: Outputs of the model: an array, or a list of one for each output.
            taps: Tensors before the cuts, and leads, a list of arrays.
            found: Outputs of the file.
            lossy: Whether differences are allowed.

        Raises:
            ConversionError: Outputs differ by more than rounding in a sample without an activation at zero.
        """
        at_zero = _near_zero(taps, self._margins) if taps else False
        same, flipped = True, False
        for ours, theirs in zip(_listed(expected), _listed(found), strict=True):
            floats = np.issubdtype(ours.dtype, np.floating)
            ours, theirs = _numbers(ours), _numbers(theirs)
            errors, rounding = self._compared(ours, theirs)
            rounding = rounding if floats else 0 * rounding  # an integer may be a class
            differs = ~(errors <= rounding)
            wrong = differs & ~np.broadcast_to(at_zero, differs.shape)
            if wrong.any() and not lossy:
                raise ConversionError(
                    f"{self._title} differs from the model by {errors[wrong].max():.3g} (outputs up to "
                    f"{_sizes(ours).max():.3g}) in {wrong.sum()} of {len(ours)} samples, none of whose activations is "
                    "at zero."
                )
            differs = np.zeros_like(differs) if lossy else differs
            rows, chosen = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1).argmax(axis=1)
            lost = _differences(rows.max(axis=1), rows[np.arange(len(rows)), chosen]) if floats else errors
            same = same & (lost <= rounding)
            flipped = flipped | differs
            self.max_error = max(self.max_error, float(errors[~differs].max(initial=0.0)))
        self.same += int(np.sum(same))
        self.flips += int(np.sum(flipped))

    def _compared(self, expected, found):
        """Return the largest error of each sample of an output, and the largest that may be rounding."""
        if found.shape != expected.shape:
            raise ConversionError(f"The file's outputs have shape {found.shape}, the model's {expected.shape}.")
        if np.isnan(expected).any():
            nan = np.isnan(expected).reshape(len(expected), -1).any(axis=1).sum()
            raise ConversionError(
                f"Nobody can tell whether the file differs from the model: the model gives NaN for {nan} of "
                f"{len(expected)} samples."
            )
        if np.isnan(found).any() or (np.isinf(found) & np.isfinite(expected)).any():
            raise ConversionError("The file gives NaN or infinity where the model gives numbers.")
        errors = _differences(expected, found).reshape(len(expected), -1).max(axis=1)
        scales = _sizes(expected).reshape(len(expected), -1).max(axis=1)
        scale = float(scales.max())
        self.scale = max(self.scale, scale)
        return errors, ROUNDING * np.maximum(scales, max(LEAST_SCALE * scale, 1e-30))


def _numbers(array):
    """Return an array whose differences are right: bytes would wrap around."""
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _differences(ours, theirs):
    """Return the magnitudes of the differences of two arrays: 0 where both have the same infinity."""
    return np.abs(np.subtract(ours, theirs, out=np.zeros_like(ours), where=ours != theirs))


def _sizes(array):
    """Return the magnitudes of an array's finite numbers, and 0 for the others."""
    return np.abs(np.where(np.isfinite(array), array, 0))


def _listed(outputs):
    return outputs if isinstance(outputs, list) else [outputs]
