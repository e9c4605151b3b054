"""Change frozen kernels while the scores are trained: weights that seem useless get other values.

The mathematics is in functions of numpy arrays. The callbacks call them at certain times for certain layers.
"""

import keras
import numpy as np

from keras_mpt import _keras
from keras_mpt.arguments import check_bool, check_choice, check_count, check_fraction
from keras_mpt.callbacks.checks import check_built, check_trained, trained_kernels, trained_layers
from keras_mpt.initializers import UNUSED_SEED_BITS, SeededInitializer, check_seed, reseeded
from keras_mpt.models import mpt_layers
from keras_mpt.ops import to_numpy
from keras_mpt.random import random_uniform

_INDEX_BITS = 32
_CHOICE_STREAM = 2  # of a redraw's seed; streams 0 and 1 are the first kernel's


def recycle(frozen, scores, rate, ablation=False):
    """Return a kernel in which the least important weights have the values of the most important ones.

    With n entries, k = int(rate * n), and o the stable ascending argsort of |scores|:

        W[o[i]] := W[o[n - k + i]]  for all i < k, the right side read before any is written

    Beyond a rate of 0.5, the two sets overlap. This order makes that well defined: an entry of both sets gets a new
    value, and its old value is copied. In the ablation, the source is `W[o[k + i]]`, the next least important weights.

    Args:
        frozen: float32 array W.
        scores: float32 array in the shape of W.
        rate: Fraction of the entries to change, in `[0, 1)`; at most 0.5 in the ablation.
        ablation: Whether to copy from unimportant weights.
    """
    size, count = frozen.size, int(rate * frozen.size)
    result = frozen.copy().reshape(-1)
    if count:
        source = slice(count, 2 * count) if ablation else slice(size - count, size)
        # Magnitude and index in one integer: no two are equal, so any sort is the stable one, and those in numpy that
        # are fast aren't stable. Sorting just the two sets is quicker still.
        keys = np.abs(scores).reshape(-1).view(np.int32).astype(np.int64) << _INDEX_BITS
        keys |= np.arange(size)
        keys.partition([cut for cut in (count, source.start, source.stop) if cut < size])
        low, high = (np.sort(keys[part]) & (1 << _INDEX_BITS) - 1 for part in (slice(count), source))
        result[low] = result[high]
    return result.reshape(frozen.shape)


def redraw(frozen, mask, fresh, uniform, rate):
    """Return a kernel in which fresh weights replace pruned ones with probability `rate`.

    Formula: `W := fresh` where `mask == 0` and `uniform < rate`, for each entry independently.

    Args:
        frozen, mask, fresh, uniform: Arrays of the same shape; `uniform` has random numbers in (0, 1).
        rate: The probability, in `[0, 1)`.
    """
    return np.where((mask == 0) & (uniform < rate), fresh, frozen)


