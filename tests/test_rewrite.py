"""`rewrite` and `run`: the one walk over Keras' graph."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mpt.callbacks import CheckScores
from keras_mpt.layers import MPTDense
from keras_mpt.models import strip, to_jackpot, to_mpt
from keras_mpt.models.copies import copied
from keras_mpt.models.paths import walk
from keras_mpt.models.ranges import gives_probabilities, never_negative, warn_of_no_logits
from keras_mpt.models.rewrite import rewrite, run
from support.layer_contract import numpy
from support.networks import X, nested_and_shared

L = keras.layers


def same(path, operation, args, kwargs):
    return operation(*args, **kwargs)


class Shifted(keras.Operation):
    """An operation of one's own, of a class that Keras does not know, with an argument that no config can hold."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def call(self, x):
        return ops.add(x, self.offset)


def test_operations_of_ones_own_need_no_config():
    inputs, x = keras.Input((2,)), X[:, 0, 0]
    model = keras.Model(inputs, Shifted(np.arange(3, dtype="float32"))(L.Dense(3)(inputs)))
    twin = rewrite(model, same)
    np.testing.assert_array_equal(numpy(twin(x)), numpy(model(x)))
    calls = [run(each, each.inputs, lambda path, operation, args, kwargs: operation) for each in (model, twin)]
    assert type(calls[0]) is type(calls[1]) is Shifted and calls[0] is not calls[1]
    ticket = to_mpt(model, seed=0)
    np.testing.assert_allclose(numpy(strip(ticket)(x)), numpy(ticket(x)), rtol=1e-6)


@pytest.mark.parametrize("dissolve", [False, True])
def test_the_same_calls_make_the_same_model(dissolve):
    model = nested_and_shared()
    twin = rewrite(model, same, dissolve=dissolve)
    np.testing.assert_array_equal(numpy(twin(X)), numpy(model(X)))
    assert any(isinstance(layer, keras.Model) for layer in twin.layers) != dissolve
    assert {id(v) for v in twin.variables} == {id(v) for v in model.variables}


def test_steps_get_paths_in_an_order_in_which_arguments_are_known():
    seen = []

    def step(path, operation, args, kwargs):
        seen.append(path)
        return operation(*args, **kwargs)

    model = nested_and_shared()
    rewrite(model, step, dissolve=True)
    first, _, flatten, shared, last = (layer.name for layer in model.layers[1:])
    nested = [f"nested/{layer.name}" for layer in model.get_layer("nested").layers]
    assert seen == [first, *nested, flatten, shared, shared, last]


def test_any_values_run_through_a_graph():
    inputs = keras.Input((4,))
    x = L.Dense(3, name="a")(inputs)
    model = keras.Model(inputs, [L.Add(name="sum")([x, L.ReLU(name="relu")(x)]), x])
    names = run(model, ["in"], lambda path, operation, args, kwargs: f"{path}({args[0]})")
    assert names == ["sum(['a(in)', 'relu(a(in))'])", "a(in)"]


def test_added_operations_give_way_to_the_models_names():
    keras.backend.clear_session()
    inputs = keras.Input((4,))
    x = L.Add()([L.Dense(4)(inputs), inputs])
    model = keras.Model(inputs, L.Add()([L.Multiply(name="multiply")([x, x]), x]))
    names = [layer.name for layer in model.layers]
    keras.backend.clear_session()

    def step(path, operation, args, kwargs):
        return copied(operation)(*args, **kwargs) * 2.0 + 1.0

    twin = rewrite(model, step)
    assert sorted(layer.name for layer in twin.layers) == sorted(names)
    assert len({operation.name for operation in twin.operations}) == len(twin.operations)


def with_state(layer):
    """Give the weights of an activation inside a layer values of their own."""
    assert layer.activation.variables
    for variable in layer.activation.variables:
        variable.assign(np.linspace(0.3, 0.7, int(np.prod(variable.shape))).reshape(variable.shape))


