"""Load kernels, masks and scores into the layers of a model, whose rules must give the same masks."""

import numpy as np

from keras_mpt import _keras
from keras_mpt.layers import MPTLayer
from keras_mpt.masks.rule import largest
from keras_mpt.ops import to_numpy
from keras_mpt.tickets.kernels import scale_of


def groups_that_differ(subnets, masks, scores):
    """Return the groups of kernels with a common threshold whose scores do not give their masks, as lists of keys.

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
    """Return lists of the keys of kernels with a common threshold on |scores|, in the order in which ties are kept."""
    keys, together = {subnet.number: key for key, subnet in subnets.items()}, []
    for subnet in subnets.values():
        group = [keys[other.number] for other in subnet.group if other.number in keys]
        if subnet.layer.mask.ranks_magnitudes and group not in together:
            together.append(group)
    return together


def check_rules(mpt, masks):
    """Raise ValueError if a rule gets another mask from the scores of its layer.

    Rules that rank magnitudes are checked by `groups_that_differ`.
    """
    for name, layer in mpt.items():
        if not layer.mask.ranks_magnitudes and not np.array_equal(to_numpy(layer.subnet_mask) != 0, masks[name]):
            raise ValueError(f"the rule {layer.mask!r} of layer {name!r} does not make its mask of the scores")


def fill_subnet(subnet, frozen, mask, scores, scale, trainable):
    """Assign weights, mask and scores to a kernel of a built MPT layer.

    Args:
        subnet: One of the `subnets` of the layer.
        frozen, mask, scores: Arrays in the shape of the kernel: float32, bool and float32.
        scale: Scale of the kernel quantizer, such as alpha of `ScaledSign`; None for a quantizer without.
        trainable: Whether the mask can be trained further: see `load_ticket`.
    """
    subnet.frozen_kernel.assign(frozen)
    subnet.assign(mask, scores)
    subnet.layer.trainable = trainable
    subnet.scores.trainable = trainable  # on TensorFlow, a layer that is trainable passes nothing on
    if scale is not None:
        subnet.kernel_quantizer = subnet.kernel_quantizer.frozen(None if trainable else (scale,))


def let_train(model):
    """Make all layers around MPT layers trainable: nothing inside a frozen model or layer trains."""
    for layer in (model, *_keras.layers_inside(model)):
        if any(isinstance(inside, MPTLayer) for inside in _keras.layers_inside(layer)):
            _keras.let_train(layer)


def with_scale(subnet, frozen, mask, scale):
    """Return frozen weights from which the kernel quantizer makes the scale: magnitudes may be those of the seed."""
    found = None if scale is None else scale_of(subnet.kernel_quantizer.frozen(None), frozen, mask)
    if found and not np.isclose(found, scale, rtol=1e-5, atol=0):  # zeros have no sign, whatever the scale
        return frozen * np.float32(scale / found)
    return frozen
