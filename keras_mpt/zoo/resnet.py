"""ResNets: ResNet-18, -34, -50 and the wide ones, for ImageNet and for small images; ResNet-20 and -32 for CIFAR.

Batch normalization follows each convolution. In MPT-1/1, the sign replaces ReLU, also after the addition: the shortcut
of the next block carries signs, and global pooling averages them for the classifier. Every layer is pruned and
binarized, and has no bias. Strided convolutions pad as in PyTorch, the same on all sides.

The first five have four stages. A block's shortcut is the identity, or a 1x1 convolution where stride or channels
change. Images of up to 64x64 pixels get the stem for small images, a 3x3 convolution with stride 1; larger ones get
ImageNet's, a 7x7 convolution with stride 2 and a max-pool. For images of any size, `input_shape=(None, None, 3)`, it is
the stem of the default `input_shape`.

ResNet-20 and -32 have a 3x3 convolution and three stages of 16, 32 and 64 filters. Their shortcuts have no weights:
with stride 2, they take every second pixel and add channels of zeros on both sides ("option A"; Biprop's code has 1x1
convolutions there).
"""

import keras
from keras import ops

from keras_mpt.zoo.blocks import Blocks
from keras_mpt.zoo.settings import Settings
from keras_mpt.zoo.weights import builder

_STAGES_34 = [(3, 64), (4, 128), (6, 256), (3, 512)]  # numbers of blocks and filters

# Fifteen arguments per function, on three lines instead of fifteen.
# fmt: off


@builder
def resnet18_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.8, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """ResNet-18: 2, 2, 2, 2 blocks of two 3x3 convolutions; 11.2 M weights with 10 classes, 11.7 M with 1000.

    Published on CIFAR-10: MPT-1/32, 20 % kept: 94.66 %, with `batch_norm_affine=True` 94.8 %.
    Source: He et al. 2016, arXiv:1512.03385; Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.8, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _resnet("resnet18_mpt", settings, _basic_block, [(2, 64), (2, 128), (2, 256), (2, 512)], default_side=32)


@builder
def resnet34_mpt(
    *, input_shape=(224, 224, 3), classes=1000, sparsity=0.8, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """ResNet-34: 3, 4, 6, 3 blocks of two 3x3 convolutions; 21.8 M weights with 1000 classes.

    Source: He et al. 2016, arXiv:1512.03385; Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.8, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _resnet("resnet34_mpt", settings, _basic_block, _STAGES_34)


