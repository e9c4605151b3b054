"""Run converted files on this machine, and measure their latency."""

import contextlib
import time
from typing import Any

import numpy as np

from keras_mpt._types import Path
from keras_mpt.arguments import check_choice, check_count, check_path
from keras_mpt.convert.lce import LarqComputeEngine
from keras_mpt.convert.qonnx import Qonnx
from keras_mpt.convert.report import first_line
from keras_mpt.convert.tensors import arrays_for, generated, outputs_of
from keras_mpt.convert.tflite import TensorFlowLite
from keras_mpt.convert.tflm import Micro

TARGETS = {target.name: target for target in (LarqComputeEngine, Micro, Qonnx, TensorFlowLite)}
_SECONDS = 2.0


def run(path: Path, target: str, samples: Any) -> np.ndarray | dict[str, np.ndarray]:
    """Return the outputs of a converted file on samples.

    Args:
        path: Path of the file.
        target: Runtime: `"tflite"`, `"tflm"`, `"lce"` or `"qonnx"`.
        samples: An array `(number, ...)` for a file with one input; a list of arrays in the order of the inputs, or a
            dict by their names; or batches of these, see `to_tflite`.

    Returns:
        An array `(number, ...)`; for several outputs, a dict by their names.

    Raises:
        ValueError: `target` is unknown or cannot run the file, which may be damaged or made for another one, or
            `samples` do not fit the inputs.
        TypeError: `path` is not a path.
        OSError: The file cannot be opened.
        ImportError: The runtime is not installed.
    """
    session = _session(path, target)
    arrays = arrays_for(session.inputs, samples)
    with _errors_of(path, target):
        outputs = outputs_of(session, arrays, session.inputs[0].shape[0])
    if len(outputs) == 1:
        return outputs[0]
    return {tensor.name: array for tensor, array in zip(session.outputs, outputs, strict=True)}


def latency(path: Path, target: str, threads: int = 1) -> float:
    """Return the median time of one inference, on a batch of the size that the file takes, or of one sample.

    larq-compute-engine has no optimized kernels for x86: its time there says nothing about a phone.

    Args:
        path: Path of a converted file.
        target: `"tflite"`, `"tflm"`, `"lce"` or `"qonnx"`.
        threads: Number of threads, an integer > 0; `"tflm"` and `"qonnx"` ignore it.

    Returns:
        Seconds, a float, after a warm-up.

    Raises:
        ValueError: `target` is unknown or cannot run the file, `threads` is not an integer > 0, or the file takes
            inputs of any size.
        TypeError: `path` is not a path.
        OSError: The file cannot be opened.
        ImportError: The runtime is not installed.
    """
    invoke = invoker(path, target, threads)
    with _errors_of(path, target):
        for _ in range(3):
            invoke()
    seconds, deadline = [], time.perf_counter() + _SECONDS
    while len(seconds) < 5 or time.perf_counter() < deadline:
        start = time.perf_counter()
        invoke()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def invoker(path, target, threads=1, runtime=None):
    """Return a function that runs a file once on a batch from `generated`; see `latency` and `Target.runtimes`."""
    session = _session(path, target, threads, runtime)
    for tensor in session.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "`path` must be a file with a known input size, which determines the time. "
                f"Received: {path} with input shape {(None, *tensor.shape[1:])}"
            )
    arrays = generated(session.inputs, 1)
    return lambda: session(arrays)


def _session(path, target, threads=2, runtime=None):
    path = check_path("path", path)
    check_choice("target", target, sorted(TARGETS))
    check_count("threads", threads)
    content, made = path.read_bytes(), TARGETS[target]()
    with _errors_of(path, target):
        return made.session(content, runtime, threads)


@contextlib.contextmanager
def _errors_of(path, target):
    """Convert an error inside a runtime, of any class, to a ValueError that names the file; not that it is missing.

    Raises:
        ValueError: An error was raised in the context.
        ImportError: The runtime is not installed.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        engine = TARGETS[target].engine
        raise ValueError(
            f"`path` must be a file that {engine} can run, for target={target!r}. Received: {path}. {first_line(error)}"
        ) from error
