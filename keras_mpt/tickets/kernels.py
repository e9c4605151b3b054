"""A kernel in a ticket: its mask, the source of its weights, and the differences from it.

The entry of a kernel with n weights:

    shape, kept   shape of the kernel, whose entries count in C order, and number of kept weights
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

A coded mask is {"coding", "blob"} with the settings of the coding: see `coding`.
"""

import dataclasses
import hashlib
import math

import keras
import numpy as np
from keras import ops

from keras_mpt.arguments import check_instance
from keras_mpt.initializers import KaimingNormal, KaimingUniform, SignedConstant, UnsignedConstant
from keras_mpt.models.stored import are_signs, differences, has_scale
from keras_mpt.ops import to_numpy
from keras_mpt.tickets import coding

_INITIALIZERS = {cls.__name__: cls for cls in (KaimingNormal, KaimingUniform, SignedConstant, UnsignedConstant)}
_BLOCK = 1 << 20  # weights at a time, to take little memory besides the kernel itself


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as arrays of the same shape: frozen weights (float32) and mask (bool); and alpha, or None."""

    frozen: np.ndarray
    mask: np.ndarray
    scale: float | None

    @property
    def effective(self):
        """The effective kernel, float32: `scale * sign(frozen)` or `frozen` where the mask is true, else 0."""
        found, begin = np.empty(self.frozen.size, np.float32), 0
        for block in self.effective_blocks():
            found[begin : begin + block.size] = block
            begin += block.size
        return found.reshape(self.frozen.shape)

    def effective_blocks(self):
        """Yield `effective` in flat blocks, with positive zeros."""
        frozen, mask = self.frozen.ravel(), self.mask.ravel()
        for begin in range(0, frozen.size, _BLOCK):
            weights = frozen[begin : begin + _BLOCK]
            if self.scale is not None:
                weights = np.float32(self.scale) * np.sign(weights)
            yield np.where(mask[begin : begin + _BLOCK], weights, np.float32(0)) + np.float32(0)


def scale_of(quantizer, frozen, mask):
    """Return the only scale of a kernel quantizer, as a float."""
    (scale,) = quantizer.scales(*_called_with(frozen, mask))
    return float(to_numpy(scale))


def encode(subnet, name, whole, base):
    """Return the entry, the blobs and the `Kernel` of a subnet.

    Args:
        subnet: One of the `subnets` of a built layer.
        name: Prefix of the blobs' names.
        whole: Whether to preserve all frozen weights exactly, including removed ones.
        base: Kernels that the entry may refer to: dict from SHA-256 to array.

    Raises:
        ValueError: A score is NaN, or a frozen weight is not finite.
    """
    layer = subnet.layer
    frozen, mask = to_numpy(subnet.frozen_kernel), to_numpy(subnet.mask)
    if np.isnan(to_numpy(subnet.scores)).any():
        raise ValueError(f"The scores of layer {layer.name!r} must be numbers to be saved. Received: NaN")
    if not np.isfinite(frozen).all():
        raise ValueError(f"The frozen kernel of layer {layer.name!r} must be finite. Received: infinity or NaN")
    mask = mask.astype(bool)
    kept = int(np.count_nonzero(mask))
    kernel = _kernel(subnet, frozen, mask)

    chosen = np.ones(mask.size, bool) if whole else mask.ravel()
    ours = frozen.ravel()[chosen]
    by_sign = not whole and are_signs(subnet, ours)

    def changes(source):
        return differences(ours, _start(source, frozen.shape, base).ravel()[chosen], by_sign)

    source = _source(subnet)
    changed = changes(source)
    if changed.any() and (nearest := _nearest(frozen, base)) is not None:
        fewer = changes(nearest)
        if np.count_nonzero(fewer) < np.count_nonzero(changed):
            source, changed = nearest, fewer

    blobs = {}

    def coded(part, mask, way=None):
        try:
            form, blobs[f"{name}/{part}"] = coding.encode(mask, way)
        except ValueError as error:
            raise ValueError(f"The mask of layer {layer.name!r} cannot be saved: {error}") from error
        return {**form, "blob": f"{name}/{part}"}

    entry = {
        "shape": list(frozen.shape),
        "kept": kept,
        "mask": coded("mask", mask, subnet.coding),
        "source": source,
        "over": "all" if whole else "kept",
        "by": "signs" if by_sign else "values",
        "changes": coded("changes", changed) if changed.any() else None,
        "values": None,
        "scale": kernel.scale,
        "sha256": _sha256(kernel.effective_blocks()),
        "frozen_sha256": _sha256([frozen]) if whole else None,
    }
    if changed.any() and not by_sign:
        entry["values"] = f"{name}/values"
        blobs[f"{name}/values"] = ours[changed].astype("<f4").tobytes()
    return entry, blobs, kernel


def decode(entry, blobs, base):
    """Return the `Kernel` of an entry that `header.check` has accepted.

    Raises:
        ValueError: Entry and blobs do not give a kernel, or another one than was saved.
    """
    shape, scale, whole = tuple(entry["shape"]), entry["scale"], entry["over"] == "all"
    mask = _mask(entry["mask"], blobs, math.prod(shape))
    kept = int(np.count_nonzero(mask))
    if kept != entry["kept"]:
        raise ValueError(f"the mask keeps {kept} weights, not {entry['kept']}")
    covered = mask.size if whole else kept
    changes = None if entry["changes"] is None else _mask(entry["changes"], blobs, covered)
    values = np.zeros(0, np.float32) if entry["values"] is None else np.frombuffer(blobs[entry["values"]], "<f4")
    if entry["by"] == "values" and changes is not None and values.size != np.count_nonzero(changes):
        raise ValueError(f"{values.size} values for {np.count_nonzero(changes)} changes")
    frozen = _start(entry["source"], shape, base).ravel()
    for begin in range(0, mask.size, _BLOCK):
        block = frozen[begin : begin + _BLOCK]
        chosen = slice(None) if whole else mask[begin : begin + _BLOCK]
        weights = block[chosen]
        changed = np.zeros(weights.size, bool)
        if changes is not None:
            changed, changes = changes[: weights.size], changes[weights.size :]
        if entry["by"] == "signs":
            magnitude = np.where(weights == 0, np.float32(scale), np.abs(weights))
            weights = np.where((weights < 0) ^ changed, -magnitude, magnitude)
        elif changed.any():
            count = np.count_nonzero(changed)
            weights[changed], values = values[:count], values[count:]
        block[chosen] = weights
        if not np.isfinite(block).all():
            raise ValueError("a weight is not finite")
    kernel = Kernel(frozen.reshape(shape), mask.reshape(shape), scale)
    if _sha256(kernel.effective_blocks()) != entry["sha256"]:
        raise ValueError("the kernel is not the one that was saved (its checksum differs)")
    if whole and _sha256([kernel.frozen]) != entry["frozen_sha256"]:
        raise ValueError("the frozen weights are not those that were saved (their checksum differs)")
    return kernel


def content_table(model):
    """Return the float32 kernels of a base model, a dict from SHA-256 to array; empty for None.

    Raises:
        TypeError: It is not a model.
    """
    check_instance("base", model, (keras.layers.Layer, type(None)), "a Keras model or None")
    weights = () if model is None else model.weights
    kernels = (to_numpy(w, "float32") for w in weights if len(w.shape) > 1 and keras.backend.is_float_dtype(w.dtype))
    return {_sha256([array]): array for array in kernels}


def _kernel(subnet, frozen, mask):
    """Return the `Kernel` of these arrays; the layer's own may change meanwhile, in training."""
    if not has_scale(subnet):
        return Kernel(frozen, mask, None)
    name, quantizer = subnet.layer.name, subnet.kernel_quantizer
    scale = scale_of(quantizer, frozen, mask)
    if not math.isfinite(scale):
        raise ValueError(f"Alpha of layer {name!r} must be finite to be saved. Received: {scale}")
    kernel = Kernel(frozen, mask, scale)
    if not np.allclose(to_numpy(quantizer(*_called_with(frozen, mask))), kernel.effective):
        raise ValueError(f"Layer {name!r} must use scale * sign(weight) as it has one scale. Received: {quantizer}")
    return kernel


