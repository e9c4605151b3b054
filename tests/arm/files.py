"""Make the files that `run.sh` runs on an emulated aarch64 processor, and compare what came out.

    python files.py prepare FOLDER
    python files.py compare FOLDER

Of the zoo, the phone files of networks with binary activations are taken as they are published, and their tickets are
converted to integers; of MPT-1/32, one ticket. Of a network without a float stem there is also a file that gives each
sign inside: integers, to be equal bit by bit to those of numpy. The samples are random numbers.
"""

import pathlib
import shutil
import subprocess
import sys

import numpy as np

import keras_mpt
from keras_mpt import convert
from keras_mpt.convert.integer_form import integer_writer
from keras_mpt.convert.integer_tflite import decoded
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.tflite import TensorFlowLite

ROOT = pathlib.Path(__file__).parents[2]
TICKETS = ("conv4_mpt11_s50", "conv6_mpt11_s50_float_stem", "conv4_mpt32_s50")
BITS = "conv4_mpt11_s50"  # takes signs from the beginning
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
    for weights in FORMS:
        signs(folder, weights, samples)
    subprocess.run([sys.executable, ROOT / "tests/arm/interpret.py", folder, "x86"], check=True)


def signs(folder, weights, samples):
    """Write a file whose outputs are the signs inside, and these signs as numpy's integers have them."""
    target, plan = TensorFlowLite(weights), Plan(keras_mpt.load_ticket(ROOT / "zoo" / f"{BITS}.mpt"))
    for kernel in plan.kernels:
        target.choose(kernel)
    writer = integer_writer(target, plan.graph(1))
    writer.sign_outputs()
    name = f"{BITS}--{weights} signs"
    (folder / f"{name}.tflite").write_bytes(writer.file.content())
    program = writer.program
    (float_point,) = (point for point in program.coded if point.call is None)
    found = decoded(target.session(writer.file.content())([samples[:1]])[program.coded.index(float_point)])
    first = [found] + [
        decoded(target.session(writer.file.content())([sample[None]])[program.coded.index(float_point)])
        for sample in samples[1:]
    ]
    expected = program.signs({float_point: np.concatenate(first)})
    np.savez(folder / f"{name}.numpy.npz", *[expected[point] for point in program.coded])


def compare(folder):
    """Print tables; return whether all outputs agree: rounding apart, and where a float stem flips a sign, that too.

    A flip changes an output by a multiple of what a sign is worth, so by far more than rounding.
    """
    fine = True
    files = sorted(path for path in folder.glob("*.tflite"))
    print(f"{SAMPLES} samples each")
    print("| file | kernels | max difference to x86 | to Keras | same class as Keras |\n|---|---|---|---|---|")
    for path in files:
        if path.stem.endswith("signs"):
            continue
        keras_ = np.load(folder / f"{path.stem.partition('--')[0]}.keras.npy")
        x86, arm = (np.load(folder / f"{path.stem}.{machine}.npz") for machine in ("x86", "aarch64"))
        for kernels in arm.files:
            there = np.abs(arm[kernels] - x86[kernels]).max(), np.abs(arm[kernels] - keras_).max()
            same = np.mean(arm[kernels].argmax(axis=1) == keras_.argmax(axis=1))
            fine &= max(there) <= 1e-4 * np.abs(keras_).max() and same == 1
            print(f"| {path.stem} | {kernels} | {there[0]:.1e} | {there[1]:.1e} | {same:.0%} |")
    print("| file | kernels | signs | other than numpy's integers |\n|---|---|---|---|")
    for path in files:
        if not path.stem.endswith("signs"):
            continue
        expected = np.load(folder / f"{path.stem}.numpy.npz")
        found = np.load(folder / f"{path.stem}.aarch64.npz")
        for kernels in sorted({name.partition(" ")[0] for name in found.files}):
            pairs = [(found[f"{kernels} {i}"] > 0, expected[f"arr_{i}"] > 0) for i in range(len(expected.files))]
            wrong, count = (sum(int(n) for n in numbers) for numbers in zip(*((np.sum(a != b), b.size) for a, b in pairs)))
            fine &= wrong == 0
            print(f"| {path.stem} | {kernels} | {count:,} | {wrong} |")
    return fine


if __name__ == "__main__":
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "prepare":
        prepare(folder)
    elif not compare(folder):
        sys.exit("The files give something else there.")
