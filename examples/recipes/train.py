"""Train a network of the zoo on CIFAR-10 with Keras `fit`: as a multi-prize ticket or, for comparison, densely.

    python train.py --network conv4 --output_dir runs/conv4              # MPT-1/32 at 50 %
    python train.py --network conv4 --binary_activations --output_dir …  # MPT-1/1
    python train.py --network conv4 --dense --output_dir …               # all weights trained

The defaults are the published recipe of Conv-2 to Conv-8 (Diffenderfer & Kailkhura 2021, the configurations in their
code), but for --scale_fan, which those have: 100 epochs (their script: 250), batch 128, cosine decay to zero, SGD with
learning rate 0.1, momentum 0.9 and weight decay 1e-4, crops and flips. For binary activations it is Adam with 0.001,
which trained better on held-out images than the published 0.1 (examples/results). Others: ResNet-18 --batch_size 256
--weight_decay 5e-4; VGG-Small is trained with Adam, for binary activations with --batch_norm_affine --learning_rate
2e-4. The published rate changes from epoch to epoch, here it does from step to step.

The output folder receives the flags, `log.csv`, `speed.csv` with images per second, TensorBoard logs,
`checkpoint.keras` with the whole state of the training after the last finished epoch, and `ticket.mpt` once all epochs
are over. Called again after a kill at any moment, with the same flags, the training goes on. Runs on every Keras
backend (KERAS_BACKEND); with `--data_dir FILE.npz` without TensorFlow.
"""

import pathlib

import backend
import cifar10
import keras
import training
from absl import app, flags

import keras_mpt

VALIDATION_BATCH = 500
FLAGS = flags.FLAGS
_NETWORKS = sorted(name.removesuffix("_mpt") for name in keras_mpt.zoo.__all__ if name.endswith("_mpt"))
flags.DEFINE_enum("network", "conv4", _NETWORKS, "Architecture, one of keras_mpt.zoo.")
flags.DEFINE_bool("dense", False, "Train all weights of the plain network instead of searching for a ticket.")
flags.DEFINE_float("sparsity", 0.5, "Fraction of the weights that is removed.", lower_bound=0)
flags.DEFINE_bool("binary_activations", False, "Binary activations: MPT-1/1 instead of MPT-1/32.")
flags.DEFINE_bool("float_stem", False, "Train the weights of the first convolution.")
flags.DEFINE_bool("scale_fan", False, "Scale kernels by the fraction kept, so that kept weights preserve variance.")
flags.DEFINE_bool("batch_norm_affine", False, "Trainable gamma and beta, where there is batch normalization.")
flags.DEFINE_float("pad_values", 0.0, "Padding value of the convolutions.")
flags.DEFINE_float("width", 1.0, "Factor on filters and units.")
flags.DEFINE_float("recycle_rate", 0.0, "Fraction of the weights recycled at a time (Gorbett & Whitley 2023).")
flags.DEFINE_float("iterand_rate", 0.0, "Probability that a pruned weight is drawn again (Chijiwa et al. 2021).")
flags.DEFINE_integer("recycle_every", 10, "Number of epochs from one time to the next, for both.", lower_bound=1)
flags.DEFINE_float("learning_rate", None, "Before the decay. Default: 0.1, with binary activations 0.001.")
flags.DEFINE_float("weight_decay", 1e-4, "L2 inside the gradient, as PyTorch's SGD has it; not used by Adam.")
flags.DEFINE_integer("warmup_epochs", 0, "Epochs of linear warm-up.", lower_bound=0)
flags.DEFINE_integer("epochs", 100, "Number of epochs.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Batch size.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Determines kernels, scores, shuffling and augmentation.", lower_bound=0)
flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16 (mixed precision; scores and selection stay float32).")
flags.DEFINE_bool("deterministic", False, "Let TensorFlow use deterministic operations only.")
flags.DEFINE_integer("train_examples", None, "Use only so many training images.", lower_bound=1)
flags.DEFINE_integer("held_out", None, "Validate on the last so many training images instead.", lower_bound=1)
flags.DEFINE_integer("stop_after", None, "End after this epoch; called again, the script goes on.", lower_bound=1)
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets, or an npz file: see cifar10.py.")
flags.DEFINE_string("output_dir", None, "Where logs and checkpoint go.", required=True)


