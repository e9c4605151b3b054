"""Files of MPT-1/1 networks for LiteRT, as integers and otherwise: bytes, times, what is kept of the Keras model.

    python -m benchmarks.integer --data_dir DIR                  # CIFAR-10: see examples/recipes/cifar10.py
    python -m benchmarks.integer --data_dir DIR --networks conv4 --all_signs

Conv-4 is the zoo's; the others are untrained, with batch normalization statistics of the images, which changes nothing
about sizes and times. Times are processor time for one image on one thread, as the median of the ratios to "exact int8"
in rounds in which all files take turns. "classes" is the share of images with the class that Keras gives, "outputs"
that of images whose outputs are Keras' but for rounding. Post-training int8 is TensorFlow Lite's own, calibrated on 100
images.

Of a sequential network's integer files, each sign inside is compared with integers in numpy, in LiteRT with XNNPACK and
without, and on some images in TensorFlow Lite Micro, if it is installed; `--all_signs` takes the whole test set.
Writes `benchmarks/results/integer.json`.
"""

import argparse
import gzip
import importlib.util
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import numpy as np

import keras_mpt
from benchmarks.rounds import ratio, save
from keras_mpt import convert
from keras_mpt.convert.integer_form import integer_writer
from keras_mpt.convert.integer_tflite import decoded
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.tensors import outputs_of
from keras_mpt.convert.tflite import TensorFlowLite

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "recipes"))

BINARY = {"input_quantizer": "approx_sign", "pad_values": 1.0, "seed": 0}
NETWORKS = {
    "conv4": ("Conv-4, 50 %", lambda: keras_mpt.zoo.conv4_mpt(weights="conv4_mpt11_s50")),
    "vgg_small": ("VGG-Small, 75 %", lambda: keras_mpt.zoo.vgg_small_mpt(sparsity=0.75, **BINARY)),
    "resnet18": ("ResNet-18, 80 %", lambda: keras_mpt.zoo.resnet18_mpt(sparsity=0.8, **BINARY)),
}
FILES = {
    "exact int8": "exact_int8",
    "integer": "integer",
    "integer2": "integer2",
    "larq-compute-engine": None,
    "float32": "float32",
    "post-training int8": None,
}
ADAPTED = 640  # images
CALIBRATED = 100
MICRO = 4


def make(model, kind, path, images):
    """Write a file of a kind."""
    if kind == "larq-compute-engine":
        convert.to_lce(model, path, samples=images[:4])
    elif kind == "post-training int8":
        path.write_bytes(post_training(keras_mpt.models.strip(model), images[:CALIBRATED]))
    else:
        convert.to_tflite(model, path, weights=FILES[kind], samples=images[:10])


