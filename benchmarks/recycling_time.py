"""Time of changing the frozen kernels of a ResNet-18 once, beside that of a full stable sort of its scores.

    python -m benchmarks.recycling_time

A training pays it every few epochs. All contestants run in one process in interleaved rounds; figures are medians.
Writes `benchmarks/results/recycling_time.json` and prints a table.
"""

import statistics

import keras
import numpy as np

from benchmarks import networks
from benchmarks.rounds import interleaved, ratio, save
from keras_mpt.callbacks import IteRand, IterativeWeightRecycling
from keras_mpt.models import mpt_layers

ROUNDS = 5


def full_sort(model):
    """Do the same as the formula of recycling says: `W[o[i]] := W[o[n - k + i]]`, o the stable argsort of |S|."""
    for layer in mpt_layers(model):
        scores = np.abs(keras.ops.convert_to_numpy(layer.scores)).ravel()
        kernel, order = (
            np.array(keras.ops.convert_to_numpy(layer.frozen_kernel)).ravel(),
            np.argsort(scores, kind="stable"),
        )
        count = int(0.2 * kernel.size)
        kernel[order[:count]] = kernel[order[kernel.size - count :]]
        layer.frozen_kernel.assign(kernel.reshape(layer.scores.shape))


def main():
    model = networks.ticket("resnet18")
    model.compile("sgd", "mse")
    contestants = {"full sort": lambda: full_sort(model)}
    for callback in (
        IterativeWeightRecycling(0.2, 1),
        IterativeWeightRecycling(0.2, 1, ablation=True),
        IteRand(0.1, 1),
    ):
        name = type(callback).__name__ + (", ablation" if getattr(callback, "ablation", False) else "")
        callback.set_model(model)
        callback.on_train_begin()
        contestants[name] = lambda callback=callback: callback.on_epoch_begin(1)
    seconds = interleaved(contestants, ROUNDS)
    rows = [
        {
            "name": name,
            "seconds": statistics.median(times),
            "ratio to full sort": ratio(times, seconds["full sort"]),
        }
        for name, times in seconds.items()
    ]
    weights = sum(int(np.prod(layer.scores.shape)) for layer in mpt_layers(model))
    print(f"ResNet-18, {weights:,} weights, {keras.backend.backend()}")
    for row in rows:
        print(f"{row['name']:36}{row['seconds']:8.2f} s{row['ratio to full sort']:8.2f}")
    save("recycling_time", {"backend": keras.backend.backend(), "rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
