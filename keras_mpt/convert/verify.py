"""A converted file beside the Keras model that it came from."""

import warnings

import keras
import numpy as np

from keras_mpt import quantizers
from keras_mpt._keras import layers_inside
from keras_mpt.convert.report import ConversionError, errors_of
from keras_mpt.convert.tensors import batches, outputs_of
from keras_mpt.models.rewrite import packed

ROUNDING = 1e-4  # of a sample's largest output: what sums in another order may differ by
AT_ZERO = 2  # times the largest error that was measured: closer to zero, rounding may flip a sign
LEAST_SCALE = 0.01  # of the largest output of a batch: a sample of smaller ones is the difference of large numbers
LEAST_ERROR = 5e-7  # of the largest pre-activation: where none was measured, as much is possible
FLIPS = 0.05  # of the samples: where more flip, it is not rounding alone
PIECES = 8  # samples to check pieces on


def check(report, target, plan, content, samples):
    """Run a file in each runtime and write into the report how its outputs agree with the model's.

    Args:
        report: The `Report`.
        target: The `Target`.
        plan: The `Plan`.
        content: The bytes of the file.
        samples: List of arrays, one for each input.

    Raises:
        ConversionError: They do not agree.
    """
    batch = _batch(plan)
    margins = _check_pieces(report, target, plan, [array[:PIECES] for array in samples], batch)
    own = _own_outputs(plan)
    rebuilt = Agreement(margins)
    found = {}
    for runtime in report.runtimes:
        with errors_of(runtime, "run"):
            found[runtime] = target.session(content, runtime), Agreement(margins)
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
            "at zero. Rounding alone flips few: are there signs of sums that are often exactly zero, as in an "
            "untrained network or without batch normalization before them? Such samples say little about the file as "
            "a whole.",
            stacklevel=5,
        )


def reference_outputs(plan, samples, batch=None):
    """Return the outputs of a plan's float graph on samples, and what it takes signs of: two lists of arrays."""
    found = outputs_of(_caller(plan.reference.model), samples, batch)
    count = len(plan.model.outputs)
    return found[:count], found[count:]


def _check_pieces(report, target, plan, samples, batch):
    """Check what a target makes of the pieces between signs, each on the model's own signs.

    No rounding changes a sign there, so pieces of a file can be told from wrong ones, whatever the activations.

    Returns:
        For each cut, how close to zero rounding may flip a sign.
    """
    graph = plan.graph(target.batch)
    if not graph.cuts or target.lossy:
        return [0.0] * len(graph.cuts)
    outputs, taps = reference_outputs(plan, samples, batch)
    compiled = target.compile(graph.pieces())
    signs = [np.where(tap >= 0, 1, -1).astype(np.float32) for tap in taps]
    with errors_of(target.engine, "run"):
        session = target.session(compiled)
        found = outputs_of(session, [*samples, *signs], session.inputs[0].shape[0])
    report.piece_error, margins = 0.0, []
    names = [*("before the outputs" for _ in outputs), *(f"before the signs of {cut.name!r}" for cut in graph.cuts)]
    for name, ours, theirs in zip(names, [*outputs, *taps], found, strict=True):
        error, scale = float(np.abs(ours - theirs).max()), max(float(np.abs(ours).max()), 1e-30)
        if not error <= ROUNDING * scale:
            raise ConversionError(
                f"The file differs from the model by {error:.3g} (values up to {scale:.3g}) {name}, given the signs "
                "before."
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
    return margins


def _batch(plan):
    """Return the batch size that the model must have: its own, or that of files where its outputs depend on it."""
    depends = any(quantizers.is_per_channel(kernel.layer.input_quantizer) for kernel in plan.kernels)
    return plan.batch or (1 if depends else None)


def _caller(model):
    """Return a function of a list of arrays that calls a model and returns a list of arrays."""

    def call(arrays):
        inputs = [keras.ops.convert_to_tensor(array) for array in arrays]
        outputs = model(packed(model, inputs), training=False)
        return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(outputs)]

    return call


def _own_outputs(plan):
    """Return a function like `_caller` for the Keras model itself; None if it rounds to fewer bits than float32."""
    if any(layer.compute_dtype != "float32" for layer in layers_inside(plan.model)):
        return None
    own = _caller(plan.model)
    return own if plan.preprocess is None else lambda arrays: own([plan.preprocess(array) for array in arrays])


class Agreement:
    """How a file's outputs agree with the model's, over batches of samples.

    Args:
        margins: For each time that signs are taken, how close to zero an activation must be that rounding may flip it.

    Attributes:
        same: How many samples have the same largest output, up to rounding.
        flips: How many differ by more than rounding because an activation is at zero.
        max_error: Largest difference, over the others.
        scale: Largest magnitude of the model's outputs.
    """

    def __init__(self, margins):
        self._margins = margins
        self.same, self.flips, self.max_error, self.scale = 0, 0, 0.0, 0.0

    def add(self, expected, taps, found, lossy=False):
        """Count a batch.

        Args:
            expected: The model's outputs: an array, or a list of one for each output.
            taps: What the model takes signs of, a list of arrays.
            found: The file's outputs.
            lossy: Whether differences are expected.

        Raises:
            ConversionError: They differ by more than rounding where no activation is at zero.
        """
        taps_at_zero = [
            np.abs(tap).reshape(len(tap), -1).min(axis=1) <= margin
            for tap, margin in zip(taps, self._margins, strict=True)
        ]
        at_zero = np.any(taps_at_zero, axis=0) if taps else False
        same, flipped = True, False
        for ours, theirs in zip(_listed(expected), _listed(found), strict=True):
            errors, rounding = self._compared(ours, theirs)
            differs = ~(errors <= rounding)
            wrong = differs & ~np.broadcast_to(at_zero, differs.shape)
            if wrong.any() and not lossy:
                raise ConversionError(
                    f"The file differs from the model by {errors[wrong].max():.3g} (outputs up to "
                    f"{np.abs(ours).max():.3g}) in {wrong.sum()} of {len(ours)} samples, none of whose activations is "
                    "at zero."
                )
            differs = np.zeros_like(differs) if lossy else differs
            rows, chosen = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1).argmax(axis=1)
            # outputs of integers are often equal
            same = same & (rows.max(axis=1) - rows[np.arange(len(rows)), chosen] <= rounding)
            flipped = flipped | differs
            self.max_error = max(self.max_error, float(errors[~differs].max(initial=0.0)))
        self.same += int(np.sum(same))
        self.flips += int(np.sum(flipped))

    def _compared(self, expected, found):
        """Return the largest error of each sample of one output, and what may be rounding."""
        if found.shape != expected.shape:
            raise ConversionError(f"The file's outputs have shape {found.shape}, the model's {expected.shape}.")
        if np.isfinite(expected).all() and not np.isfinite(found).all():
            raise ConversionError("The file gives NaN or infinity where the model gives numbers.")
        errors = np.abs(found - expected).reshape(len(expected), -1).max(axis=1)
        scales = np.abs(expected).reshape(len(expected), -1).max(axis=1)
        scale = float(scales.max())
        self.scale = max(self.scale, scale)
        return errors, ROUNDING * np.maximum(scales, max(LEAST_SCALE * scale, 1e-30))


def _listed(outputs):
    return outputs if isinstance(outputs, list) else [outputs]
