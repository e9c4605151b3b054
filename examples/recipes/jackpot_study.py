"""Lottery Jackpots: sparse subnetworks of a trained network, whose kernels stay as they are, and other methods.

    python jackpot_study.py --output_dir runs/jackpot                        # trains half of Whitened Conv-6 first
    python jackpot_study.py --base runs/dense/checkpoint.keras --output_dir runs/jackpot       # or takes one
    python jackpot_study.py --application ResNet50 --weights imagenet --data_dir DIR --output_dir …  # on ImageNet

The question of Zhang et al. 2023 (arXiv:2104.08700), by default with the numbers of docs/jackpots.md. At each sparsity,
of the weights but for those of the classifier:

- `magnitude`: the network with its largest weights, as it is;
- `jackpot`: a search from that mask, with short restriction;
- `unrestricted`: the same search without the restriction;
- `random`: an unrestricted search from random masks with as many weights per layer;
- `finetuned`: the largest weights trained further, the usual magnitude pruning, with the same epochs and rates;
- `binary`: a binary jackpot, the signs of the weights and one scale for each layer, searched with Adam. Statistics of
  batch normalization are estimated before. Its ticket does not refer to the dense network; its bytes are printed.

In all of them batch normalization and the classifier train, but for `magnitude` (the paper's code freezes them, and
its classifier has a bias). Batches are of 128 images, after one epoch of warm-up; the paper has 256 and none and, on
ImageNet, a weight decay of 1e-4 (`--weight_decay`). With `--seeds`, searches are repeated with other orders of the
images and other random masks. Each run has a folder with its log, its checkpoint and, if a mask was searched,
`ticket.mpt`, which refers to the dense network: pass that as `base` to `load_ticket`. Called again, the script goes on
where it was. It prints a table of accuracies, how many epochs a search from the magnitude mask takes to be as good as
one from random masks in the end, and the overlaps of the masks with those of pruning criteria; `accuracy.csv`,
`accuracy.png` and `overlap.csv` hold the same. Searches compute in the base's dtypes.
"""

import csv
import inspect
import pathlib
import subprocess
import sys

import backend
import cifar10
import imagenet
import keras
import numpy as np
import training
from absl import app, flags
from matplotlib.figure import Figure

import keras_mpt
from keras_mpt.callbacks import ShortRestriction
from keras_mpt.models import magnitude_sparsity, mpt_layers_by_path, to_jackpot, uniform_sparsity

FLAGS = flags.FLAGS
_METHODS = ["magnitude", "jackpot", "unrestricted", "random", "finetuned", "binary"]
_RATES = {"global": magnitude_sparsity, "uniform": uniform_sparsity}
_BASE_EPOCHS = 30  # of the network that is trained first
_SAMPLE = 8  # batches, for the statistics of batch normalization
_COLUMNS = ["method", "sparsity", "seed", "epoch", "test accuracy", "training accuracy"]
flags.DEFINE_list("methods", _METHODS, "Methods to compare: see above.")
flags.DEFINE_list("sparsities", ["0.95"], "Fractions of the weights removed.")
flags.DEFINE_enum("rates", "global", list(_RATES), "One magnitude threshold, or the same sparsity everywhere.")
flags.DEFINE_string("base", None, "A trained network: a .keras file. Default: train one first.")
flags.DEFINE_bool("bfloat16", None, "Train the base in bfloat16. Default: where it is not emulated.")
flags.DEFINE_list(
    "skip", None, "Layers that are not pruned. Default: the classifier, of Whitened Conv-6 also the stem."
)
flags.DEFINE_string("application", None, "A network of keras.applications as base, on ImageNet.")
flags.DEFINE_string("weights", "imagenet", "Weights of --application: imagenet, a file, or none.")
flags.DEFINE_integer("epochs", 15, "Number of epochs of a search.", lower_bound=1)
flags.DEFINE_integer(
    "stop_after", None, "End after this epoch of a search; called again, the script goes on.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 128, "Batch size.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.1, "Learning rate of SGD after one epoch of warm-up, before the decay.")
