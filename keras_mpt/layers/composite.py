"""Layers that consist of MPT layers."""

import keras

from keras_mpt import quantizers
from keras_mpt.layers.groups import set_sparsities
from keras_mpt.layers.twins import PlainTwin


class MPTComposite(PlainTwin):
    """Mixin of the layers whose kernels belong to inner MPT layers, the attributes in `_inner`.

    All inner layers get the same arguments, those of `MPTLayer`, with seeds derived from `seed`.

    `non_trainable` takes names of inner layers, such as `"cell"` or `"query_dense"`, and of their kernels, such as
    `"cell/recurrent_kernel"`.
    """

    _inner = ()  # attributes

    @classmethod
    def _parts(cls):
        inner = [name.removeprefix("_") for name in cls._inner]
        return (*inner, *(f"{name}/{kernel}" for name in inner for kernel in cls._kernels))

    @property
    def kernel_quantizer(self):
        """The kernel quantizer. Assigned to, it becomes that of all inner layers."""
        return self._kernel_quantizer

    @kernel_quantizer.setter
    def kernel_quantizer(self, quantizer):
        self._kernel_quantizer = quantizers.get_kernel(quantizer)
        self._pass_on("kernel_quantizer", self._kernel_quantizer)

    @PlainTwin.input_quantizer.setter
    def input_quantizer(self, quantizer):
        PlainTwin.input_quantizer.fset(self, quantizer)
        self._pass_on("input_quantizer", self.input_quantizer)

    @PlainTwin.mask.setter
    def mask(self, rule):
        PlainTwin.mask.fset(self, rule)
        self._pass_on("mask", rule)

    def _pass_on(self, name, value):
        for layer in self._inside().values():
            if isinstance(layer, PlainTwin):  # not Keras' own, before it is replaced
                setattr(layer, name, value)

    def _settings(self, seed, attribute):
        """Return the arguments of the inner MPT layer with this attribute."""
        name = attribute.removeprefix("_")
        inside = [part.removeprefix(f"{name}/") for part in self._non_trainable if part.startswith(f"{name}/")]
        trainable = self._trainable and name not in self._non_trainable
        return {**super()._settings(seed), "trainable": trainable, "non_trainable": inside}

    @property
    def non_trainable(self):
        """Names of the inner layers, and of their kernels, that are not trained though the layer is: a tuple."""
        if not self._inside():
            return self._non_trainable
        found = []
        for attribute, layer in self._inside().items() if self.trainable else ():
            name = attribute.removeprefix("_")
            found += [f"{name}/{kernel}" for kernel in layer.non_trainable] if layer.trainable else [name]
        return tuple(found)

    @property
    def trainable(self):
        """Whether scores are trained: not if all inner layers are frozen, as `load_ticket` does."""
        inside = self._inside().values()
        return self._trainable and (not inside or any(layer.trainable for layer in inside))

    @trainable.setter
    def trainable(self, value):
        keras.layers.Layer.trainable.fset(self, value)

    def _inside(self):
        """Return the inner MPT layers by attribute; the plain layer has the same attributes."""
        return {name: layer for name in self._inner if (layer := getattr(self, name, None)) is not None}

    @classmethod
    def kernels_of(cls, layer):
        """Return the kernels of a built plain layer of this class, see `MPTLayer`."""
        inside = [inner for name in cls._inner if (inner := getattr(layer, name, None)) is not None]
        return [pair for inner in inside for pair in super(MPTComposite, cls).kernels_of(inner)]

    def prepare_plain(self, inputs):
        """Return `inputs` as they are: see `MPTLayer.prepare_plain`."""
        return inputs

    def fill_plain(self, twin):
        """Assign the effective kernels and all other weights to a built plain twin."""
        for name, layer in self._inside().items():
            layer.fill_plain(getattr(twin, name))

    def take_weights(self, plain, kernels=False):
        """Take over the weights of a plain layer of the same shape: see `MPTLayer.take_weights`."""
        for name, layer in self._inside().items():
            layer.take_weights(getattr(plain, name), kernels)

    def set_sparsity(self, sparsity):
        """Change how many weights each kernel keeps: see `MPTLayer.set_sparsity`."""
        set_sparsities([(subnet, sparsity) for subnet in self.subnets])

    @property
    def subnets(self):
        """The kernels of all inner layers, a tuple of `Subnet`."""
        if not self.built:
            raise ValueError(
                f"`subnets` of {type(self).__name__} {self.name!r} exist once the layer is built: call it on data "
                "first. Received: built=False"
            )
        return tuple(subnet for layer in self._inside().values() for subnet in layer.subnets)
