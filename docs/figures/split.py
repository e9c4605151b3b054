"""Draws split.png: a ternary kernel as the mean of two binary ones.

python docs/figures/split.py [FOLDER]
"""

import sys

import numpy as np
from common import FOLDER, INK, SIGNS, card, save
from matplotlib.patches import Rectangle

SIZE = 5


def main(folder=FOLDER):
    ternary = np.random.default_rng(3).choice([-1, 0, 1], (SIZE, SIZE), p=[0.3, 0.4, 0.3])
    plus, minus = np.where(ternary == 0, 1, ternary), np.where(ternary == 0, -1, ternary)
    assert (ternary == (plus + minus) / 2).all()
    figure, axes = card(9, 2.8, columns=3)
    titles = ["T, with zeros", "P: zeros became +1", "N: zeros became -1"]
    for axis, kernel, title in zip(axes, (ternary, plus, minus), titles, strict=True):
        axis.imshow(kernel, cmap=SIGNS, vmin=-1, vmax=1)
        for (y, x), value in np.ndenumerate(kernel):
            colour, weight = (INK, "normal") if value == 0 else ("white", "bold" if ternary[y, x] == 0 else "normal")
            axis.text(x, y, f"{value:+d}" if value else "0", ha="center", va="center", color=colour, weight=weight)
            if ternary[y, x] == 0:
                axis.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.5))
        axis.set(title=title, xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
    for axis, text in zip(axes[1:], ("=  ½ ×", "+  ½ ×"), strict=True):
        axis.set_ylabel(text, rotation=0, fontsize=15, labelpad=28, va="center")
    save(figure, "split", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
