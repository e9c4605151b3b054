"""Train a published ticket again by its recipe, and compare.

    python reproduce.py --weights conv4_mpt32_s80 --data_dir DIR --output_dir runs/again

Called again after a kill, it goes on. The recipe is the command on the ticket's card. On the same kind of machine, with
the same versions and backend, the same ticket comes out (not for conv4_mpt32_s50, which was trained before the order of
the batches was fixed); elsewhere sums are rounded in another way, which training magnifies: an accuracy near the
published one, and other masks. A jackpot also needs the trained network that its card names.
"""

import pathlib
import shlex
import subprocess
import sys

import training
from absl import app, flags

import keras_mpt

FLAGS = flags.FLAGS
flags.DEFINE_string("weights", None, "Name of a preset of keras_mpt.zoo.", required=True)
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets, or an npz file: see cifar10.py.")
flags.DEFINE_string("output_dir", None, "Where the training goes.", required=True)


def main(_):
    preset = keras_mpt.zoo.get_preset(FLAGS.weights)
    _, script, *settings = shlex.split(preset.recipe)
    command = [sys.executable, str(pathlib.Path(__file__).with_name(pathlib.Path(script).name)), *settings]
    command += ["--output_dir", FLAGS.output_dir]
    command += ["--data_dir", FLAGS.data_dir] if FLAGS.data_dir else []
    subprocess.run(command, check=True)
    folder = pathlib.Path(FLAGS.output_dir)
    reached = float(training.read_log(folder)[-1]["val_accuracy"])
    jaccard = keras_mpt.analysis.overlap(folder / "ticket.mpt", preset.path).total.jaccard
    print(f"{preset.name}: {reached:.2%} in the last epoch; the published file: {preset.accuracy:.2%}")
    print(f"Jaccard index of the masks: {jaccard:.4f}")


if __name__ == "__main__":
    app.run(main)
