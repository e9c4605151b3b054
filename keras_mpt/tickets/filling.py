"""Kernels, masks and scores into the layers of a model, whose rules make these masks again."""

import numpy as np

from keras_mpt.masks.rule import largest
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import ScaledSign
from keras_mpt.tickets.subnets import subnets


def forget_compiled(model):
    """Let `fit`, `evaluate` and `predict` be compiled anew: they may hold the quantizers that the layers had before."""
    model.train_function = model.test_function = model.predict_function = None


def groups_that_differ(mpt, masks, scores):
    """Return lists of the names of layers with one threshold, whose scores do not make their masks.

    Args:
        mpt: MPT layers by name.
        masks, scores: Arrays by name.
    """
    found = []
    for names in _one_threshold(mpt):
        mask = np.concatenate([masks[name].ravel() for name in names])
        magnitudes = np.abs(np.concatenate([scores[name].ravel() for name in names]))
        if not np.array_equal(largest(magnitudes, np.count_nonzero(mask)), mask):
            found.append(names)
    return found


def _one_threshold(mpt):
    """Return the names of the MPT layers whose masks are those of the largest |scores|, in lists: those that share a
    rule together, in the order in which ties are kept."""
    together = {}
    for name, layer in sorted(mpt.items(), key=lambda item: item[1].name):
        if not layer.mask.ranks_magnitudes:
            continue
        together.setdefault(layer.mask if layer.mask.shared else name, []).append(name)
    return list(together.values())


def check_rules(mpt, masks):
    """Raise ValueError if a rule makes another mask of the scores that its layer got.

    Of rules that rank magnitudes this is known before: see `groups_that_differ`.
    """
    for name, layer in mpt.items():
        if not layer.mask.ranks_magnitudes and not np.array_equal(to_numpy(layer.subnet_mask) != 0, masks[name]):
            raise ValueError(f"the rule {layer.mask!r} of layer {name!r} does not make its mask of the scores")


def fill_kernel(layer, frozen, mask, scores, scale, trainable):
    """Give the only kernel of a built MPT layer weights and scores that make its mask: see `fill_subnet`."""
    (subnet,) = subnets(layer)
    fill_subnet(subnet, frozen, mask, scores, scale, trainable)


def fill_subnet(subnet, frozen, mask, scores, scale, trainable):
    """Give a kernel of a built MPT layer weights and scores that make its mask; see `load_ticket` for `trainable`.

    Args:
        subnet: One of `subnets` of the layer.
        frozen, mask, scores: Arrays of the kernel's shape, float32, bool and float32.
        scale: Alpha of a layer with `ScaledSign`, else None.
        trainable: Whether the search for a mask can go on.
    """
    if trainable and scale is not None:  # magnitudes may be the source's: let alpha come out as it was
        alpha = np.abs(frozen[mask], dtype=np.float64).mean() if mask.any() else scale
        if alpha and not np.isclose(alpha, scale, rtol=1e-5, atol=0):  # zeros have no sign, whatever the scale
            frozen = frozen * np.float32(scale / alpha)
    subnet.frozen_kernel.assign(frozen)
    subnet.assign(mask, scores)
    subnet.layer.trainable = trainable
    if scale is not None:
        subnet.layer.kernel_quantizer = ScaledSign(None if trainable else scale)
