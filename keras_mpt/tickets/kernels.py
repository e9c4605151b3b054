"""One kernel in a ticket: a mask, where the weights come from, and what of them is not as there.

The entry that describes a kernel of n weights, `kept` of which stay:

    shape, kept   of the kernel, whose entries count in C order
    mask          a coded mask of n entries
    source        the weights to start from: {"from": "seed", "initializer", "config", "seed", "stream", "fan_in",
                  "density"} (see `initializers`), {"from": "base", "sha256"} of another network, or {"from": "nothing"}
    over          which entries may differ from it: the "kept" ones, or "all"
    by            how they differ: in "signs" (a weight that is 0 in the source has magnitude `scale`), or in "values"
    changes       null, or a coded mask over these entries, of those that do
    values        null, or the blob of their values, as little-endian float32
    scale         null, or alpha: the layer uses scale * sign(weight) for each kept weight, else the weight itself
    sha256        of the kernel that the layer uses (its kernel quantizer, if that is not one of ours), as little-endian
                  float32, zeros positive
    frozen_sha256 of all the weights in the same form where `over` is "all", else null

A coded mask is {"coding", "inverted", "blob"}: see `coding`.
"""

import dataclasses
import hashlib
import math

import keras
import numpy as np
from keras import ops

from keras_mpt.initializers import KaimingNormal, KaimingUniform, SignedConstant, UnsignedConstant
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import ScaledSign
from keras_mpt.tickets import coding

