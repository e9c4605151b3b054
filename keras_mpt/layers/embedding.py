"""Embedding layer with a frozen random table."""

import keras

from keras_mpt.layers.base import MPTLayer


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTEmbedding(MPTLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a masked, frozen random table.

    Forward: the rows of `q(W, M)` at the inputs. Gradient: that of `MPTLayer`, zero for rows that were not looked up.

    Args:
        *args, **kwargs: Arguments of the Keras layer (except `weights`) and of `MPTLayer` (except
            `input_quantizer`).

    Raises:
        ValueError: `input_quantizer` or `weights` is given, which have no meaning here; or see `MPTLayer`.

    Input shape: `(...)`, integers. Output shape: `(..., output_dim)`. Kernel, called `embeddings`: `(input_dim,
    output_dim)`; `fan_in` is `output_dim`, which keeps the length of a row independent of it.

    Examples:
        >>> layer = keras_mpt.layers.MPTEmbedding(1000, 64, seed=1)
        >>> layer(np.zeros((2, 7), "int32")).shape
        (2, 7, 64)
    """

    _kernels = {"embeddings": "embeddings"}

    def __init__(self, *args, **kwargs):
        if kwargs.get("weights") is not None:
            raise ValueError(f"`weights` has no meaning for embeddings. Received: weights={kwargs['weights']!r}")
        super().__init__(*args, **kwargs)

    def _check_input_quantizer(self, quantizer):
        raise ValueError(
            "`input_quantizer` has no meaning for embeddings. Received: "
            f"input_quantizer={quantizer!r} for layer {self.name!r}"
        )

    @classmethod
    def _meaningless_arguments(cls):
        return (*super()._meaningless_arguments(), "weights")

    def build(self, input_shape=None):
        if not self.built:
            super().build(input_shape)

    def _fan_in(self, shape, kernel="embeddings"):
        return shape[-1]

    def _input_axis(self, kernel="embeddings"):
        return None
