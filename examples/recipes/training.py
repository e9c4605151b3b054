"""A training that can be stopped at any time: a checkpoint and a row of the log after each epoch, and how to go on."""

import contextlib
import csv
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags
from batches import BeginEpochs, EpochBatches

import keras_mpt
from keras_mpt.models.ranges import gives_probabilities


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where a training runs: by default on one device, elsewhere see train_distributed.py.

    Attributes:
        scope: Function that returns a context manager, in which a model is made and trained.
        process, processes: Which of several processes this is. The first one, the chief, writes logs and files.
        synchronized_batch_norm: Whether to normalize with the statistics of the batches of all devices; on JAX that is
            so anyway.
    """

    scope: Callable = contextlib.nullcontext
    process: int = 0
    processes: int = 1
    synchronized_batch_norm: bool = False

    @property
    def is_chief(self):
        return self.process == 0


ONE_DEVICE = Devices()


class Checkpoint(keras.callbacks.Callback):
    """Save the whole training state after each epoch; a kill while saving leaves the last one.

    Keras needs all processes to save, so each of them writes a file, and that of the chief is kept.
    """

    def __init__(self, path, devices):
        super().__init__()
        self.path, self.devices = path, devices

    def on_epoch_end(self, epoch, logs=None):
        unfinished = self.path.with_suffix(f".tmp{self.devices.process}.keras")
        self.model.save(unfinished)
        if self.devices.is_chief:
            os.replace(unfinished, self.path)
        else:
            unfinished.unlink()


class Speed(keras.callbacks.Callback):
    """Print how the training computes, and write how many images a second each epoch trains to a file of its own.

    Not to the log, which is the same again for the same flags and seed. Validation is not counted, the first step is.
    """

    def __init__(self, path, batch_size):
        super().__init__()
        self.path, self.batch_size = path, batch_size

    def on_train_begin(self, logs=None):
        print(how_it_computes(self.model), flush=True)
        if not self.path.exists():
            self.path.write_text("epoch,seconds,images_per_second\n")

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._steps, self._seconds = time.perf_counter(), 0, 0.0

    def on_train_batch_end(self, batch, logs=None):
        self._steps, self._seconds = batch + 1, time.perf_counter() - self._start

    def on_epoch_end(self, epoch, logs=None):
        speed = self._steps * self.batch_size / max(self._seconds, 1e-9)
        print(f" {speed:.0f} images/s", flush=True)
        with self.path.open("a") as file:
            file.write(f"{epoch},{self._seconds:.1f},{speed:.1f}\n")


def how_it_computes(model):
    """Return a line that says on which backend a model computes, in which dtype, and with oneDNN or without."""
    backend, policy = keras.backend.backend(), model.layers[-1].dtype_policy.name
    words = [f"Keras {keras.__version__} on {backend}", policy]
    if backend == "tensorflow":
        from tensorflow.python.util import _pywrap_util_port as port

        words.append(f"oneDNN {'on' if port.IsMklEnabled() else 'off'}")
    return ", ".join(words)


def check(condition, flag, expected, received):
    """Raise UsageError, with the flag's name, unless a condition holds."""
    if not condition:
        raise app.UsageError(f"--{flag} must be {expected}. Received: {received}")


def check_choices(flag, given, known):
    """Raise UsageError unless all words given to a flag are known."""
    unknown = sorted(set(given) - set(known))
    check(not unknown, flag, f"of {', '.join(known)}", ", ".join(unknown))


def check_sparsities(given):
    """Raise UsageError unless all words given to --sparsities are numbers in [0, 1)."""
    for word in given:
        try:
            fraction = float(word)
        except ValueError:
            fraction = -1
        check(0 <= fraction < 1, "sparsities", "numbers in [0, 1)", word)


def check_logits(flag, model):
    """Raise UsageError if a model that was given returns probabilities."""
    probabilities = any(map(gives_probabilities, getattr(model, "outputs", None) or []))
    check(not probabilities, flag, "a network that returns logits", "one that ends in a softmax or sigmoid")


