"""Files of MPT-1/1 networks for LiteRT, as integers and otherwise: bytes, times, what is kept of the Keras model.

    python -m benchmarks.integer --data_dir DIR                  # CIFAR-10: see examples/recipes/cifar10.py
    python -m benchmarks.integer --data_dir DIR --networks conv4 --all_signs

Conv-4 is the zoo's; the others are untrained, with batch normalization statistics of the images, which changes nothing
about sizes and times. Times are processor time in LiteRT for one image on one thread, as the median of the ratios to
"exact int8" in rounds in which all files take turns. "classes" is the share of images with the class that Keras gives,
"outputs" that of images whose outputs are Keras' but for rounding. Post-training int8 is TensorFlow Lite's own,
calibrated on 100 images.

Of a sequential network's integer files, each sign inside is compared with integers in numpy, in LiteRT with XNNPACK and
without, and on some images in TensorFlow Lite Micro, if it is installed; `--all_signs` takes the whole test set.
Writes `benchmarks/results/integer.json`; `python -m benchmarks.tables` makes tables of it.

    python -m benchmarks.integer --layers

times single layers of these networks, from signs to signs, in 8 and in 2 bits a weight: what `"integer2"` costs where.
"products" are those of a convolution whose inputs lie side by side already, so without the copies that two bits need
there. Writes `benchmarks/results/integer_layers.json`.
"""

import argparse
import functools
import gzip
import importlib.util
import itertools
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np

import keras_mpt
from benchmarks.rounds import load, ratio, save
from keras_mpt import convert
from keras_mpt.convert.integer import IntegerLayer
from keras_mpt.convert.integer.form import integer_writer
from keras_mpt.convert.integer.tflite import IntegerWriter, decoded
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.tensors import outputs_of
from keras_mpt.convert.tflite import TensorFlowLite

ROOT = pathlib.Path(__file__).parent.parent

