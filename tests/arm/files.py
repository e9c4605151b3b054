"""Make the files that `run.sh` runs on an emulated aarch64 processor, and compare what came out.

    python files.py prepare FOLDER
    python files.py compare FOLDER

Phone files of the zoo are taken as they are published, and tickets with binary activations are also converted to the
other forms. Of one there are also files that give each sign inside: integers, to be equal bit by bit to those of numpy.
The samples are random numbers.
"""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
from interpret import FEW, KERNELS

import keras_mpt
from keras_mpt import convert
from keras_mpt.convert.integer.form import integer_writer
from keras_mpt.convert.integer.tflite import decoded
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.tflite import TensorFlowLite

ROOT = pathlib.Path(__file__).parents[2]
TICKETS = ("conv4_mpt11_s50", "conv6_mpt11_s50_float_stem", "conv4_mpt32_s50")
SIGNS = "conv4_mpt11_s50"  # of which each sign inside is compared, behind the first ones, which are made of floats
FORMS = ("integer", "integer2")  # of these files
SAMPLES = 20


def prepare(folder):
    samples = np.random.default_rng(0).normal(size=(SAMPLES, 32, 32, 3)).astype(np.float32)
    np.save(folder / "samples.npy", samples)
    for name in TICKETS:
        ticket = ROOT / "zoo" / f"{name}.mpt"
        np.save(folder / f"{name}.keras.npy", keras_mpt.load_ticket(ticket).predict(samples, verbose=0))
        shutil.copy(ROOT / "zoo" / f"{name}.tflite", folder / f"{name}--published.tflite")
        for weights in ("exact_int8", "integer2") if "mpt11" in name else ():
            convert.to_tflite(ticket, folder / f"{name}--{weights}.tflite", weights=weights, samples=samples)
    for weights in FORMS:
        (folder / f"{SIGNS}--{weights}-signs.tflite").write_bytes(sign_writer(weights).file.content())
    subprocess.run([sys.executable, ROOT / "tests/arm/interpret.py", folder, "x86"], check=True)


def sign_writer(weights):
    """Return the writer of a file whose outputs are the signs inside."""
    target, plan = TensorFlowLite(weights), Plan(keras_mpt.load_ticket(ROOT / "zoo" / f"{SIGNS}.mpt"))
    for kernel in plan.kernels:
        target.choose(kernel)
    writer = integer_writer(target, plan.graph(1))
    writer.sign_outputs()
    return writer


def compare(folder):
    """Print a table; return whether all outputs agree: rounding apart, and where a float stem flips a sign, that too.

    A flip changes an output by a multiple of what a sign is worth, so by far more than rounding.
    """
    fine = True
    print(f"{SAMPLES} samples each, {FEW} of signs\n")
    print("| file | kernels | max difference to x86 | to Keras | same class as Keras |")
    print("|---|---|---|---|---|")
    for path in sorted(folder.glob("*[!s].tflite")):
        keras_ = np.load(folder / f"{path.stem.partition('--')[0]}.keras.npy")
        x86, arm = (np.load(folder / f"{path.stem}.{machine}.npz") for machine in ("x86", "aarch64"))
        for kernels in KERNELS:
            found, there = (made[f"{kernels}_0"] for made in (arm, x86))
            errors = np.abs(found - there).max(), np.abs(found - keras_).max()
            same = np.mean(found.argmax(axis=1) == keras_.argmax(axis=1))
            fine &= max(errors) <= 1e-4 * np.abs(keras_).max() and same == 1
            print(f"| {path.stem} | {kernels} | {errors[0]:.1e} | {errors[1]:.1e} | {same:.0%} |")
    return fine


def compare_signs(folder):
    """Print a table of how many signs inside are others than those of integers in numpy; return whether none is."""
    fine = True
    print("\n| file | kernels | signs | wrong |\n|---|---|---|---|")
    for weights in FORMS:
        program = sign_writer(weights).program
        for machine in ("x86", "aarch64"):
            found = np.load(folder / f"{SIGNS}--{weights}-signs.{machine}.npz")
            for kernels in KERNELS:
                signs = [decoded(found[f"{kernels}_{index}"]) for index in range(len(program.coded))]
                made = dict(zip(program.coded, signs, strict=True))
                expected = program.signs({point: made[point] for point in program.coded if point.call is None})
                wrong = sum(int((made[point] != expected[point]).sum()) for point in program.coded)
                count = sum(made[point].size for point in program.coded if point.call is not None)
                print(f"| {SIGNS}--{weights}, {machine} | {kernels} | {count:,} | {wrong} |")
                fine &= wrong == 0
    return fine


if __name__ == "__main__":
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "prepare":
        prepare(folder)
    elif not (compare(folder) & compare_signs(folder)):
        sys.exit("The files give something else there.")