flags.DEFINE_float("binary_learning_rate", 0.0005, "The same of Adam, for binary jackpots.")
flags.DEFINE_float("weight_decay", 5e-4, "L2 inside the gradient of SGD.")
flags.DEFINE_integer("seed", 0, "Seed of the base, of random masks, and of the images' order and crops.", lower_bound=0)
flags.DEFINE_integer("seeds", 3, "Number of seeds of each search, from --seed on.", lower_bound=1)
flags.DEFINE_integer("train_examples", 10_000, "Use only so many training images of CIFAR-10.", lower_bound=1)
flags.DEFINE_integer("image_size", 20, "Scale images of CIFAR-10 to so many pixels.", lower_bound=16)
flags.DEFINE_integer("criteria_batches", 50, "How many training batches SNIP and Taylor see.", lower_bound=1)
flags.DEFINE_string("data_dir", None, "See cifar10.py; of ImageNet: the folder of tensorflow-datasets.")
flags.DEFINE_string("output_dir", None, "Folder of the results.", required=True)


class Masked(keras.constraints.Constraint):
    """Zeros where the mask has some, after every step."""

    def __init__(self, mask):
        self.mask = keras.ops.convert_to_tensor(mask, dtype="float32")

    def __call__(self, weights):
        return weights * self.mask


def load_data():
    """Return (function from an epoch and a seed to training batches, arguments of `fit` for validation)."""
    if FLAGS.application:
        scaling = imagenet.scaling(FLAGS.application)
        loaded = {seed: imagenet.load(FLAGS.data_dir, scaling, FLAGS.batch_size, seed) for seed in seeds()}
        return lambda epoch, seed=FLAGS.seed: loaded[seed][0](epoch), loaded[FLAGS.seed][1]
    data = cifar10.load(FLAGS.data_dir)
    images, labels = (part[: FLAGS.train_examples] for part in data["train"])
    training.check_batch_size(FLAGS.batch_size, len(images))
    images, test_images = (cifar10.resized(part, FLAGS.image_size) for part in (images, data["test"][0]))
    validation = {
        "validation_data": (cifar10.normalize(test_images), data["test"][1]),
        "validation_batch_size": 500,
    }

    def batches(epoch, seed=FLAGS.seed):
        return cifar10.TrainingBatches(images, labels, FLAGS.batch_size, seed, epoch)

    return batches, validation


def seeds():
    return range(FLAGS.seed, FLAGS.seed + FLAGS.seeds)


def compiled(model, steps, epochs, method=None):
    rate = FLAGS.binary_learning_rate if method == "binary" else FLAGS.learning_rate
    rate = training.cosine(rate, epochs * steps, steps if epochs > 1 else 0)
    training.compile_for(
        model, keras.optimizers.Adam(rate) if method == "binary" else keras.optimizers.SGD(rate, momentum=0.9)
    )
    return model


def base_network(folder):
    """Return the trained dense network, which is trained first if none was given."""
    if FLAGS.application:
        make = getattr(keras.applications, FLAGS.application)
        return make(weights=None if FLAGS.weights == "none" else FLAGS.weights, classifier_activation=None)
    if FLAGS.base:
        base = keras.models.load_model(FLAGS.base)
        training.check_logits("base", base)
        return base
    if not training.is_finished(folder, _BASE_EPOCHS):
        subprocess.run(base_command(folder.resolve()), cwd=pathlib.Path(__file__).parent, check=True)
    return keras.models.load_model(folder / "checkpoint.keras")


def base_command(folder):
    """Return the command that trains the dense network, half of Whitened Conv-6, in a folder."""
    flags = ["--dense", "--width=0.5", f"--train_examples={FLAGS.train_examples}", f"--seed={FLAGS.seed}"]
    flags += ["--optimizer=sgd", "--learning_rate=0.2", "--weight_decay=5e-4", "--schedule=warmup"]
    flags += ["--label_smoothing=0.2", f"--sizes={FLAGS.image_size}:{_BASE_EPOCHS}"]
    if FLAGS.bfloat16:
        flags.append("--bfloat16")
    if FLAGS.data_dir:
        flags.append(f"--data_dir={pathlib.Path(FLAGS.data_dir).resolve()}")
    return [sys.executable, "whitened_conv6.py", *flags, f"--output_dir={folder}"]


def skipped():
    """Return the layers that are not pruned, as `to_jackpot` takes them."""
    return ["stem", "logits"] if FLAGS.skip is None and not (FLAGS.base or FLAGS.application) else FLAGS.skip


