"""Read PyTorch checkpoints as numpy arrays, without running code from the file."""

import collections.abc
import dataclasses
import math
import os
import pathlib
import re
import zipfile

import numpy as np

from keras_mpt.arguments import received, shown
from keras_mpt.files import FileError
from keras_mpt.requirements import extra

_LFS = b"version https://git-lfs.github.com/spec/"
_DTYPES = {f"torch.{n}" for n in "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split()}
_SHARED = 2  # how many times each byte may be part of a tensor: tied weights are two
_COUNTER = ".num_batches_tracked"  # of batch normalization; nothing depends on it


class CheckpointError(FileError):
    """A PyTorch checkpoint cannot be read, or is not of the network that it is imported into."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        name: Name of the file, for messages.
        arrays: The state dict as numpy arrays, float32 where PyTorch's are of floats, by their keys, without the
            `module.` of DataParallel, the `_orig_mod.` of torch.compile, and the counters of batch normalization.
        prune_rate: The fraction of the weights that is **kept**, None if the file does not have it.
        conv_type: Name of the class of its convolutions, None if the file does not have it.
        arch: Name of its network, None if the file does not have it.
    """

    name: str
    arrays: dict
    prune_rate: float | None = None
    conv_type: str | None = None
    arch: str | None = None


def read(source):
    """Return the `Checkpoint` of a file or of a state dict (or of a dict that has one at `"state_dict"`).

    Raises:
        CheckpointError: It cannot be read, or is not a state dict.
        ImportError: PyTorch, which reads files, is not installed.
        OSError: The file cannot be opened.
    """
    if isinstance(source, collections.abc.Mapping):
        name, content = "the state dict", source
    elif isinstance(source, (str, os.PathLike)):
        name, content = str(source), _load(pathlib.Path(source))
    else:
        raise CheckpointError(
            f"`path_or_state_dict` must be a path or a state dict. Received: {type(source).__name__}, {shown(source)}"
        )
    if not isinstance(content, collections.abc.Mapping):
        raise CheckpointError(f"{name} holds no state dict, but {type(content).__name__}.")
    fields, state = {}, content
    if isinstance(content.get("state_dict"), collections.abc.Mapping):
        fields, state = content, content["state_dict"]
    if not state:
        raise CheckpointError(f"{name} holds an empty state dict.")
    arrays = _arrays(name, {str(key): value for key, value in state.items() if not str(key).endswith(_COUNTER)})
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
    with extra("torch", "Reading a checkpoint, unlike a state dict of numpy arrays,"):
        import torch
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise CheckpointError(f"{path} holds more than fits into memory.") from error
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


def _check_zip(path):
    """Raise CheckpointError if a file is a zip archive, as `torch.save` writes it, that is damaged or inflates.

    PyTorch does not verify the checksums, so a flipped bit would change a weight. Files from before PyTorch 1.6 are not
    archives and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = next((member.filename for member in members if member.compress_type != zipfile.ZIP_STORED), None)
            sizes = sum(member.file_size for member in members)
            if packed is not None or sizes > path.stat().st_size:
                raise CheckpointError(
                    f"{path} is refused: it is compressed ({packed or 'parts that overlap'!r}), so that it may take "
                    "much memory; `torch.save` compresses nothing. Unpack it, and zip it again with `zip -0`."
                )
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is no PyTorch checkpoint, or is damaged or truncated: {error}") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or is damaged or truncated: the checksum of {damaged!r} differs."
        )


def _arrays(name, state):
    """Return a state dict as arrays, after checking the kinds and sizes of all tensors."""
    needed, storages = 0, {}
    for key, value in state.items():
        kind = _unusual(value)
        if kind is not None:
            raise CheckpointError(
                f"{name} holds no tensor at {key!r}, but {kind}. What is imported must be a state dict of dense "
                "tensors of numbers, or have one at 'state_dict'."
            )
        if hasattr(value, "untyped_storage"):
            storage = value.untyped_storage()
            size, address, held = math.prod(value.shape) * value.element_size(), storage.data_ptr(), storage.nbytes()
        else:
            owner = value if value.base is None else value.base
            size, address, held = value.nbytes, id(owner), getattr(owner, "nbytes", value.nbytes)
        if size > held:
            raise CheckpointError(
                f"{name} is refused: the tensor at {key!r} of shape {tuple(value.shape)} takes {size:,} bytes, of "
                f"which it holds {held:,}."
            )
        needed, storages[address] = needed + size, max(held, storages.get(address, 0))
    if needed > _SHARED * sum(storages.values()):
        raise CheckpointError(
            f"{name} is refused: its tensors take {needed:,} bytes, of which it holds {sum(storages.values()):,}."
        )
    try:
        return _renamed(name, {key: _array(name, key, value) for key, value in state.items()})
    except MemoryError as error:
        raise CheckpointError(f"{name} holds more than fits into memory.") from error


def _unusual(value):
    """Return a description of a value that is not a dense array or tensor of ordinary numbers, None for others."""
    if isinstance(value, np.ndarray):
        return None if value.dtype.kind in "fiub" else f"an array of {value.dtype}"
    if not hasattr(value, "untyped_storage"):
        return type(value).__name__
    if value.is_quantized:
        return "a quantized tensor"
    if value.is_nested or str(value.layout) != "torch.strided":
        return f"a tensor of layout {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')}"
    if value.is_meta:
        return "a tensor without values (device 'meta')"
    if str(value.dtype) not in _DTYPES:
        return f"a tensor of {value.dtype}"
    if value.is_conj() or value.is_neg():
        return "a conjugated or negated view"
    return None


def _renamed(name, arrays):
    """Return the arrays with keys without the additions of PyTorch's wrappers: `module.` and `_orig_mod.`."""
    found = {}
    for key, array in arrays.items():
        key = ".".join(part for part in key.split(".") if part != "_orig_mod")  # torch.compile
        if key in found:
            raise CheckpointError(f"{name} holds {key!r} twice, with and without '_orig_mod.'.")
        found[key] = array
    if all(key.startswith("module.") for key in found):  # DataParallel
        found = {key.removeprefix("module."): array for key, array in found.items()}
    return found


def _array(name, key, value):
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = value.astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} holds infinity or NaN at {key!r}.")
    if not np.array_equal(array, value):
        raise CheckpointError(f"{name} holds numbers at {key!r} ({value.dtype}) that float32 would round.")
    return array if value.dtype.kind == "f" else value


def _text(name, field, value):
    if not isinstance(value, str | None):
        raise CheckpointError(f"{name} must hold a name as {field!r}. {received(field, value)}")
    return value


def _prune_rate(name, value):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise CheckpointError(
            f"{name}: `prune_rate`, the fraction kept, must be in (0, 1]. {received('prune_rate', value)}"
        )
    return float(value)
