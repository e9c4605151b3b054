"""Trainings on one and on several devices, for test_distributed.py: in processes of their own, for devices are
configured before a backend starts.

    python tests/support/distributed_training.py mirrored FOLDER            # TensorFlow, two devices
    python tests/support/distributed_training.py layouts FOLDER             # JAX, four devices
    python tests/support/distributed_training.py processes FOLDER --process 0 --port 12345   # and 1: JAX, one in each

For each network and way to train it, `FOLDER/NETWORK_WAY.npz` has the state after the training, beside the files that
were saved; the way `one` is one device.
"""

import argparse
import contextlib
import os
import pathlib

parser = argparse.ArgumentParser()
parser.add_argument("scenario", choices=["mirrored", "layouts", "processes"])
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--networks", nargs="+", default=["tickets", "jackpot"])
parser.add_argument("--process", type=int, help="Of two processes, which this is.")
parser.add_argument("--port", type=int, help="Where the first one of two processes listens.")
parser.add_argument("--epochs", type=int, default=3)
ARGS = parser.parse_args()

DEVICES = {"mirrored": 2, "layouts": 4, "processes": 1}[ARGS.scenario]
os.environ["KERAS_BACKEND"] = "tensorflow" if ARGS.scenario == "mirrored" else "jax"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import ops  # noqa: E402

import keras_mpt  # noqa: E402
from keras_mpt import callbacks  # noqa: E402
from keras_mpt.layers import MPTConv2D, MPTDense  # noqa: E402
from keras_mpt.masks import GlobalTopK, Restricted  # noqa: E402
from keras_mpt.models import mpt_layers  # noqa: E402

SIZE, BATCH = 64, 16


def tickets():
    """A rule for each layer, and one for two layers together."""
    rule = GlobalTopK(0.6)
    layers = [
        keras.Input((8, 8, 3)),
        MPTConv2D(8, 3, padding="same", activation="relu", seed=1, name="conv1"),
        MPTConv2D(16, 3, strides=2, activation="relu", mask=rule, seed=2, name="conv2"),
        keras.layers.Flatten(name="flatten"),
        MPTDense(64, activation="relu", mask=rule, seed=3, name="wide"),
        MPTDense(10, sparsity=0.3, seed=4, name="logits"),
    ]
    return keras.Sequential(layers, name="tickets")


def plain_norm(synchronized=False):
    layers = [
        keras.Input((8, 8, 3)),
        MPTConv2D(8, 3, strides=2, seed=1, name="conv1"),
        keras.layers.BatchNormalization(synchronized=synchronized, name="norm"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Flatten(name="flatten"),
        MPTDense(10, seed=4, name="wide"),
    ]
    return keras.Sequential(layers, name="norm")


def synchronized_norm():
    return plain_norm(synchronized=True)


def jackpot():
    """Stored masks."""
    layers = [
        keras.Input((8, 8, 3)),
        MPTConv2D(8, 3, activation="relu", kernel_quantizer=None, mask=Restricted(0.7), seed=1, name="conv1"),
        keras.layers.Flatten(name="flatten"),
        MPTDense(64, activation="relu", kernel_quantizer=None, mask=Restricted(0.7), seed=2, name="wide"),
        keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=3), name="logits"),
    ]
    return keras.Sequential(layers, name="jackpot")


NETWORKS = {f.__name__: f for f in (tickets, jackpot, plain_norm, synchronized_norm)}


class Batches(keras.utils.PyDataset):
    """The same batches everywhere, or this process's part of each."""

    def __init__(self, part=0, parts=1):
        super().__init__()
        random = np.random.default_rng(0)
        self.images, self.labels = random.normal(size=(SIZE, 8, 8, 3)).astype("float32"), random.integers(0, 10, SIZE)
        self.images += self.labels[:, None, None, None] / 5
        self.part, self.parts = part, parts

    def __len__(self):
        return SIZE // BATCH

    def __getitem__(self, step):
        rows = np.split(np.arange(step * BATCH, (step + 1) * BATCH), self.parts)[self.part]
        return self.images[rows], self.labels[rows]


