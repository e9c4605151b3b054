"""`train.py` on several devices: its flags, and where to train. See docs/guides/distributed.md for what is the same.

    python train_distributed.py --strategy mirrored --synchronized_batch_norm --output_dir …  # TensorFlow
    KERAS_BACKEND=jax python train_distributed.py --strategy data_parallel --output_dir …     # JAX
    KERAS_BACKEND=jax python train_distributed.py --strategy model_parallel --model_devices 2 --output_dir …

`--batch_size` is that of all devices together. `data_parallel` and `mirrored` give each of them a part of the batch,
`model_parallel` also divides kernels and scores, by output channels. To see one of them without the hardware, let
the CPU be several devices: `--virtual_devices 2`.

Several processes, on one machine or many (JAX, data_parallel), are started each with its number and the address of the
first one; all of them need the same --output_dir:

    … --strategy data_parallel --processes 2 --process_id 0 --coordinator 10.0.0.1:12345 --output_dir …
    … --strategy data_parallel --processes 2 --process_id 1 --coordinator 10.0.0.1:12345 --output_dir …

The first one writes logs, checkpoints and the ticket. If one dies, the others end: start all again.
"""

import backend  # noqa: F401 - before Keras
import devices
import train
import training
from absl import app, flags

for module in (train, devices):
    flags.adopt_module_key_flags(module)
flags.mark_flag_as_required("strategy")


def main(_):
    where = devices.chosen(flags.FLAGS.batch_size, train.VALIDATION_BATCH)
    train.run(training.command("train_distributed.py"), where)


if __name__ == "__main__":
    app.run(main)
