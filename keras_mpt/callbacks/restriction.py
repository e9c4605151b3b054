"""Restrict the changes of stored masks."""

import keras

from keras_mpt.arguments import check_count, check_number
from keras_mpt.callbacks.checks import check_built
from keras_mpt.masks import Restricted
from keras_mpt.models import mpt_layers


class ShortRestriction(keras.callbacks.Callback):
    """Reduce the changes of masks: in epoch e of E, from 0, a step makes a fraction `(1 - e / E)^power` of the swaps.

    Sets the `swap_rate` of the layers with the rule `masks.Restricted` at the beginning of each epoch; the compiled
    step makes the swaps. After E epochs, the rate is 0. It depends only on e: a training resumed with `initial_epoch`
    continues as without the interruption.

    Source: Zhang et al. 2023, "Lottery Jackpots Exist in Pre-trained Models", arXiv:2104.08700, short restriction,
    with a power of 4.

    Args:
        epochs: Number E of epochs of the search, an integer > 0.
        power: Power of the decrease, a number >= 0; 0 means no restriction before the end.

    Raises:
        ValueError: An argument is out of range. Or, when training begins: no layer has a `masks.Restricted`, or such a
            layer is not built.

    Examples:
        >>> jackpot.fit(images, labels, epochs=30, callbacks=[keras_mpt.callbacks.ShortRestriction(30)])
    """

    def __init__(self, epochs, power=4):
        super().__init__()
        check_count("epochs", epochs)
        check_number("power", power, least=0)
        self.epochs, self.power = int(epochs), power

    def on_train_begin(self, logs=None):
        if not self._layers():
            raise ValueError(
                "ShortRestriction needs a model with layers whose mask rule is masks.Restricted. "
                f"Received: {self.model.name!r} without one"
            )
        check_built(self, self._layers())

    def on_epoch_begin(self, epoch, logs=None):
        rate = (1 - epoch / self.epochs) ** self.power if epoch < self.epochs else 0.0
        for layer in self._layers():
            for subnet in layer.subnets:
                if subnet.is_trainable:  # a frozen layer may hold its kernel
                    subnet.state["swap_rate"].assign(rate)

    def _layers(self):
        return [layer for layer in mpt_layers(self.model) if isinstance(layer.mask, Restricted)]