def check_batch_size(batch_size, images):
    """Raise UsageError if there are not enough images for a batch."""
    expected, received = "at most the number of training images", f"{batch_size}, and {images} images"
    check(batch_size <= images, "batch_size", expected, received)


def check_warmup(warmup_epochs, epochs):
    """Raise UsageError if nothing is left of the training after the warm-up."""
    check(warmup_epochs < epochs, "warmup_epochs", "fewer than --epochs", f"{warmup_epochs} of {epochs}")


def compile_for(model, optimizer, label_smoothing=None):
    """Compile a classifier that returns logits. With `label_smoothing`, a number, labels are one-hot vectors."""
    if label_smoothing is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=keras.backend.backend() == "jax")


def cosine(learning_rate, steps, warmup_steps=0):
    """Return a schedule: from 0 to the learning rate in some first steps, then down to 0 along a cosine."""
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else learning_rate,
        steps - warmup_steps,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def add_weight_decay(model, rate):
    """Couple weight decay d to the gradient as PyTorch does: d * w is the gradient of the penalty d / 2 * w**2."""
    if rate and isinstance(model.optimizer, keras.optimizers.SGD):
        for variable in model.trainable_variables:
            variable.regularizer = keras.regularizers.L2(rate / 2)


def fit(
    make,
    batches,
    folder,
    *,
    epochs,
    weight_decay=0.0,
    callbacks=(),
    prepare=None,
    stop_after=None,
    devices=ONE_DEVICE,
    **settings,
):
    """Train a model, or go on where a training in the same folder stopped.

    Args:
        make: Function that returns the compiled model, of the number of steps in an epoch.
        batches: Function that returns the training batches, of the first epoch that they are for.
        folder: `pathlib.Path` of a folder for `checkpoint.keras` and `log.csv`, the same for all processes.
        epochs: Number of epochs in all.
        weight_decay: Of SGD, L2 inside the gradient, for all trainable variables.
        callbacks: Further callbacks, which come first.
        prepare: Function called with the model, made or loaded, for what a checkpoint does not hold.
        stop_after: End after this epoch.
        devices: Where to.
        **settings: Of `fit`.

    Returns:
        The trained model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.keras"
    with devices.scope():
        model, first_epoch, data = _where_it_stopped(make, batches, checkpoint)
        for layer in model.layers if devices.synchronized_batch_norm else ():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
        if prepare is not None:
            prepare(model)
        add_weight_decay(model, weight_decay)
        more = _logs(folder, first_epoch) if devices.is_chief else []
        begin = [BeginEpochs(data)] if isinstance(data, EpochBatches) else []
        if devices.is_chief:
            more.append(Speed(folder / "speed.csv", flags.FLAGS.batch_size))
        model.fit(
            data.for_fit() if begin else data,
            shuffle=False,  # the batches are; Keras would shuffle their order by a state that a resumed run lacks
            initial_epoch=first_epoch,
            epochs=min(epochs, stop_after or epochs),
            callbacks=[
                *begin,
                *callbacks,
                keras_mpt.callbacks.CheckScores(),
                *more,
                Checkpoint(checkpoint, devices),
            ],
            **settings,
        )
    return model


def _where_it_stopped(make, batches, checkpoint):
    """Return the model, new or that of the checkpoint, the epoch that comes next, and its batches."""
    data = batches(0)
    if not checkpoint.exists():
        return make(len(data)), 0, data
    model = keras.models.load_model(checkpoint)
    epoch = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // len(data)
    return model, epoch, batches(epoch)


def _logs(folder, first_epoch):
    """Return callbacks that write down what happens from an epoch on."""
    _forget_epochs(folder / "log.csv", first_epoch)
    callbacks = [keras.callbacks.CSVLogger(str(folder / "log.csv"), append=True)]
    if keras.backend.backend() == "tensorflow":
        callbacks.append(keras.callbacks.TensorBoard(str(folder / "tensorboard"), write_graph=False))
    return callbacks


def _forget_epochs(log, first_epoch):
    """Drop the rows of epochs that ended after the checkpoint was written, or of an older training."""
    if not first_epoch:
        log.unlink(missing_ok=True)
    elif log.exists():
        with log.open(newline="") as file:
            rows = list(csv.reader(file))
        kept = rows[:1] + [row for row in rows[1:] if int(row[0]) < first_epoch]
        with log.with_suffix(".tmp").open("w", newline="") as file:
            csv.writer(file).writerows(kept)
        os.replace(log.with_suffix(".tmp"), log)


@contextlib.contextmanager
def in_folder(folder, may_change=(), devices=ONE_DEVICE):
    """Make a folder that of this training: refuse another that runs there, and other flags than it was started with.

    The checkpoint has the model and the learning rate of the old flags, so others would only be written on the ticket.
    A flag that is not in the file, because it is newer, had its default.

    Args:
        folder: `pathlib.Path` of the training; `flags.json` in it holds the flags, once there is something to go on
            with: a checkpoint or a ticket, in it or in folders inside.
        may_change: Names of flags that may be others.
        devices: Only the chief among several processes locks and writes.

    Raises:
        app.UsageError: A training runs there, or a flag has another value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) if devices.is_chief else contextlib.nullcontext():
        file, found = folder / "flags.json", _flags_of_the_training()
        goes_on = any(folder.rglob("checkpoint.keras")) or any(folder.rglob("ticket.mpt"))
        if goes_on and file.exists():  # of older trainings nobody knows
            before = {flag.name: flag.default for flag in found} | json.loads(file.read_text())
            changed = [f for f in found if f.name not in may_change and f.value != before[f.name]]
            if changed:
                words = ", ".join(f"--{f.name} {f.value} instead of {before[f.name]}" for f in changed)
                raise app.UsageError(
                    f"The flags must be those that the training in {folder} was started with. Received: {words}"
                )
        elif devices.is_chief:
            file.write_text(json.dumps({flag.name: flag.value for flag in found}, indent=1))
        yield


