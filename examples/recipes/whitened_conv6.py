"""Train Whitened Conv-6 or a ResNet on CIFAR-10 on a CPU: small images first, full size last.

    python whitened_conv6.py --output_dir runs/ticket                                       # MPT-1/32 at 50 %
    python whitened_conv6.py --recycle_rate 0.2 --recycle_every 3 --output_dir runs/recycled
    python whitened_conv6.py --teacher runs/dense/checkpoint.keras --label_smoothing 0 --output_dir runs/taught
    python whitened_conv6.py --binary_activations --learning_rate 0.002 --output_dir runs/binary              # MPT-1/1
    python whitened_conv6.py --binary_activations --straight_through --output_dir runs/twin # its weights trained
    python whitened_conv6.py --dense --optimizer sgd --learning_rate 0.2 --weight_decay 5e-4 --schedule warmup \
        --label_smoothing 0.2 --sizes 20:6,24:5,32:5 --output_dir runs/dense                # all weights trained
    python whitened_conv6.py --dense --pretrained runs/dense/model.keras … --output_dir runs/longer    # further
    python whitened_conv6.py --jackpot runs/dense/model.keras --sparsity 0.8 --sizes 24:2,32:4 --output_dir runs/jackpot

`--jackpot` searches in a trained network, see `keras_mpt.models.to_jackpot`: the kernels' signs are those of the dense
network, and the scores start at the magnitudes of its weights. With `--binary_activations` it takes the model.keras of
`--straight_through`. With `--kernel_quantizer identity` kept weights keep their values: lottery jackpots, Edge-Popup.

`--teacher` distills (Hinton et al. 2015, arXiv:1503.02531, at a temperature of 1): the labels are the probabilities
that a trained network gives each training image and its mirror image, before they are shifted. `accuracy` in the log
is then how often both name the same class. The teacher is a preset of keras_mpt.zoo, or a file of a model that takes
images of any size: a checkpoint.keras does.

On CPUs with bfloat16 (avx512_bf16 in /proc/cpuinfo) PyTorch is the fastest backend: `KERAS_BACKEND=torch … --bfloat16`.
The output folder receives the flags, `log.csv`, `checkpoint.keras` after each epoch, and at the end `ticket.mpt` or
`model.keras`. The same command goes on where a training was stopped.
"""

import pathlib
import time

import backend
import cifar10
import keras
import numpy as np
import training
from absl import app, flags
from batches import EpochBatches
from straight_through import straight_through_twin

import keras_mpt
from keras_mpt.zoo import whitening_kernel

