"""The kernels of a layer that a ticket holds."""

from keras_mpt.layers import MPTLayer


def subnets(layer):
    """Return the kernels of a layer in its order; none of a layer that is no MPT layer."""
    return layer.subnets if isinstance(layer, MPTLayer) else ()


def variables(layer):
    """Return the variables of a layer that its kernels stand for in a ticket."""
    if not isinstance(layer, MPTLayer):
        return []
    return [layer.kernel_epoch, *(variable for subnet in layer.subnets for variable in subnet.variables)]
