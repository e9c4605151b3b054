"""One large layer through a training step, saving, loading and converting: seconds, bytes and memory.

    python -m benchmarks.scale
    KERAS_BACKEND=jax python -m benchmarks.scale --side 3000 --phases step save load

A dense layer of `side` times `side` weights, half of which stay; SGD without momentum, batches of eight. Each phase has
a process of its own, which makes the layer first (but for `load`); memory is the peak of the process less what it had
before. Writes `benchmarks/results/scale_<backend>.json`, where rows of phases that are not measured again stay, and
prints a table. Needs Linux or macOS, and for 1e8 weights some 5 GB of memory.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

import keras_mpt
from benchmarks.memory import peak
from benchmarks.rounds import rows_of, save, where

TICKET, CONVERTED = "ticket.mpt", "model.tflite"
BATCH = 8


def layer_of(side):
    return keras.Sequential([keras.Input((side,)), keras_mpt.layers.MPTDense(side, seed=0)])


def step(side, folder):
    """Return the seconds of the second training step; the first one compiles."""
    model = layer_of(side)
    model.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
    x = np.ones((BATCH, side), "float32")
    model.train_on_batch(x, x)
    return timed(lambda: model.train_on_batch(x, x))


def saving(side, folder):
    model = layer_of(side)
    return timed(lambda: keras_mpt.save_ticket(model, folder / TICKET))


def loading(side, folder):
    """Load what `saving` has left."""
    return timed(lambda: keras_mpt.load_ticket(folder / TICKET))


def converting(side, folder):
    model = layer_of(side)
    return timed(lambda: keras_mpt.convert.to_tflite(model, folder / CONVERTED))


PHASES = {"step": (step, None), "save": (saving, TICKET), "load": (loading, TICKET), "convert": (converting, CONVERTED)}


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(phase, side, folder):
    """Return what a phase takes, in this process."""
    keras.ops.convert_to_numpy(keras.ops.matmul(np.ones((2, 2)), np.ones((2, 2))))  # the backend makes its pools
    run, file = PHASES[phase]
    before = peak()
    seconds = run(side, folder)
    row = {"phase": phase, "weights": side**2, "seconds": seconds, "peak bytes": peak() - before}
    return row | ({"file bytes": (folder / file).stat().st_size} if file else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10**4)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        phase, folder = arguments.one
        print(json.dumps(measure(phase, arguments.side, pathlib.Path(folder))))
        return
    result = f"scale_{where()}"
    rows = {row["phase"]: row for row in rows_of(result)}
    with tempfile.TemporaryDirectory() as folder:
        for phase in arguments.phases:
            command = [sys.executable, "-m", "benchmarks.scale", "--side", str(arguments.side), "--one", phase, folder]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = rows[phase] = json.loads(printed.splitlines()[-1])
            size = f", file {row['file bytes']:,} bytes" if "file bytes" in row else ""
            print(f"{phase:8}{row['seconds']:8.2f} s, peak {row['peak bytes'] / 1e6:,.0f} MB{size}", flush=True)
    save(result, {"rows": [rows[phase] for phase in PHASES if phase in rows]})


if __name__ == "__main__":
    main()
