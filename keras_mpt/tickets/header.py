"""Check the header of a file, field by field."""

import datetime
import math

import numpy as np

from keras_mpt.tickets.coding import CODINGS, check_form
from keras_mpt.tickets.container import is_checksum
from keras_mpt.tickets.limits import FREE_WEIGHTS, LARGEST_INTEGER, MOST_AXES, WEIGHTS_PER_BYTE

DTYPES = {
    **{f"{kind}{bits}": f"<{kind[0]}{bits // 8}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "bool": "|b1",
    "bfloat16": "<u2",  # the upper half of a float32
}
_INITIALIZERS = dict.fromkeys(("SignedConstant", "UnsignedConstant", "KaimingNormal"), "scale_fan")
_INITIALIZERS["KaimingUniform"] = "a"
# Keras' global settings, the default first.
SETTINGS = {
    "image_data_format": ("channels_last", "channels_first"),
    "floatx": ("float32", "float16", "bfloat16", "float64"),
    "dtype_policy": ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"),
}


def check(header, blobs, size, version):
    """Raise ValueError if a header does not follow the format, or has more weights than a file of its size may hold.

    Args:
        header: JSON data without "blobs".
        blobs: Bytes by name.
        size: Size of the file in bytes.
        version: Version of the format.
    """
    _must(isinstance(header["created"], str) and _is_time(header["created"]), "created", "a time with a time zone")
    for key in ("software", "provenance", "model"):
        _must(isinstance(header[key], dict), key, "an object")
    _must(all(isinstance(value, str) for value in header["software"].values()), "software", "an object of strings")
    check_settings(header.get("settings", {}))
    _must(isinstance(header["layers"], list), "layers", "an array")
    weights, paths = 0, set()
    for number, entry in enumerate(header["layers"]):
        _must(isinstance(entry, dict) and isinstance(entry.get("path"), str), f"layers[{number}]", "a layer's entry")
        try:
            weights += _check_layer(entry, blobs)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"layer {entry['path']!r}: {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ValueError(f"layer {entry['path']!r}: {error}") from error
        _must(entry["path"] not in paths, "layers", "of different paths; two have the same")
        paths.add(entry["path"])
    if version < version_of(header["layers"]):
        raise ValueError(f"version {version} of the format does not have what is in the file")
    if weights > FREE_WEIGHTS + WEIGHTS_PER_BYTE * size:
        raise ValueError(f"{weights} weights in {size} bytes are more than the format allows")


def version_of(layers):
    """Return the lowest version of the format that supports these entries."""
    kernels = [kernel for entry in layers for _, kernel, _ in kernels_of(entry)]
    forms = [form for kernel in kernels for form in (kernel["mask"], kernel["changes"]) if form is not None]
    return max(
        2 if any(entry.get("subnets") for entry in layers) else 1,
        *(CODINGS[form["coding"]].version for form in forms),
        1,
    )


def check_settings(settings):
    """Raise ValueError unless these are global settings of Keras. A missing setting means Keras' default."""
    _must(isinstance(settings, dict), "settings", "an object")
    for key, values in SETTINGS.items():
        value = settings.get(key, values[0])
        _must(isinstance(value, str) and value in values, key, f"one of {values}")


def kernels_of(entry):
    """Yield `(name, kernel, scores)` for each kernel of a layer, in order; the name of the first one is None."""
    if entry["kernel"] is not None:
        yield None, entry["kernel"], entry["scores"]
        for further in entry.get("subnets", ()):
            yield further["name"], further["kernel"], further["scores"]


def of_base(layers):
    """Return how many kernels in the entries of layers are those of another network, and how many there are."""
    found = [kernel["source"]["from"] == "base" for entry in layers for _, kernel, _ in kernels_of(entry)]
    return sum(found), len(found)


def size_of(shape):
    """Return the number of entries of a shape.

    Raises:
        ValueError: It is not a shape.
    """
    known = isinstance(shape, list) and len(shape) <= MOST_AXES
    if not known or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"{str(shape)[:100]} is no shape")
    return math.prod(shape)


def _must(condition, place, what):
    if not condition:
        raise ValueError(f"`{place}` must be {what}")


def _is_time(text):
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).tzinfo is not None
    except ValueError:
        return False


