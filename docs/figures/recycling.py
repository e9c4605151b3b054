"""Draws recycling.png: how much better than plain runs of the same seeds those with changed weights are.

    python docs/figures/recycling.py [FOLDER]

Reads `examples/results/recycling_study.csv`, the `runs.csv` of `examples/recipes/recycling_study.py`.
"""

import csv
import pathlib
import sys

import numpy as np
from common import FOLDER, INK, NEGATIVE, POSITIVE, card, save

RESULTS = pathlib.Path(__file__).parents[2] / "examples/results/recycling_study.csv"
COLOURS = {"recycling": POSITIVE, "ablation": NEGATIVE, "iterand": "#7b4fa3"}


def main(folder=FOLDER):
    with RESULTS.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    key = ("algorithm", "method", "width", "sparsity", "seed")
    accuracy = {tuple(row[name] for name in key): row["accuracy"] for row in rows}
    algorithms = dict.fromkeys(row["algorithm"] for row in rows)
    figure, panels = card(8, 3.8, len(algorithms), sharey=True)
    for axes, algorithm in zip(panels, algorithms, strict=True):
        networks = sorted({(row["width"], row["sparsity"]) for row in rows if row["algorithm"] == algorithm})
        axes.axhline(0, color=INK, linewidth=1)
        for shift, (method, colour) in enumerate(COLOURS.items(), -1):
            for place, network in enumerate(networks):
                differences = [
                    100 * (float(value) - float(accuracy[(algorithm, "plain", *network, seed)]))
                    for (*run, seed), value in accuracy.items()
                    if run == [algorithm, method, *network]
                ]
                x, label = place + 0.22 * shift, method if place == 0 else None
                axes.plot([x] * len(differences), differences, "o", color=colour, alpha=0.5, markersize=4)
                axes.plot(x, np.mean(differences), "_", color=colour, markersize=16, markeredgewidth=2.5, label=label)
        titles = [f"{float(s):.0%}" + ("\nwhole width" if float(w) == 1 else "") for w, s in networks]
        axes.set(xticks=range(len(networks)), xticklabels=titles)
        axes.set(title=algorithm, xlabel="weights removed")
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("points above the plain run")
    panels[0].legend(frameon=False)
    save(figure, "recycling", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
