"""Jackpots: sparse subnetworks of a pretrained network, whose weights, or their signs, stay as they are."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_mpt import quantizers
from keras_mpt._types import Names
from keras_mpt.arguments import check_choice, check_sparsity, is_number
from keras_mpt.layers import MPTLayer
from keras_mpt.masks import MaskRule, Restricted, TopK
from keras_mpt.masks.rule import largest
from keras_mpt.models.batch_norm import recalibrate_batch_norm
from keras_mpt.models.from_keras import convertible_layers, to_mpt
from keras_mpt.models.paths import walk
from keras_mpt.ops import kept_count, sparsity_of, to_numpy

_SPARSITY = 0.9
_RATES = ("global", "uniform")
_LEAST = 0.1  # of the part under uniform rates: for jackpots as they were published
_SMALL = 1000  # weights, of which a layer is not deprived unless it has more than twice as many


def to_jackpot(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    kernel_quantizer: Any = None,
    mask: MaskRule | Callable | None = None,
    rates: str = "global",
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
      `alpha = sum(|W| * M) / sum(M)`. The rule is `masks.TopK`, and `S = c |W|`, with c such that the scores' mean
      square is `1 / (3 fan_in)`, that of scores which are drawn: one rate of Adam suits all layers. Gradient:
      `dL/dS = dL/dkernel * W * sign(S)`. In a ticket a kept weight takes one bit, its sign: with the mask, that is
      0.92 bits for each weight at a sparsity of 0.8.

    Other rules than these two start at `c |W|` as well. The mask is that of magnitude pruning, as far as the rule can
    make it. All that is not converted trains as usual: biases, batch normalization's gamma and beta, and the
    classifier, which is not pruned. The published code freezes these, too: set `trainable = False` for their variables
    to do so. Activations stay those of `model`. For MPT-1/1, train it with signs between its layers:
    `keras.layers.Activation(keras_mpt.quantizers.ApproxSign())`.

    Source: Zhang et al. 2023, "Lottery Jackpots Exist in Pre-trained Models", arXiv:2104.08700. (The published code
    forgets the pretrained weights once the rates are computed; this uses them.) Alpha: Rastegari et al. 2016, XNOR-Net,
    arXiv:1603.05279.

    Args:
        model: A trained functional or Sequential model, see `to_mpt`.
        sparsity: Fraction of the weights of the converted layers removed, in `[0, 1)`, default 0.9. To be left out
            where `mask` is a rule.
        kernel_quantizer: What a kept weight is worth: None (itself), `"scaled_sign"`, or see `MPTLayer`.
        mask: Another rule, or a function that makes one of a layer's sparsity, see `to_mpt`: `NofM(2, 4)`, or
            `lambda s: PartiallyFrozen(s, pruned=s / 2)`.
        rates: `"global"`: the largest weights of all layers together, so that layers differ in sparsity; `"uniform"`:
            those of each layer. Small layers, which take few bytes, are spared: each keeps 1,000 weights, or half of
            its weights where it has fewer than 2,000. (With `Restricted`, as published, each layer keeps a tenth of
            what it has under uniform rates.) A rule given as `mask` has a sparsity of its own.
        skip: Paths and classes of layers that are not pruned; None: the last layer that could be, which is the
            classifier if `model` has one.
        data: Inputs, such as a thousand training images, to start from right statistics of batch normalization, which
            are far off with other kernels: see `recalibrate_batch_norm`. None leaves them to `fit`.
        seed: Integer in [0, 2**64), for rules that take something from the layers' seeds, such as `PartiallyFrozen`.

    Returns:
        A new model.

    Raises:
        ValueError: As for `to_mpt` and `recalibrate_batch_norm`; or a layer would keep no weight, or `skip` is left out
            with several outputs.

    Examples:
        >>> jackpot = keras_mpt.models.to_jackpot(model, 0.8, kernel_quantizer="scaled_sign", data=images[:1000])
        >>> jackpot.compile(keras.optimizers.Adam(0.0005), "sparse_categorical_crossentropy")
        >>> jackpot.fit(images, labels, epochs=10)
        >>> keras_mpt.save_ticket(jackpot, "jackpot.mpt")
    """
    check_choice("rates", rates, _RATES)
    if mask is None:
        exact = isinstance(quantizers.get_kernel(kernel_quantizer), quantizers.Identity)
        mask = Restricted if exact else TopK
    if not isinstance(mask, MaskRule):
        sparsity = _SPARSITY if sparsity is None else sparsity
        check_sparsity("sparsity", sparsity)
        sparsity = _sparsities(sparsity, rates, _LEAST if mask is Restricted else None)
    before = {path for path, layer in walk(model) if isinstance(layer, MPTLayer)}
    skip = _but_the_classifier(model) if skip is None else skip
    settings = {"kernel": "pretrained", "kernel_quantizer": kernel_quantizer, "mask": mask, "skip": skip, "seed": seed}
    jackpot = to_mpt(model, sparsity, **settings)
    found = [layer for path, layer in walk(jackpot) if isinstance(layer, MPTLayer) and path not in before]
    _start_scores([subnet for layer in found for subnet in layer.subnets if not layer.mask.stores_mask])
    if data is not None:
        recalibrate_batch_norm(jackpot, data)
    return jackpot