def _check_layer(entry, blobs):
    """Check the entry of a layer; return the number of weights of its kernels."""
    _must(isinstance(entry["class"], str), "class", "a string")
    _must(entry["kernel"] is not None or entry["scores"] is None, "scores", "null without a kernel")
    further = entry.get("subnets", [])
    _must(isinstance(further, list) and (entry["kernel"] is not None or not further), "subnets", "an array")
    names = [part["name"] for part in further]
    _must(all(isinstance(name, str) for name in names), "name", "a string")
    _must(len(set(names)) == len(names), "subnets", "of different names")
    weights = 0
    for _, kernel, scores in kernels_of(entry):
        size = _check_kernel(kernel, blobs)
        weights += size
        if scores is not None:
            _must(len(_blob(scores, "scores", blobs)) == 4 * size, "scores", f"a blob of {4 * size} bytes")
            _must(kernel["over"] == "all", "over", '"all" where scores are stored')
    _must(isinstance(entry["variables"], list), "variables", "an array")
    stored = sum(map(_check_variable, entry["variables"]))
    if stored != len(blobs.get(f"{entry['path']}/variables", b"")):
        raise ValueError(f"the variables take {stored} bytes, but their blob does not")
    return weights


def _check_variable(variable):
    """Return how many bytes it takes."""
    _must(isinstance(variable["name"], str), "name", "a string")
    dtype, stored = variable["dtype"], variable["stored"]
    _must(isinstance(dtype, str) and dtype in DTYPES, "dtype", f"one of {sorted(DTYPES)}")
    _must(stored == dtype or (dtype, stored) == ("float32", "float16"), "stored", "the dtype, or float16 for float32")
    return size_of(variable["shape"]) * np.dtype(DTYPES[stored]).itemsize


def _check_kernel(kernel, blobs):
    """Check the entry of a kernel; return its number of weights."""
    size = size_of(kernel["shape"])
    _must(_is_integer(kernel["kept"], 0, size), "kept", f"an integer in 0 .. {size}")
    for key in ("mask", "changes"):
        form = kernel[key]
        if form is not None or key == "mask":
            _must(isinstance(form, dict), key, "a coded mask")
            check_form(form)
            _blob(form["blob"], key, blobs)
    _check_source(kernel["source"])
    _must(kernel["over"] in ("kept", "all"), "over", '"kept" or "all"')
    _must(kernel["by"] in ("signs", "values"), "by", '"signs" or "values"')
    by_values = kernel["by"] == "values"
    has_values = by_values and kernel["changes"] is not None
    _must((kernel["values"] is not None) == has_values, "values", "there exactly where weights differ by values")
    if has_values:
        _must(len(_blob(kernel["values"], "values", blobs)) % 4 == 0, "values", "a blob of float32 numbers")
    _must(kernel["scale"] is None or _is_float32(kernel["scale"]), "scale", "null or a finite float32 number >= 0")
    _must(by_values or kernel["scale"] is not None, "scale", "a number where weights differ by signs")
    _must(is_checksum(kernel["sha256"]), "sha256", "a checksum")
    frozen = kernel["frozen_sha256"]
    _must(is_checksum(frozen) if kernel["over"] == "all" else frozen is None, "frozen_sha256", 'there with "all" only')
    return size


def _check_source(source):
    _must(isinstance(source, dict), "source", "an object")
    if source["from"] == "nothing":
        _must(set(source) == {"from"}, "source", '{"from": "nothing"}')
    elif source["from"] == "base":
        _must(set(source) == {"from", "sha256"} and is_checksum(source["sha256"]), "source", "a base and its checksum")
    else:
        _must(source["from"] == "seed", "from", '"seed", "base" or "nothing"')
        keys = {"from", "initializer", "config", "seed", "stream", "fan_in", "density"}
        _must(set(source) == keys, "source", f"an object of {sorted(keys)}")
        initializer, config = source["initializer"], source["config"]
        _must(isinstance(initializer, str) and initializer in _INITIALIZERS, "initializer", "a known one")
        setting = _INITIALIZERS[initializer]
        _must(isinstance(config, dict) and set(config) == {setting}, "config", f"an object of {setting!r}")
        _must(_is_number(config[setting]) if setting == "a" else type(config[setting]) is bool, setting, "a setting")
        _must(_is_integer(source["seed"], 0, LARGEST_INTEGER), "seed", "an integer in 0 .. 2^64 - 1")
        _must(_is_integer(source["stream"], 0, LARGEST_INTEGER - 1), "stream", "an integer in 0 .. 2^64 - 2")
        _must(_is_integer(source["fan_in"], 1, LARGEST_INTEGER), "fan_in", "an integer >= 1")
        _must(_is_number(source["density"]) and 0 < source["density"] <= 1, "density", "a number in (0, 1]")


def _blob(name, key, blobs):
    _must(isinstance(name, str) and name in blobs, key, "the name of a blob of the file")
    return blobs[name]


def _is_integer(value, least, most):
    return type(value) is int and least <= value <= most


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _is_float32(value):
    with np.errstate(over="ignore"):
        return _is_number(value) and 0 <= value < math.inf and float(np.float32(value)) == value
