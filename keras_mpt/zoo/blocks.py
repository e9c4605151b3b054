"""The layers that the networks are made of."""

import keras

from keras_mpt import initializers, quantizers
from keras_mpt.arguments import did_you_mean
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.quantizers.larq_objects import ours


class Blocks:
    """The layers of one network, with its settings and a seed for each.

    In MPT-1/1 each MPT layer takes the sign of its inputs itself, so there `activation` does nothing, and `quantized`
    is for other layers that need the signs. Nobody may take the sign of a sign: the gradient of a quantizer vanishes
    there.

    Args:
        settings: A `Settings`.
    """

    def __init__(self, settings):
        self.settings = settings
        self._seeds = initializers.layer_seeds(settings.seed)
        self._names = []  # of the MPT layers

    def image(self):
        """Return the input."""
        return keras.Input(self.settings.input_shape, dtype="float32", name="image")

    def model(self, image, outputs, name):
        """Return the finished model.

        Raises:
            ValueError: `sparsity` names a layer that was not built.
        """
        sparsity = self.settings.sparsity
        for layer in sparsity if isinstance(sparsity, dict) else ():
            if layer not in self._names:
                raise ValueError(
                    f"`sparsity` must name MPT layers of the network: {', '.join(self._names)}. "
                    f"Received: sparsity[{layer!r}].{did_you_mean(layer, self._names)}"
                )
        return keras.Model(image, outputs, name=name)

    def stem(self, image, filters, size, name, strides=1):
        """The first convolution: its input is float and padded with zeros; with `float_stem`, its weights are trained.

        `filters` is scaled by the width, as everywhere, and the padding is the same on all sides.
        """
        shape = self._shape(filters, size, strides)
        if not self.settings.float_stem:
            return MPTConv2D(**shape, **self._ticket(name, quantized=False))(image)
        if strides > 1:
            image = keras.layers.ZeroPadding2D(shape.pop("padding"), name=f"{name}_pad")(image)
        initializer = keras.initializers.HeNormal(next(self._seeds))
        return keras.layers.Conv2D(**shape, use_bias=False, kernel_initializer=initializer, name=name)(image)

    def conv(self, x, filters, size, name, strides=1):
        """A convolution, in MPT-1/1 of the signs of `x`; `filters` is scaled by the width."""
        shape, pad_values = self._shape(filters, size, strides), self.settings.pad_values
        return MPTConv2D(**shape, pad_values=pad_values, **self._ticket(name))(x)

    def dense(self, x, units, name):
        """A fully connected layer, in MPT-1/1 of the signs of `x`; `units` is scaled by the width."""
        return MPTDense(self.settings.scaled(units), **self._ticket(name))(x)

    def logits(self, x, quantized=True):
        """The classifier, as much a ticket as the other layers."""
        return MPTDense(self.settings.classes, **self._ticket("logits", quantized))(x)

    def pointwise_logits(self, x):
        """The classifier as a 1x1 convolution, for outputs at each place of `x`; in MPT-1/1 of the signs of `x`."""
        return MPTConv2D(self.settings.classes, 1, **self._ticket("logits"))(x)

    def norm(self, x, name):
        """Batch normalization."""
        affine = self.settings.batch_norm_affine
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, center=affine, scale=affine, name=name)(x)

    def activation(self, x, name):
        """ReLU in MPT-1/32; nothing in MPT-1/1, where the next MPT layer takes the sign."""
        return x if self.settings.binary else self.relu(x, name)

    def relu(self, x, name):
        """ReLU in both variants, for a layer that takes float inputs."""
        return keras.layers.ReLU(name=name)(x)

    def quantized(self, x, name):
        """The signs that the next MPT layer takes of `x`, for others; `x` itself in MPT-1/32."""
        if not self.settings.binary:
            return x
        quantizer = quantizers.get_activation(self.settings.input_quantizer)
        return keras.layers.Activation(ours(quantizer), name=name)(x)

    def _shape(self, filters, size, strides):
        padding = "same" if strides == 1 else size // 2  # Keras' "same" is lopsided with strides, PyTorch's never
        filters = self.settings.scaled(filters)
        return {"filters": filters, "kernel_size": size, "strides": strides, "padding": padding}

    def _ticket(self, name, quantized=True):
        """Return the arguments of an MPT layer that make it one."""
        settings = self.settings
        self._names.append(name)
        return {
            "mask": settings.rule(name),
            "input_quantizer": settings.input_quantizer if quantized else None,
            "kernel_quantizer": settings.kernel_quantizer,
            "kernel_initializer": settings.kernel_initializer,
            "seed": next(self._seeds),
            "name": name,
        }
