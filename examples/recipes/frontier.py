"""At so many bytes of a file, which width, density and frozen fraction are the most accurate?

    python frontier.py --network whitened_conv6 --output_dir runs/frontier   # on CIFAR-10
    python frontier.py --data digits --output_dir runs/frontier_digits       # without a download

A file of so many bytes holds a narrow network of many searched weights, or a wide one in whose masks there is less to
say: sparser ones, or with a part that the seed prunes or locks for good (`masks.PartiallyFrozen`, in proportion to what
is removed and kept). For each budget, density and frozen fraction, the width is the largest one that fits. Beside them
are trained dense twins with weights of 32 bits and of 8 (rounded after training, a scale for each output channel).

The widths are tried on untrained networks, whose files are as large as those of trained ones to some bytes. Each
finished run is a row of `runs.csv`; called again, the study does what is missing. It prints a table and draws
accuracy against bytes, beside published networks, `frontier.png`. These were trained longer, on all images.
"""

import functools
import math
import os
import pathlib

import backend  # noqa: F401 - before Keras
import keras
import numpy as np
import studies
import training
from absl import app, flags
from matplotlib.figure import Figure

import keras_mpt
from keras_mpt.masks import PartiallyFrozen

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(studies)
flags.FLAGS.set_default("seeds", 2)
flags.DEFINE_list("budgets", ["20000", "60000"], "Bytes of a file.")
flags.DEFINE_list("densities", ["0.5", "0.2"], "Fractions of the weights kept.")
flags.DEFINE_list("frozen", ["0", "0.5", "0.75"], "Fractions of the weights that the seed decides for good.")
_DENSE = {"float32": 32, "int8": 8}  # bits of a weight
_WIDTHS = 1 / 32, 8.0
PUBLISHED = {  # on CIFAR-10: bytes and accuracy
    "LilNetX VGG-16": (76_000, 0.900),
    "ResNet-20-4": (66_000, 0.915),
    "Biprop VGG-Small": (161_000, 0.9148),
}


def rule(frozen):
    """Return the function of a sparsity that makes the mask rule."""
    return lambda sparsity: PartiallyFrozen(sparsity, frozen * sparsity, frozen * (1 - sparsity))


def network(data, kind, density, frozen, width, seed):
    """Return the untrained network: a ticket's, or its dense twin."""
    mask = rule(float(frozen)) if kind == "ticket" else None
    model = studies.build(data, width=width, sparsity=1 - float(density), mask=mask, seed=seed)
    return model if kind == "ticket" else keras_mpt.models.dense_twin(model)


def file_bytes(model, kind, folder):
    """Return how many bytes a file of the network has."""
    if kind == "ticket":
        ticket = keras_mpt.save_ticket(model, folder / "unfinished.mpt")
        os.remove(ticket.path)
        return ticket.size
    kernels = [v for v in model.weights if len(v.shape) > 1]
    others = sum(math.prod(v.shape) for v in model.weights if len(v.shape) < 2)
    scales = sum(v.shape[-1] for v in kernels) if kind == "int8" else 0
    return sum(math.prod(v.shape) for v in kernels) * _DENSE[kind] // 8 + 4 * (others + scales)


def largest_width(fits):
    """Return the largest width for which `fits(width)` is true, to three digits; None if there is none."""
    low, high = _WIDTHS
    if not fits(low):
        return None
    for _ in range(10):
        middle = float(f"{math.sqrt(low * high):.3g}")
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def round_to_int8(model):
    """Round the kernels of a model to 255 levels for each output channel."""
    for variable in model.weights:
        if len(variable.shape) > 1:
            kernel = np.array(keras.ops.convert_to_numpy(variable))
            scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True) / 127
            scale[scale == 0] = 1
            variable.assign(np.round(kernel / scale) * scale)


