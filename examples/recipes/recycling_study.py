"""Do recycled weights help? Edge-Popup and Biprop, each plain, with IteRand, with recycling, and with its ablation.

    python recycling_study.py --output_dir runs/recycling              # Conv-2 of a quarter's width, CIFAR-10
    python recycling_study.py --data digits --output_dir runs/digits   # without a download

The question of Gorbett & Whitley 2023 (arXiv:2303.15953) at a size for a laptop. Each finished run is a row of
`runs.csv`; called again, the study does what is missing, so it can be stopped at any moment, and given more seeds or
sparsities. It prints a table of test accuracies, mean and standard deviation over the seeds, and draws them and the
churn of the masks. All methods see the same networks, images and numbers of steps.

The rates are those in the authors' code: IteRand redraws 0.1 of the pruned weights after each epoch, recycling copies
0.1 of the weights (Edge-Popup, every 3 of 250 epochs) or 0.2 (Biprop, every 10). Short trainings need short periods.
"""

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
from keras_mpt.callbacks import IteRand, IterativeWeightRecycling

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(studies)
_KERNELS = {"Edge-Popup": "identity", "Biprop": "scaled_sign"}
_RECYCLE_RATES = {"Edge-Popup": 0.1, "Biprop": 0.2}
_METHODS = ["plain", "iterand", "recycling", "mixed", "ablation"]
flags.DEFINE_list("algorithms", list(_KERNELS), "Algorithms to compare.")
flags.DEFINE_list("methods", _METHODS, "Methods to compare; mixed: half of iterand and of recycling.")
flags.DEFINE_list("sparsities", ["0.5", "0.8", "0.9"], "Fractions of the weights removed.")
flags.DEFINE_float("recycle_rate", None, "Fraction of the weights recycled at a time. Default: the paper's.")
flags.DEFINE_float("iterand_rate", 0.1, "Probability that a pruned weight is drawn again.")
flags.DEFINE_integer("every", 1, "Number of epochs from one recycling to the next.", lower_bound=1)
flags.DEFINE_integer("iterand_every", 1, "The same for IteRand.", lower_bound=1)


def changes(method, seed, recycle_rate, every, iterand_rate, iterand_every):
    """Return the callbacks that change the frozen kernels."""
    return {
        "plain": [],
        "iterand": [IteRand(iterand_rate, iterand_every, seed=seed)],
        "recycling": [IterativeWeightRecycling(recycle_rate, every)],
        "mixed": [
            IteRand(iterand_rate / 2, iterand_every, seed=seed),
            IterativeWeightRecycling(recycle_rate / 2, every),
        ],
        "ablation": [IterativeWeightRecycling(recycle_rate, every, ablation=True)],
    }[method]


def run(data, algorithm, method, sparsity, seed, folder, **rates):
    """Train one network; return its results."""
    keras.utils.set_random_seed(seed)
    model = studies.build(data, sparsity=float(sparsity), kernel_quantizer=_KERNELS[algorithm], seed=seed)
    name = f"{algorithm}_{method}_{sparsity}_{seed}"
    statistics = keras_mpt.callbacks.MaskStatistics(folder / "statistics" / f"{name}.csv")
    accuracy = studies.train(model, data, seed, [statistics, *changes(method, seed, **rates)])
    ticket = keras_mpt.save_ticket(model, folder / "unfinished.mpt")
    os.remove(ticket.path)
    return {"accuracy": accuracy, "ticket_bytes": ticket.size}


def settings():
    """Yield what tells the runs of this study from each other."""
    # a seed's runs come together, so that a study that is stopped has the whole table for fewer seeds
    for setting in studies.combinations(
        seed=range(FLAGS.seeds), sparsity=FLAGS.sparsities, algorithm=FLAGS.algorithms, method=FLAGS.methods
    ):
        rate = _RECYCLE_RATES[setting["algorithm"]] if FLAGS.recycle_rate is None else FLAGS.recycle_rate
        iterand = {"iterand_rate": FLAGS.iterand_rate, "iterand_every": FLAGS.iterand_every}
        yield {**setting, "recycle_rate": rate, "every": FLAGS.every, **iterand}


def results(runs):
    """Return `{(algorithm, method): {sparsity: rows of the seeds}}`."""
    table = {}
    for setting in settings():
        row = runs.find(**setting)
        if row is not None:
            methods = table.setdefault((setting["algorithm"], setting["method"]), {})
            methods.setdefault(setting["sparsity"], []).append(row)
    return table


def print_tables(table):
    def show(title, cell):
        print(f"\n{title}, {FLAGS.seeds} seeds\n\n| algorithm | method |", *(f"{s} |" for s in FLAGS.sparsities))
        print("|---|---|" + "---|" * len(FLAGS.sparsities))
        for (algorithm, method), rows in table.items():
            cells = (
                cell(rows[s], table.get((algorithm, "plain"), {}).get(s)) if s in rows else "" for s in FLAGS.sparsities
            )
            print(f"| {algorithm} | {method} |", *(f"{text} |" for text in cells))

    def values(rows, name):
        return np.array([float(row[name]) for row in rows])

    def difference(rows, plain):
        """Of runs with the same seed, which differ less than those of several seeds."""
        if plain is None or rows is plain or [row["seed"] for row in rows] != [row["seed"] for row in plain]:
            return ""
        return training.mean_and_deviation(values(rows, "accuracy") - values(plain, "accuracy"))

    show(
        "Test accuracy (%), mean ± standard deviation",
        lambda rows, _: training.mean_and_deviation(values(rows, "accuracy")),
    )
    show("Difference to plain with the same seed (points), mean ± standard deviation", difference)
    show("Ticket (bytes), mean", lambda rows, _: f"{values(rows, 'ticket_bytes').mean():,.0f}")


def draw(table, folder):
    figure = Figure(figsize=(5 * len(FLAGS.algorithms), 4), layout="constrained")
    panels = figure.subplots(1, len(FLAGS.algorithms), sharey=True, squeeze=False)[0]
    for axes, algorithm in zip(panels, FLAGS.algorithms, strict=True):
        for (owner, method), rows in table.items():
            if owner == algorithm:
                values = [[100 * float(row["accuracy"]) for row in part] for part in rows.values()]
                deviations = [np.std(part, ddof=1) if len(part) > 1 else 0 for part in values]
                axes.errorbar(
                    list(map(float, rows)), [np.mean(part) for part in values], deviations, capsize=3, label=method
                )
        axes.set(title=algorithm, xlabel="sparsity")
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("test accuracy (%)")
    figure.savefig(folder / "accuracy.png", dpi=150)
    for file in sorted((folder / "statistics").glob("*_0.csv")):
        churn = keras_mpt.analysis.plot_churn(file, title=file.stem.removesuffix("_0").replace("_", ", "))
        churn.savefig(folder / f"churn_{file.stem}.png", dpi=100)


def main(_):
    training.check_choices("algorithms", FLAGS.algorithms, _KERNELS)
    training.check_choices("methods", FLAGS.methods, _METHODS)
    training.check_sparsities(FLAGS.sparsities)
    folder = pathlib.Path(FLAGS.output_dir)
    runs, data = studies.Runs(folder / "runs.csv"), None
    for setting in settings():
        if runs.find(**setting) is None:
            data = data or studies.load()
            found = run(data, folder=folder, **setting)
            runs.add(setting, found)
            print(*setting.values(), found, flush=True)
    table = results(runs)
    print_tables(table)
    draw(table, folder)


if __name__ == "__main__":
    app.run(main)
