"""Make the files that `run.sh` runs on an emulated aarch64 processor, and compare what came out.

    python files.py prepare FOLDER
    python files.py compare FOLDER

Of the zoo, the phone files of networks with binary activations are taken as they are published, and their tickets are
converted to integers; of MPT-1/32, one ticket. The samples are random numbers.
"""

import pathlib
import shutil
import subprocess
import sys

import numpy as np

import keras_mpt
from keras_mpt import convert

ROOT = pathlib.Path(__file__).parents[2]
TICKETS = ("conv4_mpt11_s50", "conv6_mpt11_s50_float_stem", "conv4_mpt32_s50")
FORMS = ("integer", "integer2")
SAMPLES = 20


def prepare(folder):
    samples = np.random.default_rng(0).normal(size=(SAMPLES, 32, 32, 3)).astype(np.float32)
    np.save(folder / "samples.npy", samples)
    for name in TICKETS:
        ticket = ROOT / "zoo" / f"{name}.mpt"
        np.save(folder / f"{name}.keras.npy", keras_mpt.load_ticket(ticket).predict(samples, verbose=0))
        if (published := ROOT / "zoo" / f"{name}.tflite").exists():
            shutil.copy(published, folder / f"{name}--published.tflite")
        for weights in FORMS if "mpt11" in name else ("int8",):
            convert.to_tflite(ticket, folder / f"{name}--{weights}.tflite", weights=weights, samples=samples)
    subprocess.run([sys.executable, ROOT / "tests/arm/interpret.py", folder, "x86"], check=True)


def compare(folder):
    """Print a table; return whether all outputs agree: rounding apart, and where a float stem flips a sign, that too.

    A flip changes an output by a multiple of what a sign is worth, so by far more than rounding.
    """
    fine = True
    print("| file | kernels | max difference to x86 | to Keras | same class as Keras |\n|---|---|---|---|---|")
    for path in sorted(folder.glob("*.tflite")):
        keras_ = np.load(folder / f"{path.stem.partition('--')[0]}.keras.npy")
        x86, arm = (np.load(folder / f"{path.stem}.{machine}.npz") for machine in ("x86", "aarch64"))
        for kernels in arm.files:
            there = np.abs(arm[kernels] - x86[kernels]).max(), np.abs(arm[kernels] - keras_).max()
            same = np.mean(arm[kernels].argmax(axis=1) == keras_.argmax(axis=1))
            fine &= max(there) <= 1e-4 * np.abs(keras_).max() and same == 1
            print(f"| {path.stem} | {kernels} | {there[0]:.1e} | {there[1]:.1e} | {same:.0%} |")
    return fine


if __name__ == "__main__":
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "prepare":
        prepare(folder)
    elif not compare(folder):
        sys.exit("The files give something else there.")
