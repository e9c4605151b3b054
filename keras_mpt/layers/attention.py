"""Attention whose projections have frozen random kernels."""

import keras

from keras_mpt import _keras
from keras_mpt.initializers import layer_seeds
from keras_mpt.layers.composite import MPTComposite
from keras_mpt.layers.einsum import MPTEinsumDense
from keras_mpt.layers.twins import keras_seed


class MPTAttention(MPTComposite):
    """Mixin of the attention layers: the projections are `MPTEinsumDense` layers, the rest is Keras'.

    Raises:
        ValueError: `input_quantizer` is given, which no plain layer could apply to the inputs of the last projection;
            or see `MPTLayer`.
    """

    _kernels = {"kernel": "kernel"}
    _inner = ("_query_dense", "_key_dense", "_gate_dense", "_value_dense", "_output_dense")

    def _check_input_quantizer(self, quantizer):
        raise ValueError(
            "`input_quantizer` has no meaning for attention. Received: "
            f"input_quantizer={quantizer!r} for layer {self.name!r}"
        )

    def build(self, query_shape, value_shape, key_shape=None):
        known = _keras.layers_inside(self, recursive=False)
        try:
            self._build_plain(query_shape, value_shape, key_shape)
            for seed, (name, plain) in zip(layer_seeds(self._seed), self._inside().items(), strict=False):
                layer = MPTEinsumDense.from_plain(plain, plain.kernel_initializer, **self._settings(seed, name))
                layer.build(plain.get_build_config()["input_shape"])
                _keras.replace_layer(self, name, layer)
        except BaseException:  # another call builds again, and must not find layers of Keras
            _keras.forget_layers(self, known)
            raise

    def _build_plain(self, *shapes):
        """Create the layers of Keras."""
        seed, self._seed = self._seed, keras_seed(self._seed)  # which Keras' dropout takes
        try:
            super().build(*shapes)
        finally:
            self._seed = seed


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTMultiHeadAttention(MPTAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with masked, frozen random kernels in its projections.

    Attention itself, with masks, dropout and flash attention, is Keras'. Each projection has its own mask and seed.
    `seed` seeds dropout as well.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTAttention` and `MPTLayer`.

    Input shapes: `(batch, ..., features)` of the query, the value and, optionally, the key. Output shape: that of the
    query; `output_shape`, if given, replaces its last axis.

    Examples:
        >>> layer = keras_mpt.layers.MPTMultiHeadAttention(4, 16, seed=1)
        >>> x = np.ones((2, 7, 64), "float32")
        >>> layer(x, x).shape
        (2, 7, 64)
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTGroupQueryAttention(MPTAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` with masked, frozen random kernels in its projections.

    Each projection has its own mask and seed. `seed` seeds dropout as well.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTAttention` and `MPTLayer`.

    Input shapes: `(batch, steps, features)` of the query, the value and, optionally, the key. Output shape: that of the
    query.

    Examples:
        >>> layer = keras_mpt.layers.MPTGroupQueryAttention(16, 4, 2, seed=1)
        >>> x = np.ones((2, 7, 64), "float32")
        >>> layer(x, x).shape
        (2, 7, 64)
    """
