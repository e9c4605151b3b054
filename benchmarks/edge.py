"""Converted files of Conv-4, VGG-Small and ResNet-18: size, operations, error, agreement with Keras, latency.

    python -m benchmarks.edge --data_dir DIR                  # CIFAR-10: see examples/recipes/cifar10.py
    python -m benchmarks.edge --data_dir DIR --networks conv4

Conv-4 is the zoo's; the others are untrained, with batch normalization statistics of the images, which changes nothing
about sizes and times. Latency is processor time of one image on one thread, medians of rounds in which all files of a
network take turns; the ratio is to float32. Errors and agreement are those of the conversion's own check.
larq-compute-engine has no optimized kernels on x86: there, its time says nothing about a phone. "post-training int8" is
there to compare: what TensorFlow Lite's converter makes of the stripped model, with 100 images to calibrate on. Writes
`benchmarks/results/edge.json` and `docs/edge-results.md`.
"""

import argparse
import gzip
import pathlib
import platform
import statistics
import tempfile

import keras
import numpy as np

import keras_mpt
from benchmarks.integer import CALIBRATED, cpu_seconds, post_training
from benchmarks.rounds import instructions, ratio, rows_of, save
from keras_mpt import convert
from keras_mpt.convert.flatbuffer import File

ROOT = pathlib.Path(__file__).parent.parent

POST_TRAINING = "post-training int8"
BINARY = {"input_quantizer": "approx_sign", "pad_values": 1.0, "seed": 0}
NETWORKS = {
    "conv4": {
        "Conv-4, 50 %, MPT-1/32": lambda: keras_mpt.zoo.conv4_mpt(weights="conv4_mpt32_s50"),
        "Conv-4, 50 %, MPT-1/1": lambda: keras_mpt.zoo.conv4_mpt(weights="conv4_mpt11_s50"),
    },
    "vgg_small": {
        "VGG-Small, 95 %, MPT-1/32": lambda: keras_mpt.zoo.vgg_small_mpt(sparsity=0.95, seed=0),
        "VGG-Small, 75 %, MPT-1/1": lambda: keras_mpt.zoo.vgg_small_mpt(sparsity=0.75, **BINARY),
    },
    "resnet18": {
        "ResNet-18, 80 %, MPT-1/32": lambda: keras_mpt.zoo.resnet18_mpt(sparsity=0.8, seed=0),
        "ResNet-18, 80 %, MPT-1/1": lambda: keras_mpt.zoo.resnet18_mpt(sparsity=0.8, **BINARY),
    },
}
FILES = {
    "float32": ("tflite", "float32"),
    "int8": ("tflite", "int8"),
    "sparse int8": ("tflite", "sparse_int8"),
    "exact int8": ("tflite", "exact_int8"),
    "integer": ("tflite", "integer"),
    "dynamic int8": ("tflite", "dynamic_int8"),
    "larq-compute-engine": ("lce", None),
    POST_TRAINING: ("tflite", None),
}
ADAPTED = 640  # images


def measure(name, build, images, samples, lce_samples, rounds, folder, kinds):
    """Return the rows of one network, one for each kind of file."""
    model = build()
    if "Conv-4" not in name:
        for begin in range(0, ADAPTED, 64):  # statistics for batch normalization; trained networks have theirs
            model(images[begin : begin + 64], training=True)
    rows, invokers = [], {}
    for kind, (target, weights) in FILES.items():
        if kind not in ("float32", *kinds) or kind in ("exact int8", "integer") and "1/1" not in name:
            continue
        path = folder / f"{kind}.tflite"
        if kind == POST_TRAINING:
            rows.append({"network": name, "file": kind, **quantized(model, path, images, samples)})
            invokers[kind] = convert.engines.invoker(path, target, 1)
            continue
        if target == "lce":
            report = convert.to_lce(model, path, samples=images[: min(samples, lce_samples)])
        else:
            report = convert.to_tflite(model, path, weights=weights, samples=images[:samples])
        row = {"network": name, "file": kind, "bytes": report.bytes, "gzip": report.gzip}
        row |= {"samples": report.samples, "max error": report.max_error, "largest output": report.scale}
        row |= {"agreement": report.agreement, "flips": report.flips, "operations": report.operations}
        rows.append(row)
        invokers[kind] = convert.engines.invoker(path, target, 1)
        print(name, kind, f"{report.bytes:,} bytes", flush=True)
    seconds = cpu_seconds(invokers, rounds)
    for row in rows:
        mine = seconds[row["file"]]
        row["milliseconds"] = 1e3 * statistics.median(mine)
        row["ratio to float32"] = ratio(mine, seconds["float32"])
    return rows


