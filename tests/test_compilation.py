"""Eager use on JAX compiles nothing twice: each compiled program keeps memory, of which a process has only so much."""

import keras
import numpy as np
import pytest

from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.masks import GlobalTopK, Restricted, TopK

if keras.backend.backend() != "jax":
    pytest.skip("what JAX compiles", allow_module_level=True)

import jax

X = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")


def network(rule):
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            MPTConv2D(4, 3, mask=rule),
            keras.layers.Flatten(),
            MPTDense(2, mask=rule),
        ]
    )


@pytest.fixture
def compilations():
    jax.clear_caches()  # what other tests have compiled
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **settings: names.append(name) if name.endswith("backend_compile_duration") else None
    )
    yield names
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("selector", ["search", "sort"])
@pytest.mark.parametrize("rule", [TopK, GlobalTopK, Restricted])
@pytest.mark.parametrize("training", [False, True])
def test_calls_after_the_first_compile_nothing(rule, selector, training, compilations, rng):
    model = network(rule(0.5, selector=selector))
    counts = []
    for _ in range(4):
        for layer in model.layers:
            if hasattr(layer, "scores"):
                layer.scores.assign(rng.normal(size=layer.scores.shape).astype("float32"))
        model(X, training=training)
        counts.append(len(compilations))
    assert counts[0] > 0 and counts[1:] == counts[1:2] * 3


def test_swaps_compile_nothing_twice(compilations, rng):
    model = network(Restricted(0.5))
    counts = []
    for rate in [0.0, 0.3, 0.6, 1.0, 0.1, 0.9]:
        for layer in model.layers:
            if hasattr(layer, "scores"):
                layer.swap_rate.assign(rate)
                layer.scores.assign(rng.normal(size=layer.scores.shape).astype("float32"))
        model(X, training=True)
        counts.append(len(compilations))
    assert counts[0] > 0 and counts[1:] == counts[1:2] * 5
