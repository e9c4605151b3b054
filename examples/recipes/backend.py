"""What the scripts ask of the backend: oneDNN in TensorFlow, and bfloat16 only where the processor computes in it.

Import this before Keras: TensorFlow reads the variable when it is loaded.
"""

import os
import pathlib
import warnings

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default on AMD processors without AVX-512

_CPUINFO = pathlib.Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is that of ARM


def dtype_policy(bfloat16):
    """Return the dtype policy of a network: `"mixed_bfloat16"` or `"float32"`.

    Args:
        bfloat16: Whether to compute in bfloat16; `None` to do so where it is not emulated. A processor that emulates it
            takes many times as long as in float32, which is warned of.
    """
    if bfloat16 is None:
        bfloat16 = not emulates_bfloat16()
    elif bfloat16 and emulates_bfloat16():
        warnings.warn(
            "This processor has no bfloat16 (avx512_bf16 or amx_bf16 in /proc/cpuinfo) and emulates it, which may take "
            "more than ten times as long as float32: leave --bfloat16 out.",
            stacklevel=2,
        )
    return "mixed_bfloat16" if bfloat16 else "float32"


def choose_bfloat16(flags):
    """Set --bfloat16 if it was not given, so that `flags.json` says how the training computes wherever it goes on."""
    if flags.bfloat16 is None:
        flags.bfloat16 = dtype_policy(None) == "mixed_bfloat16"


def emulates_bfloat16():
    """Return whether Keras computes on a CPU without instructions for bfloat16. Unknown processors are trusted."""
    return not _on_accelerator() and _CPUINFO.exists() and _BFLOAT16.isdisjoint(_CPUINFO.read_text().split())


def _on_accelerator():
    import keras

    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    return not all(device.startswith("cpu") for device in keras.distribution.list_devices())
