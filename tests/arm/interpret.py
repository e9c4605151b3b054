"""Run the .tflite files of a folder on its samples and save what they give: the same script on x86 and on aarch64.

    python interpret.py FOLDER NAME          (needs numpy and ai-edge-litert only)

Writes `FOLDER/<file>.<NAME>.npz` with an entry for each output and set of kernels: with XNNPACK, and without.
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

KERNELS = {"xnnpack": OpResolverType.AUTO, "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}

FEW = 8  # samples of files that give the signs inside


def outputs(path, samples, kernels):
    interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=kernels)
    (given,), made = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], (1, *samples.shape[1:]))
    interpreter.allocate_tensors()
    found = []
    for sample in samples:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        found.append([interpreter.get_tensor(output["index"])[0].copy() for output in made])
    return [np.stack(arrays) for arrays in zip(*found, strict=True)]


if __name__ == "__main__":
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    samples = np.load(folder / "samples.npy")
    for path in sorted(folder.glob("*.tflite")):
        found, given = {}, samples[:FEW] if path.stem.endswith("signs") else samples
        for kind, kernels in KERNELS.items():
            found.update({f"{kind}_{i}": array for i, array in enumerate(outputs(path, given, kernels))})
        np.savez(folder / f"{path.stem}.{name}.npz", **found)
        print(path.name, flush=True)
