"""Binary networks whose weights are trained with the straight-through estimator: what MPT-1/1 is compared with."""

import keras
from keras import ops

from keras_mpt.layers import MPTConv2D, MPTLayer
from keras_mpt.quantizers import get_activation


@keras.saving.register_keras_serializable("keras_mpt_recipes")
class Clip(keras.constraints.Constraint):
    """Clip weights to [-1, 1], like larq's `weight_clip`."""

    def __call__(self, value):
        return ops.clip(value, -1.0, 1.0)


@keras.saving.register_keras_serializable("keras_mpt_recipes")
class BinaryConv2D(keras.layers.Conv2D):
    """A convolution of signs by signs, padded with 1 to the same size, on every backend.

    Forward: `conv(sign(x), sign(W))`. Gradient: that of larq's `ste_sign` for `W`, of `input_quantizer` for `x`.

    It is `larq.layers.QuantConv2D(…, padding="same", pad_values=1.0, input_quantizer=…, kernel_quantizer="ste_sign",
    kernel_constraint="weight_clip", use_bias=False)`.
    """

    def __init__(self, filters, kernel_size, input_quantizer="approx_sign", **settings):
        super().__init__(filters, kernel_size, **{"use_bias": False, "kernel_constraint": Clip(), **settings})
        self.input_quantizer = input_quantizer

    def get_config(self):
        return {**super().get_config(), "input_quantizer": self.input_quantizer}

    def call(self, inputs):
        signs = get_activation(self.input_quantizer)(inputs)
        around = [((size - 1) // 2, size // 2) for size in self.kernel_size]
        signs = ops.pad(signs, [(0, 0), *around, (0, 0)], constant_values=1.0)
        kernel = get_activation("ste_sign")(ops.cast(self.kernel, self.compute_dtype))
        return ops.conv(signs, kernel, padding="valid", data_format="channels_last")


def straight_through_twin(model):
    """Return the same network with fresh weights that train: binary ones where `model` takes signs, else float ones."""

    def twin(layer):
        if not isinstance(layer, MPTLayer):
            return layer.__class__.from_config(layer.get_config())
        shared = {"name": layer.name, "dtype": layer.dtype_policy}
        if isinstance(layer, MPTConv2D):
            return BinaryConv2D(layer.filters, layer.kernel_size, **shared)
        return keras.layers.Dense(layer.units, use_bias=False, **shared)

    result = keras.models.clone_model(model, clone_function=twin)
    result.get_layer("stem").set_weights(model.get_layer("stem").get_weights())
    return result
