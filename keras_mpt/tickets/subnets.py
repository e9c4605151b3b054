"""The kernels of an MPT layer, each with its scores and mask."""

from keras_mpt.layers import MPTLayer


def subnets(layer):
    """Return the kernels of a layer in its order; none of a layer that is no MPT layer."""
    return layer.subnets if isinstance(layer, MPTLayer) else ()