def post_training(model, images):
    """Return TensorFlow Lite's full int8 quantization of a plain model."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    return converter.convert()


def measure(name, model, images, rounds, folder):
    """Return the rows of one network, one for each kind of file."""
    expected, rows, invokers = model.predict(images, batch_size=100, verbose=0), [], {}
    scale = np.abs(expected).max(axis=1)
    for kind in FILES:
        path, target = folder / f"{kind}.tflite", "lce" if kind == "larq-compute-engine" else "tflite"
        if target == "lce" and not importlib.util.find_spec("larq_compute_engine"):
            continue
        make(model, kind, path, images)
        some = images[: len(images) if target == "tflite" else 20]  # its kernels are slow here
        found, ours = convert.run(path, target, some), expected[: len(some)]
        content = path.read_bytes()
        rows.append(
            {
                "network": name,
                "file": kind,
                "bytes": len(content),
                "gzip": len(gzip.compress(content, 9)),
                "images": len(some),
                "classes": float((found.argmax(axis=1) == ours.argmax(axis=1)).mean()),
                "outputs": float((np.abs(found - ours).max(axis=1) <= 1e-4 * scale[: len(some)]).mean()),
            }
        )
        invokers[kind] = convert.engines.invoker(path, target)
        print(rows[-1], flush=True)
    seconds = cpu_seconds(invokers, rounds)
    for row in rows:
        row["milliseconds"] = 1e3 * statistics.median(seconds[row["file"]])
        row["ratio"] = ratio(seconds[row["file"]], seconds["exact int8"])
    return rows


def cpu_seconds(invokers, rounds):
    """Return {name: list of seconds of processor time, one for each round}, in which all take turns."""
    seconds = {name: [] for name in invokers}
    for _ in range(rounds):
        for name, invoke in invokers.items():
            invoke()  # for caches
            start = time.process_time()
            invoke()
            seconds[name].append(time.process_time() - start)
    return seconds


def wrong_signs(model, images, weights):
    """Return `{runtime: (wrong, all)}` of the signs inside an integer file that follow from others in integers."""
    from ai_edge_litert.interpreter import OpResolverType

    runs = {"LiteRT, XNNPACK": OpResolverType.AUTO, "LiteRT": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
    content, program = sign_file(model, TensorFlowLite(weights))
    found = {}
    for runtime, kernels in runs.items():
        found[runtime] = compared(program, interpreted(content, kernels), images)
        print(weights, runtime, found[runtime], flush=True)
    if importlib.util.find_spec("tflite_micro") and weights == "integer":
        from keras_mpt.convert.tflm import Micro

        target = Micro()
        content, program = sign_file(model, target)
        found["TensorFlow Lite Micro"] = compared(program, target.session(content), images[:MICRO])
        print(weights, "tflm", found["TensorFlow Lite Micro"], flush=True)
    return found


def interpreted(content, kernels):
    """Return a function that runs a file in LiteRT with a set of kernels."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    (given,), made = interpreter.get_input_details(), interpreter.get_output_details()

    def run(arrays):
        interpreter.set_tensor(given["index"], arrays[0])
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"]).copy() for output in made]

    return run


def sign_file(model, target):
    """Return a file whose outputs are the signs inside, and its `Program`."""
    plan = Plan(model)
    for kernel in plan.kernels:
        target.choose(kernel)
    writer = integer_writer(target, plan.graph(1))
    writer.sign_outputs()
    return writer.file.content(), writer.program


def compared(program, run, images, batch=100):
    """Return how many signs differ from integers in numpy, and of how many."""
    wrong = count = 0
    for begin in range(0, len(images), batch):
        codes = outputs_of(run, [images[begin : begin + batch]], 1)
        signs = dict(zip(program.coded, map(decoded, codes), strict=True))
        floats = {point: signs[point] for point in program.coded if point.call is None}
        expected = program.signs(floats)
        for point in program.coded:
            if point.call is not None:
                wrong += int((signs[point] != expected[point]).sum())
                count += signs[point].size
    return wrong, count


def table(rows):
    """Return the rows as markdown."""
    lines = [
        "| network | file | bytes | gzip | time to exact int8 | classes | outputs | images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['file']} | {row['bytes']:,} | {row['gzip']:,} | {row['ratio']:.2f} | "
            f"{row['classes']:.1%} | {row['outputs']:.1%} | {row['images']} |"
        )
    return "\n".join(lines)


def instructions():
    """Return which of the instructions that matter to integers this processor has."""
    path = pathlib.Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
    return [platform.machine(), *(flag for flag in wanted if flag in flags)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of tensorflow-datasets, or an npz file")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--all_signs", action="store_true", help="compare signs on the whole test set")
    arguments = parser.parse_args()

    import cifar10

    images = cifar10.normalize(cifar10.load(arguments.data_dir)["test"][0]).astype(np.float32)
    rows, signs = [], {}
    for key in arguments.networks:
        name, build = NETWORKS[key]
        model = build()
        if key != "conv4":
            for begin in range(0, ADAPTED, 64):  # statistics for batch normalization; trained networks have theirs
                model(images[begin : begin + 64], training=True)
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, model, images[: arguments.samples], arguments.rounds, pathlib.Path(folder))
        if key != "resnet18":
            some = images if arguments.all_signs else images[:100]
            for weights in ("integer", "integer2"):
                signs[f"{name}, {weights}"] = wrong_signs(model, some, weights)
        print(table(rows), flush=True)
    save("integer", {"instructions": instructions(), "rows": rows, "wrong signs": signs})
    print(instructions(), signs)


if __name__ == "__main__":
    main()