FLAGS = flags.FLAGS
NETWORKS = ["whitened_conv6", "resnet18", "resnet20", "resnet32"]  # for images of any size
OPTIMIZERS = {
    "adam": lambda rate: keras.optimizers.Adam(rate, beta_1=FLAGS.momentum),
    "lion": lambda rate: keras.optimizers.Lion(rate, beta_1=FLAGS.momentum),
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=FLAGS.momentum, nesterov=True),
}
flags.DEFINE_enum("network", "whitened_conv6", NETWORKS, "Architecture, one of keras_mpt.zoo.")
flags.DEFINE_bool("batch_norm_affine", True, "Trainable beta in batch normalization, in ResNets also gamma.")
flags.DEFINE_bool("dense", False, "Train all weights of the plain network instead of searching for a ticket.")
flags.DEFINE_string("pretrained", None, "With --dense: start from the weights of this model.keras.")
flags.DEFINE_bool("binary_activations", False, "Binary activations: MPT-1/1 instead of MPT-1/32.")
flags.DEFINE_bool("straight_through", False, "With --binary_activations: train the weights instead.")
flags.DEFINE_string("jackpot", None, "A trained network, the model.keras of --dense, in which to search.")
flags.DEFINE_string("teacher", None, "A trained network, a preset or a checkpoint.keras: its answers are labels.")
flags.DEFINE_float("sparsity", 0.5, "Fraction of the weights that is removed.", lower_bound=0)
flags.DEFINE_float("pruned", 0.0, "Fraction that the seed removes for good: see keras_mpt.masks.PartiallyFrozen.")
flags.DEFINE_float("locked", 0.0, "Fraction that the seed keeps for good.")
flags.DEFINE_list("n_of_m", None, "N,M: keep N of each M input channels: see keras_mpt.masks.NofM.")
flags.DEFINE_enum(
    "kernel_quantizer",
    "scaled_sign",
    ["scaled_sign", "identity"],
    "Kept weights are +-alpha, or have their own values.",
)
flags.DEFINE_float("recycle_rate", 0.0, "Fraction of the weights recycled at a time.", lower_bound=0)
flags.DEFINE_integer("recycle_every", 1, "Number of epochs from one recycling to the next.", lower_bound=1)
flags.DEFINE_float("width", 1.0, "Factor on the filters.")
flags.DEFINE_enum("optimizer", "adam", list(OPTIMIZERS), "Optimizer of the scores; with --dense, of the weights.")
flags.DEFINE_float("learning_rate", None, "The highest one. Default: 0.001, with --jackpot 0.0005.", lower_bound=0)
flags.DEFINE_float("momentum", 0.9, "beta_1 of Adam and Lion, Nesterov momentum of SGD.", lower_bound=0)
flags.DEFINE_float("weight_decay", 0.0, "L2 inside the gradient of SGD, as in PyTorch.", lower_bound=0)
flags.DEFINE_enum("schedule", "linear", ["linear", "cosine", "warmup"], "Decay to 0; warmup: cosine after an increase.")
flags.DEFINE_string("kernel_initializer", "signed_constant", "Of frozen kernels: a name of keras_mpt.initializers.")
flags.DEFINE_float("label_smoothing", 0.1, "Part of a label that goes to the other classes.")
flags.DEFINE_list("sizes", ["20:7", "24:4", "32:4"], "Image sizes and for how many epochs each, in order.")
flags.DEFINE_float("cutout", 0.0, "Side of an erased square, as a fraction of the image's.", 0.0, 1.0)
flags.DEFINE_integer("batch_size", 125, "Batch size.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Determines kernels, scores, shuffling and augmentation.", lower_bound=0)
flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16 (mixed precision; scores and selection stay float32).")
flags.DEFINE_integer("train_examples", None, "Use only so many training images.", lower_bound=1)
flags.DEFINE_integer("held_out", None, "Validate on the last so many training images instead.")
flags.DEFINE_integer("validate_every", 1, "Validate after each so many epochs, and after the last.", lower_bound=1)
flags.DEFINE_integer("stop_after", None, "End after this epoch; called again, the script goes on.", lower_bound=1)
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets, or an npz file: see cifar10.py.")
flags.DEFINE_string("output_dir", None, "Where logs and checkpoint go.", required=True)

STEM_IMAGES = 5000  # as many as the source takes
PAD = 2


def sizes():
    """Return the image size of each epoch."""
    pairs = [entry.split(":") for entry in FLAGS.sizes]
    valid = pairs and all(len(pair) == 2 and all(map(str.isdigit, pair)) for pair in pairs)
    valid = valid and all(int(size) >= 16 for size, _ in pairs) and any(int(epochs) for _, epochs in pairs)
    training.check(valid, "sizes", "SIZE:EPOCHS, sizes from 16 on, an epoch or more", FLAGS.sizes)
    return [int(size) for size, epochs in pairs for _ in range(int(epochs))]


class Batches(EpochBatches):
    """Shuffled batches of images shifted by up to two pixels, of the size that belongs to the epoch.

    With --cutout a square around a random pixel becomes the mean colour (DeVries and Taylor 2017, arXiv:1708.04552).

    Every image is mirrored in each second epoch, which half of them in the first is random (Jordan 2024, section 3.6).
    A batch depends on seed, epoch and step alone, so a resumed training sees what an uninterrupted one would have seen.
    `targets` are of shape (2, images, classes): probabilities for the images, and for the mirrored ones.
    """

    def __init__(self, images, targets, epoch):
        super().__init__()
        self.images, self.targets, self.small = images, targets, {}
        self.mirrored = self._random(-1).random(len(images)) < 0.5
        self.begin(epoch)

    def __len__(self):
        return len(self.images) // FLAGS.batch_size

    def __getitem__(self, step):
        chosen = self.order[step * FLAGS.batch_size : (step + 1) * FLAGS.batch_size]
        images = np.pad(self.current[chosen], ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
        crops = np.lib.stride_tricks.sliding_window_view(images, self.current.shape[1:3], axis=(1, 2))
        random = self._random(self.epoch, 1 + step)
        rows, columns = random.integers(0, 2 * PAD + 1, (2, len(chosen)))
        batch = crops[np.arange(len(chosen)), rows, columns].transpose(0, 2, 3, 1)
        mirror = self.mirrored[chosen] ^ (self.epoch % 2 == 1)
        batch = np.where(mirror[:, None, None, None], batch[:, :, ::-1], batch)
        batch = cifar10.normalize(batch)
        if FLAGS.cutout:
            side = batch.shape[1]
            erased = round(FLAGS.cutout * side)
            offset = np.arange(side) - random.integers(0, side, (2, len(chosen), 1)) + erased // 2
            rows, columns = (offset >= 0) & (offset < erased)
            batch[rows[:, :, None] & columns[:, None, :]] = 0
        return batch, self.targets[mirror.astype(int), chosen]

    def begin(self, epoch):
        self.epoch = epoch
        size = sizes()[min(epoch, len(sizes()) - 1)]
        if size not in self.small:
            self.small = {size: cifar10.resized(self.images, size)}
        self.current = self.small[size]
        self.order = self._random(self.epoch, 0).permutation(len(self.images))

    def for_fit(self):
        """Return what `fit` is called with: of a PyDataset, Keras takes the images of TensorFlow to be of one size."""
        if keras.backend.backend() != "tensorflow":
            return self
        import tensorflow as tf

        images, labels = (tf.TensorSpec(shape, "float32") for shape in ((None, None, None, 3), (None, None)))
        data = tf.data.Dataset.from_generator(
            lambda: map(self.__getitem__, range(len(self))), output_signature=(images, labels)
        )
        return data.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)

    @staticmethod
    def _random(*place):
        return np.random.default_rng([FLAGS.seed, *(part + 1 for part in place)])


