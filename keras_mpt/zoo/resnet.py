"""ResNet-18, -34, -50 and the wide ones, for ImageNet and for small images."""

import keras
from keras import ops

from keras_mpt.zoo.architecture import architecture

_DETAILS = """
Batch normalization follows each convolution; a block's shortcut is the identity, or a 1x1 convolution where stride or
channels change. As MPT-1/1 the sign takes the place of ReLU: after the addition too, so the shortcut of the next block
carries signs, and global pooling averages them for the classifier. Every layer is pruned and binarized, none has a
bias. Images with sides up to 64 pixels get the stem for small images, a 3x3 convolution with stride 1; larger ones
ImageNet's, a 7x7 convolution with stride 2 and a max-pool. Padding with strides is PyTorch's, the same on all sides.
"""
_IMAGENET = {"input_shape": (224, 224, 3), "classes": 1000}


@architecture(_DETAILS, sparsity=0.8)
def resnet18_mpt(network, image):
    """ResNet-18: 2, 2, 2, 2 blocks of two 3x3 convolutions; 11.2 M weights with 10 classes, 11.7 M with 1000.

    Published on CIFAR-10: MPT-1/32, 20 % kept: 94.66 %, with `batch_norm_affine=True` 94.8 %.
    Source: He et al. 2016, arXiv:1512.03385; Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.
    """
    return _resnet(network, image, basic_block, [(2, 64), (2, 128), (2, 256), (2, 512)])


@architecture(_DETAILS, sparsity=0.8, **_IMAGENET)
def resnet34_mpt(network, image):
    """ResNet-34: 3, 4, 6, 3 blocks of two 3x3 convolutions; 21.8 M weights with 1000 classes.

    Source: He et al. 2016, arXiv:1512.03385; Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.
    """
    return _resnet(network, image, basic_block, [(3, 64), (4, 128), (6, 256), (3, 512)])


@architecture(_DETAILS, sparsity=0.8, **_IMAGENET)
def resnet50_mpt(network, image):
    """ResNet-50: 3, 4, 6, 3 bottlenecks of 1x1, 3x3 (with the stride) and 1x1 convolutions; 25.5 M weights.

    Published on ImageNet for pretrained instead of random frozen weights (Lottery Jackpots), where the classifier is
    not pruned (`sparsity={"logits": 0.0}`), searched for 30 epochs: 20 % kept: 75.19 %, 10 % kept: 72.43 %.
    Source: He et al. 2016, arXiv:1512.03385; Zhang et al. 2023, arXiv:2104.08700.
    """
    return _resnet(network, image, bottleneck_block, [(3, 64), (4, 128), (6, 256), (3, 512)])


@architecture(_DETAILS, sparsity=0.6, **_IMAGENET)
def wide_resnet34_mpt(network, image):
    """Wide ResNet-34: ResNet-34 with 64, 192, 384, 768 filters in its stages; 48.3 M weights.

    Published on ImageNet: MPT-1/1, 40 % kept: 45.06 %, with `batch_norm_affine=True` 52.07 %.
    Source: Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377, and its code for the stages' filters.
    """
    return _resnet(network, image, basic_block, [(3, 64), (4, 192), (6, 384), (3, 768)])


@architecture(_DETAILS, sparsity=0.8, **_IMAGENET)
def wide_resnet50_mpt(network, image):
    """Wide ResNet-50: ResNet-50 with twice the filters inside of its bottlenecks; 68.8 M weights.

    Published on ImageNet: MPT-1/32, 20 % kept: 72.67 %, with `batch_norm_affine=True` 74.03 %.
    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146; Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.
    """
    return _resnet(network, image, wide_bottleneck_block, [(3, 64), (4, 128), (6, 256), (3, 512)])


# A block is a list of convolutions: filters, kernel size, stride.


def basic_block(filters, strides):
    return [(filters, 3, strides), (filters, 3, 1)]


def bottleneck_block(filters, strides):
    return [(filters, 1, 1), (filters, 3, strides), (4 * filters, 1, 1)]


def wide_bottleneck_block(filters, strides):
    return [(2 * filters, 1, 1), (2 * filters, 3, strides), (4 * filters, 1, 1)]


def _resnet(network, image, convolutions, stages):
    x = small_stem(network, image, 64) if max(image.shape[1:3]) <= 64 else _imagenet_stem(network, image)
    return residual_stages(network, x, convolutions, stages, _projection)


def small_stem(network, image, filters):
    x = network.stem(image, filters, 3, "conv1")
    return network.activation(network.norm(x, "norm1"), "relu1")


def _imagenet_stem(network, image):
    x = network.stem(image, 64, 7, "conv1", strides=2)
    x = network.activation(network.norm(x, "norm1"), "relu1")
    # PyTorch pads with -inf. The mirrored border changes no maximum, for every window that reaches it holds the border.
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1")(x)


def residual_stages(network, x, convolutions, stages, projection):
    """Add the stages, global pooling and the classifier.

    Args:
        network: A `Network`.
        x: Feature maps `(batch, height, width, channels)` after ReLU (in MPT-1/1 before the sign).
        convolutions: Function of `(filters, strides)`: a block's convolutions, as `(filters, kernel size, stride)`.
        stages: Numbers of blocks and filters. All stages but the first begin with stride 2.
        projection: Function of `(network, x, filters, strides, name)`: the shortcut where it is not the identity.
    """
    for stage, (blocks, filters) in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_block{block}"
            chain = convolutions(filters, strides)
            y = _chain(network, x, chain, name)
            if x.shape == y.shape:
                shortcut = network.quantized(x, f"{name}_shortcut_sign")
            else:
                shortcut = projection(network, x, chain[-1][0], strides, f"{name}_shortcut")
            x = keras.layers.Add(name=f"{name}_add")([y, shortcut])
            x = network.activation(x, f"{name}_relu")
    x = network.quantized(x, "sign")
    if not network.include_top:
        return x
    return network.logits(keras.layers.GlobalAveragePooling2D(name="pool")(x), quantized=False)


def _chain(network, x, convolutions, name):
    for index, (filters, size, strides) in enumerate(convolutions, start=1):
        if index > 1:
            x = network.activation(x, f"{name}_relu{index - 1}")
        x = network.norm(network.conv(x, filters, size, f"{name}_conv{index}", strides), f"{name}_norm{index}")
    return x


def _projection(network, x, filters, strides, name):
    return network.norm(network.conv(x, filters, 1, name, strides), f"{name}_norm")
