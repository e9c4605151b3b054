"""The kernels of an MPT layer, each with its scores and mask."""

import dataclasses

import keras

from keras_mpt.layers import MPTLayer


@dataclasses.dataclass(frozen=True)
class _Subnet:
    """The only kernel of a layer."""

    layer: keras.layers.Layer
    name: str = "kernel"

    frozen_kernel = property(lambda self: self.layer.frozen_kernel)
    scores = property(lambda self: self.layer.scores)
    mask = property(lambda self: self.layer.subnet_mask)

    @property
    def kernel_quantizer(self):
        return self.layer.kernel_quantizer

    @property
    def variables(self):
        layer = self.layer
        return [
            layer.scores,
            layer.frozen_kernel,
            layer.kernel_epoch,
            *(getattr(layer, n) for n in layer.mask.variables),
        ]

    def draw(self):
        return self.layer.kernel_draw()

    def assign(self, mask, scores):
        self.layer.mask.assign(self.layer, mask, scores)

    def set_quantizer(self, quantizer):
        self.layer.kernel_quantizer = quantizer


def subnets(layer):
    """Return the kernels of a layer in its order; none of a layer that is no MPT layer."""
    return (_Subnet(layer),) if isinstance(layer, MPTLayer) else ()