def quantized(model, path, images, samples):
    """Write TensorFlow Lite's own full int8 quantization of a model; return how it agrees with the model."""
    path.write_bytes(content := post_training(keras_mpt.models.strip(model), images[:CALIBRATED]))
    expected, found = model.predict(images[:samples], verbose=0), convert.run(path, "tflite", images[:samples])
    same = float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())
    row = {"bytes": len(content), "gzip": len(gzip.compress(content, 9)), "samples": len(expected)}
    row |= {"max error": float(np.abs(found - expected).max()), "largest output": float(np.abs(expected).max())}
    return {**row, "agreement": same, "flips": 0, "operations": File(content).operations()}


def span(form, numbers):
    """Return the smallest and the largest of some numbers in words."""
    return " to ".join(dict.fromkeys(form.format(number) for number in (min(numbers), max(numbers))))


def table(rows):
    """Return the rows as markdown."""
    lines = ["| network | file | bytes | compressed | time | max error | agreement | flips |", "|---" * 8 + "|"]
    for row in rows:
        time = f"{row['ratio to float32']:.2f}" if row["file"] != "float32" else f"{row['milliseconds']:.2f} ms"
        lines.append(
            f"| {row['network']} | {row['file']} | {row['bytes']:,} | {row['gzip']:,} | {time} | "
            f"{row['max error']:.1e} | {row['agreement']:.1%} | {row['flips']} |"
        )
    return "\n".join(lines)


def conclusions(rows):
    """Return which file to choose, as markdown; bytes and times are relative to the float32 file of a network."""
    found = {(row["network"], row["file"]): row for row in rows}
    float_, signs = ([name for name in dict.fromkeys(n for n, _ in found) if name.endswith(e)] for e in ("32", "1/1"))

    def bytes_of(file, networks, other="float32", column="bytes"):
        return span("{:.2f}", [found[name, file][column] / found[name, other][column] for name in networks])

    def cost(file, networks):
        times = [found[name, file]["ratio to float32"] for name in networks]
        return bytes_of(file, networks), span("{:.2f}", times)

    def same(networks, *files):
        return span("{:.1%}", [found[name, file]["agreement"] for name in networks for file in files])

    sparse = [name for name, file in found if file == "sparse int8"]
    smaller = [n for n in sparse if found[n, "sparse int8"]["bytes"] < 0.95 * found[n, "int8"]["bytes"]]
    removed = span("{} %", [int(name.split()[-3]) for name in smaller])
    lce, lossy = "larq-compute-engine", f"{same(float_, 'dynamic int8')} of the images keep their class"
    choices = [
        ["MPT-1/1", 'LiteRT, `weights="auto"` (integer)', *cost("integer", signs), "yes"],
        ["MPT-1/32", 'LiteRT, `weights="auto"` (int8)', *cost("int8", float_), "yes"],
        ["MPT-1/32, faster", 'LiteRT, `weights="dynamic_int8"`', *cost("dynamic int8", float_), lossy],
        [f"{removed} removed, smaller", 'LiteRT, `weights="sparse_int8"`', *cost("sparse int8", smaller), "yes"],
        ["MPT-1/1, smallest, for 64-bit ARM", lce, *cost(lce, signs), "yes"],
    ]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in choices)
    return f"""Phones, the Raspberry Pi, computers and browsers run files for LiteRT, which `to_tflite` writes.
Its default, `weights="auto"`, is exact.

| network | file | bytes, float32 = 1 | time, float32 = 1 | exact |
|---|---|---|---|---|
{lines}

- Do not quantize an MPT-1/1 otherwise: with `dynamic_int8`, {same(signs, "dynamic int8")} of the images keep their
  class, with TensorFlow Lite's own post-training quantization {same(signs, POST_TRAINING)}.
- The times are those of an x86 processor, for which larq-compute-engine has no optimized kernels. It was not measured
  on ARM. For an MPT-1/32, it gains nothing.
- Compressed, as for a download, `sparse_int8` is {bytes_of("sparse int8", smaller, "int8", "gzip")} times as large as
  `int8`.
- [Microcontrollers](guides/microcontrollers.md) and [FPGAs](guides/fpga.md) need other files."""