def run(data, kind, density, frozen, budget, seed, folder):
    """Train one network; return its results: zeros if none is small enough."""

    @functools.cache
    def fits(width):
        return file_bytes(network(data, kind, density, frozen, width, seed), kind, folder) <= int(budget)

    width = largest_width(fits)
    if width is None:
        return {"factor": 0, "bytes": 0, "accuracy": 0}
    keras.utils.set_random_seed(seed)
    model = network(data, kind, density, frozen, width, seed)
    accuracy = studies.train(model, data, seed, [])
    if kind == "int8":
        round_to_int8(model)
        accuracy = model.evaluate(*data["test"], batch_size=500, verbose=0)[1]
    return {"factor": width, "bytes": file_bytes(model, kind, folder), "accuracy": accuracy}


def settings():
    """Yield what tells the runs of this study from each other."""
    for seed in range(FLAGS.seeds):
        for budget in FLAGS.budgets:
            yield from studies.combinations(
                kind=["ticket"], density=FLAGS.densities, frozen=FLAGS.frozen, budget=[budget], seed=[seed]
            )
            yield from studies.combinations(kind=_DENSE, density=["1"], frozen=["0"], budget=[budget], seed=[seed])


def results(runs):
    """Return `{(kind, density, frozen): {budget: rows of the seeds}}` of what was small enough."""
    table = {}
    for setting in settings():
        row = runs.find(**setting)
        if row is not None and int(row["bytes"]):
            key = setting["kind"], setting["density"], setting["frozen"]
            table.setdefault(key, {}).setdefault(setting["budget"], []).append(row)
    return table


def print_table(table):
    print(
        "\n| network | density | frozen | budget | width | bytes | test accuracy (%) |\n|---|---|---|---|---|---|---|"
    )
    for (kind, density, frozen), budgets in table.items():
        for budget, rows in budgets.items():
            accuracy = training.mean_and_deviation([float(row["accuracy"]) for row in rows])
            size = np.mean([int(row["bytes"]) for row in rows])
            print(f"| {kind} | {density} | {frozen} | {budget} | {rows[0]['factor']} | {size:,.0f} | {accuracy} |")


def draw(table, folder):
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (kind, density, frozen), budgets in table.items():
        label = f"density {density}, frozen {frozen}" if kind == "ticket" else f"dense, {kind}"
        sizes = [np.mean([int(row["bytes"]) for row in rows]) / 1000 for rows in budgets.values()]
        values = [[100 * float(row["accuracy"]) for row in rows] for rows in budgets.values()]
        deviations = [np.std(part, ddof=1) if len(part) > 1 else 0 for part in values]
        style = "o-" if kind == "ticket" else "s--"
        axes.errorbar(sizes, [np.mean(part) for part in values], deviations, fmt=style, capsize=3, label=label)
    if FLAGS.data == "cifar10":
        for name, (size, accuracy) in PUBLISHED.items():
            axes.plot(size / 1000, 100 * accuracy, "k*")
            axes.annotate(f"{name} (published)", (size / 1000, 100 * accuracy), fontsize=7)
    axes.set(xscale="log", xlabel="file (KB)", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(folder / "frontier.png", dpi=150)


def check_flags():
    training.check(
        all(word.isdigit() and int(word) for word in FLAGS.budgets), "budgets", "integers > 0", FLAGS.budgets
    )
    for flag, words in {"densities": FLAGS.densities, "frozen": FLAGS.frozen}.items():
        for word in words:
            try:
                number = float(word)
            except ValueError:
                number = math.nan
            inside = 0 < number <= 1 if flag == "densities" else 0 <= number < 1
            training.check(inside, flag, "numbers in (0, 1]" if flag == "densities" else "numbers in [0, 1)", word)


def main(_):
    check_flags()
    folder = pathlib.Path(FLAGS.output_dir)
    runs, data = studies.Runs(folder / "runs.csv"), None
    for setting in settings():
        if runs.find(**setting) is None:
            data = data or studies.load()
            found = run(data, folder=folder, **setting)
            runs.add(setting, found)
            print(*setting.values(), found, flush=True)
    table = results(runs)
    print_table(table)
    draw(table, folder)


if __name__ == "__main__":
    app.run(main)
