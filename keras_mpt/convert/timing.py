"""How long a converted file takes on this machine."""

import pathlib
import time

import numpy as np

from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.lce import LarqComputeEngine
from keras_mpt.convert.tflite import TensorFlowLite

_SECONDS = 2.0
_TARGETS = {"lce": LarqComputeEngine, "tflite": TensorFlowLite}


def latency(path, target, threads=1):
    """Return the median seconds of one inference on a batch of one, after a warm-up.

    On x86 larq-compute-engine has no optimized kernels: its time here says nothing about a phone.

    Args:
        path: Of a converted file.
        target: `"tflite"` or `"lce"`.
        threads: Number of threads.

    Raises:
        ValueError: `target` is none of these.
    """
    if target not in _TARGETS:
        raise ValueError(f"`target` must be one of {sorted(_TARGETS)}. Received: target={target!r}")
    content = pathlib.Path(path).read_bytes()
    shape = File(content).input_shape()
    sample = np.random.default_rng(0).normal(size=(1, *shape[1:])).astype(np.float32)
    invoke = _TARGETS[target]().invoker(content, sample, threads)
    for _ in range(3):
        invoke()
    seconds, deadline = [], time.perf_counter() + _SECONDS
    while len(seconds) < 5 or time.perf_counter() < deadline:
        start = time.perf_counter()
        invoke()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