@builder
def resnet50_mpt(
    *, input_shape=(224, 224, 3), classes=1000, sparsity=0.8, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """ResNet-50: 3, 4, 6, 3 bottlenecks of 1x1, 3x3 (with the stride) and 1x1 convolutions; 25.5 M weights.

    Published on ImageNet with pretrained frozen weights (Lottery Jackpots), searched for 30 epochs: 20 % kept: 75.19 %,
    10 % kept: 72.43 %. The classifier there is not pruned (`sparsity={"logits": 0.0}`).
    Source: He et al. 2016, arXiv:1512.03385; Zhang et al. 2023, arXiv:2104.08700.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.8, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _resnet("resnet50_mpt", settings, _bottleneck, _STAGES_34)


@builder
def wide_resnet34_mpt(
    *, input_shape=(224, 224, 3), classes=1000, sparsity=0.6, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Wide ResNet-34: ResNet-34 with 64, 192, 384, 768 filters in its stages; 48.3 M weights.

    Published on ImageNet: MPT-1/1, 40 % kept: 45.06 %, with `batch_norm_affine=True` 52.07 %.
    Source: Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377, and its code for the stages' filters.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.6, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _resnet("wide_resnet34_mpt", settings, _basic_block, [(3, 64), (4, 192), (6, 384), (3, 768)])


@builder
def wide_resnet50_mpt(
    *, input_shape=(224, 224, 3), classes=1000, sparsity=0.8, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Wide ResNet-50: ResNet-50 with twice the filters inside its bottlenecks; 68.8 M weights.

    Published on ImageNet: MPT-1/32, 20 % kept: 72.67 %, with `batch_norm_affine=True` 74.03 %.
    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146; Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.8, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _resnet("wide_resnet50_mpt", settings, _wide_bottleneck, _STAGES_34)


@builder
def resnet20_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.9, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """ResNet-20 for CIFAR: three stages of three blocks; 0.27 M weights.

    Source: He et al. 2016, section 4.2, arXiv:1512.03385.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.9, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _cifar_resnet("resnet20_mpt", settings, blocks=3)


@builder
def resnet32_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.9, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="kaiming_normal", batch_norm_affine=False, float_stem=False,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """ResNet-32 for CIFAR: three stages of five blocks; 0.46 M weights, with `width=2.0` 1.85 M.

    Published on CIFAR-10 with twice the width and pretrained frozen weights (Lottery Jackpots), searched for 30 / 160
    epochs: 10 % kept: 93.70 / 94.39 %, 5 % kept: 92.90 / 93.41 %. The classifier there is not pruned
    (`sparsity={"logits": 0.0}`) and has a bias.
    Source: He et al. 2016, section 4.2, arXiv:1512.03385; Zhang et al. 2023, arXiv:2104.08700.

    For arguments and errors, see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.9, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    return _cifar_resnet("resnet32_mpt", settings, blocks=5)


# fmt: on


def _resnet(name, settings, convolutions, stages, default_side=224):
    net = Blocks(settings)
    image = net.image()
    sides = [side for side in settings.input_shape[:2] if side]
    stem = _small_stem if max(sides, default=default_side) <= 64 else _imagenet_stem
    x = _stages(net, stem(net, image, 64), convolutions, stages, _projection)
    return net.model(image, _top(net, x), name)


def _cifar_resnet(name, settings, blocks):
    net = Blocks(settings)
    image = net.image()
    stages = [(blocks, 16), (blocks, 32), (blocks, 64)]
    x = _stages(net, _small_stem(net, image, 16), _basic_block, stages, _zero_channels)
    return net.model(image, _top(net, x), name)


def _small_stem(net, image, filters):
    x = net.stem(image, filters, 3, "conv1")
    return net.activation(net.norm(x, "norm1"), "relu1")


def _imagenet_stem(net, image, filters):
    x = net.stem(image, filters, 7, "conv1", strides=2)
    x = net.activation(net.norm(x, "norm1"), "relu1")
    # PyTorch pads with -inf. Mirrored borders give the same maximum: a window that reaches them holds the border too.
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1")(x)


# A block is a list of convolutions: filters, kernel size, stride.


def _basic_block(filters, strides):
    return [(filters, 3, strides), (filters, 3, 1)]


def _bottleneck(filters, strides):
    return [(filters, 1, 1), (filters, 3, strides), (4 * filters, 1, 1)]


def _wide_bottleneck(filters, strides):
    return [(2 * filters, 1, 1), (2 * filters, 3, strides), (4 * filters, 1, 1)]


# A shortcut that is not the identity.


def _projection(net, x, filters, strides, name):
    return net.norm(net.conv(x, filters, 1, name, strides), f"{name}_norm")


def _zero_channels(net, x, filters, strides, name):
    x = net.quantized(x, f"{name}_sign")
    x = keras.layers.MaxPooling2D(1, strides=strides, name=f"{name}_pool")(x)
    missing = net.settings.scaled(filters) - x.shape[-1]
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def _stages(net, x, convolutions, stages, reshape):
    """Return the feature maps after the stages, in MPT-1/1 their signs.

    Args:
        net: `Blocks`.
        x: Feature maps `(batch, height, width, channels)`, after ReLU or, in MPT-1/1, before the sign.
        convolutions: Called as `convolutions(filters, strides)`; returns the convolutions of a block.
        stages: Numbers of blocks and filters. All stages but the first begin with stride 2.
        reshape: Called as `reshape(net, x, filters, strides, name)`; returns a shortcut that is not the identity.
    """
    for stage, (blocks, filters) in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_block{block}"
            chain = convolutions(filters, strides)
            y = _chain(net, x, chain, name)
            if strides == 1 and x.shape[-1] == y.shape[-1]:
                shortcut = net.quantized(x, f"{name}_shortcut_sign")
            else:
                shortcut = reshape(net, x, chain[-1][0], strides, f"{name}_shortcut")
            x = keras.layers.Add(name=f"{name}_add")([y, shortcut])
            x = net.activation(x, f"{name}_relu")
    return net.quantized(x, "sign")


def _chain(net, x, convolutions, name):
    for index, (filters, size, strides) in enumerate(convolutions, start=1):
        if index > 1:
            x = net.activation(x, f"{name}_relu{index - 1}")
        x = net.norm(net.conv(x, filters, size, f"{name}_conv{index}", strides), f"{name}_norm{index}")
    return x


def _top(net, x):
    if not net.settings.include_top:
        return x
    return net.logits(keras.layers.GlobalAveragePooling2D(name="pool")(x), quantized=False)
