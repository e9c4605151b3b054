"""`strip` and `dense_twin`: plain Keras models, also where keras_mpt is not installed."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_mpt import initializers, layers, quantizers
from keras_mpt.models import dense_twin, mpt_layers, mpt_layers_by_path, strip, summary
from support.layer_contract import numpy
from support.networks import Subclassed, X, Y, binary, nested_and_shared


def every_layer():
    """All layer classes, biases, quantizers as layers and as inputs, two outputs."""
    inputs = keras.Input(X.shape[1:])
    x = layers.MPTDepthwiseConv2D(3, depth_multiplier=2, use_bias=True, bias_initializer="ones", seed=1)(inputs)
    x = keras.layers.Activation(quantizers.SteTern(threshold_value=0.2))(x)
    x = layers.MPTConv2DTranspose(3, 2, strides=2, use_bias=True, bias_initializer="ones", seed=2)(x)
    x = quantizers.MagnitudeAwareSign()(x)
    x = keras.layers.Reshape((4, 4, 4, 3))(x)
    x = layers.MPTConv3D(3, 2, padding="same", pad_values=-1.0, strides=2, input_quantizer="ste_sign", seed=3)(x)
    y = keras.layers.Reshape((8, 3))(x)
    y = layers.MPTConv1D(4, 3, padding="causal", activation="tanh", kernel_quantizer=None, seed=4)(y)
    return keras.Model(inputs, [x, layers.MPTDense(2, input_quantizer="swish_sign", seed=5)(y)])


MODELS = {build.__name__: build for build in (nested_and_shared, binary, every_layer)}


def made(name):
    """A model whose weights are none that an initializer gives."""
    model, rng = MODELS[name](), np.random.default_rng(5)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        if isinstance(layer, layers.MPTLayer):
            layer.scores.assign(rng.normal(size=layer.scores.shape))
            layer.kept.assign(layer.kept - 1)
    return model


def outputs(model):
    return [numpy(y) for y in keras.tree.flatten(model(X))]


def assert_same_outputs(model, expected):
    for y, wanted in zip(outputs(model), expected, strict=True):
        assert np.ptp(wanted) > 0.1
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error:The structure of")
@pytest.mark.parametrize("name", MODELS)
def test_strip(name):
    model = made(name)
    weights, expected = model.get_weights(), outputs(model)
    stripped = strip(model)
    assert_same_outputs(stripped, expected)
    assert "keras_mpt" not in stripped.to_json() and mpt_layers(stripped) == []
    assert stripped.name == model.name
    kernels = [numpy(layer.kernel) for layer in mpt_layers(model)]
    baked = [w for w in stripped.get_weights() if any(np.array_equal(w, kernel) for kernel in kernels)]
    assert len(baked) == len(kernels)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_strip_keeps_what_layers_remember():
    normalization = keras.layers.Normalization()
    normalization.adapt(X)
    scaled = keras.layers.Lambda(lambda x: 2 * x)
    model = keras.Sequential([keras.Input(X.shape[1:]), normalization, scaled, layers.MPTConv2D(3, 3, seed=1)])
    assert_same_outputs(strip(model), outputs(model))


class TakesNothing(keras.Model):
    def __init__(self):
        image = keras.Input(X.shape[1:])
        super().__init__(image, layers.MPTConv2D(3, 3, seed=1)(image))


def test_strip_whatever_the_class_and_the_loss():
    model = TakesNothing()
    model.compile("sgd", lambda labels, logits: logits)
    stripped = strip(model)
    assert_same_outputs(stripped, outputs(model))
    assert not isinstance(stripped, TakesNothing) and not stripped.compiled


@pytest.mark.slow_with("jax", "torch")
def test_stripped_models_load_without_keras_mpt(tmp_path):
    for name in MODELS:
        model = made(name)
        strip(model).save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", *outputs(model))
    np.save(tmp_path / "inputs.npy", X)
    code = """
import sys
sys.modules["keras_mpt"] = None  # importing it raises ImportError
import keras, numpy as np
x = np.load("inputs.npy")
for name in sys.argv[1:]:
    model = keras.models.load_model(f"{name}.keras")
    expected = np.load(f"{name}.npz")
    for y, wanted in zip(keras.tree.flatten(model(x)), expected.values(), strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(y), wanted, rtol=1e-5, atol=1e-5)
