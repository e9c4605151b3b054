"""`torch.compile` and `compile(jit_compile=True)` give what eager PyTorch gives, gradients included."""

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.masks import GlobalTopK, Restricted

if keras.backend.backend() != "torch":
    pytest.skip("a compiler of PyTorch", allow_module_level=True)

import torch

X = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 4, 16)


def network(**settings):
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            MPTConv2D(4, 3, seed=0, **settings),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            MPTDense(4, seed=1, **settings),
        ]
    )


def two_steps(model, call):
    """Return the losses, the scores' gradients and the state after two steps of SGD in plain PyTorch."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(call(torch.tensor(X), training=True), torch.tensor(Y))
        loss.backward()
        optimizer.step()
        found += [loss.item(), *(scores.value.grad.numpy().copy() for scores in model.trainable_variables)]
    return [*found, *model.get_weights()]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "settings",
    [
        {"input_quantizer": "approx_sign"},
        {"kernel_quantizer": "identity", "mask": GlobalTopK(0.5)},
        {"mask": Restricted(0.5)},
    ],
    ids=["binary", "global", "restricted"],
)
def test_compiled_training_is_eager_training(settings):
    eager, compiled = network(**settings), network(**settings)
    compiled.set_weights(eager.get_weights())
    expected = two_steps(eager, eager)
    got = two_steps(compiled, torch.compile(compiled, backend="eager"))
    assert np.abs(expected[1]).sum() > 0
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_sees_new_scores_after_its_kernels_were_held():
    model = network()
    model.trainable = False
    keras_mpt.layers.hold(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        np.testing.assert_allclose(compiled(torch.tensor(X)), model(X), rtol=1e-4, atol=1e-6)
        before = model(X).numpy()
        model.layers[0].scores.assign(keras.ops.flip(model.layers[0].scores))
        assert not np.allclose(model(X), before)
        np.testing.assert_allclose(compiled(torch.tensor(X)), model(X), rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # a C++ compiler takes half a minute
def test_fit_with_a_compiler():
    models = [network(), network()]
    models[1].set_weights(models[0].get_weights())
    histories = []
    for model, jit_compile in zip(models, (False, True), strict=True):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5), loss, jit_compile=jit_compile)
        histories.append(model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert histories[0][-1] < histories[0][0]
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)
