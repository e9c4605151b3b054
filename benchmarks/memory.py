"""Memory of a training step: as a ticket, of the dense network, and of the PyTorch way of doing it.

    python -m benchmarks.memory
    KERAS_BACKEND=jax python -m benchmarks.memory

Each contestant trains ResNet-18 for five steps in a process of its own, with SGD and momentum. Reported are the peak of
resident memory less what the process had before the network was made, its ratio to dense training in the same
framework, and the bytes of variables for each weight. Prints a table of medians over some processes and writes all
peaks to `benchmarks/results/memory_<backend>.json`. Needs Linux or macOS.
"""

import argparse
import json
import math
import resource
import subprocess
import sys

import keras
import numpy as np

import keras_mpt
from benchmarks import networks
from benchmarks.rounds import save, where
from benchmarks.step_time import keras_step, torch_step

NETWORK, STEPS = "resnet18", 5
KERAS = {
    "Keras dense": lambda: keras_mpt.models.dense_twin(networks.ticket(NETWORK)),
    "keras_mpt": lambda: networks.ticket(NETWORK),
}
TORCH = {
    "PyTorch dense": None,
    "PyTorch Biprop, full sort": networks.mask_by_sort,
    "PyTorch Biprop, k-th value": networks.mask_by_kth_value,
}


def peak():
    """Return the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def contestant(name, batch):
    """Return what one of them takes."""
    images, _ = networks.data(batch)
    if name in KERAS:
        keras.ops.convert_to_numpy(
            keras.ops.matmul(images[0, 0], images[0, 0].T)
        )  # the backend makes its threads and pools
        before = peak()
        model = KERAS[name]()
        step = keras_step(model, batch, jit_compile=keras.backend.backend() == "jax")
        run(step)
        variables = sum(
            np.dtype(variable.dtype).itemsize * math.prod(variable.shape)
            for variable in (*model.variables, *model.optimizer.variables)
        )
    else:
        import torch

        torch.nn.functional.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), torch.ones(3, 3, 3, 3))
        before = peak()
        model = networks.in_torch(NETWORK, TORCH[name])
        run(torch_step(model, batch))
        trained = [p for p in model.parameters() if p.requires_grad]
        variables = sum(4 * p.numel() for p in (*model.parameters(), *trained))  # the optimizer has one for each
    return {"peak": peak() - before, "variables": variables}


def in_its_own_process(name, batch, rounds):
    """Return the peaks of one of them in some processes, in order, and its bytes of variables.

    The order of operations is not fixed, so the peaks differ.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--contestant", name, "--batch", str(batch)]
    runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout for _ in range(rounds)]
    found = [json.loads(printed.splitlines()[-1]) for printed in runs]
    return sorted(run["peak"] for run in found), found[0]["variables"]


def run(step):
    for _ in range(STEPS):
        step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(contestant(arguments.contestant, *arguments.batch)))
        return
    weights = sum(math.prod(layer.scores.shape) for layer in keras_mpt.models.mpt_layers(networks.ticket(NETWORK)))
    rows = []
    for batch in arguments.batch:
        for framework in (KERAS, TORCH):
            dense = None  # the first of each framework
            for name in framework:
                peaks, variables = in_its_own_process(name, batch, arguments.rounds)
                median = peaks[len(peaks) // 2]
                dense = dense or median
                row = {"network": networks.NETWORKS[NETWORK][0], "batch": batch, "name": name}
                row |= {"peak bytes": median, "ratio to dense": median / dense, "peaks": peaks}
                rows.append(row | {"bytes of variables per weight": variables / weights})
                print(f"batch {batch:4}  {name:28}{median / 1e6:9,.0f} MB{median / dense:7.2f}", flush=True)
    save(f"memory_{where()}", {"steps": STEPS, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
