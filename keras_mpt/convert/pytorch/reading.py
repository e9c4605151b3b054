"""PyTorch checkpoints as numpy arrays, read without running what a file says."""

import collections.abc
import dataclasses
import os
import pathlib
import re

import numpy as np

_LFS = b"version https://git-lfs.github.com/spec/"
_COUNTER = ".num_batches_tracked"  # of batch normalization; nothing depends on it


class CheckpointError(ValueError):
    """A PyTorch checkpoint cannot be read, or is not of the network that it is imported into."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        name: Of the file, for messages.
        arrays: The state dict as numpy arrays, float32 where PyTorch's are of floats, by their keys, without the
            `module.` of DataParallel and without the counters of batch normalization.
        prune_rate: The fraction of the weights that is **kept**, None if the file does not say.
        conv_type: Name of the class of its convolutions, None if the file does not say.
        arch: Name of its network, None if the file does not say.
    """

    name: str
    arrays: dict
    prune_rate: float | None = None
    conv_type: str | None = None
    arch: str | None = None


def read(source):
    """Return the `Checkpoint` of a file or of a state dict (or of a dict that has one at `"state_dict"`).

    Raises:
        CheckpointError: It cannot be read, or holds what is no state dict.
        ImportError: There is no PyTorch to read a file with.
        OSError: The file cannot be opened.
    """
    if isinstance(source, collections.abc.Mapping):
        name, content = "the state dict", source
    elif isinstance(source, (str, os.PathLike)):
        name, content = str(source), _load(pathlib.Path(source))
    else:
        raise CheckpointError(f"The checkpoint must be a path or a state dict. Received: {type(source).__name__}")
    if not isinstance(content, collections.abc.Mapping):
        raise CheckpointError(f"{name} holds no state dict, but {type(content).__name__}.")
    fields, state = {}, content
    if isinstance(content.get("state_dict"), collections.abc.Mapping):
        fields, state = content, content["state_dict"]
    if not state:
        raise CheckpointError(f"{name} holds an empty state dict.")
    arrays = {str(key): _array(name, key, value) for key, value in state.items() if not str(key).endswith(_COUNTER)}
    if all(key.startswith("module.") for key in arrays):
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    return Checkpoint(
        name,
        arrays,
        _prune_rate(name, fields.get("prune_rate")),
        _text(name, "conv_type", fields.get("conv_type")),
        _text(name, "arch", fields.get("arch")),
    )


def _load(path):
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(_LFS):
        size = re.search(rb"^size (\d+)", head, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise CheckpointError(
            f"{path} is not the checkpoint but a Git LFS pointer to a file{of}. Fetch that: `git lfs install`, then "
            "`git lfs pull` in the clone."
        )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs PyTorch: install keras_mpt with the extra `torch`. A state dict of numpy arrays "
            "does not need it."
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own
        reason = str(error)
        wanted = re.search(r"GLOBAL ([\w.]+)|(?:Unsupported class|class) ([\w.]+)|Trying to call ([\w.]+)", reason)
        if wanted:
            raise CheckpointError(
                f"{path} is refused: its pickle would run {next(filter(None, wanted.groups()))}. Only tensors and "
                "plain data are read. If you trust the file, load it with PyTorch and pass its state dict."
            ) from error
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or is damaged or truncated ({path.stat().st_size:,} bytes): "
            f"{type(error).__name__}"
        ) from error


def _array(name, key, value):
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise CheckpointError(
            f"{name} holds no tensor at {key!r}, but {type(value).__name__}. What is imported must be a state dict, or "
            "have one at 'state_dict'."
        )
    array = value.astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} holds infinity or NaN at {key!r}.")
    if not np.array_equal(array, value):
        raise CheckpointError(f"{name} holds numbers at {key!r} ({value.dtype}) that float32 would round.")
    return array if value.dtype.kind == "f" else value


def _text(name, field, value):
    if not isinstance(value, str | None):
        raise CheckpointError(f"{name} must hold a name as {field!r}. Received: {value!r}")
    return value


def _prune_rate(name, value):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise CheckpointError(f"{name}: `prune_rate`, the fraction kept, must be in (0, 1]. Received: {value!r}")
    return float(value)
