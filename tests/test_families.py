"""Families of networks, small and with random weights: converted, trained a step in graph mode, saved, stripped, on
TensorFlow Lite."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_mpt import convert, load_ticket, save_ticket
from keras_mpt.models import mpt_layers_by_path, strip, to_mpt
from support.layer_contract import numpy

pytestmark = pytest.mark.slow_with("jax", "torch")

BATCH = 4
slow = pytest.mark.slow


def block(x, name, heads=2):
    """Return the outputs of a transformer block."""
    width = x.shape[-1]
    y = kl.LayerNormalization()(x)
    x = x + kl.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(y, y)
    y = kl.Dense(2 * width, activation="gelu", name=f"{name}_expand")(kl.LayerNormalization()(x))
    return x + kl.Dense(width, name=f"{name}_reduce")(y)


def seen(image, name, width=16):
    x = kl.Conv2D(width, 4, strides=4, name=f"{name}_patches")(image)
    return block(kl.Reshape((-1, width))(x), name)


def read(words, name, width=16):
    x = kl.Embedding(50, width, name=f"{name}_words")(words)
    x = x + kl.Embedding(12, width, name=f"{name}_positions")(ops.cumsum(ops.minimum(words, 1), axis=1) - 1)
    return block(x, name)


def vit():
    image = keras.Input((16, 16, 3), name="image")
    x = ops.mean(seen(image, "vit"), axis=1)
    return keras.Model(image, kl.Dense(3, name="logits")(x))


def bert():
    words = keras.Input((12,), dtype="int32", name="words")
    x = block(read(words, "first"), "second")
    return keras.Model(words, kl.Dense(3, name="logits")(kl.Dense(16, activation="tanh", name="pooler")(x[:, 0])))


def clip():
    image, words = keras.Input((16, 16, 3), name="image"), keras.Input((12,), dtype="int32", name="words")
    x, y = ops.mean(seen(image, "image"), axis=1), ops.mean(read(words, "text"), axis=1)
    x, y = kl.Dense(8, name="of_image")(x), kl.Dense(8, name="of_text")(y)
    return keras.Model([image, words], kl.Dot(1, normalize=True)([x, y]))


def unet():
    image = keras.Input((16, 16, 3), name="image")
    fine = kl.Conv2D(8, 3, padding="same", activation="relu", name="fine")(image)
    x = kl.SeparableConv2D(16, 3, padding="same", activation="relu", name="coarse")(kl.MaxPooling2D()(fine))
    x = kl.Conv2DTranspose(8, 2, strides=2, name="up")(x)
    x = kl.Conv2D(8, 3, padding="same", activation="relu", name="merged")(kl.Concatenate()([x, fine]))
    return keras.Model(image, kl.Conv2D(1, 1, name="logits")(x))


def recurrent():
    words = keras.Input((12,), dtype="int32", name="words")
    x = kl.Embedding(50, 8, name="table")(words)
    x = kl.Bidirectional(kl.LSTM(8, return_sequences=True, name="lstm"), name="both")(x)
    return keras.Model(words, kl.Dense(3, name="logits")(kl.GRU(8, name="gru")(x)))


def application(name):
    def build():
        network = getattr(keras.applications, name)
        return network(input_shape=(32, 32, 3), weights=None, classes=3, classifier_activation=None)

    build.__name__ = name
    return build


APPLICATIONS = [application(name) for name in ("MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny", "ResNet50")]
# All kernels but those of these layers are parts of the ticket.
FAMILIES = [vit, recurrent, pytest.param(bert, marks=slow), pytest.param(clip, marks=slow), unet]
FAMILIES += [pytest.param(build, marks=slow) for build in APPLICATIONS]


def inputs(model):
    random = np.random.default_rng(0)
    return [
        random.integers(1, 50, (BATCH, *x.shape[1:])).astype("int32")
        if x.dtype == "int32"
        else random.uniform(0, 255 if x.shape[1] == 32 else 1, (BATCH, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]


@pytest.mark.slow
@pytest.mark.parametrize("build", FAMILIES)
def test_family(build, tmp_path):
    model = build()
    x = inputs(model)
    x = x[0] if len(x) == 1 else x
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer with a matrix has a twin
        ticket = to_mpt(model, 0.5, seed=0)
    subnets = [subnet for layer in mpt_layers_by_path(ticket).values() for subnet in layer.subnets]
    weights = sum(int(np.prod(subnet.shape)) for subnet in subnets)
    assert weights > 0.9 * sum(int(np.prod(w.shape)) for w in model.weights)
    ticket.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    before = [numpy(subnet.scores) for subnet in subnets]
    loss = ticket.train_on_batch(x, np.ones((BATCH, *model.output_shape[1:]), "float32"))
    assert np.isfinite(loss)
    changed = [(numpy(subnet.scores) != old).any() for subnet, old in zip(subnets, before, strict=True)]
    assert np.mean(changed) > 0.9
    wanted = ticket.predict(x, verbose=0)
    assert np.ptp(wanted) > 1e-5
    file = save_ticket(ticket, tmp_path / "a.mpt")
    assert file.size < 0.25 * weights + 8 * (ticket.count_params() - 2 * weights) + 20_000 * (1 + len(subnets) // 20)
    for copy in (load_ticket(file.path), strip(ticket)):
        np.testing.assert_allclose(copy.predict(x, verbose=0), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    if keras.backend.backend() == "tensorflow":
        report = convert.to_tflite(ticket, tmp_path / "a.tflite", samples=x)
        assert {layer.form for layer in report.layers} == {"int8"} and len(report.layers) == len(subnets)
