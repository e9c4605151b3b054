"""Draws kernel.png: a kernel of a published ticket, as it was drawn, with its signs alone, and with its mask.

python docs/figures/kernel.py [FOLDER]
"""

import sys

import numpy as np
from common import FOLDER, NEGATIVE, POSITIVE, SIGNS, card, save
from matplotlib.colors import LinearSegmentedColormap

import keras_mpt

ROWS, COLUMNS, GAP = 6, 8, 1


def mosaic(kernel):
    """Return filters of one channel side by side, as an array with NaN between them: (3, 3, n) to an image."""
    size = kernel.shape[0] + GAP
    image = np.full((ROWS * size - GAP, COLUMNS * size - GAP), np.nan)
    for i in range(ROWS * COLUMNS):
        y, x = (size * k for k in divmod(i, COLUMNS))
        image[y : y + size - GAP, x : x + size - GAP] = kernel[..., i]
    return image


def main(folder=FOLDER):
    layer = keras_mpt.zoo.get_preset("conv4_mpt32_s50").model().get_layer("conv1")
    frozen, mask = np.array(layer.frozen_kernel)[:, :, 0], np.array(layer.subnet_mask)[:, :, 0]
    values = LinearSegmentedColormap.from_list("values", [NEGATIVE, "#e9eaee", POSITIVE])
    figure, axes = card(10, 2.7, columns=3)
    figure.get_layout_engine().set(wspace=0.08, w_pad=0.1)
    limit = 2 * frozen.std()
    axes[0].imshow(mosaic(frozen), cmap=values, vmin=-limit, vmax=limit)
    axes[1].imshow(mosaic(np.sign(frozen)), cmap=SIGNS, vmin=-1, vmax=1)
    axes[2].imshow(mosaic(np.sign(frozen) * mask), cmap=SIGNS, vmin=-1, vmax=1)
    titles = ["random: drawn from a seed", "signed: +alpha or -alpha", "masked: what training chose"]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    save(figure, "kernel", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
