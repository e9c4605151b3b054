"""Attention whose projections have frozen random kernels."""

import keras

from keras_mpt.initializers import layer_seeds
from keras_mpt.layers.composite import MPTComposite
from keras_mpt.layers.einsum import MPTEinsumDense


class MPTAttention(MPTComposite):
    """Mixin of the attention layers: their projections are `MPTEinsumDense`, all else is Keras'.

    Raises:
        ValueError: `input_quantizer` is given: no plain layer could quantize what goes into the last projection. Or see
            `MPTLayer`.
    """

    _kernels = {"kernel": "kernel"}
    _inner = ("_query_dense", "_key_dense", "_gate_dense", "_value_dense", "_output_dense")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.input_quantizer is not None:
            raise ValueError(
                "`input_quantizer` has no meaning for attention. Received: "
                f"input_quantizer={self.input_quantizer!r} for layer {self.name!r}"
            )

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        for seed, (name, plain) in zip(layer_seeds(self._seed), self._inside().items(), strict=False):
            initializer = plain.kernel_initializer
            layer = MPTEinsumDense.from_plain(plain, initializer, **self._settings(seed))
            layer.build(plain.get_build_config()["input_shape"])
            self._replace(name, layer)


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTMultiHeadAttention(MPTAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose projections are chosen parts of frozen random kernels.

    Attention itself, with masks, dropout and flash attention, is Keras'. Each projection has a mask and a seed of its
    own. `seed` is that of dropout, too.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTAttention` and `MPTLayer`.

    Input shapes: `(batch, ..., features)` of query, value and, on demand, key. Output shape: that of the query.

    Examples:
        >>> layer = keras_mpt.layers.MPTMultiHeadAttention(4, 16, seed=1)
        >>> x = np.ones((2, 7, 64), "float32")
        >>> layer(x, x).shape
        (2, 7, 64)
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTGroupQueryAttention(MPTAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` whose projections are chosen parts of frozen random kernels.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTAttention` and `MPTLayer`.

    Input shapes: `(batch, steps, features)` of query, value and, on demand, key. Output shape: that of the query.

    Examples:
        >>> layer = keras_mpt.layers.MPTGroupQueryAttention(16, 4, 2, seed=1)
        >>> x = np.ones((2, 7, 64), "float32")
        >>> layer(x, x).shape
        (2, 7, 64)
    """
