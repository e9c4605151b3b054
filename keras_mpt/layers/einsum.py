"""Einsum dense layer with a frozen random kernel."""

import keras
import numpy as np

from keras_mpt.layers.base import MPTLayer


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTEinsumDense(MPTLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Shapes: those of the equation. In `"abc,cde->abde"`, the inputs are `abc`, the kernel `cde` and the outputs `abde`;
    `fan_in` is the size of the kernel's axes that the outputs lack, here c.

    Examples:
        >>> layer = keras_mpt.layers.MPTEinsumDense("abc,cde->abde", (None, 4, 16), seed=1)
        >>> layer(np.ones((2, 7, 64), "float32")).shape
        (2, 7, 4, 16)
    """

    def _fan_in(self, shape, kernel="kernel"):
        summed = self._summed_axes()
        return int(np.prod([size for size, is_summed in zip(shape, summed, strict=True) if is_summed]))

    def _input_axis(self, kernel="kernel"):
        backwards = self._summed_axes()[::-1]
        return -1 - backwards.index(True) if True in backwards else None

    def _summed_axes(self):
        """Return for each axis of the kernel whether the outputs lack it."""
        inputs, outputs = self.equation.replace(" ", "").split("->")
        return [axis not in outputs for axis in inputs.split(",")[1].replace("...", "")]
