"""Time of a training step as a ticket over that of a dense training step, beside the PyTorch way of doing it.

    python -m benchmarks.step_time                       # on the backend KERAS_BACKEND names
    KERAS_BACKEND=jax python -m benchmarks.step_time --batch 32

All contestants run in one process in interleaved rounds, so that a drift of the machine's speed hits all alike; the
figure is the median over rounds of the ratio to the dense step of the same framework. Writes
`benchmarks/results/step_time_<backend>.json` and prints a table.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

import keras
import numpy as np

import keras_mpt
from benchmarks import networks

RESULTS = pathlib.Path(__file__).parent / "results"


def keras_step(model, batch, jit_compile):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    images, labels = _data(batch)
    return lambda: model.train_on_batch(images, labels)


def torch_step(model, batch):
    import torch

    images, labels = _data(batch)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(labels.astype("int64"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9)

    def step():
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _data(batch):
    random = np.random.default_rng(0)
    return random.normal(size=(batch, 32, 32, 3)).astype("float32"), random.integers(0, 10, batch)


def contestants(batch, jit_compile):
    """Return {name: (step, name of the dense step it is compared with)}."""
    ticket = networks.keras_resnet18()
    in_keras = {
        "Keras dense": keras_mpt.models.dense_twin(ticket),
        "keras_mpt": ticket,
        "keras_mpt, selector='sort'": networks.keras_resnet18(selector="sort"),
    }
    in_torch = {
        "PyTorch dense": None,
        "PyTorch Biprop, full sort": networks.mask_by_sort,
        "PyTorch Biprop, k-th value": networks.mask_by_kth_value,
    }
    return {
        **{name: (keras_step(model, batch, jit_compile), "Keras dense") for name, model in in_keras.items()},
        **{
            name: (torch_step(networks.torch_resnet18(select), batch), "PyTorch dense")
            for name, select in in_torch.items()
        },
    }


def measure(batch, rounds, steps, jit_compile):
    entrants = contestants(batch, jit_compile)
    for step, _ in entrants.values():
        for _ in range(3):
            step()
    seconds = {name: [] for name in entrants}
    for _ in range(rounds):
        for name, (step, _) in entrants.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            seconds[name].append((time.perf_counter() - start) / steps)
    return [
        {
            "batch": batch,
            "name": name,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "ratio to dense": statistics.median(
                mine / dense for mine, dense in zip(seconds[name], seconds[base], strict=True)
            ),
        }
        for name, (_, base) in entrants.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps of one contestant in a round")
    parser.add_argument("--jit_compile", action="store_true", help="XLA on TensorFlow; JAX always compiles")
    arguments = parser.parse_args()

    backend = keras.backend.backend()
    jit_compile = arguments.jit_compile or backend == "jax"
    rows = [row for batch in arguments.batch for row in measure(batch, arguments.rounds, arguments.steps, jit_compile)]
    print(f"ResNet-18-CIFAR, 80 % sparsity, {backend}{' with XLA' if jit_compile else ''}")
    for row in rows:
        print(f"batch {row['batch']:4}  {row['name']:28}{row['milliseconds']:9.1f} ms{row['ratio to dense']:8.3f}")
    name = f"step_time_{backend}{'_xla' if jit_compile and backend == 'tensorflow' else ''}.json"
    machine = {"processor": processor(), "cores": os.cpu_count(), "keras": keras.__version__}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps({"machine": machine, **vars(arguments), "rows": rows}, indent=1) + "\n")


def processor():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
