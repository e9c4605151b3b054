"""The layers of the networks."""

import keras

from keras_mpt import initializers, quantizers
from keras_mpt.arguments import did_you_mean
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.quantizers.larq_objects import ours


class Blocks:
    """Creates the layers of one network from its settings, each with its own seed.

    In MPT-1/1, an MPT layer takes the signs of its inputs itself. So `activation` does nothing, and `quantized` is for
    other layers that need signs. Never take signs twice: the gradient of a quantizer vanishes at ±1.

    Args:
        settings: A `Settings`.
    """

    def __init__(self, settings):
        self.settings = settings
        self._seeds = initializers.layer_seeds(settings.seed)
        self._names = []  # of the MPT layers

    def image(self, least=1, flattened=False):
        """Return the input.

        Args:
            least: Smallest height and width that leave a pixel to the last layer.
            flattened: Whether the network flattens, which needs height and width.

        Raises:
            ValueError: `input_shape` is too small or lacks a size that is needed.
        """
        shape = self.settings.input_shape
        if any(side is not None and side < least for side in shape[:2]):
            raise ValueError(f"`input_shape` must have at least {least}x{least} pixels. Received: input_shape={shape}")
        if flattened and None in shape:
            raise ValueError(
                "`input_shape` must have a height and a width, because the network flattens. With include_top=False, "
                f"both may be None. Received: input_shape={shape}"
            )
        return keras.Input(shape, dtype="float32", name="image")

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
        """Apply the first convolution, whose input is float and padded with zeros, the same on all sides.

        With `float_stem`, its weights are trained. `filters` is scaled by the width, as everywhere.
        """
        shape = self._shape(filters, size, strides)
        if not self.settings.float_stem:
            return MPTConv2D(**shape, **self._ticket(name, quantized=False))(image)
        if strides > 1:
            image = keras.layers.ZeroPadding2D(shape.pop("padding"), name=f"{name}_pad")(image)
        initializer = keras.initializers.HeNormal(next(self._seeds))
        return keras.layers.Conv2D(**shape, use_bias=False, kernel_initializer=initializer, name=name)(image)

    def conv(self, x, filters, size, name, strides=1):
        """Apply a convolution to `x`, in MPT-1/1 to its signs; `filters` is scaled by the width."""
        shape, pad_values = self._shape(filters, size, strides), self.settings.pad_values
        return MPTConv2D(**shape, pad_values=pad_values, **self._ticket(name))(x)

    def dense(self, x, units, name):
        """Apply a dense layer to `x`, in MPT-1/1 to its signs; `units` is scaled by the width."""
        return MPTDense(self.settings.scaled(units), **self._ticket(name))(x)

    def logits(self, x, quantized=True):
        """Apply the classifier, an MPT layer like the others."""
        return MPTDense(self.settings.classes, **self._ticket("logits", quantized))(x)

    def norm(self, x, name):
        """Apply batch normalization."""
        affine = self.settings.batch_norm_affine
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, center=affine, scale=affine, name=name)(x)

    def activation(self, x, name):
        """Apply ReLU in MPT-1/32, nothing in MPT-1/1, where the next MPT layer takes the signs."""
        return x if self.settings.binary else self.relu(x, name)

    def relu(self, x, name):
        """Apply ReLU, also in MPT-1/1: for a layer with float inputs."""
        return keras.layers.ReLU(name=name)(x)

    def quantized(self, x, name):
        """Return the signs of `x` in MPT-1/1, for a layer that is not an MPT layer; `x` itself in MPT-1/32."""
        if not self.settings.binary:
            return x
        quantizer = quantizers.get_activation(self.settings.input_quantizer)
        return keras.layers.Activation(ours(quantizer), name=name)(x)

    def _shape(self, filters, size, strides):
        padding = "same" if strides == 1 else size // 2  # Keras' "same" is lopsided with strides, PyTorch's never
        filters = self.settings.scaled(filters)
        return {"filters": filters, "kernel_size": size, "strides": strides, "padding": padding}

    def _ticket(self, name, quantized=True):
        """Return the arguments that every MPT layer of the network gets."""
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
