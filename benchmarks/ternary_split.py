"""Two ways of a ternary convolution in larq-compute-engine: two binary convolutions and a sum, or one over twice the
channels.

    python -m benchmarks.ternary_split

Three convolutions of 128 channels, 3x3, half of the weights removed, each with batch normalization and a sign. Prints
size, operations and time (medians of interleaved rounds; on x86 its kernels are not optimized), and writes
`benchmarks/results/ternary_split.json`.
"""

import functools
import statistics

import keras
import numpy as np
from keras import ops

from benchmarks.rounds import interleaved, save
from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.kernels import sign
from keras_mpt.convert.lce import LarqComputeEngine
from keras_mpt.convert.plan import Graph

CHANNELS, SIZE, LAYERS, ROUNDS = 128, 16, 3, 15
WIDTHS = ((0, 0), (1, 1), (1, 1), (0, 0))


def two_convolutions(x, positive, negative):
    x = ops.pad(sign(x), WIDTHS, constant_values=1.0)
    return ops.conv(x, positive) + ops.conv(x, negative)


def one_convolution(x, positive, negative):
    x = ops.pad(sign(ops.concatenate([x, x], axis=-1)), WIDTHS, constant_values=1.0)
    return ops.conv(x, np.concatenate([positive, negative], axis=2))


def network(convolve):
    random = np.random.default_rng(0)
    inputs = x = keras.Input(batch_shape=(1, SIZE, SIZE, CHANNELS))
    for _ in range(LAYERS):
        kernel = random.choice([-1, 0, 0, 1], (3, 3, CHANNELS, CHANNELS))
        positive, negative = (np.float32(0.02) * (kernel + side * (kernel == 0)) for side in (1, -1))
        x = convolve(x, positive.astype(np.float32), negative.astype(np.float32))
        norm = keras.layers.BatchNormalization()
        x = norm(x)
        norm.set_weights([random.normal(1, 0.2, CHANNELS), *random.normal(0, 0.2, (2, CHANNELS)), np.ones(CHANNELS)])
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def main():
    target = LarqComputeEngine()
    sample = np.random.default_rng(1).normal(size=(1, SIZE, SIZE, CHANNELS)).astype(np.float32)
    rows, invokers = {}, {}
    for name, convolve in {"two convolutions": two_convolutions, "one convolution": one_convolution}.items():
        model = network(convolve)
        content = target.compile(Graph(model, [], ["x"], ["y"], []))
        session = target.session(content, threads=1)
        error = float(np.abs(session([sample])[0] - model.predict(sample, verbose=0)).max())
        rows[name] = {"bytes": len(content), "operations": File(content).operations(), "error": error}
        invokers[name] = functools.partial(session, [sample])
    seconds = interleaved(invokers, ROUNDS)
    for name, row in rows.items():
        row["milliseconds"] = 1e3 * statistics.median(seconds[name])
        print(f"{name:20}{row['bytes']:10,} bytes{row['milliseconds']:8.1f} ms  error {row['error']:.1e}")
        print(f"{'':20}{row['operations']}")
    save("ternary_split", {"rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
