"""How far apart are the masks that one recipe finds? Networks that differ in their seeds only, compared.

    python mask_diversity.py --output_dir runs/diversity               # Conv-2 of a quarter's width, CIFAR-10
    python mask_diversity.py --data digits --output_dir runs/digits    # without a download

Three kinds of runs differ in the seeds of

- `all`: frozen weights, initial scores and order of the images;
- `scores`: initial scores and order;
- `order`: order, crops and flips.

For each kind it prints the accuracies, the overlap of the masks of all pairs (Jaccard index and Hamming distance)
beside that of independent masks of their densities, how the final scores' magnitudes correlate, and the accuracy of the
runs as an ensemble (mean of their probabilities); `overlaps.csv` has the same, and the overlaps are drawn. What the
ensemble is compared with is `wide`: single networks, of which one has as many weights as all runs of a kind together.
Each finished run is a ticket and a row of `runs.csv`; called again, the study does what is missing.

Source of the question: Gorbett & Whitley 2023, arXiv:2303.15953.
"""

import csv
import itertools
import math
import pathlib

import backend  # noqa: F401 - before Keras
import keras
import numpy as np
import studies
import training
from absl import app, flags

import keras_mpt
from keras_mpt import analysis

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(studies)
_KINDS = ["all", "scores", "order", "wide"]
_MEASURES = ("jaccard", "expected_jaccard", "hamming", "expected_hamming")
flags.DEFINE_list("kinds", _KINDS, "Kinds of seeds to compare: see above.")
flags.DEFINE_float("sparsity", 0.5, "Fraction of the weights removed.", lower_bound=0)
flags.DEFINE_enum("kernel_quantizer", "scaled_sign", ["scaled_sign", "identity"], "Biprop or Edge-Popup.")


def network(data, kind, seed):
    """Return an untrained network; of its seeds, `kind` says which are those of the run: all of a wide network's."""
    arguments = {"sparsity": FLAGS.sparsity, "kernel_quantizer": FLAGS.kernel_quantizer}
    if kind == "wide":
        return studies.build(data, seed=seed, width=FLAGS.width * math.sqrt(FLAGS.seeds), **arguments)
    model = studies.build(data, seed=seed if kind == "all" else 0, **arguments)
    if kind == "scores":
        other = studies.build(data, seed=seed, **arguments)
        layers = keras_mpt.models.mpt_layers
        for layer, source in zip(layers(model), layers(other), strict=True):
            layer.scores.assign(source.scores)
    return model


def ticket_of(folder, kind, seed):
    recipe = "_".join(str(FLAGS[name].value) for name in studies.RECIPE)
    return folder / "tickets" / f"{recipe}_{FLAGS.kernel_quantizer}_{FLAGS.sparsity}_{kind}_{seed}.mpt"


def ensemble(tickets, data):
    """Return the accuracy of the mean of the networks' probabilities."""
    images, labels = data["test"]
    logits = (keras_mpt.load_ticket(path).predict(images, batch_size=500, verbose=0) for path in tickets)
    mean = sum(keras.ops.convert_to_numpy(keras.ops.softmax(values)) for values in logits)
    return np.mean(np.argmax(mean, axis=-1) == labels)


def compared(kind, tickets, data, folder):
    """Return what the runs of a kind have in common, means over all pairs, and draw the overlaps."""
    pairs = list(itertools.combinations(tickets, 2))
    overlaps = [analysis.overlap(*pair) for pair in pairs]
    models = {path: keras_mpt.load_ticket(path, trainable=True) for path in tickets}
    correlations = [np.mean(list(analysis.score_correlation(*map(models.get, pair)).values())) for pair in pairs]
    print(f"\nSeeds of {kind}, the first two runs:\n\n{overlaps[0]}")

    labels = [f"seed {i}" for i in range(len(tickets))]
    analysis.plot_overlap(tickets, labels, title=f"Masks, seeds of {kind}").savefig(folder / f"overlap_{kind}.png")
    means = {name: np.mean([getattr(overlap.total, name) for overlap in overlaps]) for name in _MEASURES}
    means |= {"score_correlation": np.mean(correlations), "ensemble": ensemble(tickets, data)}
    return {name: f"{value:.4f}" for name, value in means.items()}


def run(data, kind, seed, path):
    """Train one network, keep its ticket, with scores, and return its results."""
    keras.utils.set_random_seed(seed)
    model = network(data, kind, seed)
    accuracy = studies.train(model, data, seed, [])
    size = keras_mpt.save_ticket(model, path).size
    keras_mpt.save_ticket(model, path, scores=True)
    return {"accuracy": accuracy, "ticket_bytes": size}


def print_table(table):
    header = ["seeds of", "test accuracy (%)", "bytes of one", *_MEASURES, "correlation of scores", "ensemble (%)"]
    print(f"\n{FLAGS.seeds} runs each, means over all pairs\n")
    for row in [header, ["---"] * len(header)]:
        print(f"| {' | '.join(row)} |")
    for kind, (rows, means) in table.items():
        accuracy = training.mean_and_deviation([float(row["accuracy"]) for row in rows])
        size = f"{np.mean([int(row['ticket_bytes']) for row in rows]):,.0f}"
        *cells, together = means.values() if means else [""] * (len(header) - 3)
        print(f"| {' | '.join([kind, accuracy, size, *cells, f'{100 * float(together):.2f}' if together else ''])} |")


def main(_):
    if FLAGS.seeds < 2:
        raise app.UsageError(f"--seeds must be at least 2, to compare. Received: {FLAGS.seeds}")
    training.check_choices("kinds", FLAGS.kinds, _KINDS)
    folder = pathlib.Path(FLAGS.output_dir)
    (folder / "tickets").mkdir(parents=True, exist_ok=True)
    runs, data, table = studies.Runs(folder / "runs.csv"), studies.load(), {}
    for kind in FLAGS.kinds:
        tickets, rows = [], []
        for seed in range(FLAGS.seeds):
            settings = {"kernel_quantizer": FLAGS.kernel_quantizer, "sparsity": FLAGS.sparsity}
            settings |= {"kind": kind, "seed": seed}
            tickets.append(ticket_of(folder, kind, seed))
            if runs.find(**settings) is None:
                runs.add(settings, found := run(data, kind, seed, tickets[-1]))
                print(*settings.values(), found, flush=True)
            rows.append(runs.find(**settings))
        table[kind] = rows, {} if kind == "wide" else compared(kind, tickets, data, folder)
    print_table(table)
    with (folder / "overlaps.csv").open("w", newline="") as file:
        found = [{"kind": kind, **means} for kind, (_, means) in table.items() if means]
        writer = csv.DictWriter(file, list(found[0]) if found else ["kind"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    app.run(main)
