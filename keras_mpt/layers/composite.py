"""Layers that are made of MPT layers."""

from keras_mpt import _keras
from keras_mpt.layers.twins import PlainTwin


class MPTComposite(PlainTwin):
    """Mixin of the layers whose kernels are those of MPT layers inside, which `_inner` names.

    The arguments are those of `MPTLayer`, for all layers inside; their seeds are derived from `seed`.
    """

    _inner = ()  # attributes

    def _inside(self):
        """Return the MPT layers inside by their attributes, which the plain layer has, too."""
        return {name: layer for name in self._inner if (layer := getattr(self, name, None)) is not None}

    @classmethod
    def kernels_of(cls, layer):
        """Return the kernels of a built plain layer of this class, see `MPTLayer`."""
        inside = [inner for name in cls._inner if (inner := getattr(layer, name, None)) is not None]
        return [pair for inner in inside for pair in super(MPTComposite, cls).kernels_of(inner)]

    def prepare_plain(self, inputs):
        """Return `inputs`: what a call does to them before a plain layer of this class could."""
        return inputs

    def fill_plain(self, twin):
        """Give a built plain twin the effective kernels, and all other weights."""
        for name, layer in self._inside().items():
            layer.fill_plain(getattr(twin, name))

    def take_weights(self, plain, kernels=False):
        """Take the weights of the plain layer of the same shape: biases, and on demand the kernels, as frozen ones."""
        for name, layer in self._inside().items():
            layer.take_weights(getattr(plain, name), kernels)

    def set_sparsity(self, sparsity):
        """Let each kernel keep another number of weights from now on, see `MPTLayer`."""
        for layer in self._inside().values():
            layer.set_sparsity(sparsity)

    @property
    def subnets(self):
        """The kernels of all layers inside, a tuple of `Subnet`."""
        if not self.built:
            raise ValueError(
                f"`subnets` of {type(self).__name__} {self.name!r} exist once the layer is built: call it on data "
                "first. Received: built=False"
            )
        return tuple(subnet for layer in self._inside().values() for subnet in layer.subnets)

    def _replace(self, name, layer):
        _keras.replace_layer(self, name, layer)

    def quantize(self, *args, **kwargs):
        """Refuse what Keras' layers can do: another format of the kernels. See `kernel_quantizer`.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} is quantized already; see `kernel_quantizer`.")
