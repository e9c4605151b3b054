"""VGG-Small and VGG-19 for 32x32 images, with batch normalization and a single classifier layer."""

import keras

from keras_mpt.zoo.blocks import Blocks
from keras_mpt.zoo.settings import Settings
from keras_mpt.zoo.weights import builder

# Fifteen arguments per function, on three lines instead of fifteen.
# fmt: off


@builder
def vgg_small_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.95, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """VGG-Small: 128, 128, pool, 256, 256, pool, 512, 512, pool, classes; 4.66 M weights.

    A layer is convolution, [pooling], batch normalization, ReLU. In MPT-1/1, the sign replaces every ReLU except the
    last one: the classifier's input is float. Every layer is pruned and binarized, and has no bias.

    Published on CIFAR-10: MPT-1/32, 5 % kept: 91.48 %. (The published code also has a VGG-Small with fewer batch
    normalizations and ReLUs, which its configurations use; the result may belong to that one.) MPT-1/1 with
    `width=1.25`, 25 % kept: 89.11 %, with `batch_norm_affine=True` 91.9 %.
    Source: Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.95, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _vgg("vgg_small_mpt", settings, [(2, 128), (2, 256), (2, 512)], pool_first=True)


@builder
def vgg19_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.9, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """VGG-19 for small images: 2 x 64, 2 x 128, 4 x 256, 4 x 512, 4 x 512, a pool after each, classes; 20.0 M weights.

    A layer is convolution, batch normalization, ReLU, [pooling]. In MPT-1/1, it is convolution, [pooling], batch
    normalization, sign, with ReLU before the classifier. Every layer is pruned and binarized, and has no bias.

    Published on CIFAR-10 with pretrained frozen weights (Lottery Jackpots), searched for 30 / 160 epochs: 10 % kept:
    93.88 / 93.94 %, 5 % kept: 93.49 / 93.74 %. The classifier there is not pruned (`sparsity={"logits": 0.0}`) and has
    a bias.
    Source: Simonyan & Zisserman 2015, arXiv:1409.1556; Zhang et al. 2023, arXiv:2104.08700.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.9, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _vgg("vgg19_mpt", settings, [(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)], pool_first=settings.binary)


# fmt: on


def _vgg(name, settings, blocks, pool_first):
    """Return a network with blocks of (count, filters) convolutions and a pool before or after norm and ReLU."""
    net, index, last = Blocks(settings), 0, sum(count for count, _ in blocks)
    x = image = net.image(2 ** len(blocks), flattened=settings.include_top)
    for count, filters in blocks:
        for position in range(1, count + 1):
            index += 1
            pool = keras.layers.MaxPooling2D(name=f"pool{index}") if position == count else None
            convolve = net.stem if index == 1 else net.conv
            x = convolve(x, filters, 3, f"conv{index}")
            x = pool(x) if pool and pool_first else x
            x = net.norm(x, f"norm{index}")
            activation = net.relu if index == last else net.activation
            x = activation(x, f"relu{index}")
            x = pool(x) if pool and not pool_first else x
    if settings.include_top:
        x = net.logits(keras.layers.Flatten(name="flatten")(x), quantized=False)
    return net.model(image, x, name)
