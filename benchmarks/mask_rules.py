"""Time of a training step by rule of masks, over that of `TopK`.

    python -m benchmarks.mask_rules                      # on the backend KERAS_BACKEND names
    KERAS_BACKEND=jax python -m benchmarks.mask_rules --batch 32

Conv-4, whose mask is a large part of a step, trains with Adam on random images. Ratios are medians over interleaved
rounds. Writes `benchmarks/results/mask_rules_<backend>.json`, where the rows of batches that are not measured again
stay, and prints a table.
"""

import argparse
import statistics

import keras

import keras_mpt
from benchmarks.networks import data
from benchmarks.rounds import interleaved, ratio, rows_of, save, where
from keras_mpt.masks import NofM, PartiallyFrozen, TopK

RULES = {
    "TopK(0.8)": TopK(0.8),
    "PartiallyFrozen(0.8, 0.4, 0.1)": PartiallyFrozen(0.8, 0.4, 0.1),
    "PartiallyFrozen(0.8, 0.6, 0.15)": PartiallyFrozen(0.8, 0.6, 0.15),
    "NofM(1, 4)": NofM(1, 4, axis="flat"),
}


def training_step(rule, batch, jit_compile):
    """Return a function that trains Conv-4 for a step."""
    model = keras_mpt.zoo.conv4_mpt(sparsity=rule.sparsity, mask=rule, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, jit_compile=jit_compile)
    images, labels = data(batch)
    return lambda: model.train_on_batch(images, labels)


def measure(batch, rounds, jit_compile):
    steps = {name: training_step(rule, batch, jit_compile) for name, rule in RULES.items()}
    seconds = interleaved(steps, rounds, warm_up=3)
    rows = []
    for name, times in seconds.items():
        row = {"batch": batch, "name": name, "milliseconds": 1e3 * statistics.median(times)}
        rows.append({**row, "ratio to TopK": ratio(times, seconds["TopK(0.8)"])})
        print(f"batch {batch:4}  {name:34}{row['milliseconds']:9.1f} ms{rows[-1]['ratio to TopK']:8.3f}", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jit_compile", action="store_true", help="XLA on TensorFlow; JAX always compiles")
    arguments = parser.parse_args()
    jit_compile = arguments.jit_compile or keras.backend.backend() == "jax"
    result = f"mask_rules_{where()}{'_xla' if arguments.jit_compile else ''}"
    for batch in arguments.batch:
        rows = measure(batch, arguments.rounds, jit_compile)
        kept = [row for row in rows_of(result) if row["batch"] != batch]
        save(result, {"rounds": arguments.rounds, "rows": [*kept, *rows]})


if __name__ == "__main__":
    main()
