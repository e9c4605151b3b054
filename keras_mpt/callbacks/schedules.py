"""Schedules of the sparsity."""

import keras

from keras_mpt.arguments import check_choice, check_count, check_sparsity
from keras_mpt.callbacks.checks import check_built, check_trained
from keras_mpt.layers.groups import set_sparsities
from keras_mpt.models import mpt_layers

_POWERS = {"constant": None, "linear": 1, "cubic": 3}


class SparsitySchedule(keras.callbacks.Callback):
    """Remove more and more weights, by setting the sparsity of the MPT layers at the beginning of each epoch.

    With the final sparsity s, the initial sparsity i, E epochs from one to the other and the epoch e, counted from 0,
    the sparsity is `s + (i - s) * (1 - e / E)^power` while e < E, then s. The power is 1 for `"linear"` and 3 for
    `"cubic"`; `"constant"` starts at s. The sparsity depends only on e: a training resumed with `initial_epoch`
    continues as without the interruption. Nothing is compiled again.

    Layers that share a rule (`masks.GlobalTopK`) have this sparsity together, other layers individually. Kernels whose
    scores are not trained, such as those of a loaded ticket, do not change, unless they share their rule with a trained
    one.

    Source: Diffenderfer et al. 2021, "A Winning Hand", arXiv:2106.09129. There, global pruning starts with half of the
    weights, unless more are kept in the end, and is cubic with E = 10: the defaults.

    Args:
        sparsity: Final sparsity of all MPT layers, in `[0, 1)`; None: the sparsity of each layer's mask rule.
        initial_sparsity: Initial sparsity; None: 0.5, or the final one if that is smaller.
        epochs: Number of epochs from the initial to the final sparsity, an integer > 0.
        curve: `"constant"`, `"linear"` or `"cubic"`.

    Raises:
        ValueError: An argument is out of range. Or, when training begins: the model has no trainable MPT layers, only
            some of the layers that share a rule, a layer that is not built, or one whose rule cannot have the
            sparsity of the first epoch or the final one.

    Examples:
        >>> model = keras_mpt.zoo.resnet18_mpt(mask=keras_mpt.masks.GlobalTopK(0.9))
        >>> model.fit(images, labels, epochs=100, callbacks=[keras_mpt.callbacks.SparsitySchedule()])
    """

    def __init__(self, sparsity=None, initial_sparsity=None, epochs=10, curve="cubic"):
        super().__init__()
        for name, value in {"sparsity": sparsity, "initial_sparsity": initial_sparsity}.items():
            if value is not None:
                check_sparsity(name, value)
        check_count("epochs", epochs)
        check_choice("curve", curve, sorted(_POWERS))
        self.sparsity, self.initial_sparsity, self.epochs, self.curve = sparsity, initial_sparsity, int(epochs), curve

    def at(self, epoch, sparsity):
        """Return the sparsity in an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            sparsity: The final sparsity.

        Returns:
            A float in `[0, 1)`.
        """
        if self.curve == "constant" or epoch >= self.epochs:
            return sparsity
        initial = min(0.5, sparsity) if self.initial_sparsity is None else self.initial_sparsity
        return sparsity + (initial - sparsity) * (1 - epoch / self.epochs) ** _POWERS[self.curve]

    def on_train_begin(self, logs=None):
        layers = mpt_layers(self.model)
        check_trained(self, self.model, [layer for layer in layers if _trained(layer)])
        for layer in layers:
            together = [other.layer for subnet in (layer.subnets if layer.built else ()) for other in subnet.group]
            missing = [other.name for other in together if other not in layers]
            if missing:
                raise ValueError(
                    f"The model must have all layers that share the rule of layer {layer.name!r}. Received: "
                    f"{self.model.name!r} without {missing}"
                )
        check_built(self, layers)
        for subnet, sparsity in self._wanted(self.epochs):  # hours of training may come before
            if not subnet.layer.mask.shared:
                subnet.resized(sparsity)

    def on_epoch_begin(self, epoch, logs=None):
        set_sparsities(self._wanted(epoch))

    def _wanted(self, epoch):
        """Return the kernels and the sparsity of each in an epoch."""
        subnets = [each for layer in mpt_layers(self.model) for each in layer.subnets if each.is_trained]
        finals = [each.layer.sparsity if self.sparsity is None else self.sparsity for each in subnets]
        return [(each, self.at(epoch, final)) for each, final in zip(subnets, finals, strict=True)]


def _trained(layer):
    """Return whether training changes a mask of an MPT layer, or will once the layer is built."""
    return any(subnet.is_trained for subnet in layer.subnets) if layer.built else layer.trainable