_INITIALIZERS = {cls.__name__: cls for cls in (KaimingNormal, KaimingUniform, SignedConstant, UnsignedConstant)}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as arrays of one shape: the frozen weights, the mask (bool), and what the layer uses (float32)."""

    frozen: np.ndarray
    mask: np.ndarray
    effective: np.ndarray


def encode(layer, name, whole, base):
    """Return the entry, the blobs and the `Kernel` of a layer.

    Args:
        layer: A built MPT layer.
        name: Prefix of the blobs' names.
        whole: Whether to preserve the frozen weights exactly, those that are not kept included.
        base: Dict of SHA-256 to array, of kernels that may be referred to.

    Raises:
        ValueError: A score is NaN, or a frozen weight is not finite.
    """
    frozen, mask = to_numpy(layer.frozen_kernel), to_numpy(layer.subnet_mask)
    if np.isnan(to_numpy(layer.scores)).any():
        raise ValueError(f"The scores of layer {layer.name!r} must be numbers to be saved. Received: NaN")
    if not np.isfinite(frozen).all():
        raise ValueError(f"The frozen kernel of layer {layer.name!r} must be finite. Received: infinity or NaN")
    mask = mask.astype(bool)
    kept = int(np.count_nonzero(mask))
    scale = None
    if type(layer.kernel_quantizer) is ScaledSign:
        scale = float(
            to_numpy(layer.kernel_quantizer.alpha(layer.frozen_kernel.value, ops.cast(mask, "float32"), kept))
        )
    kernel = Kernel(frozen, mask, _effective(frozen, mask, scale))

    source = _source(layer, frozen, base)
    chosen = np.ones(mask.size, bool) if whole else mask.ravel()
    ours, theirs = frozen.ravel()[chosen], _start(source, frozen.shape, base).ravel()[chosen]
    by_sign = scale is not None and not whole and np.all(ours != 0)
    changed = (ours < 0) != (theirs < 0) if by_sign else ours.view(np.uint32) != theirs.view(np.uint32)

    blobs = {}

    def coded(part, mask):
        form, blobs[f"{name}/{part}"] = coding.encode(mask)
        return {**form, "blob": f"{name}/{part}"}

    entry = {
        "shape": list(frozen.shape),
        "kept": kept,
        "mask": coded("mask", mask),
        "source": source,
        "over": "all" if whole else "kept",
        "by": "signs" if by_sign else "values",
        "changes": coded("changes", changed) if changed.any() else None,
        "values": None,
        "scale": scale,
        "sha256": _sha256(kernel.effective),
        "frozen_sha256": _sha256(frozen) if whole else None,
    }
    if changed.any() and not by_sign:
        entry["values"] = f"{name}/values"
        blobs[f"{name}/values"] = ours[changed].astype("<f4").tobytes()
    return entry, blobs, kernel


def decode(entry, blobs, base):
    """Return the `Kernel` of an entry.

    Raises:
        ValueError: Entry and blobs do not make a kernel, or not the one that was saved.
    """
    shape, scale = tuple(entry["shape"]), entry["scale"]
    _check(entry)
    mask = _mask(entry["mask"], blobs, math.prod(shape))
    if np.count_nonzero(mask) != entry["kept"]:
        raise ValueError(f"the mask keeps {np.count_nonzero(mask)} weights, not {entry['kept']}")
    chosen = np.ones(mask.size, bool) if entry["over"] == "all" else mask
    frozen = np.array(_start(entry["source"], shape, base)).ravel()
    weights = frozen[chosen]
    none = np.zeros(weights.size, bool)
    changed = none if entry["changes"] is None else _mask(entry["changes"], blobs, weights.size)
    if entry["by"] == "signs":
        magnitude = np.where(weights == 0, np.float32(scale), np.abs(weights))
        weights = np.where((weights < 0) ^ changed, -magnitude, magnitude)
    elif entry["values"] is not None:
        values = np.frombuffer(blobs[entry["values"]], "<f4")
        if values.size != np.count_nonzero(changed):
            raise ValueError(f"{values.size} values for {np.count_nonzero(changed)} changes")
        weights[changed] = values
    frozen[chosen] = weights
    frozen, mask = frozen.reshape(shape), mask.reshape(shape)
    if not np.isfinite(frozen).all():
        raise ValueError("a weight is not finite")
    kernel = Kernel(frozen, mask, _effective(frozen, mask, scale))
    if _sha256(kernel.effective) != entry["sha256"]:
        raise ValueError("the kernel is not the one that was saved (its checksum differs)")
    if entry["over"] == "all" and _sha256(kernel.frozen) != entry["frozen_sha256"]:
        raise ValueError("the frozen weights are not those that were saved (their checksum differs)")
    return kernel


def _check(entry):
    """Raise ValueError if an entry says what the format does not know."""
    scale, changes, values = entry["scale"], entry["changes"], entry["values"]
    known = entry["over"] in ("kept", "all") and entry["by"] in ("signs", "values")
    known &= entry["source"]["from"] in ("seed", "base", "nothing")
    known &= scale is None or type(scale) in (int, float) and _is_float32(scale)
    known &= (values is not None) == (changes is not None and entry["by"] == "values")
    known &= entry["by"] == "values" or scale is not None and entry["over"] == "kept"
    if not known:
        raise ValueError(f"the entry is not of this format: {entry}")


def _is_float32(scale):
    return 0 <= scale < math.inf and float(np.float32(scale)) == scale


def content_table(model):
    """Return the float32 kernels of a base network as a dict of SHA-256 to array, empty for None.

    Raises:
        TypeError: It is no network, such as the path of one.
    """
    if not isinstance(model, (keras.layers.Layer, type(None))):
        raise TypeError(f"`base` must be a Keras model or None. Received: base={model!r}")
    weights = () if model is None else (w for w in model.weights if len(w.shape) > 1 and w.dtype == "float32")
    return {_sha256(array): array for array in map(to_numpy, weights)}


def _source(layer, frozen, base):
    alike = {sha: np.mean(w == frozen) for sha, w in base.items() if w.shape == frozen.shape}
    nearest = max(alike, key=alike.get, default=None)
    if nearest is not None and alike[nearest] > 0.5:
        return {"from": "base", "sha256": nearest}
    initializer, settings = layer.subnets[0].draw()
    if type(initializer) not in _INITIALIZERS.values():
        return {"from": "nothing"}
    config = {key: value for key, value in initializer.get_config().items() if key != "seed"}
    settings["density"] = settings.pop("kept")
    return {"from": "seed", "initializer": type(initializer).__name__, "config": config, **settings}


def _start(source, shape, base):
    """Return the float32 weights that a source stands for."""
    if source["from"] == "seed":
        numbers = ("seed", "stream", "fan_in")
        if any(type(source[key]) is not int for key in numbers) or "seed" in source["config"]:
            raise ValueError(f"the source is not of this format: {source}")
        settings = {key: source[key] for key in numbers}
        initializer = _INITIALIZERS[source["initializer"]](**source["config"])
        return initializer.draw(shape, **settings, kept=source["density"])
    if source["from"] == "base":
        weights = base.get(source["sha256"])
        if weights is None or weights.shape != shape:
            raise ValueError(
                "its weights are those of another network: pass that as `base`, of `load_ticket` for example"
            )
        return weights
    return np.zeros(shape, np.float32)


def _mask(form, blobs, size):
    return coding.decode(form, blobs[form["blob"]], size)


def _effective(frozen, mask, scale):
    """Return the kernel that a layer uses, by the formulas of its quantizer, without negative zeros."""
    weights = frozen if scale is None else np.float32(scale) * np.sign(frozen)
    return np.where(mask, weights, np.float32(0)) + np.float32(0)


def _sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array + np.float32(0), "<f4")).hexdigest()
