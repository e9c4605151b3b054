"""A converted file beside the Keras model that it came from."""

import keras
import numpy as np
from keras import ops

from keras_mpt.convert.graph import call_plain, graph_of, is_sign, rebuild, run, sign
from keras_mpt.convert.report import ConversionError

ROUNDING = 1e-4  # of a sample's largest output: what sums in another order may differ by
AT_ZERO = 2  # times the largest error that was measured: closer to zero, rounding may flip a sign
LEAST_SCALE = 0.01  # of the largest output of a batch: a sample of smaller ones is the difference of large numbers
LEAST_ERROR = 5e-7  # of the largest pre-activation: where none was measured, as much is possible
FLIPS = 0.05  # of the samples: where more flip, it is not rounding alone
PIECES = 8  # samples to check pieces on
BATCH = 100  # samples at a time: all activations of a batch are in memory at once
_GENERATED = 16


def samples_for(model, samples):
    """Return the samples to check with: those given, or standard normal ones, integers where the model takes these.

    Raises:
        ValueError: The model is no built functional or Sequential one, has more than one input or output, or the
            samples do not fit.
    """
    graph_of(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must have one input and one output to be converted. "
            f"Received: {len(model.inputs)} and {len(model.outputs)}"
        )
    shape = tuple(model.inputs[0].shape[1:])
    if samples is None:
        random, size = np.random.default_rng(0), (_GENERATED, *(n or 32 for n in shape))
        if model.inputs[0].dtype == "bool":
            return random.integers(0, 2, size).astype(np.float32)
        if keras.backend.is_int_dtype(model.inputs[0].dtype):  # pixels, or indices: 0 and 1 are valid
            return random.integers(0, 256 if model.inputs[0].dtype == "uint8" else 2, size).astype(np.float32)
        return random.normal(size=size).astype(np.float32)
    samples = checked_samples(samples, shape)
    if not np.isfinite(samples).all():
        first = int(np.argmax(~np.isfinite(samples).reshape(len(samples), -1).all(axis=1)))
        raise ValueError(f"`samples` must be finite, to compare outputs. Received: NaN or infinity in sample {first}")
    return samples


def checked_samples(samples, shape):
    """Return samples as a float32 array; raise ValueError unless there is one, of this shape (None: any size)."""
    samples = np.asarray(samples, np.float32)
    if samples.ndim != len(shape) + 1 or any(n not in (None, m) for n, m in zip(shape, samples.shape[1:], strict=True)):
        wanted = ", ".join(map(str, ("number", *shape)))
        raise ValueError(f"`samples` must have shape ({wanted}). Received: shape {samples.shape}")
    if not len(samples):
        raise ValueError("`samples` must be at least one. Received: none")
    return samples


class Reference:
    """A model in float32, and what it takes signs of.

    Attributes:
        takers: Names of what takes signs, for each time that it does.
    """

    def __init__(self, model):
        self.model, self.takers, taps = model, [], []

        def tap(name, x):
            self.takers.append(name)
            taps.append(x)

        def mpt(layer, x):
            if takes_signs(layer):
                tap(layer.name, x)
            return call_plain(layer, x)

        def signs(x):
            tap(f"activation {len(taps)}", x)
            return sign(x)

        plain = rebuild(model, mpt, signs)
        self._model = keras.Model(plain.inputs, [*plain.outputs, *taps])

    def outputs(self, samples):
        """Return the outputs, and what signs are taken of: a list of arrays."""
        outputs, *taps = keras.tree.flatten(self._model.predict(samples, batch_size=32, verbose=0))
        return outputs, taps

    def own_outputs(self, samples):
        """Return the outputs of the Keras model itself; None if it rounds, since not all layers compute in float32."""
        if any(layer.compute_dtype != "float32" for layer in self.model._flatten_layers()):
            return None
        return keras.tree.flatten(self.model.predict(samples, batch_size=32, verbose=0))[0]

    def pieces(self, samples, taps, call):
        """Return a model of the pieces between signs, each on signs that it is given, and its inputs.

        No rounding changes a sign there, so pieces of a file can be told from wrong ones, whatever the activations.

        Args:
            samples: Inputs of the whole model.
            taps: What it takes signs of, see `outputs`: these signs are given.
            call: Called as `call(layer, x)` for each call of an MPT layer, `x` being what signs are taken of if any.

        Returns:
            `(model, inputs, sizes)`: a functional model from a flat vector to a flat vector, the vectors, and how many
            outputs each piece has: the pieces that end in what signs are taken of, then that of the model's outputs.
        """
        given = [samples, *(np.where(tap >= 0, 1, -1) for tap in taps)]
        inputs = np.concatenate([array.reshape(len(array), -1) for array in given], axis=1).astype(np.float32)
        flat, begin, parts, ends = keras.Input(inputs.shape[1:]), 0, [], []
        for array in given:
            size = int(np.prod(array.shape[1:]))
            parts.append(ops.reshape(flat[:, begin : begin + size], (-1, *array.shape[1:])))
            begin += size

        def cut(x):
            ends.append(x)
            return parts[len(ends)]

        outputs = run(
            self.model,
            parts[:1],
            lambda layer, x: call(layer, cut(x) if takes_signs(layer) else x),
            lambda x: sign(cut(x)),
        )
        ends += keras.tree.flatten(outputs)
        sizes = [int(np.prod(end.shape[1:])) for end in ends]
        flattened = [ops.reshape(end, (-1, size)) for end, size in zip(ends, sizes, strict=True)]
        return keras.Model(flat, ops.concatenate(flattened, axis=1) if len(ends) > 1 else flattened[0]), inputs, sizes


def takes_signs(layer):
    """Return whether an MPT layer takes the signs of its inputs."""
    return layer.input_quantizer is not None and is_sign(layer.input_quantizer)


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
            expected: The model's outputs.
            taps: What the model takes signs of: see `Reference.outputs`.
            found: The file's outputs.
            lossy: Whether differences are expected.

        Raises:
            ConversionError: They differ by more than rounding where no activation is at zero.
        """
        if found.shape != expected.shape:
            raise ConversionError(f"The file's outputs have shape {found.shape}, the model's {expected.shape}.")
        if np.isfinite(expected).all() and not np.isfinite(found).all():
            raise ConversionError("The file gives NaN or infinity where the model gives numbers.")
        axes = tuple(range(1, expected.ndim))
        errors = np.abs(found - expected).max(axis=axes) if axes else np.abs(found - expected)
        scales = np.abs(expected).reshape(len(expected), -1).max(axis=1)
        scale = float(scales.max())
        rounding = ROUNDING * np.maximum(scales, max(LEAST_SCALE * scale, 1e-30))
        differs = ~(errors <= rounding)
        at_zero = np.zeros(len(expected), bool)
        for tap, margin in zip(taps, self._margins, strict=True):
            at_zero |= np.abs(tap).reshape(len(tap), -1).min(axis=1) <= margin
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