def one_hot(labels):
    return keras.utils.to_categorical(labels, 10)


def trained_network(name):
    """Return a trained network for images of any size: a preset of keras_mpt.zoo, or a file."""
    if name in [preset.name for preset in keras_mpt.zoo.list_presets()]:
        return keras_mpt.zoo.get_preset(name).model(input_shape=(None, None, 3))
    return keras.models.load_model(name)


def taught(images):
    """Return the teacher's probabilities for images and for mirrored ones, `(2, images, classes)`."""
    teacher, images = trained_network(FLAGS.teacher), cifar10.normalize(cifar10.resized(images, sizes()[-1]))
    training.check_logits("teacher", teacher)
    logits = [teacher.predict(part, batch_size=250, verbose=2) for part in (images, images[:, :, ::-1])]
    return keras.ops.convert_to_numpy(keras.ops.softmax(np.stack(logits)))


def mask():
    """Return the mask rule, None for the usual one."""
    if FLAGS.n_of_m:
        n, m = (int(word) if word.isdigit() else 0 for word in (*FLAGS.n_of_m, "", "")[:2])
        training.check(0 < n < m and len(FLAGS.n_of_m) == 2, "n_of_m", "two numbers N,M", FLAGS.n_of_m)
        return keras_mpt.masks.NofM(n, m)
    if FLAGS.pruned or FLAGS.locked:
        return keras_mpt.masks.PartiallyFrozen(FLAGS.sparsity, FLAGS.pruned, FLAGS.locked)
    return None


def arguments():
    """Return what the function of keras_mpt.zoo is called with, as JSON data."""
    rule = mask()
    return {
        "sparsity": rule.sparsity if rule else FLAGS.sparsity,
        "mask": keras.saving.serialize_keras_object(rule) if rule else None,
        "input_quantizer": "approx_sign" if FLAGS.binary_activations else None,
        "pad_values": 1.0 if FLAGS.binary_activations else 0.0,
        "batch_norm_affine": FLAGS.batch_norm_affine,
        "width": FLAGS.width,
        "kernel_quantizer": FLAGS.kernel_quantizer,
        "kernel_initializer": FLAGS.kernel_initializer,
        "seed": FLAGS.seed,
    }


def architecture():
    """Return the name of the function of keras_mpt.zoo."""
    return f"{FLAGS.network}_mpt"


def epochs():
    return len(sizes())


def network(input_shape=(32, 32, 3), dtype="float32"):
    model = getattr(keras_mpt.zoo, architecture())(**arguments(), input_shape=input_shape, dtype=dtype)
    return keras_mpt.models.dense_twin(model, "he_normal") if FLAGS.dense else model


