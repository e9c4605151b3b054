"""The families of `keras.applications` as MPT models: forward, a training step, `strip`, files."""

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.models import mpt_layers, strip, to_jackpot, to_mpt
from support.layer_contract import numpy

# The smallest network of each family with the smallest images that it takes, and how many layers have two kernels.
FAMILIES = {
    "MobileNet": (32, 0),
    "MobileNetV2": (32, 0),
    "MobileNetV3Small": (32, 0),
    "ConvNeXtTiny": (32, 0),
    "DenseNet121": (32, 0),
    "EfficientNetB0": (32, 0),
    "EfficientNetV2B0": (32, 0),
    "InceptionResNetV2": (75, 0),
    "InceptionV3": (75, 0),
    "NASNetMobile": (32, 160),
    "ResNet50": (32, 0),
    "ResNet50V2": (32, 0),
    "VGG16": (32, 0),
    "Xception": (71, 34),
}
LIGHT = ("MobileNet",) if keras.backend.backend() == "tensorflow" else ()


def family(name):
    marks = [] if name in LIGHT else [pytest.mark.slow]
    if name == "NASNetMobile":
        missing = keras.backend.backend() == "torch"
        marks.append(pytest.mark.skipif(missing, reason="Keras does not have it on PyTorch"))
    return pytest.param(name, marks=marks)


def built(name):
    size, _ = FAMILIES[name]
    build = getattr(keras.applications, name)
    return build(input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None)


def images(name):
    size, _ = FAMILIES[name]
    return np.random.default_rng(0).uniform(0, 255, (6, size, size, 3)).astype(np.float32)


def calibrate(model, x):
    """Let batch normalization use the statistics of these images: fresh ones would send no signal through."""
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def assert_close(model, x, wanted):
    y = numpy(model(x))
    assert np.isfinite(wanted).all() and wanted.std() > 1e-3
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", map(family, FAMILIES))
def test_pretrained_and_whole_is_the_model_itself(name):
    model, x = built(name), images(name)
    calibrate(model, x)
    with pytest.warns(UserWarning, match="not pretrained"):
        twin = to_jackpot(model, 0.0, skip=[])
    assert_close(twin, x, numpy(model(x)))
    matrices = sum(len(w.shape) > 1 for w in model.weights)
    separable = sum(isinstance(layer, keras.layers.SeparableConv2D) for layer in model.layers)
    assert separable == FAMILIES[name][1]
    assert len(mpt_layers(twin)) == matrices - separable


@pytest.mark.slow
@pytest.mark.parametrize("name", map(family, FAMILIES))
def test_trained_stripped_saved_and_loaded(name, tmp_path):
    x, labels = images(name), np.arange(6)
    model = built(name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    eager = name != "MobileNet"  # tracing or compiling a search for each of 200 layers takes minutes
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eager)
    twin = to_mpt(model, 0.5, seed=0)
    calibrate(twin, x)
    subnets = [subnet for layer in mpt_layers(twin) for subnet in layer.subnets]
    before = [numpy(subnet.scores) for subnet in subnets]
    assert np.isfinite(twin.train_on_batch(x, labels))
    changed = [(numpy(subnet.scores) != old).any() for subnet, old in zip(subnets, before, strict=True)]
    assert np.mean(changed) > 0.9

    wanted = numpy(twin(x))
    stripped = strip(twin)
    assert_close(stripped, x, wanted)
    for each, path in ((twin, tmp_path / "twin.keras"), (stripped, tmp_path / "stripped.keras")):
        each.save(path)
        assert_close(keras.models.load_model(path), x, wanted)
        path.unlink()
    ticket = keras_mpt.save_ticket(twin, tmp_path / "twin.mpt")
    assert_close(keras_mpt.load_ticket(tmp_path / "twin.mpt"), x, wanted)
    entries = [entry for entry in ticket.layers.values() if entry["kernel"]]
    kernels = [part["kernel"] for entry in entries for part in (entry, *entry.get("subnets", []))]
    sources = [kernel["source"]["from"] for kernel in kernels]
    assert sources == ["seed"] * len(before)
