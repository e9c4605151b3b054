"""Draws file_size.png: accuracy against bytes, of the zoo's tickets and phone files, dense networks, and the papers'.

    python docs/figures/file_size.py [FOLDER]

The zoo's numbers are those of `zoo/presets.json`. A dense network counts four bytes for each weight. What papers report
is for CIFAR-10 without JPEG.
"""

import sys

from common import FOLDER, INK, NEGATIVE, PALE, POSITIVE, card, save
from matplotlib.ticker import FuncFormatter, NullLocator

import keras_mpt

# Bytes and accuracy in %.
PUBLISHED = {
    "Biprop VGG-Small, 95 %": (161e3, 91.48),  # arXiv:2103.09377, one bit for each kept weight and its place
    "LilNetX VGG-16": (76e3, 90.0),  # arXiv:2204.02965
    "LilNetX ResNet-20 (width 4)": (66e3, 91.5),
}


def main(folder=FOLDER):
    figure, axes = card(8, 5)
    for preset in keras_mpt.zoo.list_presets():
        colour = POSITIVE if preset.activations == "float" else NEGATIVE
        marker = "*" if preset.weights == "binary" else "P"
        axes.plot(preset.bytes, 100 * preset.accuracy, marker, color=colour, markersize=13 if marker == "*" else 9)
        place = {"xytext": (-8, -3), "textcoords": "offset points", "fontsize": 7, "color": colour, "ha": "right"}
        axes.annotate(preset.name, (preset.bytes, 100 * preset.accuracy), **place)
        for facts in preset.converted.values():
            if "file" in facts:
                axes.plot(facts["bytes"], 100 * facts["accuracy"], "o", color=colour, markersize=5, alpha=0.5)
        if preset.dense:
            axes.plot(4 * preset.counts["weights"], 100 * preset.dense["accuracy"], "s", color=INK, markersize=6)
    for below, (name, (size, accuracy)) in zip((True, False, False), PUBLISHED.items(), strict=True):
        axes.plot(size, accuracy, "D", color=PALE, markersize=7, markeredgecolor=INK)
        axes.annotate(name, (size, accuracy), xytext=(7, -10 if below else 3), textcoords="offset points", fontsize=7)
    kinds = [("*", POSITIVE, "ticket, MPT-1/32"), ("*", NEGATIVE, "ticket, MPT-1/1")]
    kinds += [("P", POSITIVE, "ticket of float weights"), ("o", "#8fa3ad", "its phone files")]
    kinds += [("s", INK, "dense network, float32"), ("D", PALE, "from papers, without JPEG")]
    for marker, colour, label in kinds:
        axes.plot([], [], marker, color=colour, label=label)
    axes.set_xscale("log")
    axes.set(xlim=(7e3, 3e7), xlabel="bytes", ylabel="test accuracy (%)")
    axes.set_xticks([1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1e6:g} MB"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    axes.set_title("CIFAR-10 after JPEG (quality 75), one seed each", fontsize=11)
    save(figure, "file_size", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