def start(base, sparsity, method, batches, seed=0):
    """Return the jackpot before its search."""
    if method == "binary":
        sample = (batch for _, batch in zip(range(_SAMPLE), batches(0, seed), strict=False))
        rates = _RATES[FLAGS.rates](sparsity, least=1000)
        return to_jackpot(base, rates, kernel_quantizer="scaled_sign", skip=skipped(), data=sample)
    model = to_jackpot(base, _RATES[FLAGS.rates](sparsity, least=0.1), skip=skipped())
    if method == "random":
        random = np.random.default_rng(seed)
        for layer in mpt_layers_by_path(model).values():
            mask = np.arange(np.prod(layer.scores.shape)) < int(layer.kept)
            layer.assign_mask(random.permutation(mask).reshape(layer.scores.shape))
    return model


def finetuned(base, masks):
    """Return functions for `training.fit`: the network with its largest weights, and what holds it to them."""

    def make(steps):
        model = keras.models.clone_model(base)
        model.set_weights(base.get_weights())
        return compiled(model, steps, FLAGS.epochs)

    def hold(model):
        for path, mask in masks.items():
            kernel = layer_at(model, path).kernel
            kernel.constraint = Masked(mask)
            kernel.assign(kernel.constraint(kernel))

    return make, hold


def layer_at(model, path):
    """Return the layer of a path like "block/conv1"."""
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def finished(method, folder):
    """Return whether a run is done: its ticket is written last, fine-tuning has none."""
    if method != "finetuned":
        return (folder / "ticket.mpt").exists()
    return training.is_finished(folder, FLAGS.epochs)


def run(base, data, method, sparsity, seed, folder):
    """Do what is missing of a run."""
    if finished(method, folder):
        return
    batches, validation = data
    keras.utils.set_random_seed(seed)
    model = start(base, float(sparsity), method, batches, seed)
    if method == "magnitude":
        training.compile_for(model, keras.optimizers.SGD())
        images = validation["validation_data"]
        images = images if isinstance(images, tuple) else (images,)
        loss, accuracy = model.evaluate(*images, batch_size=validation.get("validation_batch_size"), verbose=0)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.csv").write_text(f"epoch,val_accuracy,val_loss\n0,{accuracy},{loss}\n")
    else:
        make, prepare = (lambda steps: compiled(model, steps, FLAGS.epochs, method)), None
        if method == "finetuned":
            make, prepare = finetuned(base, keras_mpt.analysis.masks(model))
        model = training.fit(
            make,
            lambda epoch: batches(epoch, seed),
            folder,
            epochs=FLAGS.epochs,
            stop_after=FLAGS.stop_after,
            weight_decay=FLAGS.weight_decay,
            callbacks=[ShortRestriction(FLAGS.epochs)] if method == "jackpot" else [],
            prepare=prepare,
            **validation,
        )
    if method == "magnitude" or method != "finetuned" and training.is_finished(folder, FLAGS.epochs):
        keras_mpt.save_ticket(model, folder / "ticket.mpt", base=None if method == "binary" else base)


def curve(folders, method, sparsity):
    """Return the test accuracies (%) after each epoch, one row for each seed."""
    found = [place for (m, s, _), place in folders.items() if (m, s) == (method, sparsity)]
    return np.array([[100 * float(row["val_accuracy"]) for row in training.read_log(place)] for place in found])


def print_accuracies(folders):
    print("\n| method |", *(f"{sparsity} |" for sparsity in FLAGS.sparsities))
    print("|---|" + "---|" * len(FLAGS.sparsities))
    for method in FLAGS.methods:
        last = [curve(folders, method, sparsity)[:, -1] / 100 for sparsity in FLAGS.sparsities]
        print(f"| {method} |", *(f"{training.mean_and_deviation(values)} |" for values in last))
    if {"unrestricted", "random"} <= set(FLAGS.methods):
        for sparsity in FLAGS.sparsities:
            goal = curve(folders, "random", sparsity).mean(0)[-1]
            reached = [i for i, a in enumerate(curve(folders, "unrestricted", sparsity).mean(0), 1) if a >= goal]
            print(
                f"\nAt {sparsity}, {FLAGS.epochs} epochs from a random mask give {goal:.2f} %; from magnitudes, "
                + (f"{reached[0]} do." if reached else "as many do not.")
            )
    for sparsity in FLAGS.sparsities if "binary" in FLAGS.methods else []:
        size = (folders["binary", sparsity, FLAGS.seed] / "ticket.mpt").stat().st_size
        print(f"\nThe binary jackpot at {sparsity} is a file of {size:,} bytes.")


