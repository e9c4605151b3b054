"""VGG-Small and VGG-19 for 32x32 images, with batch normalization and a single classifier layer."""

import keras

from keras_mpt.zoo.architecture import architecture


@architecture(sparsity=0.95)
def vgg_small_mpt(network, image):
    """VGG-Small: 128, 128, pool, 256, 256, pool, 512, 512, pool, classes; 4.66 M weights.

    Each layer is convolution, [pooling], batch normalization, ReLU. As MPT-1/1 the sign takes the place of ReLU, but
    not of the last one: the classifier's input is float. Every layer is pruned and binarized, none has a bias.

    Published on CIFAR-10: MPT-1/32, 5 % kept: 91.48 % (perhaps of another VGG-Small with fewer batch normalizations and
    ReLUs, which the published configurations are of; this one is in the code, too). MPT-1/1 with `width=1.25`, 25 %
    kept: 89.11 %, with `batch_norm_affine=True` 91.9 %.
    Source: Diffenderfer & Kailkhura 2021, section 4, arXiv:2103.09377.
    """
    return _vgg(network, image, [(2, 128), (2, 256), (2, 512)], pool_first=True)


@architecture(sparsity=0.9)
def vgg19_mpt(network, image):
    """VGG-19 for small images: 2 x 64, 2 x 128, 4 x 256, 4 x 512, 4 x 512, a pool after each, classes; 20.0 M weights.

    Each layer is convolution, batch normalization, ReLU, [pooling]. As MPT-1/1 it is convolution, [pooling], batch
    normalization, sign, but ReLU before the classifier. Every layer is pruned and binarized, none has a bias.

    Published on CIFAR-10 for pretrained instead of random frozen weights (Lottery Jackpots), where the classifier is
    not pruned (`sparsity={"logits": 0.0}`) and has a bias, searched for 30 / 160 epochs: 10 % kept: 93.88 / 93.94 %,
    5 % kept: 93.49 / 93.74 %.
    Source: Simonyan & Zisserman 2015, arXiv:1409.1556; Zhang et al. 2023, arXiv:2104.08700.
    """
    blocks = [(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)]
    return _vgg(network, image, blocks, pool_first=network.binary)


def _vgg(network, x, blocks, pool_first):
    """Blocks of (count, filters) convolutions that end with a pool, before or after batch normalization and ReLU."""
    index, last = 0, sum(count for count, _ in blocks)
    for count, filters in blocks:
        for position in range(1, count + 1):
            index += 1
            pool = keras.layers.MaxPooling2D(name=f"pool{index}") if position == count else None
            convolve = network.stem if index == 1 else network.conv
            x = convolve(x, filters, 3, f"conv{index}")
            x = pool(x) if pool and pool_first else x
            x = network.norm(x, f"norm{index}")
            activation = network.relu if index == last else network.activation
            x = activation(x, f"relu{index}")
            x = pool(x) if pool and not pool_first else x
    if not network.include_top:
        return x
    return network.logits(keras.layers.Flatten(name="flatten")(x), quantized=False)
