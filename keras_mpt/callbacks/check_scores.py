"""Stop a training that diverged, and warn of one that cannot succeed."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_mpt.callbacks.checks import trained_kernels
from keras_mpt.layers import MPTLayer
from keras_mpt.layers.subnet import named_subnets
from keras_mpt.models.paths import walk
from keras_mpt.models.ranges import warn_of_no_logits
from keras_mpt.ops import to_numpy


class CheckScores(keras.callbacks.Callback):
    """Stop training at the end of an epoch in which scores became NaN, naming the layers; warn of suspicious states.

    A compiled step cannot raise an error: NaN scores make the layer's kernel NaN, and so the loss. This callback shows
    where it began: layers whose scores were NaN for the most steps come first.

    It warns once, for each finding and layer except the first, of

    - layers that keep no weight, which `masks.GlobalTopK` permits: their kernels are 0. Without a shortcut around such
      a layer, training cannot continue;
    - scores that are infinite, or all of the same magnitude, which cannot rank weights;
    - kernels that are not finite, such as those whose alpha exceeds the largest number of their dtype;
    - scores that are trained, but did not change in an epoch: they got no gradient (unless the optimizer accumulates
      gradients for longer than that);
    - kernels with the same shape and seed, which have equal weights;
    - a loss with `from_logits=True` of a model that ends in a softmax or sigmoid.

    A model without MPT layers passes.

    Raises:
        FloatingPointError: At the end of an epoch in which a layer's scores became NaN.

    Examples:
        >>> model.fit(images, labels, epochs=10, callbacks=[keras_mpt.callbacks.CheckScores()])
    """

    def __init__(self):
        super().__init__()
        self._told, self._before, self._updates = set(), {}, []

    def on_train_begin(self, logs=None):
        self._told, self._before, self._updates = set(), {}, []
        warn_of_no_logits(self.model, getattr(self.model, "loss", None), stacklevel=2)

    def on_epoch_begin(self, epoch, logs=None):
        trained = {subnet.number for subnet in trained_kernels(self.model)}
        self._before = {path: to_numpy(subnet.scores) for path, subnet in self._subnets() if subnet.number in trained}
        self._updates = self._updates_so_far()

    def on_epoch_end(self, epoch, logs=None):
        subnets = self._subnets()
        scores = {path: to_numpy(subnet.scores) for path, subnet in subnets}
        steps = {path: _count(subnet.state.get("nan_steps", 0)) for path, subnet in subnets}
        # A step counts what it starts with, and the epoch's last one may have made NaN.
        diverged = [path for path, count in steps.items() if count or np.isnan(scores[path]).any()]
        if diverged:
            diverged.sort(key=steps.get, reverse=True)
            lasted = {path: f"{count} steps" if count else "the last step" for path, count in steps.items()}
            listed = ", ".join(f"{path!r} ({lasted[path]})" for path in diverged)
            raise FloatingPointError(f"The scores became NaN in epoch {epoch + 1}, in layers {listed}.")
        empty = [(path, steps) for path, subnet in subnets if (steps := _count(subnet.state.get("empty_steps", 0)))]
        if empty:
            listed = ", ".join(f"{path!r} (for {steps} steps)" for path, steps in empty)
            warnings.warn(f"After epoch {epoch + 1} no weight is kept in layers {listed}.", stacklevel=2)
        self._tell(epoch, "the scores are infinite", [path for path, each in scores.items() if np.isinf(each).any()])
        self._tell(
            epoch,
            "all scores have the same magnitude",
            [path for path, subnet in subnets if not subnet.layer.mask.stores_mask and _is_flat(scores[path])],
        )
        before = self._before if self._learns() else {}
        still = [path for path, each in before.items() if np.array_equal(each, scores.get(path))]
        self._tell(epoch, "the scores did not change in an epoch", still)
        infinite = [path for path, subnet in subnets if not np.isfinite(to_numpy(subnet.kernel)).all()]
        self._tell(epoch, "the kernel is not finite", infinite)
        self._tell(epoch, "the kernel is that of another layer, of the same seed", _equal(subnets))

    def _subnets(self):
        layers = [(path, layer) for path, layer in walk(self.model) if isinstance(layer, MPTLayer) and layer.built]
        return [pair for path, layer in layers for pair in named_subnets(path, layer)]

    def _learns(self):
        """Return whether all weights may have changed since the epoch began."""
        pairs = zip(self._updates, self._updates_so_far(), strict=False)
        waits = any(now is not None and now == before for before, now in pairs)
        rates = [float(ops.convert_to_numpy(each.learning_rate)) for each in self._optimizers()]
        return not waits and all(rate > 0 for rate in rates)

    def _updates_so_far(self):
        """Return the number of updates of each optimizer if it accumulates gradients, maybe over epochs; else None."""
        found = [(each, getattr(each, "gradient_accumulation_steps", None)) for each in self._optimizers()]
        return [_count(each.iterations) if accumulates else None for each, accumulates in found]

    def _optimizers(self):
        optimizer = getattr(self.model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
        return getattr(optimizer, "optimizers", [] if optimizer is None else [optimizer])  # of a `MultiOptimizer`

    def _tell(self, epoch, what, paths):
        new = [path for path in paths if (what, path) not in self._told]
        self._told.update((what, path) for path in new)
        if new:
            warnings.warn(f"After epoch {epoch + 1} {what} in layers {', '.join(map(repr, new))}.", stacklevel=3)


def _is_flat(scores):
    return scores.size > 1 and np.ptp(np.abs(scores)) == 0


def _equal(subnets):
    """Return the paths of kernels with the seed, stream, shape and weights of an earlier one."""
    seen, found = {}, []
    for path, subnet in subnets:
        key = subnet.layer.seed, subnet.stream, subnet.shape
        if key in seen and np.array_equal(to_numpy(subnet.frozen_kernel), to_numpy(seen[key].frozen_kernel)):
            found.append(path)
        seen.setdefault(key, subnet)
    return found


def _count(variable):
    return int(ops.convert_to_numpy(variable))  # a variable of several replicas is no int
