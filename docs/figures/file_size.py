"""Draws file_size.png: accuracy against file size, of the zoo's tickets and the dense network, in several formats.

    python docs/figures/file_size.py [FOLDER]

Accuracies are those of `zoo/presets.json` and of the last epoch of `examples/results/conv4_dense.csv`, sizes those of
the ticket files and of `benchmarks/results/edge.json`. The dense network counts four bytes for each weight.
"""

import csv
import json
import pathlib
import sys

from common import FOLDER, INK, NEGATIVE, POSITIVE, card, save
from matplotlib.ticker import FuncFormatter, NullLocator

import keras_mpt

ROOT = pathlib.Path(__file__).parents[2]
NETWORKS = {  # presets: colour, what benchmarks/edge.py calls them, and its files
    "conv4_mpt32_s50": (POSITIVE, "Conv-4, 50 %, MPT-1/32", {"int8": "int8 .tflite"}),
    "conv4_mpt11_s50": (
        NEGATIVE,
        "Conv-4, 50 %, MPT-1/1",
        {"larq-compute-engine": "LCE file", "exact int8": "int8 .tflite", "float32": "float32 .tflite"},
    ),
}


def points():
    """Yield (colour, label, bytes, accuracy in %, whether it is a ticket)."""
    edge = json.loads((ROOT / "benchmarks/results/edge.json").read_text())["rows"]
    sizes = {(row["network"], row["file"]): row["bytes"] for row in edge}
    for name, (colour, network, files) in NETWORKS.items():
        preset = keras_mpt.zoo.get_preset(name)
        accuracy, label = 100 * preset.accuracy, f"{network.split()[-1]} ticket, {preset.epochs} epochs"
        yield colour, label, preset.path.stat().st_size, accuracy, True
        for file, label in files.items():
            yield colour, label, sizes[network, file], accuracy, False
    with (ROOT / "examples/results/conv4_dense.csv").open(newline="") as file:
        log = [*csv.DictReader(file)]
    weights = json.loads((ROOT / "benchmarks/results/file_size.json").read_text())["bytes"]["Conv-4, 50 %"]["weights"]
    yield INK, f"dense float32, {len(log)} epochs", 4 * weights, 100 * float(log[-1]["val_accuracy"]), False


def main(folder=FOLDER):
    figure, axes = card(8, 3.8)
    for colour, label, size, accuracy, is_ticket in points():
        axes.plot(size, accuracy, "*" if is_ticket else "o", color=colour, markersize=14 if is_ticket else 8)
        place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
        axes.annotate(label, (size, accuracy), **place, color=colour, fontsize=9)
    axes.set_xscale("log")
    axes.set(xlim=(1.7e5, 1.8e7), ylim=(60, 85), xlabel="bytes of the file", ylabel="test accuracy (%)")
    axes.set_xticks([3e5, 1e6, 3e6, 1e7])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1e6:g} MB"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.set_title("Conv-4 on CIFAR-10 (after JPEG), one seed", fontsize=11)
    save(figure, "file_size", folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
