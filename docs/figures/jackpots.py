"""Draws jackpots.png: test accuracy by epoch of sparse networks found in a trained one, mean and range of the seeds.

    python docs/figures/jackpots.py [FOLDER]

Reads `examples/results/jackpots.csv`, which `examples/recipes/jackpot_study.py` calls `accuracy.csv`.
"""

import csv
import pathlib
import sys

import numpy as np
from common import FOLDER, INK, NEGATIVE, POSITIVE, card, save

RESULTS = pathlib.Path(__file__).parents[2] / "examples/results/jackpots.csv"
STYLES = {
    "jackpot": (POSITIVE, "-"),
    "unrestricted": ("#7b4fa3", "--"),
    "random": (NEGATIVE, "-"),
    "finetuned": (INK, "-"),
    "binary": ("#b8860b", "-"),
}


def main(folder=FOLDER):
    with RESULTS.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    sparsities = sorted({row["sparsity"] for row in rows})
    figure, panels = card(8, 3.8, len(sparsities), sharey=True)
    panels = np.atleast_1d(panels)
    for axes, sparsity in zip(panels, sparsities, strict=True):
        for method, (colour, line) in STYLES.items():
            seeds = {}
            for row in rows:
                if (row["method"], row["sparsity"]) == (method, sparsity):
                    seeds.setdefault(row["seed"], []).append(float(row["test accuracy"]))
            if not seeds:
                continue
            curves = np.array([*seeds.values()])
            epochs = range(1, curves.shape[1] + 1)
            axes.plot(epochs, curves.mean(0), color=colour, linestyle=line, label=method)
            axes.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="epoch", title=f"{100 * float(sparsity):g} % of the weights removed")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(frameon=False, loc="lower right")
    save(figure, "jackpots", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
