"""Stopping a training that went wrong."""

import warnings

import keras
from keras import ops

from keras_mpt.models import mpt_layers


class CheckScores(keras.callbacks.Callback):
    """Stop a training whose scores became NaN, at the end of the epoch, naming the layers.

    A compiled step cannot raise: there, NaN scores make the layer's kernel, and so the loss, NaN. This callback says
    where it began: the layers whose scores were NaN for the most steps come first.

    It warns of layers that keep no weight, as `masks.GlobalTopK` may leave them: their kernels are 0. Where no shortcut
    leads around such a layer, nothing more is learned.

    Raises:
        FloatingPointError: At the end of an epoch in which a layer's scores became NaN.
    """

    def on_epoch_end(self, epoch, logs=None):
        steps = {layer.name: _count(layer.nan_steps) for layer in mpt_layers(self.model)}
        diverged = sorted((name for name in steps if steps[name]), key=steps.get, reverse=True)
        if diverged:
            listed = ", ".join(f"{name!r} ({steps[name]} steps)" for name in diverged)
            raise FloatingPointError(f"The scores became NaN in epoch {epoch + 1}, in layers {listed}.")
        empty = {layer.name: _count(getattr(layer, "empty_steps", 0)) for layer in mpt_layers(self.model)}
        if any(empty.values()):
            listed = ", ".join(f"{name!r} (for {empty[name]} steps)" for name in empty if empty[name])
            warnings.warn(f"After epoch {epoch + 1} no weight is kept in layers {listed}.", stacklevel=2)


def _count(variable):
    return int(ops.convert_to_numpy(variable))  # a variable of several replicas is no int
