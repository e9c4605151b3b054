"""TensorFlow Lite files of layers with several kernels: each kernel is int8, and outputs are those of the model."""

import collections

import keras
import numpy as np
import pytest
from test_to_mpt_twins import numbers, signal, text

from keras_mpt import convert
from keras_mpt.convert.flatbuffer import File
from keras_mpt.models import mpt_layers_by_path, strip, to_mpt
from support.layer_contract import numpy

pytestmark = pytest.mark.tensorflow_only


def int8_tensors(file):
    """Return how often the file has an int8 tensor of a size, with a number of values that are not zero."""
    found = collections.Counter()
    for graph in file.model.subgraphs:
        for tensor in graph.tensors:
            data = file.model.buffers[tensor.buffer].data
            if tensor.type == file._schema.TensorType.INT8 and data is not None and len(data):
                values = np.frombuffer(bytes(data), np.int8)
                assert set(values) <= {-1, 0, 1}
                found[values.size, np.count_nonzero(values)] += 1
    return found


def checked(model, x, path, **settings):
    """Convert, and compare the file with the stripped model; return the report."""
    report = convert.to_tflite(model, path, **settings)
    wanted = strip(model).predict(x, verbose=0)
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(convert.run(path, "tflite", x), wanted, rtol=1e-4, atol=1e-5)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("make", [text, signal])
def test_every_kernel_is_int8(make, tmp_path):
    model = to_mpt(make(), 0.6, seed=1)
    x = {
        "text": np.random.default_rng(0).integers(1, 11, (4, 6)).astype("int32"),
        "signal": [numbers(4, 8, 3), numbers(4, 6, 6, 3)],
    }[make.__name__]
    report = checked(model, x, tmp_path / "a.tflite")
    subnets = [subnet for layer in mpt_layers_by_path(model).values() for subnet in layer.subnets]
    assert [layer.form for layer in report.layers] == ["int8"] * len(subnets)
    assert sorted(layer.weights for layer in report.layers) == sorted(int(np.prod(s.shape)) for s in subnets)
    masks = [numpy(subnet.mask) for subnet in subnets if subnet.shape != (3, 9)]
    masks += [part for s in subnets if s.shape == (3, 9) for part in np.split(numpy(s.mask), [6], axis=1)]  # of the GRU
    wanted = collections.Counter((mask.size, int(mask.sum())) for mask in masks)
    found = int8_tensors(File((tmp_path / "a.tflite").read_bytes()))
    assert not wanted - found
    assert all(any(name in str(layer.name) for layer in report.layers) for name in ("logits", "/"))


def test_kernels_that_are_not_ternary_are_named(tmp_path):
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, name="memory"), keras.layers.Dense(2)])
    model = to_mpt(model, 0.5, kernel_quantizer=None, kernel_initializer="kaiming_normal", seed=1)
    with pytest.raises(convert.ConversionError, match="'memory' cannot be stored as int8: kept weights differ"):
        convert.to_tflite(model, tmp_path / "a.tflite", weights="int8")
    report = checked(model, numbers(4, 5, 3), tmp_path / "a.tflite")
    names = [layer.name for layer in report.layers]
    assert names[:2] == ["memory/kernel", "memory/recurrent_kernel"] and report.layers[0].form == "float32"
    assert [layer.macs for layer in report.layers[:2]] == [5 * 3 * 16, 5 * 4 * 16]