@contextlib.contextmanager
def _locked(folder):
    """Refuse a folder that another process has locked; the system takes the lock from one that is killed."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None
    with (folder / ".lock").open("w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise app.UsageError(f"--output_dir must be of one training. Received: {folder}, where one runs") from error
        yield


def command(script):
    """Return the command line of this training: all flags that were given, but for what only this machine has."""
    given = [flag.serialize() for flag in _flags_of_the_training() if flag.present]
    return " ".join([f"python examples/recipes/{script}", *given])


def _flags_of_the_training():
    """Return the script's flags, but for those that say where and how far it runs."""
    local = ("data_dir", "output_dir", "cache_dir", "stop_after", "process_id", "coordinator")
    return [flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]) if flag.name not in local]


def save_ticket(model, network, folder, **provenance):
    """Save the ticket that was found, with what is said of it, in float32 whatever it was trained in.

    Args:
        model: The trained model.
        network: Function that returns the same network, untrained and in float32.
        folder: `pathlib.Path` where `ticket.mpt` goes.
    """
    ticket = network()
    ticket.set_weights(model.get_weights())
    provenance = {"architecture": ticket.name, **provenance}
    print(keras_mpt.save_ticket(ticket, folder / "ticket.mpt", provenance=provenance))


def is_finished(folder, epochs):
    """Return whether the last epoch is over: before that, a ticket is not what the flags describe."""
    return len(read_log(folder)) == epochs


def read_log(folder):
    """Return the rows of a folder's log as dicts of strings, none if there is no log."""
    log = folder / "log.csv"
    if not log.exists():
        return []
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def mean_and_deviation(values):
    """Return "mean ± standard deviation" of percentages, from fractions; one value has no deviation."""
    values = 100 * np.array(values, float)
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")