def callbacks_for(name, path):
    found = [callbacks.MaskStatistics(path), callbacks.CheckScores()]
    if name == "jackpot":
        return [*found, callbacks.ShortRestriction(ARGS.epochs + 1)]
    if name != "tickets":
        return found
    return [
        *found,
        callbacks.SparsitySchedule(epochs=ARGS.epochs - 1),
        callbacks.IteRand(0.2, every=1),
        callbacks.IteRand(0.2, every=3, unit="step", seed=1),
        callbacks.IterativeWeightRecycling(0.2, every=1),
    ]


def train(name, way, scope=contextlib.nullcontext, part=(0, 1)):
    """Train a network of NETWORKS, save it, and write its state to a file."""
    keras.utils.set_random_seed(0)
    with scope():
        model = NETWORKS[name]()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9, name="sgd"), loss, metrics=["accuracy"])
        keras_mpt.summary(model, print_fn=lambda line: None)
        before = masks(model)
        searching = callbacks_for(name, ARGS.folder / f"{name}_{way}.csv")
        settings = {"epochs": ARGS.epochs, "shuffle": False, "verbose": 0, "callbacks": searching}
        history = model.fit(Batches(*part), validation_data=Batches(*part), **settings).history
        model.save(ARGS.folder / f"{name}_{way}.keras")  # by all processes
        if not ARGS.process:  # by the chief alone
            keras_mpt.save_ticket(model, ARGS.folder / f"{name}_{way}.mpt")
        output = ops.convert_to_numpy(model(Batches().images[:BATCH]))
        state = {"output": output, **{key: np.array(values) for key, values in history.items()}}
        state |= {f"before/{path}": mask for path, mask in before.items()}
        state |= {f"mask/{path}": mask for path, mask in masks(model).items()}
        state |= {f"variable/{v.path}": ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]}
        for layer in mpt_layers(model):
            for i, (scores, mask) in enumerate(replicas(layer)):
                state[f"replica{i}/scores/{layer.name}"], state[f"replica{i}/mask/{layer.name}"] = scores, mask
        np.savez(ARGS.folder / f"{name}_{way}.npz", **state)


def masks(model):
    return {layer.name: ops.convert_to_numpy(layer.subnet_mask) for layer in mpt_layers(model)}


def replicas(layer):
    """Return pairs of scores and mask, as each device of this process has them."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.get_strategy()
        results = strategy.run(tf.function(lambda: (tf.identity(layer.scores.value), layer.subnet_mask)))
        return zip(*(map(np.array, strategy.experimental_local_results(each)) for each in results), strict=True)
    shards = [tensor.addressable_shards for tensor in (layer.scores.value, layer.subnet_mask)]
    return [tuple(np.array(shard.data) for shard in pair) for pair in zip(*shards, strict=True)]


def mirrored():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU"))
    assert strategy.num_replicas_in_sync == DEVICES
    for name in ARGS.networks:
        train(name, "one")
        train(name, "mirrored", strategy.scope)


def layouts():
    devices = keras.distribution.list_devices()
    data_parallel = keras.distribution.DataParallel(devices=devices[:2])
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["(.*/)?wide/(scores|frozen_kernel|stored_mask)"] = (None, "model")
    layout["sgd/.*wide_scores.*"] = (None, "model")
    model_parallel = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    for name in ARGS.networks:
        train(name, "one")
        train(name, "data_parallel", data_parallel.scope)
        train(name, "model_parallel", model_parallel.scope)


def processes():
    import jax

    keras.distribution.initialize(f"127.0.0.1:{ARGS.port}", 2, ARGS.process)
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    assert jax.process_count() == 2
    for name in ARGS.networks:
        if ARGS.process == 0:
            train(name, "one")
        train(name, f"processes{ARGS.process}", distribution.scope, (ARGS.process, 2))


if __name__ == "__main__":
    ARGS.folder.mkdir(parents=True, exist_ok=True)
    {"mirrored": mirrored, "layouts": layouts, "processes": processes}[ARGS.scenario]()