def test_activations_with_weights_keep_them():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(3, activation=L.PReLU(), name="h")(inputs))
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model(x)
    with_state(model.get_layer("h"))
    twin = to_jackpot(model, 0.0, skip=[])
    np.testing.assert_array_equal(numpy(twin(x)), numpy(model(x)))
    np.testing.assert_array_equal(numpy(strip(twin)(x)), numpy(model(x)))


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("target", ["tflite", "lce"])
def test_activations_with_weights_are_converted(target, tmp_path):
    pytest.importorskip("larq_compute_engine")
    from keras_mpt import convert

    sign = {"input_quantizer": "approx_sign"}
    norms = [L.BatchNormalization(), L.BatchNormalization()]
    layers = [MPTDense(8, activation=L.PReLU(), seed=1, name="a"), norms[0]]
    layers += [MPTDense(8, activation=L.PReLU(), use_bias=True, seed=2, name="b", **sign), norms[1]]
    model = keras.Sequential([keras.Input((6,)), *layers, L.Dense(3, activation=L.PReLU(), name="c")])
    x = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    model(x)
    for layer in model.layers:
        if not isinstance(layer, L.BatchNormalization):
            with_state(layer)
        else:
            layer.set_weights([np.random.default_rng(0).uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    function = convert.to_lce if target == "lce" else convert.to_tflite
    report = function(model, tmp_path / "model.tflite", samples=x)
    assert report.flips == 0
    np.testing.assert_allclose(convert.run(report.path, target, x), model(x), rtol=1e-4, atol=1e-5)


def test_layers_that_never_get_a_negative_input():
    pixels, inputs = keras.Input((8, 8, 3), dtype="uint8"), keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="from_pixels")(pixels)
    x = L.Dropout(0.5)(L.MaxPooling2D(padding="same")(x))
    x = L.Conv2D(4, 3, padding="same", name="behind_relu")(x)
    y = L.Conv2D(4, 1, strides=2, name="scaled")(L.Rescaling(1 / 255)(inputs))
    x = L.Conv2D(4, 1, name="behind_sum")(L.ReLU()(x) + L.Activation("sigmoid")(y))
    y = L.Conv2D(4, 1, name="of_differences")(L.ReLU()(x) - L.ReLU()(y))
    y = L.Conv2D(4, 1, name="shifted")(L.ReLU()(y) + (-1.0))
    y = L.Conv2D(4, 1, name="shifted_by_integer")(L.ReLU()(y) + (-1))
    y = L.Conv2D(4, 1, name="inverted")(-1 * L.ReLU()(y))
    y = L.Conv2D(4, 1, name="part")((2 * L.ReLU()(y))[..., :-1])
    y = L.Conv2D(4, 1, name="leaky")(L.LeakyReLU()(y))
    z = L.Conv2D(4, 1, name="normalized")(L.BatchNormalization()(L.ReLU()(y)))
    nested = keras.Sequential([keras.Input((4, 4, 4)), L.ReLU(), L.Conv2D(2, 1, name="inside")], name="nested")
    model = keras.Model([pixels, inputs], [nested(z), y])
    found = set(never_negative(model))
    convolutions = {path for path, layer in walk(model) if isinstance(layer, L.Conv2D)}
    assert found & convolutions == {"from_pixels", "scaled", "behind_relu", "behind_sum", "part", "nested/inside"}


def test_losses_that_take_probabilities_for_logits_are_warned_of():
    x = keras.Input((3,), name="x")
    inner = keras.Sequential([keras.Input((3,)), L.Dense(2, "softmax")])
    probabilities = [L.Dense(2, "softmax")(x), L.Activation("sigmoid")(x), L.Softmax()(x), inner(x), ops.softmax(x)]
    assert all(map(gives_probabilities, probabilities))
    assert not any(map(gives_probabilities, [x, L.Dense(2)(x), L.Dense(2, "relu")(L.Softmax()(x)), ops.exp(x)]))
    model, logits = keras.Model(x, [L.Dense(2)(x), probabilities[0]]), keras.losses.CategoricalCrossentropy(True)
    with pytest.warns(UserWarning, match="takes logits, but the model ends in a softmax") as found:
        for loss in (logits, "mse", ["mse", logits], [logits, "mse"], None, keras.losses.CategoricalCrossentropy()):
            warn_of_no_logits(model, loss, stacklevel=1)
    assert len(found) == 2
    named = dict(zip(model.output_names, [logits, "mse"], strict=True))
    by_keys = keras.Model(x, {"z": probabilities[0], "a": L.Dense(2)(x)})
    with pytest.warns(UserWarning, match="takes logits, but the model ends in a softmax") as found:
        for losses in (named, dict(zip(named, ["mse", logits], strict=True)), {model.output_names[1]: logits}):
            warn_of_no_logits(model, losses, stacklevel=1)
        for losses in ({"z": "mse", "a": logits}, {"a": logits}, {"z": logits, "a": "mse"}):
            warn_of_no_logits(by_keys, losses, stacklevel=1)
    assert len(found) == 3
    callback = CheckScores()
    model.compile("sgd", logits)
    callback.set_model(model)
    with pytest.warns(UserWarning, match="Received: CategoricalCrossentropy for output"):
        callback.on_train_begin()


def test_signs_of_what_is_never_negative_are_warned_of():
    layers = [L.Dense(4, activation="relu", name="first"), L.Dense(4, name="second"), L.Dense(2, name="third")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    with pytest.warns(UserWarning, match=r"never negative, .*all their signs are \+1.*: second$"):
        to_mpt(model, input_quantizer="approx_sign")


def test_layers_that_cannot_be_copied_are_named():
    class Odd(L.Layer):
        def __init__(self, factor):
            super().__init__(name="odd")
            self.factor = factor

        def call(self, x):
            return self.factor * x

    model = keras.Sequential([keras.Input((3,)), Odd(2.0), L.Dense(2)])
    with pytest.raises(ValueError, match=r"Layer 'odd' of class Odd must .*`get_config`.*only=\[Odd\]"):
        to_mpt(model)
