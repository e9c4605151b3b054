"""Plot the test accuracy of training runs by epoch, and print their last epochs as a table.

    python plot_curves.py --output docs/figures/conv4_curves.png \\
        "dense=examples/results/conv4_dense.csv" "MPT-1/32, 50 % kept=examples/results/conv4_mpt32_s50.csv"

Each argument is LABEL=CSV, the log of a run of examples/recipes/train.py.
"""

import csv
import pathlib

from absl import app, flags
from matplotlib.figure import Figure

FLAGS = flags.FLAGS
flags.DEFINE_string("output", None, "Image file to write.", required=True)
flags.DEFINE_string("title", "", "Title of the figure.")


def read(path):
    """Return the rows of a log as dicts of numbers."""
    with pathlib.Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        rows = [{name: float(value) for name, value in row.items() if value != "NA"} for row in rows]  # not validated
    except ValueError:
        rows = []
    if not rows or not {"epoch", "accuracy", "val_accuracy"} <= set().union(*rows):
        raise app.UsageError(f"Expected logs of examples/recipes/train.py with a validated epoch. Received: {path}")
    return rows


def main(arguments):
    if len(arguments) < 2 or any("=" not in argument for argument in arguments[1:]):
        raise app.UsageError(f"Expected arguments LABEL=CSV. Received: {arguments[1:]}")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    print("| run | epochs | training accuracy | test accuracy (last epoch) |\n|---|---|---|---|")
    for argument in arguments[1:]:
        label, path = argument.rsplit("=", 1)
        rows = read(path)
        points = [(row["epoch"] + 1, 100 * row["val_accuracy"]) for row in rows if "val_accuracy" in row]
        axes.plot(*zip(*points, strict=True), label=label)
        last = [row for row in rows if "val_accuracy" in row][-1]
        print(f"| {label} | {len(rows)} | {last['accuracy']:.2%} | {last['val_accuracy']:.2%} |")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(FLAGS.title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(FLAGS.output, dpi=150)


if __name__ == "__main__":
    app.run(main)
