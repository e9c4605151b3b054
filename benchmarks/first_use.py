"""Seconds that come once: importing, the first training step, saving, loading and converting.

    python -m benchmarks.first_use
    python -m benchmarks.first_use --cases mobilenet resnet50 --rounds 1
    KERAS_BACKEND=jax python -m benchmarks.first_use --cases "first step" "resnet18"

Each beside what the plain Keras model takes for it, in processes of their own that take turns; medians over rounds. Of
the second step on, see `benchmarks.step_time`. Writes `benchmarks/results/first_use_<backend>.json`, where the rows of
cases that are not measured again stay, and prints a table.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

GOALS = {"first step": 2, "resnet18": 2, "load": 2, "convert": 3, "mobilenet": 3, "resnet50": 3}
LONG = ("mobilenet", "resnet50")  # left out by default
WHAT = {
    "import": "`import keras_mpt` / `import keras`",
    "first step": "first training step, 100 dense layers",
    "resnet18": "first training step, ResNet-18",
    "save": "`save_ticket` / `save`, ResNet-50",
    "load": "`load_ticket` / `load_model`, ResNet-50",
    "convert": "`to_tflite` / TensorFlow's converter, 10 convolutions",
    "mobilenet": "`to_tflite` / TensorFlow's converter, MobileNetV2",
    "resnet50": "`to_tflite` / TensorFlow's converter, ResNet-50",
}


def importing(ours, folder):
    start = time.perf_counter()
    if ours:
        import keras_mpt  # noqa: F401
    else:
        import keras  # noqa: F401
    return time.perf_counter() - start


def first_step(ours, folder):
    import keras

    import keras_mpt

    layers = [keras_mpt.layers.MPTDense(64, activation="relu", seed=seed) for seed in range(100)]
    return stepping(keras.Sequential([keras.Input((64,)), *layers]), ours)


def first_step_of_resnet18(ours, folder):
    import keras_mpt

    return stepping(keras_mpt.zoo.resnet18_mpt(seed=0), ours)


def stepping(model, ours):
    import keras
    import numpy as np

    import keras_mpt

    model = model if ours else keras_mpt.models.dense_twin(model)
    model.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
    x, y = (np.ones((8, *tensor.shape[1:]), "float32") for tensor in (model.inputs[0], model.outputs[0]))
    return timed(lambda: model.train_on_batch(x, y))


def resnet50():
    import keras

    import keras_mpt

    return keras_mpt.models.to_mpt(keras.applications.ResNet50(weights=None), sparsity=0.8, seed=0)


def saving(ours, folder):
    import keras_mpt

    model = resnet50() if ours else keras_mpt.models.strip(resnet50())
    if ours:
        return timed(lambda: keras_mpt.save_ticket(model, folder / "resnet50.mpt"))
    return timed(lambda: model.save(folder / "resnet50.keras"))


def loading(ours, folder):
    """Load what `saving` has left."""
    import keras

    import keras_mpt

    if ours:
        return timed(lambda: keras_mpt.load_ticket(folder / "resnet50.mpt"))
    return timed(lambda: keras.saving.load_model(folder / "resnet50.keras"))


def converting(ours, folder):
    import keras

    import keras_mpt

    layers = [keras_mpt.layers.MPTConv2D(32, 3, padding="same", activation="relu", seed=seed) for seed in range(10)]
    return converted(keras.Sequential([keras.Input((16, 16, 32)), *layers]), ours, folder)


def converting_mobilenet(ours, folder):
    import keras

    import keras_mpt

    return converted(keras_mpt.models.to_mpt(keras.applications.MobileNetV2(weights=None), seed=0), ours, folder)


def converting_resnet50(ours, folder):
    return converted(resnet50(), ours, folder)


def converted(model, ours, folder):
    import tensorflow as tf

    import keras_mpt

    if ours:
        return timed(lambda: keras_mpt.convert.to_tflite(model, folder / "model.tflite"))
    model = keras_mpt.models.strip(model)
    return timed(lambda: tf.lite.TFLiteConverter.from_keras_model(model).convert())


CASES = {
    "import": importing,
    "first step": first_step,
    "resnet18": first_step_of_resnet18,
    "save": saving,
    "load": loading,
    "convert": converting,
    "mobilenet": converting_mobilenet,
    "resnet50": converting_resnet50,
}


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case, rounds, folder):
    seconds = {"ours": [], "plain": []}
    for _ in range(rounds):
        for who, found in seconds.items():
            command = [sys.executable, "-m", "benchmarks.first_use", "--one", case, who, str(folder)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(printed.splitlines()[-1]))
    ours, plain = (statistics.median(found) for found in seconds.values())
    row = {"case": case, "what": WHAT[case], "seconds": ours, "plain seconds": plain, "goal": GOALS.get(case)}
    row["ratio"] = statistics.median(mine / its for mine, its in zip(*seconds.values(), strict=True))
    print(f"{case:12}{ours:8.2f} s{plain:8.2f} s plain{row['ratio']:8.2f}, goal {row['goal']}", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [case for case in CASES if case not in LONG]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=usual)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, who, folder = arguments.one
        print(json.dumps(CASES[case](who == "ours", pathlib.Path(folder))))
        return
    from benchmarks.rounds import rows_of, save, where

    name = f"first_use_{where()}"
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(case, arguments.rounds, pathlib.Path(folder)) for case in arguments.cases]
    rows += [row for row in rows_of(name) if row["case"] not in arguments.cases]
    rows.sort(key=lambda row: list(CASES).index(row["case"]))
    save(name, {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