"""
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    command = [sys.executable, "-c", code, *MODELS]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


def test_time_steps_are_stripped_together(rng):
    conv = layers.MPTConv2D(3, 3, padding="same", pad_values=1.0, input_quantizer="ste_sign", use_bias=True, seed=1)
    inner = [keras.layers.TimeDistributed(conv), keras.layers.TimeDistributed(keras.layers.Flatten())]
    inner += [keras.layers.TimeDistributed(layers.MPTDense(2, activation="tanh", seed=2))]
    model, x = keras.Sequential([keras.Input((5, 4, 4, 2)), *inner]), rng.normal(size=(3, 5, 4, 4, 2))
    conv.bias.assign([0.5, 1.0, 1.5])
    np.testing.assert_allclose(numpy(strip(model)(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)
    assert mpt_layers(strip(model)) == [] and dense_twin(model_of_floats(2)).output_shape == (None, 5, 2)


def model_of_floats(units):
    return keras.Sequential([keras.Input((5, 4)), keras.layers.TimeDistributed(layers.MPTDense(units, seed=1))])


@keras.saving.register_keras_serializable(package="test_models")
class Hiding(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.MPTDense(3, seed=0)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("transform", [strip, dense_twin])
def test_refusals(transform):
    subclassed = Subclassed()
    subclassed(X)
    with pytest.raises(ValueError, match="(?s)subclassed.*Received: Subclassed"):
        transform(subclassed)
    with pytest.raises(ValueError, match="`model` must be a built"):
        transform(keras.Sequential([layers.MPTDense(3)]))
    with pytest.raises(ValueError, match="`model` must hold its MPT layers in functional or Sequential models"):
        transform(keras.Sequential([keras.Input((4,)), Hiding()]))


def test_time_distributed_over_any_number_of_steps():
    wrapped = keras.layers.TimeDistributed(layers.MPTDense(3, seed=0, input_quantizer="approx_sign"))
    model = keras.Sequential([keras.Input((None, 4)), wrapped])
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    plain = strip(model)
    assert not any(isinstance(layer, layers.MPTLayer) for layer in plain._flatten_layers())
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    padded = keras.layers.TimeDistributed(layers.MPTConv1D(3, 3, padding="same", pad_values=1.0, seed=0))
    with pytest.raises(ValueError, match="wrappers of Keras that pad their inputs with values.*'padded"):
        strip(keras.Sequential([keras.Input((None, 6, 4)), keras.layers.TimeDistributed(padded.layer, name="padded")]))


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": quantizers.SteSign()},
        {"use_bias": True, "bias_initializer": initializers.UnsignedConstant(seed=0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [layers.MPTDense, keras.layers.Dense])
def test_strip_refuses_our_objects_in_other_arguments(cls, settings):
    model = keras.Sequential([keras.Input((4,)), cls(3, name="guilty", **settings)])
    with pytest.raises(ValueError, match="Received: layer 'guilty'"):
        strip(model)


@pytest.mark.parametrize("transform", [strip, dense_twin])
def test_a_call_of_ones_own_is_not_dropped(transform):
    class Doubled(layers.MPTDense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    model = keras.Sequential([keras.Input((4,)), Doubled(3, name="double")])
    with pytest.raises(ValueError, match="'double' must compute what MPTDense does .* a Doubled with a `call` of its"):
        transform(model)


def test_subclasses_with_other_additions_are_stripped():
    class Loud:
        def loud(self):
            return self.name.upper()

    class LoudDense(Loud, layers.MPTDense):
        pass

    model = keras.Sequential([keras.Input((4,)), LoudDense(3, seed=1, name="dense")])
    plain, x = strip(model), np.ones((2, 4), "float32")
    assert type(plain.layers[-1]) is keras.layers.Dense and model.layers[-1].loud() == "DENSE"
    np.testing.assert_array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))


def test_dense_twin_is_trained_in_the_ordinary_way():
    model = nested_and_shared()
    twin = dense_twin(model)
    assert "keras_mpt" not in twin.to_json() and twin.output_shape == model.output_shape
    sizes = sorted(int(np.prod(layer.frozen_kernel.shape)) for layer in mpt_layers(model))
    assert sorted(int(np.prod(w.shape)) for w in twin.trainable_weights if len(w.shape) > 1) == sizes
    twin.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kernels = [numpy(w) for w in twin.trainable_weights]
    losses = twin.fit(X, Y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all((numpy(w) != before).any() for w, before in zip(twin.trainable_weights, kernels, strict=True))


def test_dense_twin_starts_as_told():
    for kernel in dense_twin(nested_and_shared(), kernel_initializer="ones").trainable_weights:
        if len(kernel.shape) > 1:
            np.testing.assert_array_equal(numpy(kernel), np.ones(kernel.shape))
    model = keras.Sequential([keras.Input((50,)), *(layers.MPTDense(50, seed=seed) for seed in (1, 2))])
    first, second = (numpy(kernel) for kernel in dense_twin(model, "signed_constant").trainable_weights)
    np.testing.assert_allclose(np.abs([first, second]), 0.2, rtol=1e-6)  # sqrt(2 / 50)
    assert 0.4 < (first != second).mean() < 0.6
    with pytest.raises(ValueError, match="`kernel_initializer` must be one of .*Received: 'he'"):
        dense_twin(model, "he")


def activated():
    inputs = keras.Input((4,))
    x = keras.layers.Activation(quantizers.SteSign())(layers.MPTDense(5, seed=1)(inputs))
    return keras.Model(inputs, layers.MPTDense(2, seed=2)(x))


@pytest.mark.parametrize("build", [binary, every_layer, activated])
def test_dense_twin_refuses_quantized_activations(build):
    with pytest.raises(ValueError, match="`model` must have float activations.*input_quantizer="):
        dense_twin(build())


WHOLE = [quantizers.MagnitudeAwareSign(), quantizers.SteTern(ternary_weight_networks=True)]  # use the whole tensor


@pytest.mark.parametrize("quantizer", WHOLE)
def test_strip_refuses_other_quantizers_for_each_time_step(quantizer, rng):
    inputs, given = keras.Input((4, 5)), {"input_quantizer": quantizer, "seed": 1}
    for layer in (
        keras.layers.TimeDistributed(layers.MPTDense(2, **given)),
        layers.MPTLSTM(2, **given),
        keras.layers.RNN(layers.MPTGRUCell(2, **given)),
        keras.layers.Bidirectional(layers.MPTSimpleRNN(2, **given)),
    ):
        with pytest.raises(ValueError, match=f"`model` must not quantize each time step .*{type(quantizer).__name__}"):
            strip(keras.Model(inputs, layer(inputs)))
    together = keras.Model(inputs, layers.MPTDense(2, **given)(inputs))  # all steps at once, as the plain layer does
    x = rng.normal(size=(3, 4, 5)).astype("float32")
    np.testing.assert_allclose(numpy(strip(together)(x)), numpy(together(x)), rtol=1e-5, atol=1e-6)


def test_strip_keeps_wide_biases():
    inputs = keras.Input((5,), dtype="float64")
    model = keras.Model(inputs, layers.MPTDense(4, use_bias=True, seed=1, dtype="float64")(inputs))
    model.layers[1].bias.assign(1000 + np.random.default_rng(0).normal(size=4))
    x = np.random.default_rng(1).normal(size=(3, 5))
    np.testing.assert_allclose(numpy(strip(model)(x)), numpy(model(x)), rtol=1e-14)


def test_mpt_layers_in_order_and_once():
    assert [layer.seed for layer in mpt_layers(nested_and_shared())] == [1, 2, 3, 4]


@pytest.mark.parametrize("function", [mpt_layers, mpt_layers_by_path, summary])
def test_a_file_is_no_model(function):
    with pytest.raises(TypeError, match="`model` must be a Keras model.*load_ticket.*Received: 'ticket.mpt'"):
        function("ticket.mpt")
    for functional_only in (strip, dense_twin):
        with pytest.raises(ValueError, match="`model` must be a built functional.*Received: str 'ticket.mpt'"):
            functional_only("ticket.mpt")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("quantizer", [quantizers.DoReFa(2), quantizers.SteHeaviside()])
def test_strip_rounds_inputs_as_layers_do_before_they_quantize(policy, quantizer, rng):
    inputs = keras.Input((6,), dtype="float32")
    first = layers.MPTDense(3, seed=1, input_quantizer=quantizer, dtype=policy)
    second = keras.layers.Activation(quantizer, dtype=policy)
    x = np.concatenate([rng.uniform(size=(400, 6)), np.full((1, 6), 1e-9)]).astype(np.float32)
    for model in (keras.Model(inputs, first(inputs)), keras.Model(inputs, second(inputs))):
        np.testing.assert_array_equal(numpy(strip(model)(x)), numpy(model(x)))


def test_a_layer_shared_by_a_nested_model_is_shared_by_the_twins():
    shared, inputs, outer = layers.MPTDense(6, seed=1), keras.Input((6,)), keras.Input((6,))
    model = keras.Model(outer, shared(keras.Model(inputs, shared(inputs))(outer)))
    assert dense_twin(model).count_params() == strip(model).count_params() == 36
    x = np.ones((2, 6), np.float32)
    np.testing.assert_allclose(numpy(strip(model)(x)), numpy(model(x)), rtol=1e-5)


def test_dense_twin_keeps_what_was_adapted(rng):
    data = rng.normal(5, 3, (100, 6)).astype(np.float32)
    normalization = keras.layers.Normalization()
    normalization.adapt(data)
    twin = dense_twin(keras.Sequential([keras.Input((6,)), normalization, layers.MPTDense(3, seed=1)]))
    np.testing.assert_array_equal(numpy(twin.layers[1](data)), numpy(normalization(data)))


def test_inputs_by_name(rng):
    inputs, x = keras.Input((6,)), rng.normal(size=(4, 6)).astype(np.float32)
    nested = keras.Sequential([keras.Input((6,)), layers.MPTDense(5, seed=1)])
    hidden = keras.layers.Activation(quantizers.ApproxSign())(inputs=nested(inputs=inputs))
    model = keras.Model(inputs, layers.MPTDense(3, seed=2)(inputs=hidden))
    np.testing.assert_array_equal(numpy(strip(model)(x)), numpy(model(x)))


def test_a_name_is_no_object_of_keras_mpt():
    model = keras.Sequential(
        [keras.Input((6,)), layers.MPTDense(3, seed=1), keras.layers.Dense(3, name="after_keras_mpt")]
    )
    assert strip(model).layers[-1].name == "after_keras_mpt"