def _but_the_classifier(model):
    """Return what is not pruned by default, in a list."""
    *others, classifier = [None, *convertible_layers(model)]
    if others == [None]:
        raise ValueError(
            f"`skip` must be given for a model whose only layer that can be pruned is {classifier!r}, which is "
            "taken for the classifier and skipped: `skip=[]` prunes it. Received: skip=None"
        )
    if len(model.outputs) > 1:
        raise ValueError(f"`skip` must be given for several outputs. Received: a model of {len(model.outputs)}")
    return [] if classifier is None else [classifier]


def _start_scores(subnets):
    """Let scores be magnitudes of weights, with the mean square of scores that are drawn."""
    groups = {subnet.group[0].number: subnet.group for subnet in subnets}
    for group in groups.values():
        sizes = [math.prod(subnet.shape) for subnet in group]
        weights = np.concatenate([np.abs(to_numpy(subnet.frozen_kernel)).ravel() for subnet in group])
        drawn = [1 / (3 * subnet.layer._fan_in(subnet.shape, subnet.name)) for subnet in group]
        mean_square = np.mean(weights.astype(np.float64) ** 2)
        factor = math.sqrt(np.average(drawn, weights=sizes) / mean_square) if mean_square else 1.0
        scores = weights * np.float32(factor)
        parts = np.split(scores, np.cumsum(sizes)[:-1])
        masks = [None]
        if group[0].layer.mask.shared:
            masks = np.split(largest(scores, kept_count(scores.size, group[0].layer.sparsity)), np.cumsum(sizes)[:-1])
        for subnet, part, mask in zip(group, parts, masks, strict=True):
            part = part.reshape(subnet.shape)
            subnet.assign(subnet.mask_of(part) if mask is None else mask.reshape(subnet.shape), part)


def magnitude_sparsity(sparsity: float, least: float = 0.0) -> Callable:
    """Return a function for `to_mpt` that gives each layer the sparsity that one threshold over all |W| leaves it.

    The `n - floor(sparsity * n)` largest of all `n` weights stay; equal ones: those of earlier layers, then those with
    the lower flat index.

    Args:
        sparsity: Fraction of all weights removed, in `[0, 1)`.
        least: What each layer keeps at least, in `[0, 1)`, as a fraction of its part if all layers had this sparsity.

    Returns:
        A function from a dict of kernels by the layers' paths to one of sparsities. It raises ValueError if a layer
        would keep no weight.

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        >>> model = keras_mpt.models.to_mpt(trained, keras_mpt.models.magnitude_sparsity(0.9), kernel="pretrained")
    """
    check_sparsity("sparsity", sparsity)
    if not is_number(least) or not 0 <= least < 1:
        raise ValueError(f"`least` must be a number in [0, 1). Received: least={least!r}")

    return _sparsities(sparsity, "global", least)


def _sparsities(sparsity, rates, least=None):
    """Return a function from a dict of kernels by the layers' paths to one of sparsities.

    Args:
        sparsity: Fraction of all weights removed.
        rates: Of the layers, see `to_jackpot`.
        least: What each layer keeps at least, a fraction of its part under uniform rates; None: so many weights as
            spare small layers.
    """

    def of_layers(kernels):
        sizes = {path: kernel.size for path, kernel in kernels.items()}
        if least is None:
            floors = {path: min(_SMALL, -(-size // 2)) for path, size in sizes.items()}
        else:
            floors = {path: math.ceil(least * (1 - sparsity) * size) for path, size in sizes.items()}
        kept = {path: kept_count(size, sparsity) for path, size in sizes.items()}
        if rates == "global":
            kept = _kept_of_all(kernels, sparsity, floors)
        kept = {path: max(count, floors[path]) for path, count in kept.items()}
        empty = [path for path, count in kept.items() if not count]
        if empty:
            raise ValueError(
                "`sparsity` must leave each layer a weight: `skip` these layers, or give each layer the same sparsity "
                '(a number for `to_mpt`, `rates="uniform"` for `to_jackpot`). '
                f"Received: {sparsity=}, which keeps none of {', '.join(empty)}"
            )
        alike = {path for path, size in sizes.items() if kept[path] == kept_count(size, sparsity)}
        return {path: sparsity if path in alike else sparsity_of(kept[path], sizes[path]) for path in kept}

    return of_layers


def _kept_of_all(kernels, sparsity, floors):
    """Return how many weights of each layer are among the largest of all layers, floors being kept."""
    ends = np.cumsum([kernel.size for kernel in kernels.values()])
    magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
    for path, part in zip(kernels, np.split(magnitudes, ends[:-1]), strict=True):
        part[largest(part, floors[path])] = np.inf
    mask = largest(magnitudes, max(kept_count(magnitudes.size, sparsity), sum(floors.values())))
    parts = zip(kernels, np.split(mask, ends[:-1]), strict=True)
    return {path: int(np.count_nonzero(part)) for path, part in parts}
