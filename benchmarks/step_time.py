"""Time of a training step as a ticket over that of a dense training step, beside the PyTorch way of doing it.

    python -m benchmarks.step_time                       # on the backend KERAS_BACKEND names
    KERAS_BACKEND=jax python -m benchmarks.step_time --networks resnet18 --batch 32
    python -m benchmarks.step_time --variants sort bfloat16 steps_per_execution torch

Ratios are medians over interleaved rounds, to the dense step of the same framework and, with `--variants torch`, to the
published way: plain PyTorch with a full sort of the scores. Writes `benchmarks/results/step_time_<backend>.json`, where
rows of networks and batches that are not measured again stay, and prints a table.
"""

import argparse
import statistics

import keras
from backend import emulates_bfloat16

import keras_mpt
from benchmarks import networks
from benchmarks.rounds import interleaved, ratio, rows_of, save, where

DENSE, TICKET = "Keras dense", "keras_mpt"
TORCH_DENSE, TORCH_SORT = "PyTorch dense", "PyTorch Biprop, full sort"
STEPS = 4  # of `steps_per_execution`
VARIANTS = ["sort", "bfloat16", "steps_per_execution", "torch"]


def keras_step(model, batch, jit_compile):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    images, labels = networks.data(batch)
    return lambda: model.train_on_batch(images, labels)


def several_steps(model, batch, jit_compile):
    """Return a function that trains STEPS batches in one call from Python (TensorFlow)."""
    import tensorflow as tf

    keras_step(model, batch, jit_compile)
    model.steps_per_execution = STEPS
    batches = iter(tf.data.Dataset.from_tensors(networks.data(batch)).repeat())
    model.make_train_function()
    return lambda: float(model.train_function(batches)["loss"])


def torch_step(model, batch):
    import torch

    images, labels = networks.data(batch)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(labels.astype("int64"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, momentum=0.9)

    def step():
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def contestants(name, batch, jit_compile, variants):
    """Return {contestant: (function, training steps in a call of it, contestant that it is compared with)}."""
    dense = keras_mpt.models.dense_twin(networks.ticket(name))
    found = {
        DENSE: (keras_step(dense, batch, jit_compile), 1, DENSE),
        TICKET: (keras_step(networks.ticket(name), batch, jit_compile), 1, DENSE),
    }
    if "sort" in variants:
        found["keras_mpt, selector='sort'"] = (
            keras_step(networks.ticket(name, selector="sort"), batch, jit_compile),
            1,
            DENSE,
        )
    if "bfloat16" in variants:
        halves = "mixed_bfloat16"
        dense = keras_mpt.models.dense_twin(networks.ticket(name, dtype=halves))
        found[f"{DENSE}, bfloat16"] = keras_step(dense, batch, jit_compile), 1, f"{DENSE}, bfloat16"
        model = networks.ticket(name, dtype=halves)
        found[f"{TICKET}, bfloat16"] = keras_step(model, batch, jit_compile), 1, f"{DENSE}, bfloat16"
    if "steps_per_execution" in variants:
        step = several_steps(networks.ticket(name), batch, jit_compile)
        found[f"{TICKET}, steps_per_execution={STEPS}"] = step, STEPS, DENSE
    if "torch" in variants:
        ways = {
            TORCH_DENSE: None,
            TORCH_SORT: networks.mask_by_sort,
            "PyTorch Biprop, k-th value": networks.mask_by_kth_value,
        }
        for title, select in ways.items():
            found[title] = torch_step(networks.in_torch(name, select), batch), 1, TORCH_DENSE
    return found


def measure(name, batch, rounds, jit_compile, variants):
    entrants = contestants(name, batch, jit_compile, variants)
    times = interleaved({title: step for title, (step, _, _) in entrants.items()}, rounds, warm_up=2)
    seconds = {title: [t / entrants[title][1] for t in found] for title, found in times.items()}
    rows = []
    for title, (_, _, base) in entrants.items():
        median = statistics.median(seconds[title])
        row = {"network": networks.NETWORKS[name][0], "batch": batch, "name": title, "milliseconds": 1e3 * median}
        row |= {"images per second": batch / median, "ratio to dense": ratio(seconds[title], seconds[base])}
        if TORCH_SORT in seconds:
            row["times as fast as full sort"] = ratio(seconds[TORCH_SORT], seconds[title])
        rows.append(row)
        print(
            f"{row['network']:18}batch {batch:4}  {title:34}{1e3 * median:9.1f} ms{row['ratio to dense']:8.3f}",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=list(networks.NETWORKS))
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[])
    parser.add_argument("--jit_compile", action="store_true", help="XLA on TensorFlow; JAX always compiles")
    arguments = parser.parse_args()

    backend = keras.backend.backend()
    if "steps_per_execution" in arguments.variants and backend != "tensorflow":
        parser.error("--variants steps_per_execution needs TensorFlow")
    variants = [*arguments.variants]
    if "bfloat16" in variants and emulates_bfloat16():
        print("this processor has no bfloat16, which is left out")
        variants.remove("bfloat16")
    jit_compile = arguments.jit_compile or backend == "jax"
    result = f"step_time_{where()}{'_xla' if jit_compile and backend == 'tensorflow' else ''}"
    print(f"{backend}{' with XLA' if jit_compile else ''}")
    for name in arguments.networks:
        for batch in arguments.batch:
            rows = measure(name, batch, arguments.rounds, jit_compile, variants)
            measured = networks.NETWORKS[name][0], batch
            kept = [row for row in rows_of(result) if (row["network"], row["batch"]) != measured]
            save(result, {"rounds": arguments.rounds, "rows": [*kept, *rows]})


if __name__ == "__main__":
    main()
