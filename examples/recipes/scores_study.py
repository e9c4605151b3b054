"""Compare optimizers, learning rates and other settings for scores, by the accuracy on held-out images.

    python examples/recipes/scores_study.py --output_dir runs/scores

Each variant is a short training by whitened_conv6.py with other flags: 5 epochs of 10,000 images of 20 pixels; the
accuracy is that on the last 5,000 training images. `--variants` names some of them. Finished ones are not repeated.
Writes `scores.csv`. On CPUs with bfloat16, `KERAS_BACKEND=torch` and `--bfloat16` are the fastest.
"""

import csv
import pathlib
import subprocess
import sys

import training
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("variants", None, "Names of those to run; default: all.")
flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)
flags.DEFINE_integer("train_examples", 10000, "Number of training images.", lower_bound=1)
flags.DEFINE_integer("held_out", 5000, "Number of images to validate on.", lower_bound=1)
flags.DEFINE_list("sizes", ["20:5"], "Image sizes and epochs: see whitened_conv6.py.")
flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16.")
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets, or an npz file: see cifar10.py.")
flags.DEFINE_string("output_dir", None, "Where the trainings and scores.csv go.", required=True)

VARIANTS = {
    "Adam 0.001": "",
    "Adam 0.0005": "--learning_rate 0.0005",
    "Adam 0.002": "--learning_rate 0.002",
    "Adam 0.005": "--learning_rate 0.005",
    "Adam 0.001 with beta_1 0.85": "--momentum 0.85",
    "Lion 0.0001": "--optimizer lion --learning_rate 0.0001",
    "Lion 0.0003": "--optimizer lion --learning_rate 0.0003",
    "SGD 0.3": "--optimizer sgd --learning_rate 0.3",
    "SGD 1.0": "--optimizer sgd --learning_rate 1.0",
    "cosine": "--schedule cosine",
    "warmup and cosine": "--schedule warmup",
    "Kaiming normal kernels": "--kernel_initializer kaiming_normal",
    "no label smoothing": "--label_smoothing 0",
    "label smoothing 0.2": "--label_smoothing 0.2",
    "Adam 0.0014 in batches of 250": "--batch_size 250 --learning_rate 0.0014",
    "Adam 0.002 in batches of 500": "--batch_size 500 --learning_rate 0.002",
    "sparsity 0.3": "--sparsity 0.3",
    "sparsity 0.7": "--sparsity 0.7",
    "sparsity 0.8": "--sparsity 0.8",
    "sparsity 0.8: 0.65 pruned and 0.1 locked by the seed": "--sparsity 0.8 --pruned 0.65 --locked 0.1",
    "2 of each 4": "--n_of_m 2,4",
    "sparsity 0.8 at 1.5 times the width": "--sparsity 0.8 --width 1.5",
    "all weights trained by Adam 0.001": "--dense",
    "all weights trained by SGD 0.2": "--dense --optimizer sgd --learning_rate 0.2",
}


def run(variant, seed):
    """Train by a variant, unless that is done; return the log's rows."""
    name = "".join(letter if letter.isalnum() else "_" for letter in variant)
    folder = pathlib.Path(FLAGS.output_dir) / f"{name}_{seed}"
    command = [sys.executable, str(pathlib.Path(__file__).with_name("whitened_conv6.py")), *VARIANTS[variant].split()]
    command += [f"--seed={seed}", f"--sizes={','.join(FLAGS.sizes)}", f"--output_dir={folder}"]
    command += [f"--train_examples={FLAGS.train_examples}", f"--held_out={FLAGS.held_out}"]
    command += ["--bfloat16"] if FLAGS.bfloat16 else []
    command += [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
    if not (folder / "model.keras").exists() and not (folder / "ticket.mpt").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return training.read_log(folder)


def main(_):
    chosen = FLAGS.variants or list(VARIANTS)
    training.check_choices("variants", chosen, VARIANTS)
    results = pathlib.Path(FLAGS.output_dir) / "scores.csv"
    results.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(FLAGS.seeds):
        for variant in chosen:
            log = run(variant, seed)
            accuracies = [f"{float(row['val_accuracy']):.4f}" for row in log]
            rows.append([variant, VARIANTS[variant], seed, *accuracies, f"{float(log[-1]['accuracy']):.4f}"])
            header = ["variant", "flags", "seed", *(f"epoch {i + 1}" for i in range(len(log))), "training"]
            with results.open("w", newline="") as file:
                csv.writer(file).writerows([header, *sorted(rows, key=lambda row: -float(row[-2]))])
            print(f"{variant}, seed {seed}: {float(accuracies[-1]):.2%}", flush=True)


if __name__ == "__main__":
    app.run(main)
