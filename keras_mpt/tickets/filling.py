"""Kernels, masks and scores into the layers of a model, whose rules make these masks again."""

import numpy as np

from keras_mpt.masks.rule import largest
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import ScaledSign


def forget_compiled(model):
    """Let `fit`, `evaluate` and `predict` be compiled anew: they may hold the quantizers that the layers had before."""
    model.train_function = model.test_function = model.predict_function = None


def groups_that_differ(subnets, masks, scores):
    """Return lists of the keys of kernels with one threshold, whose scores do not make their masks.

    Args:
        subnets: Kernels of built MPT layers, by keys such as the layers' paths.
        masks, scores: Arrays by the same keys.
    """
    found = []
    for keys in _one_threshold(subnets):
        mask = np.concatenate([masks[key].ravel() for key in keys])
        magnitudes = np.abs(np.concatenate([scores[key].ravel() for key in keys]))
        if not np.array_equal(largest(magnitudes, np.count_nonzero(mask)), mask):
            found.append(keys)
    return found


def _one_threshold(subnets):
    """Return the keys of the kernels whose masks are those of the largest |scores|, in lists: those that share a
    threshold together, in the order in which ties are kept."""
    keys, together = {subnet.number: key for key, subnet in subnets.items()}, []
    for subnet in subnets.values():
        group = [keys[other.number] for other in subnet.group if other.number in keys]
        if subnet.layer.mask.ranks_magnitudes and group not in together:
            together.append(group)
    return together


def check_rules(mpt, masks):
    """Raise ValueError if a rule makes another mask of the scores that its layer got.

    Of rules that rank magnitudes this is known before: see `groups_that_differ`.
    """
    for name, layer in mpt.items():
        if not layer.mask.ranks_magnitudes and not np.array_equal(to_numpy(layer.subnet_mask) != 0, masks[name]):
            raise ValueError(f"the rule {layer.mask!r} of layer {name!r} does not make its mask of the scores")


def fill_kernel(layer, frozen, mask, scores, scale, trainable):
    """Give the only kernel of a built MPT layer weights and scores that make its mask: see `fill_subnet`."""
    (subnet,) = layer.subnets
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
        subnet.kernel_quantizer = ScaledSign(None if trainable else scale)
