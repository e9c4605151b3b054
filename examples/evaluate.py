"""Test accuracy of a ticket on CIFAR-10, from the file: a preset of the zoo or one of yours.

    python examples/evaluate.py --preset conv4_mpt32_s50 --data_dir DIR
    python examples/evaluate.py --ticket runs/conv4/ticket.mpt --data_dir DIR

Runs on every Keras backend (KERAS_BACKEND); with `--data_dir FILE.npz` without TensorFlow. See examples/cifar10.py.
"""

import cifar10
import keras
import numpy as np
from absl import app, flags

import keras_mpt

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", None, "Name of a preset of keras_mpt.zoo; 'all' for each one.")
flags.DEFINE_string("ticket", None, "Path of a ticket file for images normalized as examples/train.py does.")
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets, or an npz file: see examples/cifar10.py.")
flags.mark_flags_as_mutual_exclusive(["preset", "ticket"], required=True)


def accuracy(model, inputs, labels):
    """Return the fraction of inputs whose largest logit is that of the label."""
    return float(np.mean(np.argmax(model.predict(inputs, batch_size=500, verbose=0), axis=-1) == labels))


def main(_):
    images, labels = cifar10.load(FLAGS.data_dir)["test"]
    if FLAGS.ticket:
        tickets = {FLAGS.ticket: (keras_mpt.load_ticket(FLAGS.ticket), cifar10.normalize)}
    else:
        zoo = keras_mpt.zoo
        presets = zoo.list_presets() if FLAGS.preset == "all" else [zoo.get_preset(FLAGS.preset)]
        tickets = {preset.name: (preset.model(), preset.preprocess) for preset in presets}
    for name, (model, preprocess) in tickets.items():
        share = accuracy(model, preprocess(images), labels)
        print(f"{name}: {share:.2%} of {len(labels):,} test images ({keras.backend.backend()})")


if __name__ == "__main__":
    app.run(main)