def overlaps(base, data, folders):
    """Return rows of a search, a sparsity, a pruning criterion and the Jaccard index of the two masks."""
    searched = [method for method in FLAGS.methods if method in ("jackpot", "unrestricted", "random")]
    batches = [batch for _, batch in zip(range(FLAGS.criteria_batches), data[0](0), strict=False)]
    rows = []
    for sparsity in FLAGS.sparsities if searched else []:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        criteria = keras_mpt.analysis.criteria_masks(start(base, float(sparsity), "jackpot", data[0]), batches, loss)
        for method in searched:
            found = keras_mpt.analysis.masks(folders[method, sparsity, FLAGS.seed] / "ticket.mpt", base)
            for name, masks in criteria.items():
                jaccard = keras_mpt.analysis.overlap(found, masks).total.jaccard
                rows.append([method, sparsity, name, f"{jaccard:.3f}"])
    return rows


def print_overlaps(rows):
    for sparsity in dict.fromkeys(row[1] for row in rows):
        here = [row for row in rows if row[1] == sparsity]
        criteria = list(dict.fromkeys(row[2] for row in here))
        print(f"\nJaccard index of masks at {sparsity}\n\n| found by |", *(f"{name} |" for name in criteria))
        print("|---|" + "---|" * len(criteria))
        for method in dict.fromkeys(row[0] for row in here):
            print(f"| {method} |", *(f"{row[3]} |" for row in here if row[0] == method))


def accuracies(folders):
    """Return rows of `_COLUMNS`; accuracies in %, after each epoch."""
    rows = []
    for (method, sparsity, seed), folder in folders.items():
        for epoch, row in enumerate(training.read_log(folder), 0 if method == "magnitude" else 1):
            found = [f"{100 * float(row[key]):.2f}" for key in ("val_accuracy", "accuracy") if key in row]
            rows.append([method, sparsity, seed, epoch, *found])
    return rows


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def draw(folders, path):
    figure = Figure(figsize=(5 * len(FLAGS.sparsities), 4), layout="constrained")
    panels = figure.subplots(1, len(FLAGS.sparsities), sharey=True, squeeze=False)[0]
    for axes, sparsity in zip(panels, FLAGS.sparsities, strict=True):
        for method in FLAGS.methods:
            accuracies = curve(folders, method, sparsity).mean(0)
            if method == "magnitude":
                axes.axhline(accuracies[0], color="gray", linestyle=":", label=method)
            else:
                axes.plot(range(1, len(accuracies) + 1), accuracies, label=method)
        axes.set(title=f"sparsity {sparsity}", xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("test accuracy (%)")
    figure.savefig(path, dpi=150)


def main(_):
    training.check_choices("methods", FLAGS.methods, _METHODS)
    training.check_sparsities(FLAGS.sparsities)
    if FLAGS.application and not inspect.isfunction(getattr(keras.applications, FLAGS.application, None)):
        raise app.UsageError(f"--application must be a network of keras.applications. Received: {FLAGS.application}")
    keras.utils.set_random_seed(FLAGS.seed)
    backend.choose_bfloat16(FLAGS)
    folder = pathlib.Path(FLAGS.output_dir)
    with training.in_folder(folder, may_change=("methods", "sparsities", "seeds", "criteria_batches")):
        study(folder)


def study(folder):
    """Do what is missing, then show what came out."""
    data = load_data()
    base = base_network(folder / "dense")
    # a seed's runs come together, so that a study that is stopped has the whole table for fewer seeds
    folders = {
        (m, s, seed): folder / f"{m}_{s}_{seed}"
        for seed in seeds()
        for s in FLAGS.sparsities
        for m in FLAGS.methods
        if m != "magnitude" or seed == FLAGS.seed  # which has no search
    }
    for (method, sparsity, seed), place in folders.items():
        print(f"\n{method} at {sparsity}, seed {seed}", flush=True)
        run(base, data, method, sparsity, seed, place)
    if all(finished(method, place) for (method, *_), place in folders.items()):
        print_accuracies(folders)
        write(folder / "accuracy.csv", _COLUMNS, accuracies(folders))
        draw(folders, folder / "accuracy.png")
        rows = overlaps(base, data, folders)
        print_overlaps(rows)
        write(folder / "overlap.csv", ["method", "sparsity", "criterion", "jaccard"], rows)


if __name__ == "__main__":
    app.run(main)