BINARY = {"input_quantizer": "approx_sign", "pad_values": 1.0, "seed": 0}
NETWORKS = {
    "conv4": ("Conv-4, 50 %", lambda: keras_mpt.zoo.conv4_mpt(weights="conv4_mpt11_s50")),
    "vgg_small": ("VGG-Small, 75 %", lambda: keras_mpt.zoo.vgg_small_mpt(sparsity=0.75, **BINARY)),
    "resnet18": ("ResNet-18, 80 %", lambda: keras_mpt.zoo.resnet18_mpt(sparsity=0.8, **BINARY)),
}
FILES = {
    "exact int8": "exact_int8",
    "integer": "integer",
    "integer2_dense": "integer2_dense",
    "integer2": "integer2",
    "larq-compute-engine": None,
    "float32": "float32",
    "post-training int8": None,
}
LAYERS = {  # height and width (0: dense), inputs, outputs
    "Conv-4, conv2": (32, 64, 64),
    "Conv-4, conv3": (16, 64, 128),
    "Conv-4, conv4": (16, 128, 128),
    "Conv-4, dense1": (0, 8192, 256),
    "Conv-4, dense2": (0, 256, 256),
    "VGG-Small, conv2": (32, 128, 128),
    "VGG-Small, conv3": (16, 128, 256),
    "VGG-Small, conv4": (16, 256, 256),
    "VGG-Small, conv5": (8, 256, 512),
    "VGG-Small, conv6": (8, 512, 512),
    "ResNet-18, last": (4, 512, 512),
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


def measure(key, model, images, folder, kinds):
    """Yield the rows of one network, one for each kind of file, without times; the files stay in the folder."""
    expected = model.predict(images, batch_size=100, verbose=0)
    scale = np.abs(expected).max(axis=1)
    for kind in kinds:
        path, target = place(folder, key, kind)
        if target == "lce" and not importlib.util.find_spec("larq_compute_engine"):
            continue
        make(model, kind, path, images)
        some = images[: len(images) if target == "tflite" else 20]  # its kernels are slow here
        found, ours = convert.run(path, target, some), expected[: len(some)]
        content = path.read_bytes()
        yield {
            "key": key,
            "network": NETWORKS[key][0],
            "file": kind,
            "bytes": len(content),
            "gzip": len(gzip.compress(content, 9)),
            "images": len(some),
            "classes": float((found.argmax(axis=1) == ours.argmax(axis=1)).mean()),
            "outputs": float((np.abs(found - ours).max(axis=1) <= 1e-4 * scale[: len(some)]).mean()),
        }


def place(folder, key, kind):
    """Return the path of a file, and what runs it."""
    return folder / f"{key} {kind}.tflite", "lce" if kind == "larq-compute-engine" else "tflite"


def add_times(rows, folder, rounds):
    """Time the files of a folder and write the times into the rows of one network that have one there."""
    rows = [row for row in rows if place(folder, row["key"], row["file"])[0].exists()]
    places = {row["file"]: place(folder, row["key"], row["file"]) for row in rows}
    invokers = {
        kind: convert.engines.invoker(path, target, runtime="LiteRT" if target == "tflite" else None)
        for kind, (path, target) in places.items()
    }
    seconds = cpu_seconds(invokers, rounds)
    for row in rows:
        row["milliseconds"] = 1e3 * statistics.median(seconds[row["file"]])
        row["ratio"] = ratio(seconds[row["file"]], seconds["exact int8"])


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


def layer_file(kernel, shape, two_bits):
    """Return a file of one layer of signs, which are its inputs and outputs as they are stored."""
    zeros = np.zeros(kernel.shape[-1], np.int32)
    layer = IntegerLayer("layer", kernel, zeros, widths=((1, 1), (1, 1)), pad_value=1)
    writer = IntegerWriter(None, None, None, None)
    x = writer.signs(shape, 1, "x")
    y, _ = writer.layer(layer, x, shape, 1, 1, two_bits)
    writer.file.connect({"x": x}, {"y": y})
    return writer.file.content()


def measure_layers(rounds):
    """Return a row for each of `LAYERS`."""
    rows = []
    for name, (size, inputs, outputs) in LAYERS.items():
        shape = (3, 3, inputs, outputs) if size else (inputs, outputs)
        kernel = np.random.default_rng(0).integers(-1, 2, shape, dtype=np.int8)
        files, seconds = measure_layer(kernel, (1, size, size, inputs) if size else (1, inputs), rounds)
        row = {"layer": name, "height": size, "inputs": inputs, "outputs": outputs}
        row |= {f"bytes of {bits}": len(content) for bits, content in files.items()}
        row |= {f"ms of {bits}": 1e3 * statistics.median(seconds[bits]) for bits in files}
        row["ratio"] = row["ratio of products"] = ratio(seconds[2], seconds[8])
        if size:
            _, seconds = measure_layer(kernel.reshape(-1, outputs), (1, size, size, 9 * inputs), rounds)
            row["ratio of products"] = ratio(seconds[2], seconds[8])
        rows.append(row)
        print(rows[-1], flush=True)
    return rows


def measure_layer(kernel, shape, rounds):
    """Return files of a layer in 8 and 2 bits, and the seconds that they take on inputs of a shape: two dicts."""
    files = {bits: layer_file(kernel, shape, bits == 2) for bits in (8, 2)}
    sessions = {bits: TensorFlowLite().session(content, "LiteRT", threads=1) for bits, content in files.items()}
    signs = np.random.default_rng(1).choice(np.array([-128, 127], np.int8), shape)
    calls = {bits: functools.partial(session, [signs]) for bits, session in sessions.items()}
    np.testing.assert_array_equal(*(call()[0] for call in calls.values()))
    return files, cpu_seconds(calls, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of tensorflow-datasets, or an npz file")
    parser.add_argument("--data", default="CIFAR-10 after JPEG (quality 75)", help="what the result calls the images")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="the others' rows stay")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--signs", type=int, default=100, help="images to compare signs on; 0: none")
    parser.add_argument("--all_signs", action="store_const", const=10**6, dest="signs", help="on the whole test set")
    parser.add_argument("--layers", action="store_true", help="time single layers instead")
    parser.add_argument("--folder", type=pathlib.Path, help="where the files stay; default: they do not")
    parser.add_argument("--times", action="store_true", help="only time the files of --folder again")
    arguments = parser.parse_args()
    if arguments.layers:
        save("integer_layers", {"rows": measure_layers(arguments.rounds)})
        return
    kept = load("integer") or {"rows": [], "wrong signs": {}}
    result = {"data": arguments.data, "rows": kept["rows"], "wrong signs": kept["wrong signs"]}
    with tempfile.TemporaryDirectory() as folder:
        folder = arguments.folder or pathlib.Path(folder)
        made = [] if arguments.times else arguments.files
        for path in (place(folder, key, "exact int8")[0] for key in arguments.networks):
            if "exact int8" not in made and not path.exists():
                parser.error(f"times are compared with 'exact int8': add it to --files, or {path} to --folder")
        if not arguments.times:
            measure_all(arguments, folder, result)
        for key in arguments.networks:
            add_times([row for row in result["rows"] if row["key"] == key], folder, arguments.rounds)
            save("integer", result)
    print(json.dumps(result, indent=1))


def measure_all(arguments, folder, result):
    """Write rows of the networks, without times, and the numbers of wrong signs into the result, and save it."""
    import cifar10

    images = cifar10.normalize(cifar10.load(arguments.data_dir)["test"][0]).astype(np.float32)
    for key in arguments.networks:
        name, build = NETWORKS[key]
        model = build()
        if key != "conv4":
            for begin in range(0, ADAPTED, 64):  # statistics for batch normalization; trained networks have theirs
                model(images[begin : begin + 64], training=True)
        rows = {(row["key"], row["file"]): row for row in result["rows"]}
        for row in measure(key, model, images[: arguments.samples], folder, arguments.files):
            print(row, flush=True)
            rows[key, row["file"]] = row
            result["rows"] = [rows[place] for place in itertools.product(NETWORKS, FILES) if place in rows]
            save("integer", result)
        if key != "resnet18" and arguments.signs:
            some = images[: arguments.signs]
            for weights in ("integer", "integer2"):
                result["wrong signs"][f"{name}, {weights}"] = wrong_signs(model, some, weights)
        save("integer", result)


if __name__ == "__main__":
    main()
