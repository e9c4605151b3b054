"""Train a ticket on ImageNet, by the recipe of Diffenderfer & Kailkhura 2021 (the configurations in their code).

    python train_imagenet.py --network wide_resnet50 --data_dir DIR --output_dir runs/wrn50      # MPT-1/32
    python train_imagenet.py --network wide_resnet34 --data_dir DIR --output_dir runs/wrn34      # MPT-1/1
    python train_imagenet.py --data synthetic --width 0.1 --data_dir runs/pictures --output_dir runs/trial

100 epochs, batch 256, learning rate 0.256, five epochs of warm-up, cosine decay, label smoothing 0.1, trainable batch
norm. WRN-50: SGD with momentum 0.875 and weight decay 2^-15, signed constants as weights. Published with 20 % of them:
74.03 %, with --nobatch_norm_affine 72.67 %. WRN-34 1/1: Adam, normal weights, scaled by the fraction kept. Published
with 40 % of them: 52.07 %, with --nobatch_norm_affine 45.06 %; there is a second configuration (Adam with a constant
rate of 0.0002, 120 epochs), and nothing says which of the two these are from. ResNet-50 is trained as WRN-50 here; its
published accuracies are those of a jackpot (see jackpot_study.py).

**The full run was not made here**: there was neither ImageNet nor the time. What was run is the whole script on
`--data synthetic`, a few pictures of noise that are written to --data_dir in the format of the real ones.

`--data_dir` is a folder of tensorflow-datasets with imagenet2012, which cannot be downloaded without an account: see
its page in their catalog. `--strategy` and so on as for train_distributed.py. Called again, the script goes on after
the last finished epoch; the output folder is that of train.py.
"""

import pathlib

import backend
import devices
import imagenet
import keras
import training
from absl import app, flags

import keras_mpt

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(devices)
_OPTIMIZERS = {"resnet50": "sgd", "wide_resnet50": "sgd", "wide_resnet34": "adam"}  # as published
_ARGUMENTS = {  # as published
    "resnet50": {"kernel_initializer": "signed_constant"},
    "wide_resnet50": {"kernel_initializer": "signed_constant"},
    "wide_resnet34": {
        "input_quantizer": "approx_sign",
        "kernel_initializer": keras.initializers.serialize(keras_mpt.initializers.KaimingNormal(scale_fan=True)),
    },
}
flags.DEFINE_enum("network", "wide_resnet50", list(_ARGUMENTS), "Architecture; wide_resnet34 is MPT-1/1.")
flags.DEFINE_float("sparsity", None, "Fraction of the weights that is removed; default: as published.")
flags.DEFINE_float("width", 1.0, "Factor on filters.")
flags.DEFINE_bool("batch_norm_affine", True, "Trainable gamma and beta.")
flags.DEFINE_integer("epochs", 100, "Number of epochs.", lower_bound=1)
flags.DEFINE_integer("warmup_epochs", 5, "Epochs of linear warm-up.", lower_bound=0)
flags.DEFINE_integer("batch_size", 256, "Batch size, of all devices together.", lower_bound=1)
flags.DEFINE_enum("optimizer", None, ["sgd", "adam"], "Default: as published for the network.")
flags.DEFINE_float("learning_rate", 0.256, "Learning rate after the warm-up, before the cosine decay.")
flags.DEFINE_float("momentum", 0.875, "Momentum of SGD.")
flags.DEFINE_float("weight_decay", 2**-15, "L2 inside the gradient; not used by Adam.")
flags.DEFINE_float("label_smoothing", 0.1, "Part of the label that is spread over all classes.")
flags.DEFINE_bool("bfloat16", None, "Compute in bfloat16 (mixed precision). Default: where it is not emulated.")
flags.DEFINE_integer("seed", 0, "Seed of kernels, scores, order and crops.", lower_bound=0)
flags.DEFINE_enum("data", "imagenet2012", ["imagenet2012", "synthetic"], "What to train on.")
flags.DEFINE_integer("synthetic_images", 512, "How many to write for training; a quarter of it for validation.")
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets; for synthetic pictures one of their own.")
flags.DEFINE_string(
    "cache_dir", None, "Folder for the decoded images (350 GB), of one training at a time; default: none."
)
flags.DEFINE_string("output_dir", None, "Where logs, checkpoint and ticket go.", required=True)
flags.DEFINE_integer("stop_after", None, "End after this epoch; called again, the script goes on.", lower_bound=1)


def arguments():
    """Return what the function of keras_mpt.zoo is called with, as JSON data."""
    settings = {} if FLAGS.sparsity is None else {"sparsity": FLAGS.sparsity}
    return {
        **_ARGUMENTS[FLAGS.network],
        "batch_norm_affine": FLAGS.batch_norm_affine,
        "width": FLAGS.width,
        "seed": FLAGS.seed,
        **settings,
    }


def network(dtype="float32"):
    return getattr(keras_mpt.zoo, f"{FLAGS.network}_mpt")(**arguments(), dtype=dtype)


def compiled(steps):
    model = network(backend.dtype_policy(FLAGS.bfloat16))
    rate = training.cosine(FLAGS.learning_rate, FLAGS.epochs * steps, FLAGS.warmup_epochs * steps)
    if (FLAGS.optimizer or _OPTIMIZERS[FLAGS.network]) == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=FLAGS.momentum)
    training.compile_for(model, optimizer, label_smoothing=FLAGS.label_smoothing)
    return model


def one_hot(labels):
    import tensorflow as tf

    return tf.one_hot(labels, imagenet.CLASSES)


def main(_):
    if FLAGS.data == "synthetic" and FLAGS.data_dir is None:
        raise app.UsageError("--data=synthetic needs --data_dir, a folder for the pictures.")
    training.check_warmup(FLAGS.warmup_epochs, FLAGS.epochs)
    where = devices.chosen(FLAGS.batch_size)
    backend.choose_bfloat16(FLAGS)
    folder = pathlib.Path(FLAGS.output_dir)
    with training.in_folder(folder, devices=where):
        model = train(folder, where)
        if where.is_chief and training.is_finished(folder, FLAGS.epochs):
            recipe = training.command("train_imagenet.py")
            about = {"arguments": arguments(), "data": FLAGS.data, "epochs": FLAGS.epochs, "recipe": recipe}
            training.save_ticket(model, network, folder, **about)


def train(folder, where):
    """Return the model after the last epoch."""
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.data == "synthetic" and where.is_chief and not pathlib.Path(FLAGS.data_dir, "imagenet2012").exists():
        imagenet.write_synthetic(FLAGS.data_dir, FLAGS.synthetic_images, FLAGS.synthetic_images // 4)
    elif FLAGS.data == "synthetic":
        imagenet.wait_for_synthetic(FLAGS.data_dir)
    part = {"part": where.process, "parts": where.processes, "label": one_hot}
    settings = FLAGS.data_dir, imagenet.normalize, FLAGS.batch_size, FLAGS.seed, FLAGS.cache_dir
    batches, validation = imagenet.load(*settings, **part)
    fit = {"epochs": FLAGS.epochs, "stop_after": FLAGS.stop_after, "weight_decay": FLAGS.weight_decay, **validation}
    return training.fit(compiled, batches, folder, devices=where, **fit)


if __name__ == "__main__":
    app.run(main)
