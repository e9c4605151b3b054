"""Dense layer with a frozen random kernel."""

import keras

from keras_mpt.layers.base import MPTLayer


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTDense(MPTLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a masked, frozen random kernel.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(..., inputs)`. Output shape: `(..., units)`. Kernel: `(inputs, units)`.

    Examples:
        >>> layer = keras_mpt.layers.MPTDense(10, sparsity=0.8, seed=1)
        >>> layer(np.ones((2, 64), "float32")).shape
        (2, 10)
    """
