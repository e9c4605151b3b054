"""Lottery Jackpots: sparse subnetworks of a pretrained network, whose weights stay as they are."""

import math
from collections.abc import Callable

import keras
import numpy as np

from keras_mpt._types import Names
from keras_mpt.arguments import check_choice, check_sparsity, is_number
from keras_mpt.masks import Restricted
from keras_mpt.masks.rule import largest
from keras_mpt.models.from_keras import convertible_layers, to_mpt
from keras_mpt.ops import kept_count, sparsity_of

_RATES = ("global", "uniform")
_LEAST = 0.1


def to_jackpot(
    model: keras.Model, sparsity: float = 0.9, *, rates: str = "global", skip: Names | None = None
) -> keras.Model:
    """Return a pretrained model as the start of the search for a lottery jackpot: its largest weights, all frozen.

    Kernels are those of `model`, masks are those of magnitude pruning (`masks.Restricted`), scores start at 1.0 and
    0.99. `fit` with `callbacks.ShortRestriction` searches on. All that is not converted trains as usual: biases, batch
    normalization's gamma and beta, and the classifier, which is not pruned. The published code freezes these, too: set
    `trainable = False` for their variables to do so.

    Forward: `kernel = W * M`. Gradient: `dL/dS = dL/dkernel * W`.

    Source: Zhang et al. 2023, "Lottery Jackpots Exist in Pre-trained Models", arXiv:2104.08700. (The published code
    forgets the pretrained weights once the rates are computed; this uses them.)

    Args:
        model: A trained functional or Sequential model, see `to_mpt`.
        sparsity: Fraction of the weights of the converted layers removed, in `[0, 1)`.
        rates: `"global"`: the largest weights of all layers together, so that layers differ in sparsity, but of none
            fewer than a tenth of what `"uniform"` keeps of it; `"uniform"`: those of each layer.
        skip: Paths and classes of layers that are not pruned; None: the last layer that could be, which is the
            classifier if `model` has one.

    Returns:
        A new model.

    Raises:
        ValueError: As for `to_mpt`; or a layer would keep no weight, or `skip` is left out with several outputs.

    Examples:
        >>> jackpot = keras_mpt.models.to_jackpot(model, sparsity=0.9)
        >>> jackpot.compile("sgd", "sparse_categorical_crossentropy")
        >>> jackpot.fit(images, labels, epochs=30, callbacks=[keras_mpt.callbacks.ShortRestriction(30)])
    """
    check_choice("rates", rates, _RATES)
    check_sparsity("sparsity", sparsity)
    if skip is None:
        *others, classifier = [None, *convertible_layers(model)]
        if others == [None]:
            raise ValueError(
                f"`skip` must be given for a model whose only layer that can be pruned is {classifier!r}, which is "
                "taken for the classifier and skipped: `skip=[]` prunes it. Received: skip=None"
            )
        skip = [] if classifier is None else [classifier]
        if len(model.outputs) > 1:
            raise ValueError(f"`skip` must be given for several outputs. Received: a model of {len(model.outputs)}")
    if rates == "global":
        sparsity = magnitude_sparsity(sparsity, least=_LEAST)
    # whatever the seed draws is replaced
    return to_mpt(model, sparsity, kernel="pretrained", mask=Restricted, skip=skip, seed=0)


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

    def of_layers(kernels):
        ends = np.cumsum([kernel.size for kernel in kernels.values()])
        magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
        for kernel, part in zip(kernels.values(), np.split(magnitudes, ends[:-1]), strict=True):
            part[largest(np.abs(kernel).ravel(), math.ceil(least * (1 - sparsity) * kernel.size))] = np.inf
        mask = largest(magnitudes, kept_count(magnitudes.size, sparsity))
        parts = zip(kernels, np.split(mask, ends[:-1]), strict=True)
        removed = {path: (np.count_nonzero(~part), part.size) for path, part in parts}
        empty = [path for path, (count, size) in removed.items() if count == size]
        if empty:
            raise ValueError(
                "`sparsity` must leave each layer a weight: `skip` these layers, or give each layer the same sparsity "
                '(a number for `to_mpt`, `rates="uniform"` for `to_jackpot`). '
                f"Received: {sparsity=}, which keeps none of {', '.join(empty)}"
            )
        return {path: sparsity_of(size - count, size) for path, (count, size) in removed.items()}

    return of_layers