def page(result):
    """Return the text of docs/edge-results.md, of what benchmarks/results/edge.json holds."""
    rows = result["rows"]
    samples = span("{:,}", [row["samples"] for row in rows])
    return f"""# Converted files, measured

Sizes, times and errors of six tickets in each [file format](deployment.md#which-file), and which format to choose.
[MPT-1/32](concepts.md#132-and-11) has float activations, MPT-1/1 binary ones.

## Which one to choose

{conclusions(rows)}

## All files

{table(rows)}

- **file**: see [`weights`](deployment.md#which-file). "{POST_TRAINING}" is the stripped network, quantized by
  TensorFlow Lite's converter with {CALIBRATED} images to calibrate on.
- **time**: the median over rounds, divided by that of float32 in the same run. For float32, the time of one image
  on one thread of {result["machine"]}, instructions {", ".join(result["instructions"])}.
- **max error**: the largest difference from Keras' outputs over the images without a flip (dynamic and post-training
  int8: over all images).
- **agreement**: the share of images whose largest output is the same, of {samples}.
- **flips**: images with another output because an activation close to zero took the other sign.

Written by `python -m benchmarks.edge --data_dir DIR`, from test images of {result["data"]}. Conv-4
is the zoo's ticket. VGG-Small and ResNet-18 are untrained, with batch normalization statistics of the images. That does
not matter for bytes and times, but it does for errors and agreement.
[edge.json](../benchmarks/results/edge.json) also has the operations in each file.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of tensorflow-datasets, or an npz file")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="besides float32")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--lce_samples", type=int, default=1000, help="fewer, where its kernels are slow")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--data", default="CIFAR-10 after JPEG (quality 75)", help="what the page calls the images")
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    arguments = parser.parse_args()

    import cifar10

    images = cifar10.normalize(cifar10.load(arguments.data_dir)["test"][0][: max(arguments.samples, ADAPTED)])
    images = images.astype(np.float32)
    kept = rows_of("edge")
    rows = []
    for key in NETWORKS:
        for name, build in NETWORKS[key].items():
            new = []
            if key in arguments.networks:
                with tempfile.TemporaryDirectory() as folder:
                    how = arguments.samples, arguments.lce_samples, arguments.rounds, pathlib.Path(folder)
                    new = measure(name, build, images, *how, arguments.files)
            found = {row["file"]: row for row in (*kept, *new) if row["network"] == name}
            rows += [found[kind] for kind in FILES if kind in found]
    result = {
        "machine": arguments.machine,
        "instructions": instructions(),
        "data": arguments.data,
        "keras": keras.__version__,
        "rows": rows,
    }
    save("edge", result)
    (ROOT / "docs" / "edge-results.md").write_text(page(result))
    print(table(rows))


if __name__ == "__main__":
    main()