def arguments():
    """Return what the function of keras_mpt.zoo is called with, as JSON data."""
    kernels = keras_mpt.initializers.KaimingNormal(scale_fan=FLAGS.scale_fan)
    return {
        "sparsity": FLAGS.sparsity,
        "input_quantizer": "approx_sign" if FLAGS.binary_activations else None,
        "kernel_quantizer": "scaled_sign",
        "kernel_initializer": keras.initializers.serialize(kernels),
        "batch_norm_affine": FLAGS.batch_norm_affine,
        "float_stem": FLAGS.float_stem,
        "pad_values": FLAGS.pad_values,
        "width": FLAGS.width,
        "seed": FLAGS.seed,
    }


def architecture():
    """Return the name of the function of keras_mpt.zoo."""
    return f"{FLAGS.network}_mpt"


def epochs():
    return FLAGS.epochs


def network(dtype="float32"):
    return getattr(keras_mpt.zoo, architecture())(**arguments(), dtype=dtype)


def build_model(steps):
    model = network(backend.dtype_policy(FLAGS.bfloat16))
    if FLAGS.dense:
        model = keras_mpt.models.dense_twin(model, arguments()["kernel_initializer"])
    rate = FLAGS.learning_rate
    if rate is None:
        rate = 0.001 if FLAGS.binary_activations else 0.1
    rate = training.cosine(rate, FLAGS.epochs * steps, FLAGS.warmup_epochs * steps)
    adam = FLAGS.binary_activations or FLAGS.network == "vgg_small"
    optimizer = keras.optimizers.Adam(rate) if adam else keras.optimizers.SGD(rate, momentum=0.9)
    training.compile_for(model, optimizer)
    return model


def recycling():
    """Return the callbacks that change the frozen kernels, in the order in which they do."""
    callbacks = []
    if FLAGS.iterand_rate:
        callbacks.append(keras_mpt.callbacks.IteRand(FLAGS.iterand_rate, FLAGS.recycle_every, seed=FLAGS.seed))
    if FLAGS.recycle_rate:
        callbacks.append(keras_mpt.callbacks.IterativeWeightRecycling(FLAGS.recycle_rate, FLAGS.recycle_every))
    return callbacks


def run(recipe, devices=training.ONE_DEVICE):
    """Do what the flags say on these devices; the ticket says that it was made by `recipe`, a command."""
    training.check_warmup(FLAGS.warmup_epochs, FLAGS.epochs)
    folder = pathlib.Path(FLAGS.output_dir)
    with training.in_folder(folder, ("strategy", "processes", "virtual_devices"), devices):  # of train_distributed.py
        model = train(folder, devices)
        if not devices.is_chief or FLAGS.dense or not training.is_finished(folder, FLAGS.epochs):
            return
        about = {"arguments": arguments(), "data": "CIFAR-10", "recipe": recipe, "epochs": FLAGS.epochs}
        about["accuracy"] = float(training.read_log(folder)[-1]["val_accuracy"])
        training.save_ticket(model, network, folder, **about)


def train(folder, devices):
    """Return the model after the last epoch."""
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    data = cifar10.load(FLAGS.data_dir)
    if FLAGS.held_out:
        data = cifar10.hold_out(data, FLAGS.held_out)
    images, labels = (part[: FLAGS.train_examples] for part in data["train"])
    training.check_batch_size(FLAGS.batch_size, len(images))
    test_images, test_labels = (part[devices.process :: devices.processes] for part in data["test"])
    part = {"part": devices.process, "parts": devices.processes}
    return training.fit(
        build_model,
        lambda epoch: cifar10.TrainingBatches(images, labels, FLAGS.batch_size, FLAGS.seed, epoch, **part),
        folder,
        epochs=FLAGS.epochs,
        stop_after=FLAGS.stop_after,
        weight_decay=FLAGS.weight_decay,
        callbacks=recycling(),
        prepare=keras_mpt.summary if devices.is_chief and not FLAGS.dense else None,
        devices=devices,
        validation_data=(cifar10.normalize(test_images), test_labels),
        validation_batch_size=max(1, VALIDATION_BATCH // devices.processes),
    )


def main(_):
    run(training.command("train.py"))


if __name__ == "__main__":
    app.run(main)