def start(images):
    """Return the network before its training, for images of any size."""
    model = network((None, None, 3), backend.dtype_policy(FLAGS.bfloat16))
    if FLAGS.pretrained:
        model.set_weights(keras.models.load_model(FLAGS.pretrained).get_weights())
        return model
    if not FLAGS.jackpot:
        if FLAGS.network == "whitened_conv6":
            model.get_layer("stem").set_weights([whitening_kernel(cifar10.normalize(images[:STEM_IMAGES]))])
        return straight_through_twin(model) if FLAGS.straight_through else model
    data = cifar10.normalize(cifar10.resized(images[:STEM_IMAGES], sizes()[0]))
    if FLAGS.binary_activations:
        take_over(model, keras.models.load_model(FLAGS.jackpot))
        keras_mpt.models.recalibrate_batch_norm(model, data)
        return model
    dense = keras_mpt.models.dense_twin(model)
    dense.set_weights(keras.models.load_model(FLAGS.jackpot).get_weights())
    return keras_mpt.models.to_jackpot(
        dense,
        None if mask() else keras_mpt.models.uniform_sparsity(FLAGS.sparsity, least=1000),
        kernel_quantizer=FLAGS.kernel_quantizer,
        mask=mask() or keras_mpt.masks.TopK,
        skip=["stem"] if FLAGS.network == "whitened_conv6" else [],
        data=data,
        seed=FLAGS.seed,
    )


def take_over(model, trained):
    """Take over all variables of a trained network; scores start at the magnitudes of its weights."""
    for layer in model.layers:
        there = trained.get_layer(layer.name)
        if isinstance(layer, keras_mpt.layers.MPTLayer):
            weights = keras.ops.convert_to_numpy(there.kernel)
            layer.frozen_kernel.assign(weights)
            drawn = np.sqrt(1 / 3 / np.prod(weights.shape[:-1]))  # root of the mean square of scores that are drawn
            layer.scores.assign(drawn / np.sqrt(np.mean(weights**2)) * np.abs(weights))
        else:
            layer.set_weights(there.get_weights())


def schedule(steps):
    """Return the learning rate by step."""
    rate = FLAGS.learning_rate or (0.0005 if FLAGS.jackpot else 0.001)
    if FLAGS.schedule == "linear":
        return keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0)
    return training.cosine(rate, steps, warmup_steps=steps // 5 if FLAGS.schedule == "warmup" else 0)


def recycling():
    """Return the callbacks that change the frozen weights."""
    rate = FLAGS.recycle_rate
    return [keras_mpt.callbacks.IterativeWeightRecycling(rate, FLAGS.recycle_every)] if rate else []


def train(folder):
    """Return the model after the last epoch."""
    keras.utils.set_random_seed(FLAGS.seed)
    data = cifar10.load(FLAGS.data_dir)
    if FLAGS.held_out:
        data = cifar10.hold_out(data, FLAGS.held_out)
    images, labels = (part[: FLAGS.train_examples] for part in data["train"])
    test_images, test_labels = data["test"]
    training.check_batch_size(FLAGS.batch_size, len(images))
    targets = taught(images) if FLAGS.teacher else np.stack(2 * [one_hot(labels)])

    def make(steps):
        model = start(images)
        training.compile_for(model, OPTIMIZERS[FLAGS.optimizer](schedule(len(sizes()) * steps)), FLAGS.label_smoothing)
        return model

    return training.fit(
        make,
        lambda epoch: Batches(images, targets, epoch),
        folder,
        epochs=len(sizes()),
        weight_decay=FLAGS.weight_decay,
        callbacks=recycling(),
        stop_after=FLAGS.stop_after,
        validation_data=(cifar10.normalize(cifar10.resized(test_images, sizes()[-1])), one_hot(test_labels)),
        validation_batch_size=500,
        validation_freq=list(range(len(sizes()), 0, -FLAGS.validate_every)),
    )


def main(_):
    sizes()  # complains about bad ones
    training.check(
        FLAGS.binary_activations or not FLAGS.straight_through,
        "straight_through",
        "used with --binary_activations",
        FLAGS.straight_through,
    )
    training.check(FLAGS.dense or not FLAGS.pretrained, "pretrained", "used with --dense", FLAGS.pretrained)
    folder, start_time = pathlib.Path(FLAGS.output_dir), time.perf_counter()
    with training.in_folder(folder):
        model = train(folder)
        print(f"{keras.backend.backend()}, {(time.perf_counter() - start_time) / 60:.0f} minutes in this process")
        if not training.is_finished(folder, len(sizes())):
            return
        if FLAGS.straight_through:
            model.save(folder / "model.keras")
            return
        if FLAGS.dense:
            result = network()
            result.set_weights(model.get_weights())
            result.save(folder / "model.keras")
            return
        recipe = training.command("whitened_conv6.py")
        about = {"arguments": arguments(), "data": "CIFAR-10", "recipe": recipe, "epochs": len(sizes())}
        about["accuracy"] = float(training.read_log(folder)[-1]["val_accuracy"])
        training.save_ticket(model, network, folder, **about)


if __name__ == "__main__":
    app.run(main)
