"""The pieces that the architectures are made of."""

import keras

from keras_mpt import initializers, quantizers
from keras_mpt.arguments import did_you_mean
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.quantizers.larq_objects import ours


class Network:
    """The pieces that architectures are made of, with the settings of one build and the seeds of its layers.

    In MPT-1/1 each MPT layer takes the sign of its inputs itself, so there `activation` does nothing, and
    `quantized` is for those who need the signs and are no MPT layers. Nobody may take the sign of a sign: the gradient
    of a quantizer vanishes there.
    """

    def __init__(self, default_sparsity, settings):
        self.classes = settings["classes"]
        self.include_top = settings["include_top"]
        self.binary = settings["input_quantizer"] is not None
        self._default_sparsity = default_sparsity
        self._settings = settings
        self._seeds = initializers.layer_seeds(settings["seed"])
        self._names = []  # of the MPT layers

    def stem(self, image, filters, size, name, strides=1):
        """The first convolution: its input is float and padded with zeros; with `float_stem`, its weights are trained.

        `filters` is scaled by the width, as everywhere, and the padding is the same on all sides.
        """
        shape = self._shape(filters, size, strides)
        if not self._settings["float_stem"]:
            return MPTConv2D(**shape, **self._ticket(name, quantized=False))(image)
        if strides > 1:
            image = keras.layers.ZeroPadding2D(shape.pop("padding"), name=f"{name}_pad")(image)
        initializer = keras.initializers.HeNormal(next(self._seeds))
        return keras.layers.Conv2D(**shape, use_bias=False, kernel_initializer=initializer, name=name)(image)

    def conv(self, x, filters, size, name, strides=1):
        """A convolution, in MPT-1/1 of the signs of `x`; `filters` is scaled by the width."""
        shape, pad_values = self._shape(filters, size, strides), self._settings["pad_values"]
        return MPTConv2D(**shape, pad_values=pad_values, **self._ticket(name))(x)

    def dense(self, x, units, name):
        """A fully connected layer, in MPT-1/1 of the signs of `x`; `units` is scaled by the width."""
        return MPTDense(self.scaled(units), **self._ticket(name))(x)

    def logits(self, x, quantized=True):
        """The classifier, as much a ticket as the other layers."""
        return MPTDense(self.classes, **self._ticket("logits", quantized))(x)

    def norm(self, x, name):
        """Batch normalization."""
        affine = self._settings["batch_norm_affine"]
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, center=affine, scale=affine, name=name)(x)

    def activation(self, x, name):
        """ReLU in MPT-1/32; nothing in MPT-1/1, where the next MPT layer takes the sign."""
        return x if self.binary else self.relu(x, name)

    def relu(self, x, name):
        """ReLU in both variants, for a layer that takes float inputs."""
        return keras.layers.ReLU(name=name)(x)

    def quantized(self, x, name):
        """The signs that the next MPT layer takes of `x`, for others; `x` itself in MPT-1/32."""
        quantizer = quantizers.get_activation(self._settings["input_quantizer"])
        if quantizer is None:
            return x
        return keras.layers.Activation(ours(quantizer), name=name)(x)

    def scaled(self, number):
        """The number of filters or units at this network's width."""
        width = self._settings["width"]
        if round(width * number) < 1:
            raise ValueError(
                f"`width` must leave every layer an output. Received: {width=}, which leaves none of {number}"
            )
        return round(width * number)

    def _shape(self, filters, size, strides):
        padding = "same" if strides == 1 else size // 2  # Keras' "same" is lopsided with strides, PyTorch's never
        return {"filters": self.scaled(filters), "kernel_size": size, "strides": strides, "padding": padding}

    def _ticket(self, name, quantized=True):
        settings, sparsity = self._settings, self._settings["sparsity"]
        if isinstance(sparsity, dict):
            sparsity = sparsity.get(name, self._default_sparsity)
        self._names.append(name)
        return {
            "mask" if getattr(sparsity, "shared", False) else "sparsity": sparsity,
            "input_quantizer": settings["input_quantizer"] if quantized else None,
            "kernel_quantizer": settings["kernel_quantizer"],
            "kernel_initializer": settings["kernel_initializer"],
            "seed": next(self._seeds),
            "name": name,
        }

    def check_sparsity_names(self):
        """Raise ValueError if `sparsity` names a layer that was not built."""
        sparsity = self._settings["sparsity"]
        for name in sparsity if isinstance(sparsity, dict) else ():
            if name not in self._names:
                raise ValueError(
                    f"`sparsity` must name MPT layers of the network: {', '.join(self._names)}. "
                    f"Received: sparsity[{name!r}].{did_you_mean(name, self._names)}"
                )
