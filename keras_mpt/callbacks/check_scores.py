"""Stopping a training that went wrong."""

import warnings

import keras
from keras import ops

from keras_mpt.layers import MPTLayer
from keras_mpt.models.paths import walk


class CheckScores(keras.callbacks.Callback):
    """Stop a training whose scores became NaN, at the end of the epoch, naming the layers.

    A compiled step cannot raise: there, NaN scores make the layer's kernel, and so the loss, NaN. This callback says
    where it began: the layers whose scores were NaN for the most steps come first.

    It warns of layers that keep no weight, as `masks.GlobalTopK` may leave them: their kernels are 0. Where no shortcut
    leads around such a layer, nothing more is learned. A model without MPT layers has nothing to check.

    Raises:
        FloatingPointError: At the end of an epoch in which a layer's scores became NaN.
    """

    def on_epoch_end(self, epoch, logs=None):
        layers = [(path, layer) for path, layer in walk(self.model) if isinstance(layer, MPTLayer) and layer.built]
        diverged = [(path, steps) for path, layer in layers if (steps := _count(layer.nan_steps))]
        if diverged:
            diverged.sort(key=lambda found: found[1], reverse=True)
            listed = ", ".join(f"{path!r} ({steps} steps)" for path, steps in diverged)
            raise FloatingPointError(f"The scores became NaN in epoch {epoch + 1}, in layers {listed}.")
        empty = [(path, steps) for path, layer in layers if (steps := _count(getattr(layer, "empty_steps", 0)))]
        if empty:
            listed = ", ".join(f"{path!r} (for {steps} steps)" for path, steps in empty)
            warnings.warn(f"After epoch {epoch + 1} no weight is kept in layers {listed}.", stacklevel=2)


def _count(variable):
    return int(ops.convert_to_numpy(variable))  # a variable of several replicas is no int
