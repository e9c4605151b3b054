"""Training with `fit`: whole models, compiled and not, schedules, saving in between."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.models import mpt_layers
from support import reference
from support.layer_contract import numpy
from support.networks import Subclassed, X, Y, binary, nested_and_shared

BACKEND = keras.backend.backend()


def compiled(model, optimizer=None, **settings):
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **settings)
    return model


def fit(model, epochs=1, x=X, y=Y):
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def snapshot(model):
    return [(numpy(layer.frozen_kernel), numpy(layer.subnet_mask), int(layer.kept)) for layer in mpt_layers(model)]


def assert_equal_weights(first, second):
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def assert_trains(model, epochs=6):
    states = snapshot(model) if model.built else []
    losses = fit(model, epochs)
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
    for (frozen, mask, kept), (frozen_after, mask_after, kept_after) in zip(states, snapshot(model), strict=False):
        np.testing.assert_array_equal(frozen, frozen_after)
        assert kept == kept_after == mask.sum() == mask_after.sum()
        assert (mask != mask_after).any()
    for layer in mpt_layers(model):
        np.testing.assert_array_equal(numpy(layer.subnet_mask), reference.mask(numpy(layer.scores), int(layer.kept)))


@pytest.mark.parametrize("build", [nested_and_shared, Subclassed, binary])
def test_fit_lowers_the_loss(build):
    model = compiled(build())
    assert_trains(model)
    np.testing.assert_allclose(model.predict(X, verbose=0), numpy(model(X)), rtol=1e-5, atol=1e-5)


@functools.cache
def usual_fit():
    model = compiled(nested_and_shared(), jit_compile=False)
    return fit(model), [numpy(layer.scores) for layer in mpt_layers(model)]


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"run_eagerly": True}, marks=pytest.mark.slow_with("jax"))]  # as `usual_fit` is there
    + [{"jit_compile": True}] * (BACKEND != "torch")
    + [{"steps_per_execution": 4}] * (BACKEND != "torch"),  # Keras has neither for PyTorch on CPUs
    ids=str,
)
def test_ways_to_compile(settings):
    losses, scores = usual_fit()
    model = compiled(nested_and_shared(), **settings)
    np.testing.assert_allclose(fit(model), losses, rtol=1e-4)
    for layer, expected in zip(mpt_layers(model), scores, strict=True):
        np.testing.assert_allclose(numpy(layer.scores), expected, atol=1e-4)
        assert int(layer.threshold) > 0


def test_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(nested_and_shared())
    finally:
        keras.config.set_dtype_policy(before)
    assert_trains(model)
    assert all(layer.scores.dtype == "float32" for layer in mpt_layers(model))


class Traced(keras.layers.Layer):
    """Counts how often Python runs its call: once for each compilation."""

    traces = 0

    def call(self, inputs):
        self.traces += 1
        return inputs


def test_another_density_needs_no_recompilation():
    traced, conv = Traced(), MPTConv2D(4, 3, sparsity=0.5, seed=1)
    layers = [keras.Input(X.shape[1:]), traced, conv, keras.layers.Flatten(), MPTDense(2, seed=2)]
    model = compiled(keras.Sequential(layers))
    fit(model)
    traces, half = traced.traces, numpy(conv.subnet_mask).sum()
    conv.kept.assign(7)
    fit(model)
    assert half == 36 and int(conv.kept) == 7
    np.testing.assert_array_equal(numpy(conv.subnet_mask), reference.mask(numpy(conv.scores), 7))
    assert (numpy(conv.kernel) != 0).sum() == 7
    if BACKEND != "torch":  # which compiles nothing
        assert traced.traces == traces


def test_scores_of_removed_weights_are_trained():
    layer = MPTDense(2, sparsity=0.9, seed=0)
    model = compiled(keras.Sequential([keras.Input((72,)), layer]), keras.optimizers.SGD(0.1))
    before, removed = numpy(layer.scores), numpy(layer.subnet_mask) == 0
    fit(model, x=X.reshape(32, -1))
    assert (numpy(layer.scores) != before)[removed].all()


@pytest.mark.parametrize(
    "build, optimizer", [(nested_and_shared, keras.optimizers.Adam), (binary, keras.optimizers.SGD)]
)
def test_a_loaded_model_continues_as_if_nothing_had_happened(build, optimizer, tmp_path):
    model = compiled(build(), optimizer(0.05))
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal_weights(loaded, model)
    assert fit(loaded) == fit(model)
    assert_equal_weights(loaded, model)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


def test_frozen_layer_is_not_trained():
    frozen, trained = MPTDense(4, seed=0), MPTDense(2, seed=1)
    model = keras.Sequential([keras.Input((72,)), frozen, trained])
    frozen.trainable = False
    scores = [numpy(layer.scores) for layer in (frozen, trained)]
    fit(compiled(model), x=X.reshape(32, -1))
    changed = [(numpy(layer.scores) != old).any() for layer, old in zip((frozen, trained), scores, strict=True)]
    assert changed == [False, True]
