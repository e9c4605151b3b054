"""Conv-2, Conv-4, Conv-6 and Conv-8: small networks of the VGG kind, without shortcuts, for 32x32 images."""

import keras

from keras_mpt.initializers import layer_seeds
from keras_mpt.layers import MPTConv2D, MPTDense

_BLOCKS = {2: (64,), 4: (64, 128), 6: (64, 128, 256), 8: (64, 128, 256, 512)}
_DENSE_UNITS = (256, 256)


def conv2_mpt(**kwargs):
    """Conv-2: 64, 64, pool, then dense 256, 256, classes (4.3 M weights on CIFAR-10). See `conv4_mpt`."""
    return _conv_mpt(2, **kwargs)


def conv4_mpt(**kwargs):
    """Conv-4: 64, 64, pool, 128, 128, pool, then dense 256, 256, classes (2.4 M weights on CIFAR-10).

    As MPT-1/32 (default) each layer is convolution, ReLU, [pooling], without batch normalization. As MPT-1/1
    (`input_quantizer="approx_sign"`) it is convolution, [pooling], batch normalization, and the sign is taken by the
    next layer; the image itself stays float. Every layer is pruned and binarized, none has a bias.
    Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, section 4.1,
    arXiv:2103.09377.

    Args:
        input_shape: Default `(32, 32, 3)`.
        classes: Number of logits, default 10.
        sparsity: Fraction of each layer's weights removed, default 0.5.
        input_quantizer: None for MPT-1/32, `"approx_sign"` or another activation quantizer for MPT-1/1.
        kernel_quantizer: `"scaled_sign"` (Biprop) or None (Edge-Popup).
        kernel_initializer: Default `"kaiming_normal"`; see `keras_mpt.initializers`.
        batch_norm_affine: Whether MPT-1/1's batch normalization has trainable gamma and beta, default False.
        pad_values: What the convolutions pad with; 1.0 keeps the inputs of binary convolutions binary. Default 0.0.
        width: Factor on the number of filters and units, default 1.0.
        include_top: Whether to add the dense layers, default True; without, the last pooled features are returned.
        seed: Integer from which each layer's seed is derived in construction order; None draws one.

    Returns:
        A functional `keras.Model` from images `(batch, 32, 32, 3)` to logits `(batch, classes)`.

    Example:

    >>> model = keras_mpt.zoo.conv4_mpt(sparsity=0.5, seed=0)
    """
    return _conv_mpt(4, **kwargs)


def conv6_mpt(**kwargs):
    """Conv-6: Conv-4 with a further block 256, 256, pool (2.3 M weights on CIFAR-10). See `conv4_mpt`."""
    return _conv_mpt(6, **kwargs)


def conv8_mpt(**kwargs):
    """Conv-8: Conv-6 with a further block 512, 512, pool (5.3 M weights on CIFAR-10). See `conv4_mpt`."""
    return _conv_mpt(8, **kwargs)


def _conv_mpt(
    depth,
    *,
    input_shape=(32, 32, 3),
    classes=10,
    sparsity=0.5,
    input_quantizer=None,
    kernel_quantizer="scaled_sign",
    kernel_initializer="kaiming_normal",
    batch_norm_affine=False,
    pad_values=0.0,
    width=1.0,
    include_top=True,
    seed=None,
):
    seeds = layer_seeds(seed)
    binary = input_quantizer is not None

    def ticket():
        return {
            "sparsity": sparsity,
            "kernel_quantizer": kernel_quantizer,
            "kernel_initializer": kernel_initializer,
            "seed": next(seeds),
        }

    def features(x, index, pool=False):
        if not binary:
            x = keras.layers.ReLU(name=f"relu{index}")(x)
        if pool:
            x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
        if binary:
            affine = {"center": batch_norm_affine, "scale": batch_norm_affine}
            x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"norm{index}", **affine)(x)
        return x

    inputs = x = keras.Input(input_shape, name="image")
    index = 0
    for filters in _BLOCKS[depth]:
        for position in range(2):
            index += 1
            x = MPTConv2D(
                round(width * filters),
                3,
                padding="same",
                pad_values=pad_values,
                input_quantizer=None if index == 1 else input_quantizer,
                name=f"conv{index}",
                **ticket(),
            )(x)
            x = features(x, index, pool=position == 1)
    if include_top:
        x = keras.layers.Flatten(name="flatten")(x)
        for units in _DENSE_UNITS:
            index += 1
            x = MPTDense(round(width * units), input_quantizer=input_quantizer, name=f"dense{index}", **ticket())(x)
            x = features(x, index)
        x = MPTDense(classes, input_quantizer=input_quantizer, name="logits", **ticket())(x)
    return keras.Model(inputs, x, name=f"conv{depth}_mpt")