def _called_with(frozen, mask):
    """Return the arguments of a kernel quantizer."""
    tensors = ops.convert_to_tensor(frozen), ops.convert_to_tensor(mask.astype(np.float32))
    return *tensors, int(np.count_nonzero(mask))


def _nearest(frozen, base):
    """Return the source of the kernel of `base` that has more than half of these weights, None if there is none."""
    alike = {sha: np.mean(w == frozen) for sha, w in base.items() if w.shape == frozen.shape}
    nearest = max(alike, key=alike.get, default=None)
    return {"from": "base", "sha256": nearest} if nearest is not None and alike[nearest] > 0.5 else None


def _source(subnet):
    """Return the source that needs no other network."""
    initializer, settings = subnet.draw()
    if type(initializer) not in _INITIALIZERS.values():
        return {"from": "nothing"}
    config = {key: value for key, value in initializer.get_config().items() if key != "seed"}
    settings["density"] = settings.pop("kept")
    return {"from": "seed", "initializer": type(initializer).__name__, "config": config, **settings}


def _start(source, shape, base):
    """Return the float32 weights that a source stands for, an array of its own."""
    if source["from"] == "seed":
        settings = {key: source[key] for key in ("seed", "stream", "fan_in")}
        initializer = _INITIALIZERS[source["initializer"]](**source["config"])
        return initializer.draw(shape, **settings, kept=source["density"])
    if source["from"] == "base":
        weights = base.get(source["sha256"])
        if weights is None or weights.shape != shape:
            given = "; the given one does not have them" if base else ""
            raise ValueError(
                f"its weights are those of another network: pass that as `base`, of `load_ticket` for example{given}"
            )
        return np.array(weights)
    return np.zeros(shape, np.float32)


def _mask(form, blobs, size):
    return coding.decode(form, blobs[form["blob"]], size)


def _sha256(blocks):
    """Return the checksum of a kernel in blocks, as little-endian float32 with positive zeros."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(np.ascontiguousarray(block + np.float32(0), "<f4"))
    return digest.hexdigest()
