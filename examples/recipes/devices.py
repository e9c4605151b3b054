"""Where a training runs: the flags that choose several devices or processes, and how Keras is told."""

import os

import keras
import training
from absl import app, flags

FLAGS = flags.FLAGS
_BACKENDS = {"mirrored": "tensorflow", "data_parallel": "jax", "model_parallel": "jax"}
flags.DEFINE_enum("strategy", None, list(_BACKENDS), "How devices share the work; default: there is one.")
flags.DEFINE_integer("model_devices", 2, "Devices that share a kernel, with model_parallel.", lower_bound=1)
flags.DEFINE_integer("processes", 1, "Number of processes, with data_parallel.", lower_bound=1)
flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.", lower_bound=0)
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, a free port there.")
flags.DEFINE_bool("synchronized_batch_norm", False, "With mirrored: statistics of the whole batch (JAX always does).")
flags.DEFINE_integer("virtual_devices", None, "Let the CPU of this process be so many devices.", lower_bound=1)


def chosen(*batch_sizes):
    """Return the `training.Devices` of the flags, whose number must divide the sizes of all batches."""
    if FLAGS.strategy is None:
        several = ("processes", "process_id", "coordinator", "virtual_devices", "synchronized_batch_norm")
        given = [f"--{name}" for name in several if FLAGS[name].value != FLAGS[name].default]
        if given:
            raise app.UsageError(f"{', '.join(given)} need --strategy.")
        return training.ONE_DEVICE
    needed = _BACKENDS[FLAGS.strategy]
    if keras.backend.backend() != needed:
        raise app.UsageError(f"--strategy={FLAGS.strategy} needs KERAS_BACKEND={needed}.")
    if FLAGS.synchronized_batch_norm and needed != "tensorflow":
        raise app.UsageError("--synchronized_batch_norm is for mirrored: on JAX, the whole batch is normalized anyway.")
    if FLAGS.processes > 1 and FLAGS.strategy != "data_parallel":
        raise app.UsageError(f"Several --processes need --strategy=data_parallel. Received: {FLAGS.strategy}")
    make = {"mirrored": _mirrored, "data_parallel": _data_parallel, "model_parallel": _model_parallel}[FLAGS.strategy]
    devices, replicas = make()
    for size in batch_sizes:
        if size % replicas:
            raise app.UsageError(f"Batches must be multiples of the number of replicas. Received: {size}, {replicas}")
    return devices


def _mirrored():
    import tensorflow as tf

    if FLAGS.virtual_devices:
        (cpu,) = tf.config.list_physical_devices("CPU")
        virtual = [tf.config.LogicalDeviceConfiguration()] * FLAGS.virtual_devices
        tf.config.set_logical_device_configuration(cpu, virtual)
    strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU") if FLAGS.virtual_devices else None)
    devices = training.Devices(strategy.scope, synchronized_batch_norm=FLAGS.synchronized_batch_norm)
    return devices, strategy.num_replicas_in_sync


def _data_parallel():
    _start_jax()
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)  # each process makes its part itself
    return training.Devices(distribution.scope, FLAGS.process_id, FLAGS.processes), distribution.num_model_replicas


def _model_parallel():
    _start_jax()
    devices = keras.distribution.list_devices()
    if len(devices) % FLAGS.model_devices:
        raise app.UsageError(
            f"--model_devices must divide the number of devices. Received: {FLAGS.model_devices}, {len(devices)}"
        )
    shape = len(devices) // FLAGS.model_devices, FLAGS.model_devices
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[r".*(conv\d+|_shortcut)/(scores|frozen_kernel)"] = (None, None, None, "model")
    layout[r".*dense\d+/(scores|frozen_kernel)"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    return training.Devices(distribution.scope), distribution.num_model_replicas


def _start_jax():
    """Configure the devices and connect the processes, before JAX looks for them."""
    if FLAGS.virtual_devices:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={FLAGS.virtual_devices}"
    if FLAGS.processes > 1:
        if not FLAGS.coordinator or FLAGS.process_id >= FLAGS.processes:
            raise app.UsageError(
                "Several processes need --coordinator and a --process_id below --processes. Received: "
                f"--coordinator={FLAGS.coordinator}, {FLAGS.process_id} of {FLAGS.processes}"
            )
        keras.distribution.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
