"""Bytes of a network as a ticket, beside float32 in Keras' format, int8 in TensorFlow Lite's, and the entropy.

    python -m benchmarks.file_size

The networks are untrained: training changes which weights are kept, not how many. The entropy is that of masks with
independent entries (of the searched ones, where a part is frozen), and 32 bits for each other variable. "zipped" is
zlib at its highest level, as an app store or a web server would compress the file. Writes
`benchmarks/results/file_size.json` and prints a table. Needs TensorFlow.
"""

import math
import pathlib
import tempfile
import zlib

import keras_mpt
from benchmarks.rounds import save
from keras_mpt.masks import PartiallyFrozen
from keras_mpt.models import mpt_layers

NETWORKS = {
    "Conv-4, 50 %": lambda: keras_mpt.zoo.conv4_mpt(sparsity=0.5, seed=0),
    "VGG-Small, 95 %": lambda: keras_mpt.zoo.vgg_small_mpt(sparsity=0.95, seed=0),
    "ResNet-18, 80 %": lambda: keras_mpt.zoo.resnet18_mpt(sparsity=0.8, seed=0),
    "ResNet-18, 80 %, 75 % frozen": lambda: keras_mpt.zoo.resnet18_mpt(
        mask=PartiallyFrozen(0.8, pruned=0.65, locked=0.1), seed=0
    ),
    "ResNet-18, 80 %, trainable batch norm": lambda: keras_mpt.zoo.resnet18_mpt(
        sparsity=0.8, batch_norm_affine=True, seed=0
    ),
}


def entropy(model):
    """Return the bytes that masks and other variables come to."""
    bits, counted = 0.0, set()
    for layer in mpt_layers(model):
        size, kept = math.prod(layer.frozen_kernel.shape), int(layer.kept)
        bits += layer.mask.mask_bits(size, kept)
        counted |= {id(v) for v in layer.variables}
    return math.ceil(bits / 8) + sum(4 * math.prod(v.shape) for v in model.variables if id(v) not in counted)


def tflite(plain, int8):
    """Return the bytes of a TensorFlow Lite file: float32, or weights in int8 (dynamic range quantization)."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(plain)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if int8 else []
    return converter.convert()


def measure(model, folder):
    """Return {kind of file: bytes}."""
    ticket = keras_mpt.save_ticket(model, folder / "ticket.mpt")
    plain = keras_mpt.models.strip(model)
    plain.save(folder / "plain.keras")
    keras_file, lite = (folder / "plain.keras").read_bytes(), tflite(plain, int8=True)
    return {
        "weights": sum(math.prod(layer.frozen_kernel.shape) for layer in mpt_layers(model)),
        "entropy": entropy(model),
        "ticket": ticket.size,
        "float32 .keras": len(keras_file),
        "float32 .keras, zipped": len(zlib.compress(keras_file, 9)),
        "int8 .tflite": len(lite),
        "int8 .tflite, zipped": len(zlib.compress(lite, 9)),
    }


def main():
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, build in NETWORKS.items():
            rows[name] = measure(build(), pathlib.Path(folder))
    columns = list(next(iter(rows.values())))
    print(f"| network | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[column]:,}' for column in columns)} |")
    save("file_size", {"bytes": rows})


if __name__ == "__main__":
    main()
