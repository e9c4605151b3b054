"""`train.py` on several devices: its flags, and where to train. With the same batch size the result is that of one.

    python examples/train_distributed.py --strategy mirrored --synchronized_batch_norm --output_dir …  # TensorFlow
    KERAS_BACKEND=jax python examples/train_distributed.py --strategy data_parallel --output_dir …     # JAX
    KERAS_BACKEND=jax python examples/train_distributed.py --strategy model_parallel --model_devices 2 --output_dir …

`--batch_size` is that of all devices together. `data_parallel` and `mirrored` give each of them a part of the batch,
`model_parallel` a part of the kernels and scores too, by output channels. To see one of them without the hardware, let
the CPU be several devices: `--virtual_devices 2`.

Several processes, on one machine or many (JAX, data_parallel), are started each with its number and the address of the
first one; all of them need the same --output_dir:

    … --strategy data_parallel --processes 2 --process_id 0 --coordinator 10.0.0.1:12345 --output_dir …
    … --strategy data_parallel --processes 2 --process_id 1 --coordinator 10.0.0.1:12345 --output_dir …

The first one writes logs, checkpoints and the ticket. If one dies, the others end, too: start all again with --resume.
"""

import os

import keras
import train
import training
from absl import app, flags

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(train)
_BACKENDS = {"mirrored": "tensorflow", "data_parallel": "jax", "model_parallel": "jax"}
flags.DEFINE_enum("strategy", None, list(_BACKENDS), "How devices share the work.", required=True)
flags.DEFINE_integer("model_devices", 2, "Devices that share a kernel, with model_parallel.", lower_bound=1)
flags.DEFINE_integer("processes", 1, "Number of processes, with data_parallel.", lower_bound=1)
flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.", lower_bound=0)
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, a free port there.")
flags.DEFINE_bool("synchronized_batch_norm", False, "With mirrored: statistics of the whole batch (JAX always does).")
flags.DEFINE_integer("virtual_devices", None, "Let the CPU of this process be so many devices.", lower_bound=1)


def mirrored():
    import tensorflow as tf

    if FLAGS.virtual_devices:
        (cpu,) = tf.config.list_physical_devices("CPU")
        virtual = [tf.config.LogicalDeviceConfiguration()] * FLAGS.virtual_devices
        tf.config.set_logical_device_configuration(cpu, virtual)
    strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU") if FLAGS.virtual_devices else None)
    check_batches(strategy.num_replicas_in_sync)
    return training.Devices(strategy.scope)


def data_parallel():
    start_jax()
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)  # each process makes its part itself
    check_batches(distribution.num_model_replicas)
    return training.Devices(distribution.scope, FLAGS.process_id, FLAGS.processes)


def model_parallel():
    start_jax()
    devices = keras.distribution.list_devices()
    if FLAGS.processes > 1 or len(devices) % FLAGS.model_devices:
        raise app.UsageError(
            "model_parallel needs one process, and --model_devices to divide the number of its devices. "
            f"Received: --processes={FLAGS.processes}, --model_devices={FLAGS.model_devices}, {len(devices)} devices"
        )
    shape = len(devices) // FLAGS.model_devices, FLAGS.model_devices
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[r".*(conv\d+|_shortcut)/(scores|frozen_kernel)"] = (None, None, None, "model")
    layout[r".*dense\d+/(scores|frozen_kernel)"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    check_batches(distribution.num_model_replicas)
    return training.Devices(distribution.scope)


def start_jax():
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


def check_batches(replicas):
    for name, size in {"--batch_size": FLAGS.batch_size, "The batch for validation": train.VALIDATION_BATCH}.items():
        if size % replicas:
            raise app.UsageError(f"{name} must be a multiple of the number of replicas. Received: {size}, {replicas}")


def main(_):
    needed = _BACKENDS[FLAGS.strategy]
    if keras.backend.backend() != needed:
        raise app.UsageError(f"--strategy={FLAGS.strategy} needs KERAS_BACKEND={needed}.")
    if FLAGS.synchronized_batch_norm and needed != "tensorflow":
        raise app.UsageError("--synchronized_batch_norm is for mirrored: on JAX, the whole batch is normalized anyway.")
    devices = {"mirrored": mirrored, "data_parallel": data_parallel, "model_parallel": model_parallel}[FLAGS.strategy]()
    train.run(train.command("train_distributed.py"), devices, FLAGS.synchronized_batch_norm)


if __name__ == "__main__":
    app.run(main)
