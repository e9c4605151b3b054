"""Jackpots: sparse subnetworks of a pretrained network, whose weights, or their signs, stay as they are."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_mpt import layers, quantizers
from keras_mpt._types import Names
from keras_mpt.masks import MaskRule, Restricted, TopK
from keras_mpt.masks.rule import largest
from keras_mpt.models.batch_norm import recalibrate_batch_norm
from keras_mpt.models.from_keras import (
    chosen_layers,
    convertible_layers,
    kernel_of,
    mask_rules,
    seeds_of,
    with_mpt_layers,
)
from keras_mpt.models.paths import walk
from keras_mpt.models.sparsities import magnitude_sparsity
from keras_mpt.ops import kept_count, to_numpy

_SPARSITY = 0.9
_LEAST = 0.1  # of a layer's part, as published
_SMALL = 1000  # weights, for other rules
_START_CONSTANT = ("bias", "beta", "gamma", "moving_mean", "moving_variance")
_CONSTANT = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)


def to_jackpot(
    model: keras.Model,
    sparsity: float | dict[str, float] | Callable | None = None,
    *,
    kernel_quantizer: Any = None,
    input_quantizer: Any = None,
    mask: MaskRule | Callable | None = None,
    only: Names | None = None,
    skip: Names | None = None,
    data: Any = None,
    seed: int = 0,
) -> keras.Model:
    """Return a pretrained model as the start of a search for a ticket in it: its largest weights, all frozen.

    With W a kernel of `model`, S the scores, M the mask that the rule makes of S, there are two kinds:

    - Lottery jackpots, as published: `kernel_quantizer=None`. Forward: `kernel = W * M`. The rule is
      `masks.Restricted`, with scores of 1.0 and 0.99; `fit` with `callbacks.ShortRestriction` searches on. Gradient:
      `dL/dS = dL/dkernel * W`. In a ticket a kept weight takes 32 bits, unless `model` is its `base`.
    - Binary jackpots: `kernel_quantizer="scaled_sign"`. Forward: `kernel = alpha * sign(W) * M`,
      `alpha = sum(|W| * M) / sum(M)`. The rule is `masks.TopK`, and `S = c |W|`, where c gives the scores the
      mean square of drawn ones, `1 / (3 fan_in)`: one learning rate of Adam suits all layers. Gradient:
      `dL/dS = dL/dkernel * W * sign(S)`. In a ticket a kept weight takes one bit, its sign: with the mask, that is
      0.92 bits for each weight at a sparsity of 0.8.

    Other rules start at `c |W|` as well. The mask is that of magnitude pruning, as far as the rule allows it. A warning
    tells if the model seems never to have been trained: a kernel is exactly as its initializer drew it, or all biases
    and normalizations have their initial values.

    All other variables are trained as usual: biases, gamma and beta of batch normalization, and the classifier, which
    is not pruned. The published code freezes these as well: to do so, set `trainable = False` for them. Activations
    are those of `model`. For MPT-1/1, train it with signs between its layers:
    `keras.layers.Activation(keras_mpt.quantizers.ApproxSign())`.

    Source: Zhang et al. 2023, "Lottery Jackpots Exist in Pre-trained Models", arXiv:2104.08700. (The published code
    forgets the pretrained weights once the rates are computed; this uses them.) Alpha: Rastegari et al. 2016, XNOR-Net,
    arXiv:1603.05279.

    Args:
        model: A trained functional or Sequential model, see `to_mpt`.
        sparsity: Fraction of the weights of the converted layers removed, in `[0, 1)`, default 0.9: the largest weights
            of all layers together stay, so that layers differ in sparsity. Small layers, which take few bytes, are
            spared: the number stands for `magnitude_sparsity(sparsity, least=1000)`. (With `Restricted`, as published,
            `least=0.1`.) Or a dict or a function, see `to_mpt`: `uniform_sparsity(0.8)` removes as much in each layer.
            Leave it out if `mask` is a rule, which has its own sparsity.
        kernel_quantizer: Value of a kept weight: None (the trained value), `"scaled_sign"`, or see `MPTLayer`.
        input_quantizer: See `to_mpt`.
        mask: Another rule, or a function that makes one of a layer's sparsity, see `to_mpt`: `NofM(2, 4)`, or
            `lambda s: PartiallyFrozen(s, pruned=s / 2)`.
        only: Paths and classes of the layers that are pruned; None: all that can be.
        skip: Paths and classes of layers that are not pruned; None: the last layer that could be, which is the
            classifier if `model` has one, unless `only` is given.
        data: Inputs, such as a thousand training images, from which to estimate the statistics of batch normalization,
            because those of `model` do not fit the new kernels: see `recalibrate_batch_norm`. None leaves them to
            `fit`; a model without batch normalization needs none.
        seed: Integer in `[0, 2**64)`, for rules that depend on the layers' seeds, such as `PartiallyFrozen`.

    Returns:
        A new model.

    Raises:
        ValueError: See `to_mpt` and `recalibrate_batch_norm`; or a weight is not finite, a layer would keep no weight,
            or `skip` is missing for a model with several outputs, or with a single layer that could be pruned.
        TypeError: See `to_mpt` and `recalibrate_batch_norm`.

    Examples:
        >>> jackpot = keras_mpt.models.to_jackpot(model, 0.8, kernel_quantizer="scaled_sign", data=images[:1000])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> jackpot.compile(keras.optimizers.Adam(0.0005), loss)
        >>> jackpot.fit(images, labels, epochs=10)
        >>> keras_mpt.save_ticket(jackpot, "jackpot.mpt")
    """
    if mask is None:
        exact = isinstance(quantizers.get_kernel(kernel_quantizer), quantizers.Identity)
        mask = Restricted if exact else TopK
    if not isinstance(mask, MaskRule) and not callable(sparsity) and not isinstance(sparsity, dict):
        least = _LEAST if mask is Restricted else _SMALL
        sparsity = magnitude_sparsity(_SPARSITY if sparsity is None else sparsity, least)
    if skip is None:
        skip = _classifier(model) if only is None else []
    chosen = chosen_layers(model, only, skip)
    _check_pretrained(model, chosen)
    rules, seeds = mask_rules(chosen, sparsity, mask), seeds_of(model, seed)
    settings = {
        "kernel_quantizer": quantizers.get_kernel(kernel_quantizer),
        "input_quantizer": quantizers.get_activation(input_quantizer),
    }
    arguments = {path: {**settings, **rules[path], "seed": seeds[path]} for path in chosen}
    jackpot, found = with_mpt_layers(model, chosen, arguments, pretrained=True)
    _start_scores([subnet for layer in found for subnet in layer.subnets])
    if data is not None and any(isinstance(layer, keras.layers.BatchNormalization) for _, layer in walk(jackpot)):
        recalibrate_batch_norm(jackpot, data)
    return jackpot


def _classifier(model):
    """Return the last layer that can be pruned, in a list."""
    *others, classifier = [None, *convertible_layers(model)]
    if others == [None]:
        raise ValueError(
            f"`skip` must be given for a model whose only layer that can be pruned is {classifier!r}, which is "
            "taken for the classifier and skipped: `skip=[]` prunes it. Received: skip=None"
        )
    if len(model.outputs) > 1:
        raise ValueError(f"`skip` must be given for several outputs. Received: a model of {len(model.outputs)}")
    return [] if classifier is None else [classifier]


def _check_pretrained(model, chosen):
    """Raise ValueError if a kernel cannot be frozen; warn if it was never trained."""
    for path, layer in chosen.items():
        if not np.isfinite(kernel_of(layer)).all():
            raise ValueError(f"Pretrained kernels must be finite. Received: infinity or NaN in layer {path!r}")
    as_drawn = [path for path, layer in chosen.items() if _is_as_drawn(layer)]
    starts = [start for _, layer in walk(model) for start in _is_at_its_start(layer)]
    message = None
    if as_drawn:
        message = f"The kernels of these layers are what their initializers drew, not pretrained: {', '.join(as_drawn)}"
    elif starts and all(starts):
        message = "All biases and normalizations have their initial values: the model seems never to have been trained"
    if message:
        warnings.warn(message, stacklevel=3)


def _is_as_drawn(layer):
    for kernel, initializer in layers.TWINS[type(layer)].kernels_of(layer):
        if not isinstance(getattr(initializer, "seed", None), int):  # Keras' draw the same again
            return False
        drawn = initializer(kernel.shape, dtype=kernel.dtype)
        if not np.array_equal(to_numpy(drawn, "float32"), to_numpy(kernel, "float32")):
            return False
    return True


def _is_at_its_start(layer):
    """Yield for each weight of a layer with a constant initial value whether it still has that value."""
    for name in _START_CONSTANT:
        weight, initializer = getattr(layer, name, None), getattr(layer, f"{name}_initializer", None)
        if weight is not None and isinstance(initializer, _CONSTANT):
            yield np.array_equal(to_numpy(weight), to_numpy(initializer(weight.shape, dtype=weight.dtype)))


def _start_scores(subnets):
    """Assign the masks of magnitude pruning, with scores that give them: 1 and 0.99, or magnitudes.

    Magnitudes get the mean square of scores that are drawn. Kernels with a shared rule are pruned together.
    """
    for group in {subnet.group[0].number: subnet.group for subnet in subnets}.values():
        rule, sizes = group[0].layer.mask, [math.prod(subnet.shape) for subnet in group]
        scores = np.concatenate([np.abs(to_numpy(subnet.frozen_kernel)).ravel() for subnet in group])
        if not rule.stores_mask:
            drawn = [1 / (3 * subnet.layer._fan_in(subnet.shape, subnet.name)) for subnet in group]
            mean_square = np.mean(scores.astype(np.float64) ** 2)
            scores *= np.float32(math.sqrt(np.average(drawn, weights=sizes) / mean_square) if mean_square else 1.0)
        mask = largest(scores, kept_count(scores.size, rule.sparsity)) if rule.shared else scores
        ends = np.cumsum(sizes)[:-1]
        for subnet, part, kept in zip(group, np.split(scores, ends), np.split(mask, ends), strict=True):
            part = part.reshape(subnet.shape)
            kept = kept.reshape(subnet.shape) if rule.shared else subnet.mask_of(part)
            subnet.assign(kept, None if rule.stores_mask else part)
