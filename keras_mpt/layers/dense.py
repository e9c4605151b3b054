"""Fully connected layer over a frozen random kernel."""

import keras

from keras_mpt.layers.base import MPTLayer


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTDense(MPTLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel is a chosen part of a frozen random one.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(..., inputs)`. Output shape: `(..., units)`. Kernel: `(inputs, units)`.

    Examples:
        >>> layer = keras_mpt.layers.MPTDense(10, sparsity=0.8, seed=1)
        >>> layer(np.ones((2, 64), "float32")).shape
        (2, 10)
    """
