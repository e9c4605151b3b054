"""A converted file beside the Keras model that it came from."""

import keras
import numpy as np

from keras_mpt.convert.graph import call_plain, is_sign, rebuild
from keras_mpt.convert.report import ConversionError

ROUNDING = 1e-4  # of the largest output: what sums in another order may differ by
LAYER_ROUNDING = 1e-5  # the same for a single layer
AT_ZERO = 1e-5  # of the largest pre-activation: closer to zero, rounding may flip a sign
BATCH = 100  # samples at a time: all activations of a batch are in memory at once
_GENERATED = 16


def samples_for(model, samples):
    """Return the samples to check with: those given, or standard normal ones.

    Raises:
        ValueError: The model has more than one input or output, or the samples do not fit.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must have one input and one output to be converted. "
            f"Received: {len(model.inputs)} and {len(model.outputs)}"
        )
    shape = tuple(model.inputs[0].shape[1:])
    if samples is None:
        return np.random.default_rng(0).normal(size=(_GENERATED, *(n or 32 for n in shape))).astype(np.float32)
    samples = np.asarray(samples, np.float32)
    if samples.ndim != len(shape) + 1 or any(n not in (None, m) for n, m in zip(shape, samples.shape[1:], strict=True)):
        wanted = ", ".join(map(str, ("number", *shape)))
        raise ValueError(f"`samples` must have shape ({wanted}). Received: shape {samples.shape}")
    if not len(samples):
        raise ValueError("`samples` must be at least one. Received: none")
    return samples


class Reference:
    """A model in float32 whose pre-activations can be looked at."""

    def __init__(self, model):
        taps = []

        def mpt(layer, x):
            if layer.input_quantizer is not None and is_sign(layer.input_quantizer):
                taps.append((layer, x))
            return call_plain(layer, x)

        plain = rebuild(model, mpt)
        self.layers = [layer for layer, _ in taps]
        self._model = keras.Model(plain.inputs, [*plain.outputs, *(x for _, x in taps)])

    def outputs(self, samples):
        """Return the outputs, and the inputs of the layers that take signs of them."""
        outputs, *taps = _list(self._model.predict(samples, batch_size=32, verbose=0))
        return outputs, taps


class Agreement:
    """How a file's outputs agree with the model's, over batches of samples.

    Attributes:
        same: How many samples have the same largest output, up to rounding.
        flips: How many differ by more than rounding because an activation is at zero.
        max_error: Largest difference, over the others.
        scale: Largest magnitude of the model's outputs.
    """

    def __init__(self):
        self.same, self.flips, self.max_error, self.scale = 0, 0, 0.0, 0.0

    def add(self, expected, taps, found, lossy=False):
        """Count a batch.

        Args:
            expected: The model's outputs.
            taps: What the model takes signs of: see `Reference.outputs`.
            found: The file's outputs.
            lossy: Whether differences are expected.

        Raises:
            ConversionError: They differ by more than rounding where no activation is at zero.
        """
        if found.shape != expected.shape:
            raise ConversionError(f"The file's outputs have shape {found.shape}, the model's {expected.shape}.")
        axes = tuple(range(1, expected.ndim))
        errors = np.abs(found - expected).max(axis=axes) if axes else np.abs(found - expected)
        scale = float(np.abs(expected).max())
        rounding = ROUNDING * max(scale, 1e-30)
        differs = ~(errors <= rounding)
        at_zero = np.zeros(len(expected), bool)
        for tap in taps:
            nearest = np.abs(tap).reshape(len(tap), -1).min(axis=1)
            at_zero |= nearest <= AT_ZERO * np.abs(tap).max()
        wrong = differs & ~at_zero
        if wrong.any() and not lossy:
            raise ConversionError(
                f"The file differs from the model by {errors[wrong].max():.3g} (outputs up to {scale:.3g}) in "
                f"{wrong.sum()} of {len(expected)} samples, none of whose activations is at zero."
            )
        flipped = np.zeros_like(differs) if lossy else differs
        rows, chosen = expected.reshape(len(expected), -1), found.reshape(len(found), -1).argmax(axis=1)
        # outputs of integers are often equal
        self.same += int((rows.max(axis=1) - rows[np.arange(len(rows)), chosen] <= rounding).sum())
        self.flips += int(flipped.sum())
        self.max_error = max(self.max_error, float(errors[~flipped].max(initial=0.0)))
        self.scale = max(self.scale, scale)


def _list(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
