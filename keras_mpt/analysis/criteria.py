"""Masks of pruning criteria, to compare with trained masks."""

import collections.abc

import keras
import numpy as np
from keras import ops

from keras_mpt._keras import layers_inside
from keras_mpt.analysis.sources import masks, subnets_by_path
from keras_mpt.arguments import received
from keras_mpt.initializers import check_seed
from keras_mpt.masks import Restricted
from keras_mpt.masks.rule import largest
from keras_mpt.models import mpt_layers_by_path
from keras_mpt.models.data import check_finite_length
from keras_mpt.models.paths import check_is_model
from keras_mpt.models.ranges import warn_of_no_logits
from keras_mpt.ops import to_numpy


def criteria_masks(model, batches, loss, seed=0):
    """Return the masks of pruning criteria for the frozen network of a model, with as many ones per layer.

    With the frozen kernels W, all of their weights kept, and the gradient g_b of the loss with respect to the kernel on
    batch b, a criterion keeps the weights with the largest

    - `magnitude`: `|W|`;
    - `snip`: `|W * sum_b g_b|`, the connection sensitivity of Lee et al. 2019, section 4, arXiv:1810.02340;
    - `taylor`: `sum_b (W * g_b)^2`, the first-order importance of Molchanov et al. 2019, section 3.1, arXiv:1906.10771;
    - `random`: a random number.

    Other layers act as in inference, except for dropout. Nothing is trained, and `model` does not change.

    Args:
        model: A model whose MPT layers all have the rule `masks.Restricted` and frozen pretrained kernels, as
            `models.to_jackpot` makes it.
        batches: Iterable of (inputs, targets).
        loss: A Keras loss.
        seed: Seed of the random masks, an integer in `[0, 2**64)`; None draws one.

    Returns:
        Dict from these names to dicts from the kernels' paths to bool arrays, see `masks`, for `overlap`.

    Raises:
        ValueError: The model has no MPT layers, one is not built or has another rule; there is no loss; there are no
            batches, or they never end; a batch is not a pair; or `seed` is not as described.
        TypeError: `model` is not a model, or `batches` is not an iterable.

    Examples:
        >>> found = keras_mpt.analysis.criteria_masks(jackpot, batches, loss)
        >>> print(keras_mpt.analysis.overlap(jackpot, found["magnitude"]))
    """
    if loss is None:
        raise ValueError("`loss` must be a Keras loss: without one there are no gradients. Received: loss=None")
    check_is_model(model)
    if not isinstance(batches, collections.abc.Iterable):
        raise TypeError(f"`batches` must be an iterable of (inputs, targets). {received('batches', batches)}")
    check_finite_length("batches", batches)
    warn_of_no_logits(model, loss, stacklevel=2)
    chosen, random = masks(model), np.random.default_rng(check_seed(seed))
    kernels = {path: to_numpy(subnet.frozen_kernel) for path, subnet in subnets_by_path("model", model).items()}
    products = _products(model, batches, loss)
    sums = {path: np.zeros(kernel.shape) for path, kernel in kernels.items()}
    squares = {path: np.zeros(kernel.shape) for path, kernel in kernels.items()}
    steps = 0
    for product in products:
        steps += 1
        for path, values in product.items():
            sums[path] += values
            squares[path] += values**2
    if not steps:
        raise ValueError(f"`batches` must have at least one batch. Received: {batches!r}")
    importance = {
        "magnitude": {path: np.abs(kernel) for path, kernel in kernels.items()},
        "snip": {path: np.abs(total) for path, total in sums.items()},
        "taylor": squares,
        "random": {path: random.random(kernel.shape) for path, kernel in kernels.items()},
    }
    return {
        name: {path: largest(values, np.count_nonzero(chosen[path])) for path, values in layers.items()}
        for name, layers in importance.items()
    }


def _products(model, batches, loss):
    """Yield W * g of each batch by the layers' paths.

    That is the gradient of the scores, which a step of plain SGD from scores of 0 shows on every backend.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer in [copy, *layers_inside(copy)]:
        if layer.compute_dtype == "float16":  # Keras leaves out the step if a gradient, times a large scale, overflows
            layer.dtype_policy = "float32"
    layers = mpt_layers_by_path(copy)
    for path, layer in layers.items():
        if not isinstance(layer.mask, Restricted):
            raise ValueError(
                "`model` must have the rule masks.Restricted in all its MPT layers, whose scores have the gradient "
                f"W * g. Received: layer {path!r} with {layer.mask!r}"
            )
    copy.trainable = True
    for layer in layers_inside(copy):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    for layer in layers.values():
        layer.trainable = True
    subnets = subnets_by_path("model", copy)
    for subnet in subnets.values():
        subnet.scores.regularizer, subnet.scores.trainable = None, True
    scores = {id(subnet.scores) for subnet in subnets.values()}
    for variable in copy.trainable_variables:
        variable.trainable = id(variable) in scores
    copy.compile(keras.optimizers.SGD(1.0), loss, jit_compile=keras.backend.backend() == "jax")
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"`batches` must be pairs (inputs, targets). {received('a batch', batch)}")
        inputs, targets = batch
        for subnet in subnets.values():
            subnet.assign(np.ones(subnet.shape, bool), np.zeros(subnet.shape, np.float32))
        copy.train_on_batch(inputs, targets)
        yield {path: -to_numpy(ops.convert_to_tensor(subnet.scores)) for path, subnet in subnets.items()}
