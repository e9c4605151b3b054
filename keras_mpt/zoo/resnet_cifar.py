"""ResNet-20 and ResNet-32, the narrow networks for 32x32 images."""

import keras
from keras import ops

from keras_mpt.zoo.architecture import architecture
from keras_mpt.zoo.resnet import basic_block, residual_stages, small_stem

_DETAILS = """
A 3x3 convolution, then three stages of blocks of two 3x3 convolutions with 16, 32, 64 filters; batch normalization
follows each. Shortcuts have no weights: where the stride is 2, they take every second pixel and get channels of zeros
on both sides ("option A"; Biprop's code has 1x1 convolutions there). As MPT-1/1 the sign takes the place of ReLU: after
the addition too, so the shortcut of the next block carries signs (and those zeros), and global pooling averages them
for the classifier. Every layer is pruned and binarized, none has a bias.
"""


@architecture(_DETAILS, sparsity=0.9)
def resnet20_mpt(network, image):
    """ResNet-20 for CIFAR: three stages of three blocks; 0.27 M weights.

    Source: He et al. 2016, section 4.2, arXiv:1512.03385.
    """
    return _resnet(network, image, blocks=3)


@architecture(_DETAILS, sparsity=0.9)
def resnet32_mpt(network, image):
    """ResNet-32 for CIFAR: three stages of five blocks; 0.46 M weights, with `width=2.0` 1.85 M.

    Published on CIFAR-10 for twice the width and pretrained instead of random frozen weights (Lottery Jackpots), where
    the classifier is not pruned (`sparsity={"logits": 0.0}`) and has a bias, searched for 30 / 160 epochs: 10 % kept:
    93.70 / 94.39 %, 5 % kept: 92.90 / 93.41 %.
    Source: He et al. 2016, section 4.2, arXiv:1512.03385; Zhang et al. 2023, arXiv:2104.08700.
    """
    return _resnet(network, image, blocks=5)


def _resnet(network, image, blocks):
    x = small_stem(network, image, 16)
    return residual_stages(network, x, basic_block, [(blocks, 16), (blocks, 32), (blocks, 64)], _zero_channels)


def _zero_channels(network, x, filters, strides, name):
    x = network.quantized(x, f"{name}_sign")
    x = keras.layers.MaxPooling2D(1, strides=strides, name=f"{name}_pool")(x)
    missing = network.scaled(filters) - x.shape[-1]
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
