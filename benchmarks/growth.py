"""Cost of a mask, and of writing and reading a ticket, as layers grow: from 1e4 to 1e8 weights.

    python -m benchmarks.growth
    KERAS_BACKEND=jax python -m benchmarks.growth

Scores are uniform, half of the weights stay. A mask is made as in training, from the threshold of the step before and
scores that moved by a thousandth of their range; without such a hint; by the full sort that the library offers; and by
`numpy.partition`, which knows no ties. Medians over interleaved rounds. Tickets are those of one dense layer, each
written and read in a process of its own. Writes `benchmarks/results/growth_<backend>.json` and prints a table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from keras import ops

import keras_mpt
from benchmarks.memory import peak
from benchmarks.rounds import interleaved, save, where
from keras_mpt.ops import magnitude_bits, mask_at, search_threshold, sort_threshold

COLUMNS = 1000


def mask_times(size, rounds):
    """Return {way: seconds}."""
    random = np.random.default_rng(0)
    scores = random.uniform(-1, 1, (size // COLUMNS, COLUMNS)).astype("float32")
    moved = ops.convert_to_tensor(scores + random.uniform(-1e-3, 1e-3, scores.shape).astype("float32"))
    kept = size // 2
    hint, _ = search_threshold(magnitude_bits(ops.convert_to_tensor(scores)), kept, 0)

    def by(select, start):
        def make():
            keys = magnitude_bits(moved)
            return int(ops.sum(mask_at(keys, kept, *select(keys, kept, start))))

        return make

    def by_partition():
        keys = np.abs(scores)
        return keys >= np.partition(keys.ravel(), size - kept)[size - kept]

    contestants = {
        "search": by(search_threshold, hint),
        "search, no hint": by(search_threshold, 0),
        "sort": by(sort_threshold, 0),
        "numpy.partition": by_partition,
    }
    return {name: statistics.median(times) for name, times in interleaved(contestants, rounds).items()}


def ticket_costs(size):
    """Return what writing and reading a ticket takes, in this process."""
    before = peak()
    model = keras.Sequential([keras.Input((size // COLUMNS,)), keras_mpt.layers.MPTDense(COLUMNS, seed=0)])
    built = peak()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        report = keras_mpt.save_ticket(model, f"{folder}/ticket.mpt")
        saved, save_peak = time.perf_counter(), peak()
        keras_mpt.load_ticket(f"{folder}/ticket.mpt")
        loaded = time.perf_counter()
    return {
        "file bytes": report.size,
        "save seconds": saved - start,
        "load seconds": loaded - saved,
        "build peak bytes": built - before,
        "save peak bytes": save_peak - before,
        "load peak bytes": peak() - before,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ticket", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ticket:
        print(json.dumps(ticket_costs(arguments.ticket)))
        return
    rows = []
    for size in arguments.sizes:
        row = {"weights": size, "mask seconds": mask_times(size, arguments.rounds)}
        command = [sys.executable, "-m", "benchmarks.growth", "--ticket", str(size)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row |= json.loads(printed.splitlines()[-1])
        rows.append(row)
        masks = ", ".join(f"{name} {1e3 * t:.2f} ms" for name, t in row["mask seconds"].items())
        ticket = f"ticket {row['file bytes']:,} bytes, {row['save seconds']:.2f} s, {row['load seconds']:.2f} s"
        print(f"{size:,} weights: {masks}; {ticket}, peak {row['load peak bytes'] / 1e6:,.0f} MB", flush=True)
    save(f"growth_{where()}", {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
