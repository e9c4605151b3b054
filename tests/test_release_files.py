"""`.keras` files that an earlier release wrote give the same masks, kernels and outputs for ever."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest

from keras_mpt.models import mpt_layers
from support.layer_contract import numpy

DATA = pathlib.Path(__file__).parent / "data"


def release(version):
    return [int(number) for number in version.split(".")[:2]]


@pytest.mark.parametrize("rule", ["top_k", "global", "restricted"])
def test_release(rule):
    with zipfile.ZipFile(DATA / f"release_{rule}.keras") as file:
        version = json.loads(file.read("metadata.json"))["keras_version"]
    if release(keras.__version__) < release(version):
        pytest.skip("Keras does not load files of newer versions with its own BatchNormalization")
    expected = np.load(DATA / "release.npz")
    model = keras.models.load_model(DATA / f"release_{rule}.keras")
    assert [layer.name for layer in mpt_layers(model)] == ["conv", "hidden", "logits"]
    for layer in mpt_layers(model):
        for what in ("subnet_mask", "frozen_kernel", "scores"):
            np.testing.assert_array_equal(numpy(getattr(layer, what)), expected[f"{rule}/{layer.name}/{what}"])
        np.testing.assert_allclose(numpy(layer.kernel), expected[f"{rule}/{layer.name}/kernel"], rtol=1e-6)
    x = expected["inputs"]
    np.testing.assert_allclose(numpy(model(x)), expected[f"{rule}/outputs"], rtol=1e-5, atol=1e-5)
    model.train_on_batch(x, np.zeros(len(x), int))
    kept = {layer.name: int(numpy(layer.subnet_mask).sum()) for layer in mpt_layers(model)}
    wanted = {name: int(expected[f"{rule}/{name}/subnet_mask"].sum()) for name in kept}
    assert sum(kept.values()) == sum(wanted.values()) and (rule == "global" or kept == wanted)