class _KernelChange(keras.callbacks.Callback):
    """Changes the frozen kernels whose scores are trained, at the beginning of epochs N, 2N, ..."""

    def __init__(self, rate, every):
        super().__init__()
        check_fraction("rate", rate)
        check_count("every", every)
        self.rate, self.every = float(rate), int(every)

    def on_train_begin(self, logs=None):
        check_trained(self, self.model, trained_layers(self.model))
        stored = [layer.name for layer in mpt_layers(self.model) if layer.mask.stores_mask]
        if stored:
            raise ValueError(
                f"{type(self).__name__} needs random kernels and rules that rank |scores|. "
                f"Received: layers {stored} with masks.Restricted, whose kernels are pretrained"
            )
        for layer in self._layers():
            if not self._is_restored():
                layer.kernel_epoch.assign(-1)  # that of another training
        self._first_epoch, self._changed_epoch = True, None

    def on_epoch_begin(self, epoch, logs=None):
        # `BackupAndRestore(save_freq=...)` starts an epoch over with the state from the midst of it.
        begun = self._first_epoch and self._is_restored() and epoch == self._kernel_epoch()
        self._first_epoch = False
        if epoch > 0 and epoch % self.every == 0 and not begun:
            self._change_kernels(epoch)
            self._changed_epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        # Not before all callbacks have made their changes, and before there is a state to save in which they are made.
        if self._changed_epoch is not None:
            for layer in self._layers():
                layer.kernel_epoch.assign(self._changed_epoch)
            self._changed_epoch = None

    def _is_restored(self):
        return _keras.is_restored(self.model)

    def _kernel_epoch(self):
        return max(int(to_numpy(layer.kernel_epoch)) for layer in self._layers())

    def _layers(self):
        """Return the layers whose kernels change, without those that the model does not call."""
        return [layer for layer in trained_layers(self.model) if layer.built]

    def _change_kernels(self, time):
        if not self._layers():  # at the first step of `fit`, with `initial_epoch`
            check_built(self, trained_layers(self.model))
        for subnet in trained_kernels(self.model):
            subnet.frozen_kernel.assign(self._changed(subnet, time))

    def _changed(self, subnet, time):
        """Return the new frozen kernel of a `Subnet`, a float32 array."""
        raise NotImplementedError


class IterativeWeightRecycling(_KernelChange):
    """Copy the values of the weights with the highest |scores| to those with the lowest, every few epochs.

    At the beginning of epochs N, 2N, ... (numbered from 0, and continuing after a resume), for each layer with the
    frozen kernel W of n weights, k = int(rate * n), and o the stable ascending argsort of |S|, ties by index:

        W[o[i]] := W[o[n - k + i]]  for i < k, all read before any is written

    With `masks.PartiallyFrozen`, only weights with trained masks take part, and n is their number. Scores and the
    optimizer's state do not change. Beyond a rate of 0.5, the sets of low and high scores overlap, and the order of
    reading and writing defines the result. A ticket stores the kept weights that differ from the seed's: their signs
    with `kernel_quantizer="scaled_sign"`, their values with None.

    To combine it with `IteRand` as in the paper, use half the rate for each, and `IteRand` first:

        >>> callbacks = [IteRand(0.1, every=10), IterativeWeightRecycling(0.1, every=10)]

    Kernels whose scores are not trained (`layer.trainable = False`, or `layer.scores.trainable = False`) do not change.
    A training that is resumed between epochs continues exactly as without the interruption. One that
    `BackupAndRestore(save_freq=...)` resumes within an epoch is not recycled twice in that epoch: the layers' variable
    `kernel_epoch` records it.

    Source: Gorbett & Whitley 2023, algorithm 1, arXiv:2303.15953.

    Args:
        rate: Fraction of each layer's weights to change, in `[0, 1)`; 0 changes nothing.
        every: Number N of epochs.
        ablation: Whether the source is `W[o[k + i]]`, as unimportant as the replaced weights. Then the rate is at most
            0.5.

    Raises:
        ValueError: An argument is out of range. Or, when training begins: the model has no MPT layers to train, or
            layers with `masks.Restricted`, whose kernels are pretrained.

    Examples:
        >>> model.fit(images, labels, epochs=100, callbacks=[IterativeWeightRecycling(0.2, every=10)])
    """

    def __init__(self, rate, every, ablation=False):
        super().__init__(rate, every)
        self.ablation = check_bool("ablation", ablation)
        if ablation and self.rate > 0.5:
            raise ValueError(
                "`rate` must be at most 0.5 with ablation=True: there are no more weights to take values from. "
                f"Received: rate={rate!r}"
            )

    def _changed(self, subnet, time):
        frozen, scores, searched = to_numpy(subnet.frozen_kernel), to_numpy(subnet.scores), subnet.searched
        if searched is None:
            return recycle(frozen, scores, self.rate, self.ablation)
        frozen[searched] = recycle(frozen[searched], scores[searched], self.rate, self.ablation)
        return frozen


