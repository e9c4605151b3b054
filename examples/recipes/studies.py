"""What the studies share: their flags and data, one short training, and tables of finished runs."""

import csv
import itertools
import pathlib

import backend
import cifar10
import keras
import numpy as np
import training
from absl import flags
from batches import BeginEpochs

import keras_mpt

FLAGS = flags.FLAGS
flags.DEFINE_enum("data", "cifar10", ["cifar10", "digits"], "CIFAR-10, or scikit-learn's digits: 8x8, no download.")
flags.DEFINE_string("data_dir", None, "Folder or npz file of CIFAR-10: see cifar10.py.")
flags.DEFINE_integer("train_examples", None, "Use only so many training images.", lower_bound=1)
flags.DEFINE_float("width", 0.25, "Factor on filters and units of the network.", lower_bound=0)
flags.DEFINE_enum("network", "conv2", ["conv2", "conv4", "whitened_conv6", "resnet18"], "One of keras_mpt.zoo.")
flags.DEFINE_bool("scale_fan", False, "Scale kernels by the fraction kept, so that kept weights preserve variance.")
flags.DEFINE_integer("epochs", 10, "Number of epochs of a run.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Batch size.", lower_bound=1)
flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam"], "SGD with momentum 0.9, or Adam.")
flags.DEFINE_float("learning_rate", 0.1, "Learning rate at the start of the cosine decay.")
flags.DEFINE_float("weight_decay", 1e-4, "L2 inside the gradient of SGD.")
flags.DEFINE_integer("image_size", None, "Scale images of CIFAR-10 to so many pixels.", lower_bound=16)
flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16 (mixed precision; scores and selection stay float32).")
flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1)
flags.DEFINE_string("output_dir", None, "Where runs.csv, statistics and figures go; finished runs are not repeated.")
flags.mark_flag_as_required("output_dir")
RECIPE = ("data", "train_examples", "width", "network", "scale_fan", "epochs", "batch_size", "learning_rate")
RECIPE += ("weight_decay", "optimizer", "image_size", "bfloat16")


class DigitBatches(cifar10.TrainingBatches):
    """Shuffled batches of digits, which are neither cropped nor flipped."""

    def __getitem__(self, step):
        chosen = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        return scaled(self.images[chosen]), self.labels[chosen]


def scaled(images):
    """Return digits, whose pixels are from 0 to 16, as float32 from -1 to 1."""
    return images.astype(np.float32) / 8 - 1


def load():
    """Return a dict: the training data, the test data ready for the network, and the class of training batches."""
    if FLAGS.data == "cifar10":
        data, size = cifar10.load(FLAGS.data_dir), FLAGS.image_size or 32
        test = cifar10.normalize(cifar10.resized(data["test"][0], size)), data["test"][1]
        images, labels = data["train"]
        images, batches = cifar10.resized(images[: FLAGS.train_examples], size), cifar10.TrainingBatches
    else:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits, numbers = load_digits(return_X_y=True)
        digits = digits.reshape(-1, 8, 8, 1)
        images, test_images, labels, test_labels = train_test_split(
            digits, numbers, test_size=0.3, random_state=0, stratify=numbers
        )
        test, batches = (scaled(test_images), test_labels), DigitBatches
    return {"train": (images[: FLAGS.train_examples], labels[: FLAGS.train_examples]), "test": test, "batches": batches}


def build(data, **arguments):
    """Return the network for the data; `arguments` go to its function in keras_mpt.zoo."""
    make = getattr(keras_mpt.zoo, f"{FLAGS.network}_mpt")
    kernels = keras_mpt.initializers.KaimingNormal(scale_fan=FLAGS.scale_fan)
    shape, dtype = data["test"][0].shape[1:], backend.dtype_policy(FLAGS.bfloat16)
    model = make(input_shape=shape, kernel_initializer=kernels, dtype=dtype, **{"width": FLAGS.width, **arguments})
    if FLAGS.network == "whitened_conv6":
        images = data["batches"](*data["train"], min(len(data["train"][0]), 5000), 0)[0][0]
        model.get_layer("stem").set_weights([keras_mpt.zoo.whitening_kernel(images)])
    return model


def train(model, data, seed, callbacks):
    """Train a network; return its accuracy on the test data after the last epoch.

    Args:
        model: The network, whose scores this changes.
        data: What `load` returned.
        seed: Determines the order of the images, and how they are cropped and flipped.
        callbacks: Of Keras.
    """
    training.check_batch_size(FLAGS.batch_size, len(data["train"][0]))
    batches = data["batches"](*data["train"], FLAGS.batch_size, seed)
    rate = training.cosine(FLAGS.learning_rate, FLAGS.epochs * len(batches))
    optimizer = keras.optimizers.SGD(rate, momentum=0.9) if FLAGS.optimizer == "sgd" else keras.optimizers.Adam(rate)
    training.compile_for(model, optimizer)
    training.add_weight_decay(model, FLAGS.weight_decay)
    callbacks = [BeginEpochs(batches), *callbacks]
    model.fit(batches, epochs=FLAGS.epochs, shuffle=False, callbacks=callbacks, verbose=0)
    return model.evaluate(*data["test"], batch_size=500, verbose=0)[1]


def combinations(**lists):
    """Yield a dict for each combination of the values in these lists."""
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


class Runs:
    """A CSV file with one row for each finished run: the recipe, the run's settings, and its results.

    Args:
        path: Of the file, which is made if it does not exist.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self):
        """Return the rows of the recipe in the flags as dicts of strings."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if _texts(_recipe()).items() <= row.items()]

    def find(self, **settings):
        """Return the row of a run, None if it has not been finished."""
        return next((row for row in self.rows() if _texts(settings).items() <= row.items()), None)

    def add(self, settings, results):
        """Append the row of a finished run."""
        row = _texts({**_recipe(), **settings, **results})
        new = not self.path.exists()
        with self.path.open("a+", newline="") as file:
            file.seek(0)
            columns = next(csv.reader(file), list(row))
            if columns != list(row):
                raise ValueError(f"{self.path} must be a file of this study. Received: one with columns {columns}")
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)


def _recipe():
    return {name: FLAGS[name].value for name in RECIPE}


def _texts(values):
    return {name: "" if value is None else str(value) for name, value in values.items()}
