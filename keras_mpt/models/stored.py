"""What a file has to store of a kernel's weights: those that differ from their source, or the signs of these."""

import numpy as np


def has_scale(subnet):
    """Return whether the kept weights of a kernel are `scale * sign(weight)`, so that a ticket has their scale."""
    return getattr(subnet.kernel_quantizer, "scale_count", 0) == 1


def are_signs(subnet, weights):
    """Return whether signs are enough to store for these frozen weights of a kernel, an array."""
    return has_scale(subnet) and bool(np.all(weights != 0))


def differences(weights, source, signs):
    """Return where float32 weights, or with `signs` their signs, are not those of a source: an array of booleans."""
    return (weights < 0) != (source < 0) if signs else weights.view(np.uint32) != source.view(np.uint32)
