"""Draws frontier.png: accuracy against the bytes of a file, of tickets with parts of their masks fixed and dense twins.

    python docs/figures/frontier.py [FOLDER]

Reads `examples/results/frontier.csv`, the `runs.csv` of `examples/recipes/frontier.py`.
"""

import csv
import pathlib
import sys

import numpy as np
from common import FOLDER, INK, NEGATIVE, POSITIVE, card, save

RESULTS = pathlib.Path(__file__).parents[2] / "examples/results/frontier.csv"
COLOURS = {"0.5": NEGATIVE, "0.2": POSITIVE, "1": INK}
LINES = {"0": "o-", "0.5": "o--", "0.75": "o:"}


def main(folder=FOLDER):
    runs = {}
    with RESULTS.open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["bytes"]):  # 0: no network is small enough
                key = row["kind"], row["density"], row["frozen"]
                point = int(row["bytes"]) / 1000, 100 * float(row["accuracy"])
                runs.setdefault(key, {}).setdefault(row["budget"], []).append(point)
    figure, axes = card(8, 4.2)
    for (kind, density, frozen), budgets in runs.items():
        means = np.array([np.mean(points, axis=0) for points in budgets.values()])
        label, style = f"all weights trained, {kind}", "s-" if kind == "int8" else "s--"
        if kind == "ticket":
            label, style = f"{float(density):.0%} kept, {float(frozen):.0%} of that by the seed", LINES[frozen]
        axes.plot(*means.T, style, color=COLOURS[density], label=label)
        for points in budgets.values():
            axes.plot(*np.transpose(points), ".", color=COLOURS[density], alpha=0.5)
    axes.set(xscale="log", xlabel="file (KB)", ylabel="test accuracy (%)")
    axes.set_xticks([10, 20, 40], ["10", "20", "40"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    save(figure, "frontier", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
