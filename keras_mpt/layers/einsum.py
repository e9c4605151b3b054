"""Dense layers by an equation over a frozen random kernel."""

import keras
import numpy as np

from keras_mpt.layers.base import MPTLayer


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTEinsumDense(MPTLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose kernel is a chosen part of a frozen random one.

    Args:
        *args, **kwargs: Those of the Keras layer; `sparsity`, `kernel_quantizer`, `input_quantizer`, `mask`,
            `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Shapes: those of the equation, such as `"abc,cde->abde"` with inputs `abc`, kernel `cde` and outputs `abde`. The
    `fan_in` counts the kernel's axes that the outputs lack, here c.

    Example:

    >>> layer = keras_mpt.layers.MPTEinsumDense("abc,cde->abde", (None, 4, 16), seed=1)
    >>> layer(np.ones((2, 7, 64), "float32")).shape
    (2, 7, 4, 16)
    """

    def _fan_in(self, shape, kernel="kernel"):
        inputs, outputs = self.equation.replace(" ", "").split("->")
        axes = inputs.split(",")[1].replace("...", "")
        return int(np.prod([size for axis, size in zip(axes, shape, strict=True) if axis not in outputs]))
