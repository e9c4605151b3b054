"""Draws scores.png and churn.png: what a training on digits does to scores and masks.

python docs/figures/search.py [FOLDER]
"""

import sys

import numpy as np
from common import FOLDER, INK, PALE, POSITIVE, card, digits, network, save

from keras_mpt.callbacks import MaskStatistics

EPOCHS = 20
LAYER = "conv2"


def draw_scores(before, after, kept, folder):
    figure, axes = card(9, 3.2, columns=2)
    for axis, scores, title in zip(axes, (before, after), ("before training", f"after {EPOCHS} epochs"), strict=True):
        threshold = np.sort(np.abs(scores).ravel())[-kept]
        bins = threshold * np.arange(-40, 41) / 10
        bins = bins[np.abs(bins) <= np.abs(scores).max() + threshold / 10]
        for inside, colour, label in ((True, PALE, "removed"), (False, POSITIVE, "kept")):
            values = scores[(np.abs(scores) < threshold) == inside]
            axis.hist(values, bins, color=colour, label=f"{label}: {values.size:,}")
        for cut in (-threshold, threshold):
            axis.axvline(cut, color=INK, linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="score")
    axes[0].set_ylabel(f"weights of {LAYER}")
    axes[1].legend(fontsize="small", facecolor="white")
    save(figure, "scores", folder)


def draw_churn(history, folder):
    figure, axes = card(7, 3.2)
    for marker, name in zip("os^D", ("conv1", "conv2", "conv3", "logits"), strict=True):
        flips = 100 * np.array(history[f"flip_ratio/{name}"])
        axes.plot(1 + np.arange(EPOCHS), flips, f"{marker}-", markersize=4, label=name)
    axes.set(xlabel="epoch", ylabel="weights that came or went (%)", xticks=range(2, EPOCHS + 1, 2))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, "churn", folder)


def main(folder=FOLDER):
    images, _, labels, _ = digits()
    model = network()
    layer = model.get_layer(LAYER)
    before = np.array(layer.scores)
    history = model.fit(images, labels, 32, EPOCHS, callbacks=[MaskStatistics()], verbose=2).history
    draw_scores(before, np.array(layer.scores), int(layer.kept), folder)
    draw_churn(history, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
