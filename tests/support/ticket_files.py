"""What the tests of tickets share: a tiny model, a writer of files that knows nothing but the format, comparisons."""

import hashlib
import json
import struct
import zlib

import keras
import numpy as np

from keras_mpt.layers import MPTDense
from keras_mpt.models import mpt_layers
from support.layer_contract import numpy

X = np.random.default_rng(7).normal(size=(5, 3)).astype(np.float32)


def tiny():
    """A model with every kind of entry, so small that a test can make it a thousand times."""
    inputs = keras.Input((3,), name="inputs")
    x = MPTDense(4, sparsity=0.3, use_bias=True, bias_initializer="ones", seed=1, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, MPTDense(2, sparsity=0.2, kernel_quantizer=None, seed=2, name="second")(x), name="tiny")
    first, _, second = model.layers[1:]
    first.frozen_kernel.assign(numpy(first.frozen_kernel) * np.where(np.arange(12).reshape(3, 4) % 5, 1, -1))
    second.frozen_kernel.assign(numpy(second.frozen_kernel) + np.eye(4, 2))
    return model


def seal(text, blobs, version=1):
    """Return the bytes of a file with this header (bytes of JSON) and these blobs."""
    stored = zlib.compress(text)
    start = struct.pack("<8sII", b"\x89KMPT\r\n\x1a", version, len(stored))
    return start + hashlib.sha256(start + stored).digest() + stored + b"".join(blobs.values())


def sealed(header, blobs, version=1):
    """Return the bytes of a file with this header (a dict without "blobs") and these blobs."""
    listed = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in blobs.items()]
    return seal(json.dumps({**header, "blobs": listed}).encode(), blobs, version)


def opened(content):
    """Return (header, blobs) of a file's bytes."""
    size = struct.unpack("<I", content[12:16])[0]
    header, rest = json.loads(zlib.decompress(content[48 : 48 + size])), content[48 + size :]
    blobs = {}
    for name, length, _ in header.pop("blobs"):
        blobs[name], rest = rest[:length], rest[length:]
    assert rest == b""
    return header, blobs


def outputs(model, x):
    return [numpy(y) for y in keras.tree.flatten(model(x))]


def assert_equal_models(model, other, x):
    """Outputs, kernels, masks and all variables but those of the scores have the same bits."""
    for wanted, y in zip(outputs(model, x), outputs(other, x), strict=True):
        assert np.isfinite(wanted).all() and np.ptp(wanted) > 1e-3
        np.testing.assert_array_equal(y, wanted)
    for ours, theirs in zip(mpt_layers(model), mpt_layers(other), strict=True):
        np.testing.assert_array_equal(numpy(theirs.kernel), numpy(ours.kernel))
        np.testing.assert_array_equal(numpy(theirs.subnet_mask), numpy(ours.subnet_mask))
        assert int(theirs.kept) == int(ours.kept) == np.count_nonzero(numpy(ours.subnet_mask))
    of_masks = {"scores", "frozen_kernel", "kernel_epoch", "threshold", "nan_steps"}
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        assert (ours.name, ours.dtype, ours.shape) == (theirs.name, theirs.dtype, theirs.shape)
        if ours.name not in of_masks:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(theirs), keras.ops.convert_to_numpy(ours))


def assert_as_declared(model, path):
    """A loaded model holds what the file's header and blobs say, by the description of the format."""
    header, blobs = opened(path.read_bytes())
    entries = {entry["path"]: entry for entry in header["layers"]}
    for layer in mpt_layers(model):
        kernel = numpy(layer.kernel) + np.float32(0)
        entry = entries.pop(layer.name)
        assert hashlib.sha256(kernel.astype("<f4")).hexdigest() == entry["kernel"]["sha256"]
        assert list(kernel.shape) == entry["kernel"]["shape"] and int(layer.kept) == entry["kernel"]["kept"]
        assert numpy(layer.subnet_mask).sum() == entry["kernel"]["kept"]
        assert_variables([] if layer.bias is None else [layer.bias], entry, blobs)
    for layer in model.layers:
        if layer.name in entries:
            assert_variables(layer.variables, entries.pop(layer.name), blobs)
    assert not entries


def assert_variables(variables, entry, blobs):
    data = blobs.get(f"{entry['path']}/variables", b"")
    for variable, described in zip(variables, entry["variables"], strict=True):
        assert list(variable.shape) == described["shape"]
        if described["stored"] == "float32":
            size = 4 * int(np.prod(variable.shape))
            declared, data = np.frombuffer(data[:size], "<f4").reshape(variable.shape), data[size:]
            np.testing.assert_array_equal(numpy(variable), declared)
