"""Conv-2, Conv-4, Conv-6 and Conv-8: small networks of the VGG kind, without shortcuts, for 32x32 images."""

import keras

from keras_mpt.zoo.architecture import architecture

_DETAILS = """
As MPT-1/32 each layer is convolution, ReLU, [pooling], without batch normalization. As MPT-1/1 it is convolution,
[pooling], batch normalization, and the sign is taken by the next layer; the image itself stays float. Every layer is
pruned and binarized, none has a bias.

Source: Ramanujan et al. 2020, table 1, arXiv:1911.13299; Diffenderfer & Kailkhura 2021, section 4.1, arXiv:2103.09377.
"""


@architecture(_DETAILS)
def conv2_mpt(network, image):
    """Conv-2: 64, 64, pool, then dense 256, 256, classes; 4.3 M weights."""
    return _conv(network, image, (64,))


@architecture(_DETAILS)
def conv4_mpt(network, image):
    """Conv-4: 64, 64, pool, 128, 128, pool, then dense 256, 256, classes; 2.4 M weights."""
    return _conv(network, image, (64, 128))


@architecture(_DETAILS)
def conv6_mpt(network, image):
    """Conv-6: Conv-4 with a further block 256, 256, pool before the dense layers; 2.3 M weights."""
    return _conv(network, image, (64, 128, 256))


@architecture(_DETAILS)
def conv8_mpt(network, image):
    """Conv-8: Conv-6 with a further block 512, 512, pool before the dense layers; 5.3 M weights."""
    return _conv(network, image, (64, 128, 256, 512))


def _conv(network, x, blocks):
    index = 0
    for filters in blocks:
        for pool in (False, True):
            index += 1
            convolve = network.stem if index == 1 else network.conv
            x = convolve(x, filters, 3, f"conv{index}")
            x = _features(network, x, index, pool)
    if not network.include_top:
        return x
    x = keras.layers.Flatten(name="flatten")(x)
    for _ in range(2):
        index += 1
        x = _features(network, network.dense(x, 256, f"dense{index}"), index)
    return network.logits(x)


def _features(network, x, index, pool=False):
    x = network.activation(x, f"relu{index}")
    if pool:
        x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
    return network.norm(x, f"norm{index}") if network.binary else x
