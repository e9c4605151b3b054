"""How far apart are the masks that one recipe finds? Networks that differ in their seeds only, compared.

    python mask_diversity.py --output_dir runs/diversity               # Conv-2 of a quarter's width, CIFAR-10
    python mask_diversity.py --data digits --output_dir runs/digits    # without a download

Three kinds of seeds, for masks over other weights have no reason to be alike:

- `all`: other frozen weights, other initial scores, other order of the images;
- `scores`: the same frozen weights, other initial scores and order;
- `order`: the same weights and initial scores, other order (and crops and flips) alone.

For each kind it prints the accuracies, the overlap of the masks of all pairs (Jaccard index and Hamming distance)
beside that of independent masks of their densities, and how the final scores' magnitudes correlate, and draws the
overlaps. Each finished run is a ticket and a row of `runs.csv`; called again, the study does what is missing.

Source of the question: Gorbett & Whitley 2023, arXiv:2303.15953.
"""

import itertools
import pathlib

import keras
import numpy as np
import studies
import training
from absl import app, flags

import keras_mpt
from keras_mpt import analysis

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(studies)
_KINDS = ["all", "scores", "order"]
flags.DEFINE_list("kinds", _KINDS, "Of all, scores and order: what the seed of a run determines.")
flags.DEFINE_float("sparsity", 0.5, "Fraction of the weights removed.", lower_bound=0)
flags.DEFINE_enum("kernel_quantizer", "scaled_sign", ["scaled_sign", "identity"], "Biprop or Edge-Popup.")


def network(data, kind, seed):
    """Return an untrained network; of its seeds, `kind` says which are those of the run."""
    arguments = {"sparsity": FLAGS.sparsity, "kernel_quantizer": FLAGS.kernel_quantizer}
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


def report(kind, tickets, rows, folder):
    """Return a row of the table, and draw the overlaps."""
    pairs = list(itertools.combinations(tickets, 2))
    overlaps = [analysis.overlap(*pair) for pair in pairs]
    models = {path: keras_mpt.load_ticket(path, trainable=True) for path in tickets}
    correlations = [np.mean(list(analysis.score_correlation(*map(models.get, pair)).values())) for pair in pairs]
    print(f"\nSeeds of {kind}, the first two runs:\n\n{overlaps[0]}")

    labels = [f"seed {i}" for i in range(len(tickets))]
    analysis.plot_overlap(tickets, labels, title=f"Masks, seeds of {kind}").savefig(folder / f"overlap_{kind}.png")
    total = [overlap.total for overlap in overlaps]
    measures = ("jaccard", "expected_jaccard", "hamming", "expected_hamming")
    values = [[getattr(overlap, measure) for overlap in total] for measure in measures]
    accuracies = [float(row["accuracy"]) for row in rows]
    cells = [f"{np.mean(value):.4f}" for value in [*values, correlations]]
    return [kind, len(tickets), studies.mean_and_deviation(accuracies), *cells]


def main(_):
    if FLAGS.seeds < 2:
        raise app.UsageError(f"--seeds must be at least 2, to compare. Received: {FLAGS.seeds}")
    training.check_choices("kinds", FLAGS.kinds, _KINDS)
    folder = pathlib.Path(FLAGS.output_dir)
    runs, data, table = studies.Runs(folder / "runs.csv"), None, []
    (folder / "tickets").mkdir(exist_ok=True)
    for kind in FLAGS.kinds:
        tickets, rows = [], []
        for seed in range(FLAGS.seeds):
            settings = {"kernel_quantizer": FLAGS.kernel_quantizer, "sparsity": FLAGS.sparsity}
            settings |= {"kind": kind, "seed": seed}
            tickets.append(ticket_of(folder, kind, seed))
            if runs.find(**settings) is None:
                data = data or studies.load()
                keras.utils.set_random_seed(seed)
                model = network(data, kind, seed)
                results = {"accuracy": studies.train(model, data, seed, [])}
                keras_mpt.save_ticket(model, tickets[-1], scores=True)
                runs.add(settings, results)
                print(*settings.values(), results, flush=True)
            rows.append(runs.find(**settings))
        table.append(report(kind, tickets, rows, folder))
    header = ["seeds of", "runs", "test accuracy (%)", "Jaccard", "if independent", "Hamming", "if independent"]
    print("\nMeans over all pairs of runs\n")
    for row in [[*header, "correlation of scores"], ["---"] * (len(header) + 1), *table]:
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    app.run(main)
