"""A convolutional network behind a frozen whitening stem: much accuracy for little compute.

The stem is a frozen 2x2 convolution that makes the pixels of a patch uncorrelated. `whitening_kernel` computes its
weights from training images, a ticket stores them, and it is never pruned. Then come three groups of two 3x3
convolutions, the first of them followed by a max-pool, each by batch normalization (gamma stays 1, beta is trained) and
GELU; a shortcut goes around the second of each group (the source's larger network has them). Then come a global
max-pool and the classifier.

As MPT-1/1 each convolution takes the signs of its inputs instead of GELU. One sign says little of an output of the
stem, so each is repeated and compared with four thresholds, a thermometer code (Zhang et al. 2021, arXiv:2012.12206).
A shortcut goes around each convolution but the first (Liu et al. 2018, arXiv:1808.00278), so that what comes before a
sign is not lost in it. Shortcuts are averaged, not added: sums would grow beyond +-1, where signs have no gradient.
Where a group begins, the shortcut is averaged over 2x2 pixels and repeated along the channels. The classifier gets the
mean over the image, not signs.

Source: Jordan 2024, section 3, arXiv:2404.00498, where all weights but the stem's are trained.
"""

import keras
import numpy as np

from keras_mpt.arguments import check_count, check_positive
from keras_mpt.zoo.blocks import Blocks
from keras_mpt.zoo.settings import Settings
from keras_mpt.zoo.weights import builder

_STEM_SIZE = 2
_LEAST_SIDE = 9  # the stem leaves 8, and three pools 1
_LOGITS_SCALE = 1 / 9
_THRESHOLDS = (-1.0, -1 / 3, 1 / 3, 1.0)  # in standard deviations of the stem's outputs
# fmt: off


@builder
def whitened_conv6_mpt(
    *, input_shape=(32, 32, 3), classes=10, sparsity=0.5, mask=None, input_quantizer=None,
    kernel_quantizer="scaled_sign", kernel_initializer="signed_constant", batch_norm_affine=True, float_stem=True,
    pad_values=0.0, width=1.0, seed=None, include_top=True, dtype=None, weights=None,
):
    """Whitened Conv-6: 24 frozen filters, then 64, 64, 256, 256, 256, 256; 2.0 M weights, images of any size.

    `batch_norm_affine` is for beta alone. `float_stem` must be True: the stem is not a ticket. Give it the weights
    that fit the images: `model.get_layer("stem").set_weights([keras_mpt.zoo.whitening_kernel(images)])`.

    Source: Jordan 2024, section 3, arXiv:2404.00498, where all weights but the stem's are trained.

    Arguments and errors are those of all networks: see `keras_mpt.zoo.Settings` and `help(keras_mpt.zoo)`.
    """
    if not float_stem:
        raise ValueError(f"`float_stem` must be True: the stem is fixed by the images. Received: {float_stem=}")
    settings = Settings(
        input_shape=input_shape, classes=classes, sparsity=sparsity, default_sparsity=0.5, mask=mask,
        input_quantizer=input_quantizer, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer,
        batch_norm_affine=batch_norm_affine, float_stem=float_stem, pad_values=pad_values, width=width, seed=seed,
        include_top=include_top)
    net = Blocks(settings)
    x = image = net.image(_LEAST_SIDE)
    filters = 2 * _STEM_SIZE**2 * settings.input_shape[-1]
    unfit = keras.initializers.GlorotUniform(0)  # until `whitening_kernel` takes its place
    x = keras.layers.Conv2D(
        filters, _STEM_SIZE, use_bias=False, kernel_initializer=unfit, trainable=False, name="stem")(x)
    x = _thermometer(net, x) if settings.binary else _activation(net, x, 0)
    for index, filters in enumerate((64, 64, 256, 256, 256, 256), 1):
        first, before = index % 2, x
        x = net.conv(x, filters, 3, f"conv{index}")
        if first:
            x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
        x = _features(net, x, index)
        if not first or (settings.binary and index > 1):
            x = _shortcut(net, before, x, index)
    return net.model(image, _logits(net, x) if include_top else x, "whitened_conv6_mpt")


# fmt: on


def _thermometer(net, x):
    """Return outputs whose signs tell above which thresholds those of the stem are; training moves the thresholds."""
    offsets = [threshold for threshold in _THRESHOLDS for _ in range(x.shape[-1])]
    x = keras.layers.Concatenate(name="copies0")([x] * len(_THRESHOLDS))
    return keras.layers.Rescaling(1.0, offsets, name="thresholds")(_features(net, x, 0))


def _features(net, x, index):
    affine = net.settings.batch_norm_affine
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, scale=False, center=affine, name=f"norm{index}")(x)
    return _activation(net, x, index)


def _activation(net, x, index):
    return x if net.settings.binary else keras.layers.Activation("gelu", name=f"gelu{index}")(x)


def _shortcut(net, before, x, index):
    copies, rest = divmod(x.shape[-1], before.shape[-1])
    if rest:  # of a width that does not divide the channels
        return x
    if index % 2:
        before = keras.layers.AveragePooling2D(2, name=f"mean{index}")(before)
    if copies > 1:
        before = keras.layers.Concatenate(name=f"copies{index}")([before] * copies)
    if net.settings.binary:
        return keras.layers.Average(name=f"average{index}")([before, x])
    return keras.layers.Add(name=f"add{index}")([before, x])


def _logits(net, x):
    if net.settings.binary:
        return net.logits(keras.layers.GlobalAveragePooling2D(name="pool")(x), quantized=False)
    x = keras.layers.GlobalMaxPooling2D(name="pool")(x)
    return keras.layers.Rescaling(_LOGITS_SCALE, name="scaled_logits")(net.logits(x))


def whitening_kernel(images, size=_STEM_SIZE, epsilon=5e-4):
    """Return filters that whiten the patches of images: their outputs are uncorrelated and of variance 1.

    With `v_i`, `d_i` the eigenvectors and eigenvalues of the covariance of all patches, the largest first, the filters
    are `v_i / sqrt(d_i + epsilon)`, followed by their negatives, because a ReLU would remove half of the values.

    Source: Jordan 2024, section 3.2, arXiv:2404.00498.

    Args:
        images: Float array `(number, height, width, channels)`, preprocessed as for the network. 5,000 are
            enough.
        size: Height and width of a patch, an integer > 0.
        epsilon: Number > 0, added to the eigenvalues to limit directions without variance.

    Returns:
        A float32 array `(size, size, channels, 2 * size * size * channels)`.

    Raises:
        ValueError: An argument is not as described.
    """
    check_count("size", size)
    epsilon = check_positive("epsilon", epsilon)
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype.kind != "f" or min(images.shape[1:3]) < size or not images.size:
        raise ValueError(
            "`images` must be a float array (number, height, width, channels) of images that hold a patch. "
            f"Received: shape {images.shape}, dtype {images.dtype}, size={size}"
        )
    if not np.isfinite(images).all():
        raise ValueError("`images` must be finite. Received: infinity or NaN")
    patches = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * images.shape[-1])
    if len(patches) < 2:
        raise ValueError(f"`images` must hold two patches or more. Received: shape {images.shape}, size={size}")
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(patches.T.astype(np.float64))))
    filters = (directions / np.sqrt(np.maximum(variances, 0) + epsilon)).T[::-1]  # rounding may make a zero negative
    filters = np.concatenate([filters, -filters]).reshape(-1, size, size, images.shape[-1])
    return filters.transpose(1, 2, 3, 0).astype(np.float32)
