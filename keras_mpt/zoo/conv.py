"""Conv-2, Conv-4, Conv-6 and Conv-8: small VGG-like networks for 32x32 images.

In MPT-1/32, a layer is convolution, ReLU, [pooling], without batch normalization. In MPT-1/1, it is convolution,
[pooling], batch normalization, and the next layer takes the signs; the image stays float. Every layer is pruned and
binarized, and has no bias.

Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, section 4.1, arXiv:2103.09377.
"""

import keras

from keras_mpt.zoo.blocks import Blocks
from keras_mpt.zoo.settings import Settings
from keras_mpt.zoo.weights import builder

# Fifteen arguments per function, on three lines instead of fifteen.
# fmt: off


@builder
def conv2_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.5, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Conv-2: 64, 64, pool, then dense 256, 256, classes; 4.3 M weights.

    Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.5, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _conv("conv2_mpt", settings, (64,))


@builder
def conv4_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.5, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Conv-4: 64, 64, pool, 128, 128, pool, then dense 256, 256, classes; 2.4 M weights.

    Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.5, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _conv("conv4_mpt", settings, (64, 128))


@builder
def conv6_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.5, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Conv-6: Conv-4 with another block 256, 256, pool before the dense layers; 2.3 M weights.

    Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.5, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _conv("conv6_mpt", settings, (64, 128, 256))


@builder
def conv8_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.5, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Conv-8: Conv-6 with another block 512, 512, pool before the dense layers; 5.3 M weights.

    Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.5, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _conv("conv8_mpt", settings, (64, 128, 256, 512))


# fmt: on


def _conv(name, settings, blocks):
    """Return a network with two convolutions per number of filters, and three dense layers."""
    net, index = Blocks(settings), 0
    x = image = net.image(2 ** len(blocks), flattened=settings.include_top)
    for filters in blocks:
        for pool in (False, True):
            index += 1
            convolve = net.stem if index == 1 else net.conv
            x = convolve(x, filters, 3, f"conv{index}")
            x = _features(net, x, index, pool)
    if settings.include_top:
        x = keras.layers.Flatten(name="flatten")(x)
        for _ in range(2):
            index += 1
            x = _features(net, net.dense(x, 256, f"dense{index}"), index)
        x = net.logits(x)
    return net.model(image, x, name)


def _features(net, x, index, pool=False):
    x = net.activation(x, f"relu{index}")
    if pool:
        x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
    return net.norm(x, f"norm{index}") if net.settings.binary else x
