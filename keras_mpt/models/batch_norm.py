"""Estimate the statistics of batch normalization again, for a network whose kernels have changed."""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mpt._keras import layers_inside
from keras_mpt.arguments import check_count
from keras_mpt.models.data import batches, check_finite_length, inputs_of
from keras_mpt.models.paths import check_is_model
from keras_mpt.models.rewrite import packed
from keras_mpt.ops import to_numpy


def recalibrate_batch_norm(model: keras.Model, data: Any, batch_size: int = 256) -> None:
    """Set the moving mean and variance of each batch normalization to those of its inputs over data.

    The moving averages are wrong after kernels have changed: weights were pruned or became ±alpha, or masks or scores
    were averaged. This takes one pass over the data, without gradients. As in training, each batch is normalized by its
    own statistics; all other layers act as in inference. With `n_b` entries of a channel in batch b, with mean `m_b`
    and variance `v_b`:

    `moving_mean = sum(n_b m_b) / sum(n_b)`, `moving_variance = sum(n_b (v_b + m_b^2)) / sum(n_b) - moving_mean^2`,

    the mean and variance of all entries together. Entries that a Keras mask excludes (see `Masking`) do not count.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, arXiv:2105.07576 (precise statistics).

    Args:
        model: A built Keras model of any kind. All of its `BatchNormalization` layers change, including nested and
            frozen ones and those in wrappers.
        data: Inputs, about a thousand samples: an array, or a list or dict of arrays for several inputs; or batches of
            these: a `tf.data.Dataset`, `keras.utils.PyDataset`, `torch.utils.data.DataLoader`, another finite iterable,
            or a function that returns one. A tuple in it is `(x, y)` or `(x, y, sample_weight)`, and so is a list that
            is longer than the model has inputs, as of a `DataLoader`.
        batch_size: Largest number of samples in a batch of arrays, an integer > 0. The statistics of large batches are
            closer to those of all data.

    Raises:
        ValueError: `model` is not built or has no batch normalization, `data` has no samples or does not fit the model,
            `batch_size` is not an integer > 0, or statistics are not finite. The model does not change then.
        TypeError: `model` is not a Keras model.

    Examples:
        >>> keras_mpt.models.recalibrate_batch_norm(model, images[:1000])
    """
    check_is_model(model)
    check_count("batch_size", batch_size)
    found = [layer for layer in layers_inside(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if not found or not all(layer.built for layer in found):
        what = "layers that are not built" if found else "none"
        raise ValueError(f"`model` must be built and have batch normalization. Received: {model.name!r} with {what}")
    data = data() if callable(data) else data
    check_finite_length("data", data)
    inputs, structure = inputs_of(model)
    statistics = [_Statistics(layer) for layer in found]
    done = False
    try:
        with contextlib.ExitStack() as stack, _without_gradients():
            for each in statistics:
                stack.enter_context(each.recorded())
            for batch in batches("data", data, inputs, structure, batch_size):
                model(batch if inputs is None else packed(model, batch), training=False)
        for each in statistics:
            each.check()
        done = True
    finally:
        for each in statistics:
            each.finish(done)


class _Statistics:
    """Mean and variance of the inputs of a batch normalization over several calls."""

    def __init__(self, layer):
        self.layer, self.count, self.mean, self.squares = layer, 0, 0.0, 0.0  # squares: of deviations from the mean
        self.before = [(variable, to_numpy(variable)) for variable in layer.non_trainable_variables]

    @contextlib.contextmanager
    def recorded(self):
        """Make the layer normalize each batch by its own statistics, and record these, within the context."""
        call = self.layer.call

        def noted(inputs, training=None, mask=None, **kwargs):
            self._note(inputs, mask)
            if mask is not None:
                kwargs["mask"] = mask
            return call(inputs, training=False, **kwargs)

        self.layer.call = noted
        try:
            yield
        finally:
            del self.layer.call

    def _note(self, inputs, mask):
        axis = self.layer.axis % len(inputs.shape)
        inputs = ops.cast(inputs, "float32")
        if mask is None:
            mean, variance = ops.moments(inputs, [other for other in range(len(inputs.shape)) if other != axis])
            mean, variance, count = to_numpy(mean), to_numpy(variance), np.prod(inputs.shape) // inputs.shape[axis]
        else:
            entries = np.moveaxis(to_numpy(inputs), axis, -1)[to_numpy(mask).astype(bool)]
            entries = entries.reshape(-1, entries.shape[-1])
            count = len(entries)
            if not count:
                return
            mean, variance = entries.mean(axis=0), entries.var(axis=0)
        self._assign(mean, variance)
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        total, difference = self.count + count, mean - self.mean
        self.squares = self.squares + count * variance + difference**2 * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def _assign(self, mean, variance):
        self.layer.moving_mean.assign(mean)
        self.layer.moving_variance.assign(variance)
        if getattr(self.layer, "renorm", False):  # which has averages of its own
            deviation = np.sqrt(variance + self.layer.epsilon)
            self.layer.renorm_mean.assign(mean)
            self.layer.renorm_stddev.assign(deviation)
            self.layer.moving_stddev.assign(deviation)

    def check(self):
        """Raise ValueError if the statistics are not finite."""
        if not np.isfinite(self.mean).all() or not np.isfinite(self.squares).all():
            raise ValueError(
                f"`data` must give finite inputs of layer {self.layer.name!r}. Received: infinity or NaN among them"
            )

    def finish(self, keep):
        """Assign these statistics; or restore those from before, also if the layer was never called."""
        if keep and self.count:
            self._assign(np.float32(self.mean), np.float32(self.squares / self.count))
        else:
            for variable, value in self.before:
                variable.assign(value)


def _without_gradients():
    """Disable gradients on PyTorch."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()
