"""`to_functional`: subclassed models and layers of one's own, as users of Keras write them, opened."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mpt import load_ticket, save_ticket
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.models import mpt_layers, mpt_layers_by_path, strip, to_functional, to_mpt
from support.layer_contract import numpy
from support.networks import Subclassed, X, Y

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Block(keras.layers.Layer):
    """A residual block with layers in attributes, in a list, in a Sequential; `training` is passed on."""

    def __init__(self, filters, seed, inner=MPTConv2D, **kwargs):
        super().__init__(**kwargs)
        seeded = {"seed": seed} if inner is MPTConv2D else {}
        self.conv = inner(filters, 3, padding="same", name="conv", **seeded)
        self.norm = keras.layers.BatchNormalization(momentum=0.5, name="norm")
        self.pointwise = [inner(filters, 1, **seeded) for _ in range(2)]
        self.last = keras.Sequential([inner(filters, 3, padding="same", **seeded), keras.layers.ReLU()])

    def build(self, shape):
        for layer in (self.conv, self.norm, *self.pointwise, self.last):
            layer.build(shape)

    def call(self, x, scale=1.0, training=False):
        y = ops.relu(self.norm(self.conv(x), training=training))
        for layer in self.pointwise:
            y = y + scale * layer(y)
        return x + self.last(y)


class Pair(keras.layers.Layer):
    """Holds another layer of one's own; takes two tensors and returns two."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(4, seed=5)

    def call(self, xs, training=None):
        a, b = xs
        return self.block(a, training=training), a - b

    def build(self, shapes):
        self.block.build(shapes[0])


def blocks():
    inputs = keras.Input(X.shape[1:])
    x = MPTConv2D(4, 3, padding="same", seed=1)(inputs)
    first, again = Block(4, seed=2), Block(4, seed=3)
    x = again(again(first(x, scale=0.5)))
    a, b = Pair()([x, keras.layers.ReLU()(x)])
    x = keras.layers.Flatten()(keras.layers.Add()([a, b]))
    return keras.Model(inputs, MPTDense(2, seed=4)(x))


def in_sequential():
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            MPTConv2D(4, 3, seed=1),
            keras.Sequential([Block(4, seed=2), Block(4, seed=3)]),
            keras.layers.Flatten(),
            MPTDense(2, seed=4),
        ]
    )


class Network(keras.Model):
    """Makes its layers where it is built, and holds one of another class."""

    def build(self, shape):
        self.conv = MPTConv2D(4, 3, padding="same", seed=1)
        self.block, self.flatten, self.dense = Block(4, seed=2), keras.layers.Flatten(), MPTDense(2, seed=3)
        super().build(shape)

    def call(self, x, training=False):
        return self.dense(self.flatten(self.block(self.conv(x), training=training)))


MODELS = {
    "blocks": lambda: (blocks(), None),
    "in_sequential": lambda: (in_sequential(), None),
    "network": lambda: (Network(), keras.Input(X.shape[1:])),
    "subclassed": lambda: (Subclassed(), keras.Input(X.shape[1:])),
}


def made(name):
    """A model, functional, its batch norms with weights that no initializer gives."""
    model, inputs = MODELS[name]()
    functional, rng = to_functional(model, inputs), np.random.default_rng(5)
    for layer in functional._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model, functional