class IteRand(_KernelChange):
    """Redraw pruned weights with a probability, every few epochs or steps.

    At the beginning of epochs (or steps) N, 2N, ..., each weight that the mask removes at that time is replaced with
    probability `rate` by a new number from the layer's kernel initializer. All random numbers depend only on `seed`,
    the layer's seed, and the number of the epoch or step: a resumed training equals an uninterrupted one. With the
    initializers of keras_mpt, they have the same bits on every backend. A Keras initializer gets another seed, and is
    called as it is if it has none in its config.

    Scores and the optimizer's state do not change, nor do kernels whose scores are not trained. See
    `IterativeWeightRecycling` for those, for the combination of both, and for resumed trainings.

    Source: Chijiwa et al. 2021, section 3, arXiv:2106.09269.

    Args:
        rate: Probability of redrawing a pruned weight, in `[0, 1)`; 0 changes nothing.
        every: Number N of epochs or steps.
        unit: `"epoch"`, or `"step"`: the optimizer's iterations, counted over all epochs, as in the paper. Keras calls
            no callback between the steps of one execution, so this needs `steps_per_execution=1`.
        seed: Integer in `[0, 2**64)`.

    Raises:
        ValueError: An argument is out of its range, or (when training begins) the model has no MPT layers to train, or
            some with `masks.Restricted`; or the unit is a step, and the model is not compiled, or with
            `steps_per_execution` other than 1.

    Examples:
        >>> model.fit(images, labels, epochs=100, callbacks=[IteRand(0.1, every=300, unit="step")])
    """

    def __init__(self, rate, every, unit="epoch", seed=0):
        super().__init__(rate, every)
        check_choice("unit", unit, ("epoch", "step"))
        if seed is None:
            raise ValueError("`seed` must be an integer: a resumed training needs the same again. Received: seed=None")
        self.unit, self.seed = unit, check_seed(seed)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if self.unit == "step" and getattr(self.model, "optimizer", None) is None:
            raise ValueError(
                'IteRand with unit="step" needs a compiled model: steps are the iterations of its optimizer. '
                f"Received: model {self.model.name!r} without one"
            )
        if self.unit == "step" and self.model.steps_per_execution != 1:
            raise ValueError(
                f'IteRand with unit="step" needs a model compiled with steps_per_execution=1. '
                f"Received: steps_per_execution={self.model.steps_per_execution}"
            )
        self._wait = 0  # batches until the next look at the optimizer's iterations
        self._last = 0

    def on_epoch_begin(self, epoch, logs=None):
        if self.unit == "epoch":
            super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        if self.unit == "epoch":
            super().on_train_batch_begin(batch, logs)
            return
        if self._wait == 0:  # a look takes time with JAX, and a batch is one iteration at most
            step = int(to_numpy(self.model.optimizer.iterations))
            if step % self.every == 0 and step > self._last:
                self._change_kernels(step)
                self._last = step
            self._wait = self.every - step % self.every
        self._wait -= 1

    def _changed(self, subnet, time):
        frozen, mask = to_numpy(subnet.frozen_kernel), to_numpy(subnet.mask)
        words = np.random.SeedSequence([self.seed, subnet.layer.seed, time]).generate_state(1, np.uint64)
        stream = subnet.stream + _CHOICE_STREAM
        uniform = random_uniform(frozen.size, int(words[0]), stream).reshape(frozen.shape)
        return redraw(frozen, mask, _fresh(subnet, int(words[0])), uniform, self.rate)


def _fresh(subnet, seed):
    """Return a kernel from its initializer, but from another seed."""
    initializer, settings = subnet.draw()
    if isinstance(initializer, SeededInitializer):
        return initializer.draw(subnet.shape, **{**settings, "seed": seed, "stream": subnet.stream})
    seed = (seed + (subnet.index << UNUSED_SEED_BITS)) % 2**64  # further kernels of a layer have the next ones
    return to_numpy(reseeded(initializer, seed)(subnet.shape, dtype="float32"))  # Keras' give the same at every call
