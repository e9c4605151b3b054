"""Running a converted file on this machine, and how long that takes."""

import pathlib
import time

import numpy as np

from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.lce import LarqComputeEngine
from keras_mpt.convert.tflite import TensorFlowLite
from keras_mpt.convert.verify import BATCH, checked_samples

_SECONDS = 2.0
_TARGETS = {target.name: target for target in (LarqComputeEngine, TensorFlowLite)}


def run(path, target, samples):
    """Return the outputs of a converted file, a float32 array `(number, ...)`.

    Args:
        path: Of the file.
        target: `"tflite"` or `"lce"`, what runs it.
        samples: Array `(number, ...)` of the model's inputs, float32.

    Raises:
        ValueError: `target` is none of these or cannot run the file, which may be of another kind, or `samples` have
            another shape than its inputs.
        OSError: The file cannot be opened.
    """
    runtime, content = _target(target), pathlib.Path(path).read_bytes()
    file = File(content)
    if target == "tflite" and any(name.startswith("Lce") for name in file.operations()):
        raise ValueError(f"`target` must be 'lce': the file has its operations. Received: target={target!r}, {path}")
    samples = checked_samples(samples, file.input_shape()[1:])
    batches = (samples[begin : begin + BATCH] for begin in range(0, len(samples), BATCH))
    return np.concatenate([runtime.run(content, batch) for batch in batches])


def latency(path, target, threads=1):
    """Return the median seconds of one inference on a batch of one, after a warm-up.

    On x86 larq-compute-engine has no optimized kernels: its time here says nothing about a phone.

    Args:
        path: Of a converted file.
        target: `"tflite"` or `"lce"`.
        threads: Number of threads.

    Returns:
        Seconds, a float.

    Raises:
        ValueError: `target` is none of these, or the file takes inputs of any size.
        OSError: The file cannot be opened.
    """
    runtime, content = _target(target), pathlib.Path(path).read_bytes()
    shape = File(content).input_shape()[1:]
    if None in shape:
        raise ValueError(
            "`path` must be a file converted of a model with a known input size, for the time depends on it. "
            f"Received: {path} with input shape {(None, *shape)}"
        )
    sample = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    invoke = runtime.invoker(content, sample, threads)
    for _ in range(3):
        invoke()
    seconds, deadline = [], time.perf_counter() + _SECONDS
    while len(seconds) < 5 or time.perf_counter() < deadline:
        start = time.perf_counter()
        invoke()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _target(name):
    if name not in _TARGETS:
        raise ValueError(f"`target` must be one of {sorted(_TARGETS)}. Received: target={name!r}")
    return _TARGETS[name]()
