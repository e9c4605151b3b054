"""Lottery Jackpots: sparse subnetworks of a pretrained network, whose weights stay as they are."""

import numpy as np

from keras_mpt.arguments import check_sparsity
from keras_mpt.masks import Restricted
from keras_mpt.masks.rule import largest
from keras_mpt.models.from_keras import convertible_layers, to_mpt
from keras_mpt.ops import kept_count, sparsity_of

_RATES = ("global", "uniform")


def to_jackpot(model, sparsity=0.9, *, rates="global", skip=None):
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
        rates: `"global"`: the largest weights of all layers together, so that layers differ in sparsity; `"uniform"`:
            those of each layer.
        skip: Paths and classes of layers that are not pruned; None: the last layer that could be, which is the
            classifier if `model` has one.

    Returns:
        A new model.

    Raises:
        ValueError: As for `to_mpt`; or a layer would keep no weight, or `skip` is left out with several outputs.

    Example:

    >>> jackpot = keras_mpt.models.to_jackpot(model, sparsity=0.9)
    >>> jackpot.compile("sgd", "sparse_categorical_crossentropy")
    >>> jackpot.fit(images, labels, epochs=30, callbacks=[keras_mpt.callbacks.ShortRestriction(30)])
    """
    if rates not in _RATES:
        raise ValueError(f"`rates` must be one of {_RATES}. Received: rates={rates!r}")
    if skip is None:
        skip = list(convertible_layers(model))[-1:]
        if len(model.outputs) > 1:
            raise ValueError(f"`skip` must be given for several outputs. Received: a model of {len(model.outputs)}")
    if rates == "global":
        sparsity = magnitude_sparsity(sparsity)
    # whatever the seed draws is replaced
    return to_mpt(model, sparsity, kernel="pretrained", mask=Restricted, skip=skip, seed=0)


def magnitude_sparsity(sparsity):
    """Return a function for `to_mpt` that gives each layer the sparsity that one threshold over all |W| leaves it.

    The `n - floor(sparsity * n)` largest of all `n` weights stay; equal ones: those of earlier layers, then those with
    the lower flat index.

    Args:
        sparsity: Fraction of all weights removed, in `[0, 1)`.

    Returns:
        A function from a dict of kernels by the layers' paths to one of sparsities. It raises ValueError if a layer
        would keep no weight.

    Raises:
        ValueError: `sparsity` is out of its range.

    Example:

    >>> model = keras_mpt.models.to_mpt(trained, keras_mpt.models.magnitude_sparsity(0.9), kernel="pretrained")
    """
    check_sparsity("sparsity", sparsity)

    def of_layers(kernels):
        ends = np.cumsum([kernel.size for kernel in kernels.values()])
        magnitudes = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
        mask = largest(magnitudes, kept_count(magnitudes.size, sparsity))
        parts = zip(kernels, np.split(mask, ends[:-1]), strict=True)
        removed = {path: (np.count_nonzero(~part), part.size) for path, part in parts}
        empty = [path for path, (count, size) in removed.items() if count == size]
        if empty:
            raise ValueError(
                f"`sparsity` must leave each layer a weight; `skip` these layers, or use one sparsity for all. "
                f"Received: {sparsity=}, which keeps none of {', '.join(empty)}"
            )
        return {path: sparsity_of(size - count, size) for path, (count, size) in removed.items()}

    return of_layers