def assert_same(model, other, rtol=1e-5):
    expected = numpy(model(X))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(numpy(other(X)), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", MODELS)
def test_same_layers_same_outputs(name, tmp_path):
    model, functional = made(name)
    assert isinstance(functional, keras.Function)
    assert functional.name == model.name
    assert {id(layer) for layer in mpt_layers(model)} == {id(layer) for layer in mpt_layers(functional)}
    assert {id(v) for v in model.variables} == {id(v) for v in functional.variables}
    assert_same(model, functional)
    assert_same(model, strip(functional))
    save_ticket(functional, tmp_path / "a.mpt")  # no `custom_objects`: they are gone
    assert_same(model, load_ticket(tmp_path / "a.mpt"))


@pytest.mark.parametrize("name", ["blocks", "in_sequential"])
def test_paths_stay(name):
    model, functional = made(name)
    assert list(mpt_layers_by_path(model)) == list(mpt_layers_by_path(functional))


@pytest.mark.parametrize("name", [pytest.param("blocks", marks=pytest.mark.slow_with("jax")), "network"])
def test_training_is_passed_on_and_shared(name):
    model, functional = made(name)
    if isinstance(model, Network):
        block = model.block
    else:
        block = next(layer for layer in model.layers if isinstance(layer, Block))
    mean, scores = numpy(block.norm.moving_mean), numpy(block.conv.scores)
    functional.compile("sgd", LOSS)
    functional.fit(X, Y, batch_size=4, verbose=0)
    assert not np.allclose(numpy(block.norm.moving_mean), mean)
    assert not np.allclose(numpy(block.conv.scores), scores)
    assert_same(model, functional)


def test_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input(X.shape[1:])
        block = Block(X.shape[-1], seed=2)
        model = keras.Model(inputs, keras.layers.Flatten()(block(inputs)))  # its `x + ...` gets float32
        functional = to_functional(model)
        assert functional.output.dtype == model.output.dtype == "bfloat16"
        expected = np.asarray(numpy(ops.cast(model(X), "float32")))
        np.testing.assert_array_equal(numpy(ops.cast(functional(X), "float32")), expected)
    finally:
        keras.config.set_dtype_policy(before)


def test_chosen_classes_for_to_mpt():
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, keras.layers.Flatten()(Block(4, seed=None, inner=keras.layers.Conv2D)(inputs)))
    assert to_functional(model) is model  # holds no MPT layer
    ticket = to_mpt(to_functional(model, only=[Block]), seed=0)
    assert len(mpt_layers(ticket)) == 4
    assert isinstance(ticket, keras.Function)


class Scaled(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="scaled")
        self.dense, self.factor = MPTDense(2, seed=1), self.add_weight(name="factor")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.factor * self.dense(x)


class Sums(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="sums")
        self.dense, self.supports_masking = MPTDense(2, seed=1), True

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def test_what_cannot_be_opened_is_refused():
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match=r"variables of their own.*Scaled 'scaled' with \['.*factor'\]"):
        to_functional(keras.Model(inputs, Scaled()(inputs)))
    steps = keras.Input((5, 3))
    with pytest.raises(ValueError, match="Keras mask.*Sums 'sums'"):
        to_functional(keras.Model(steps, Sums()(keras.layers.Masking()(steps))))

    inputs, block = keras.Input((8, 8, 4)), Block(4, seed=2, name="block", activity_regularizer="l2")
    with pytest.raises(ValueError, match="no activity regularizer of their own.*Block 'block' with"):
        to_functional(keras.Model(inputs, block(inputs)))
    block = Block(4, seed=2, name="block")
    with pytest.raises(ValueError, match="same shapes and arguments each time.*Block 'block' called on.*0.5"):
        to_functional(keras.Model(inputs, block(block(inputs, scale=0.5))))


def test_bad_arguments():
    inputs, model = keras.Input(X.shape[1:]), in_sequential()
    with pytest.raises(ValueError, match="`inputs` must say what.*Received: Subclassed"):
        to_functional(Subclassed())
    with pytest.raises(ValueError, match="`inputs` must be left out.*Received: inputs="):
        to_functional(model, inputs)
    with pytest.raises(ValueError, match="`model` must be built"):
        to_functional(keras.Sequential([MPTDense(2)]))
    with pytest.raises(TypeError, match="`only` must be a list of classes of layers. Received: only='Block'"):
        to_functional(model, only="Block")
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        to_functional("model.keras")


@pytest.mark.parametrize("use", [strip, lambda model: to_mpt(Subclassed())], ids=["strip", "to_mpt"])
def test_errors_name_it(use):
    with pytest.raises(ValueError, match="keras_mpt.models.to_functional"):
        use(blocks())


@pytest.mark.tensorflow_only
def test_conversion(tmp_path):
    from keras_mpt.convert import to_tflite

    model, functional = made("blocks")
    with pytest.raises(ValueError, match="keras_mpt.models.to_functional"):
        to_tflite(model, tmp_path / "a.tflite")
    report = to_tflite(functional, tmp_path / "a.tflite", samples=X)
    assert report.max_error < 1e-4
