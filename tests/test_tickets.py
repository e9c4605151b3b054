"""Tickets: what is saved is what is loaded, and files that are no good are refused."""

import os
import random
import runpy
import subprocess
import sys

import keras
import numpy as np
import pytest
import test_models

import keras_mpt
from keras_mpt import initializers, quantizers
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.masks import MaskRule, Restricted
from keras_mpt.models import mpt_layers, mpt_layers_by_path, to_jackpot
from keras_mpt.models.tables import short
from keras_mpt.tickets import Ticket, TicketError, config, kernels, load_ticket, restore, save_ticket
from support import networks
from support.layer_contract import numpy
from support.ticket_files import X, assert_as_declared, assert_equal_models, opened, outputs, sealed, tiny

IMAGES = networks.X


def beside():
    """Ordinary layers of Keras, with weights that no initializer gives, beside MPT layers and around one."""
    layers = keras.layers
    inputs = keras.Input(IMAGES.shape[1:])
    normalization = layers.Normalization()
    x = normalization(inputs)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.GroupNormalization(2)(layers.SpatialDropout2D(0.2)(x))
    x = layers.Reshape((16, 4))(x)
    x = layers.TimeDistributed(MPTDense(4, seed=6, name="inside"))(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 2)(x, x)])
    x = layers.Dropout(0.5)(layers.LayerNormalization()(x * 2.0 - 1.0)[:, :3])
    x = layers.Bidirectional(layers.LSTM(3))(x)
    x = MPTDense(8, use_bias=True, bias_initializer="ones", seed=1)(x)
    model = keras.Model(inputs, [layers.Dense(3)(layers.PReLU()(x)), x])
    normalization.adapt(IMAGES)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, (layers.PReLU, layers.LayerNormalization, layers.GroupNormalization)):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def initialized():
    """A layer for every initializer of ours and for one of Keras, at sparsities from none to nearly all."""
    inputs = keras.Input((3,))
    drawn = [initializers.KaimingUniform(a=1.0, seed=9), "glorot_normal"]
    for scale_fan in (False, True):
        for cls in (initializers.SignedConstant, initializers.UnsignedConstant, initializers.KaimingNormal):
            drawn.append(cls(scale_fan=scale_fan))
    x = MPTDense(20, sparsity=0.0, seed=8)(inputs)
    y = [MPTDense(9, sparsity=0.6, seed=2**64 - 1, kernel_initializer=initializer)(x) for initializer in drawn]
    y += [MPTDense(9, sparsity=0.6, seed=3, kernel_initializer=drawn[0], kernel_quantizer=None)(x)]
    y += [MPTDense(60, sparsity=0.995, seed=4)(x)]
    return keras.Model(inputs, y)


def lower_precision():
    policies = [keras.DTypePolicy(name) for name in ("mixed_bfloat16", "bfloat16", "float16")]
    parts = [keras.Input((3,))]
    for i, policy in enumerate(policies):
        parts.append(MPTDense(8, use_bias=True, bias_initializer="ones", seed=i, dtype=policy))
        parts.append(keras.layers.Dense(8, dtype=policy, bias_initializer="random_normal"))
    return keras.Sequential(parts)


MODELS = {name: (lambda name=name: test_models.made(name), IMAGES) for name in test_models.MODELS}
MODELS |= {"beside": (beside, IMAGES), "tiny": (tiny, X), "initialized": (initialized, X)}
MODELS |= {"lower_precision": (lower_precision, X)}


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    build, x = MODELS[name]
    model = build()
    saved = save_ticket(model, tmp_path / "saved.mpt")
    loaded = load_ticket(tmp_path / "saved.mpt")
    assert_equal_models(model, loaded, x)
    assert (type(loaded), loaded.name) == (type(model), model.name) and not loaded.compiled
    again = save_ticket(loaded, tmp_path / "again.mpt")
    assert {name: bytes(data) for name, data in again.blobs.items()} == saved.blobs and again.layers == saved.layers


def test_predictions(tmp_path):
    model = networks.nested_and_shared()
    save_ticket(model, tmp_path / "saved.mpt")
    loaded = load_ticket(tmp_path / "saved.mpt")
    on_jax = keras.backend.backend() == "jax"  # XLA sums the magnitudes behind alpha in another order when compiled
    predicted, wanted = (m.predict(IMAGES, verbose=0) for m in (loaded, model))
    np.testing.assert_allclose(predicted, wanted, rtol=1e-5 if on_jax else 0, atol=1e-6 if on_jax else 0)


def test_a_ticket_says_what_its_kernels_are(tmp_path):
    model = tiny()
    save_ticket(model, tmp_path / "tiny.mpt")
    ticket = Ticket.read(str(tmp_path / "tiny.mpt"))
    assert list(ticket.layers) == ["first", "norm", "second"]
    for layer in mpt_layers(model):
        kernel = ticket.kernel(layer.name)
        np.testing.assert_array_equal(kernel.mask, numpy(layer.subnet_mask) != 0)
        np.testing.assert_array_equal(kernel.effective, numpy(layer.kernel))
        kept = numpy(layer.frozen_kernel)[kernel.mask]
        np.testing.assert_array_equal(np.sign(kernel.frozen[kernel.mask]), np.sign(kept))
    for path in ("norm", "third"):
        with pytest.raises(TicketError, match=f"tiny.mpt: layer '{path}' has no kernel.*: .'first', 'second'"):
            ticket.kernel(path)
    assert_as_declared(load_ticket(tmp_path / "tiny.mpt"), tmp_path / "tiny.mpt")


SIZE = 10_000  # weights in the layers below, of which half are kept


def wide(kernel_quantizer, kernel_initializer="signed_constant"):
    layer = MPTDense(100, seed=1, kernel_quantizer=kernel_quantizer, kernel_initializer=kernel_initializer, name="wide")
    model = keras.Sequential([keras.Input((100,)), layer])
    layer.scores.assign(np.random.default_rng(2).normal(size=(100, 100)))
    return model, layer


def flip(weights, rng):
    return weights * np.where(rng.random(weights.shape) < 0.03, -1, 1)


SOURCES = {  # name: (what becomes of the frozen kernel, bits for each kept weight as signs and as values)
    "seed": (lambda weights, rng: weights, 0, 0),
    "recycled": (flip, 0.29, 0.29 + 0.034 * 32),
    "redrawn": (lambda weights, rng: np.where(rng.random(weights.shape) < 0.1, weights * 0.7, weights), 0, 0.5 + 3.5),
    "foreign": (lambda weights, rng: rng.normal(size=weights.shape), 1.02, 32.1),
    "with zeros": (lambda weights, rng: weights * (rng.random(weights.shape) < 0.9), 0.5 + 3.5, 0.5 + 3.5),
}


@pytest.mark.parametrize("kernel_quantizer", ["scaled_sign", None])
@pytest.mark.parametrize("source", SOURCES)
def test_what_differs_from_the_seed_is_stored(source, kernel_quantizer, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(kernels, "_BLOCK", 999)  # a large kernel is read in several parts
    change, *bits = SOURCES[source]
    model, layer = wide(kernel_quantizer)
    untouched = save_ticket(model, tmp_path / "untouched.mpt")
    layer.frozen_kernel.assign(change(numpy(layer.frozen_kernel), rng))
    changed = save_ticket(model, tmp_path / "changed.mpt")
    assert_equal_models(model, load_ticket(tmp_path / "changed.mpt"), np.eye(100, dtype=np.float32))
    more = 8 * (sum(map(len, changed.blobs.values())) - sum(map(len, untouched.blobs.values()))) / (SIZE / 2)
    expected = bits[kernel_quantizer is None]
    assert 0.6 * expected <= more <= expected
    assert changed.size - untouched.size < more * SIZE / 16 + 200


def test_a_kernel_without_a_seed_costs_its_signs(tmp_path):
    model, _ = wide("scaled_sign", "glorot_normal")
    ticket = save_ticket(model, tmp_path / "keras.mpt")
    assert len(ticket.blobs["wide/changes"]) <= SIZE / 16 + 50
    assert_equal_models(model, load_ticket(tmp_path / "keras.mpt"), np.eye(100, dtype=np.float32))


@pytest.mark.parametrize("kernel_quantizer", ["scaled_sign", None])
def test_a_kernel_of_another_network(kernel_quantizer, tmp_path, rng):
    x = np.eye(100, dtype=np.float32)
    base, other = (keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)]) for _ in range(2))
    model, layer = wide(kernel_quantizer)
    alone = save_ticket(model, tmp_path / "alone.mpt", base=base)
    load_ticket(tmp_path / "alone.mpt")  # refers to nothing
    layer.frozen_kernel.assign(numpy(base.layers[0].kernel))
    ticket = save_ticket(model, tmp_path / "pretrained.mpt", base=base)
    assert ticket.size <= alone.size + 200
    loaded = load_ticket(tmp_path / "pretrained.mpt", base=base)
    assert_equal_models(model, loaded, x)
    np.testing.assert_array_equal(numpy(loaded.layers[0].frozen_kernel), numpy(layer.frozen_kernel))
    np.testing.assert_array_equal(ticket.kernel("wide", base=base).effective, numpy(layer.kernel))
    for wrong in (None, other):
        given = "the given one does not have them" if wrong else "example$"
        with pytest.raises(
            TicketError, match=f"pretrained.mpt: layer 'wide'.*another network: pass that as `base`.*{given}"
        ):
            load_ticket(tmp_path / "pretrained.mpt", base=wrong)
    for fails in (
        lambda base: load_ticket(tmp_path / "pretrained.mpt", base=base),
        lambda base: restore(model, ticket, base=base),
        lambda base: save_ticket(model, tmp_path / "x.mpt", base=base),
    ):
        with pytest.raises(TypeError, match="`base` must be a Keras model or None. Received: base='base.keras'"):
            fails("base.keras")
    with pytest.raises(TicketError, match="`base`"):
        ticket.kernel("wide")


def test_a_base_of_no_use_changes_nothing(tmp_path):
    """It shares too few weights, is of another network, or has what the seed gives."""
    model, layer = wide("scaled_sign")
    base, small = (keras.Sequential([keras.Input((n,)), keras.layers.Dense(n, name="other")]) for n in (100, 4))
    kernel = numpy(base.layers[0].kernel)
    kernel[:30] = numpy(layer.frozen_kernel)[:30]
    base.layers[0].kernel.assign(kernel)
    for useless in (None, base, small, model, keras.Sequential()):
        ticket = save_ticket(model, tmp_path / "seed.mpt", base=useless)
        assert ticket.layers["wide"]["kernel"]["source"]["from"] == "seed" and "Base" not in str(ticket)
        assert ("`base` was of no use" in str(ticket)) == (useless is not None)
        assert "of no use" not in str(Ticket.read(ticket.path))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_of_other_floats(dtype, tmp_path):
    x = np.eye(100, dtype=np.float32)
    base = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100, dtype=dtype)])
    assert base.layers[0].kernel.dtype == dtype
    model, layer = wide("scaled_sign")
    layer.frozen_kernel.assign(keras_mpt.ops.to_numpy(base.layers[0].kernel, "float32"))
    ticket = save_ticket(model, tmp_path / "a.mpt", base=base)
    assert ticket.layers["wide"]["kernel"]["source"]["from"] == "base"
    assert_equal_models(model, load_ticket(ticket.path, base=base), x)


@pytest.mark.slow_with("jax", "torch")
def test_a_base_of_use_and_one_of_none_for_all_kinds_of_layers(tmp_path, rng):
    words = keras.Input((5,), dtype="int32")
    x = keras.layers.SeparableConv1D(3, 2)(keras.layers.Conv1D(3, 2)(keras.layers.Embedding(5, 4)(words)))
    base = keras.Model(words, keras.layers.GRU(3)(keras.layers.MultiHeadAttention(2, 3)(x, x)))
    base.set_weights([rng.normal(size=weight.shape) for weight in base.get_weights()])
    jackpot = to_jackpot(base, 0.5, skip=[])
    ticket = save_ticket(jackpot, tmp_path / "a.mpt", base=base)
    assert "needed to load, for 10 of 10 kernels" in str(ticket) and "of no use" not in str(ticket)
    ticket = save_ticket(jackpot, tmp_path / "a.mpt", base=keras.models.clone_model(base))
    assert "the given `base` was of no use" in str(ticket)


def test_a_base_of_some_kernels(tmp_path):
    """Those that it does not have, and those that the seed gives, need no base; the table says how many do."""
    dense = [keras.layers.Dense(100, name=name) for name in "ab"]
    base = keras.Sequential([keras.Input((100,)), *dense])
    ours = [MPTDense(100, seed=seed, name=name) for seed, name in enumerate("abc")]
    model = keras.Sequential([keras.Input((100,)), *ours])
    ours[0].frozen_kernel.assign(numpy(dense[0].kernel))
    dense[1].kernel.assign(numpy(ours[1].frozen_kernel))
    ticket = save_ticket(model, tmp_path / "a.mpt", base=base)
    assert [ticket.layers[name]["kernel"]["source"]["from"] for name in "abc"] == ["base", "seed", "seed"]
    assert "needed to load, for 1 of 3 kernels" in str(ticket)
    card = keras_mpt.hub.card(ticket, "me/a")
    assert 'load_ticket("hf://me/a", base=base)' in card and "a network whose weights are not all a seed's" in card
    assert_equal_models(model, load_ticket(ticket.path, base=base), np.eye(100, dtype=np.float32))


def test_float16_rounds_other_variables_only(tmp_path, rng):
    model = tiny()
    norm = model.get_layer("norm")
    norm.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in norm.get_weights()])
    full, half = (save_ticket(model, tmp_path / f"{dtype}.mpt", dtype=dtype) for dtype in ("float32", "float16"))
    assert 2 * len(half.blobs["norm/variables"]) == len(full.blobs["norm/variables"]) == 64
    loaded = load_ticket(tmp_path / "float16.mpt")
    for wanted, got in zip(norm.get_weights(), loaded.get_layer("norm").get_weights(), strict=True):
        np.testing.assert_array_equal(got, wanted.astype(np.float16))
    for ours, theirs in zip(mpt_layers(model), mpt_layers(loaded), strict=True):
        np.testing.assert_array_equal(numpy(theirs.kernel), numpy(ours.kernel))
    norm.moving_variance.assign([1.0, 2.0, 7e4, 1.0])
    with pytest.raises(ValueError, match="'norm/moving_variance'.*70000.*float16"):
        save_ticket(model, tmp_path / "float16.mpt", dtype="float16")
    save_ticket(model, tmp_path / "float32.mpt", dtype="float32")


def fit(model, epochs, learning_rate=0.1):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss)
    model.fit(IMAGES, networks.Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def scores(model):
    return np.concatenate([numpy(layer.scores).ravel() for layer in mpt_layers(model)])


def masks(model):
    return np.concatenate([numpy(layer.subnet_mask).ravel() for layer in mpt_layers(model)])


def test_a_search_goes_on_where_it_stopped(tmp_path):
    model = networks.nested_and_shared()
    untrained = masks(model)
    fit(model, 2)
    save_ticket(model, tmp_path / "search.mpt", scores=True)
    loaded = load_ticket(tmp_path / "search.mpt", trainable=True)
    before = scores(loaded)
    np.testing.assert_array_equal(before, scores(model))
    for m in (model, loaded):
        fit(m, 2)
    assert (scores(model) != before).any() and (masks(model) != untrained).any()
    for ours, theirs in zip(model.variables, loaded.variables, strict=True):
        if ours.name != "threshold":  # a hint, for which any number between two magnitudes will do
            np.testing.assert_array_equal(numpy(theirs), numpy(ours), err_msg=ours.path)


def test_a_search_without_scores_starts_from_the_mask(tmp_path):
    model = test_models.made("nested_and_shared")
    save_ticket(model, tmp_path / "mask.mpt")
    loaded = load_ticket(tmp_path / "mask.mpt", trainable=True)
    mask = masks(model)
    np.testing.assert_array_equal(masks(loaded), mask)
    np.testing.assert_array_equal(scores(loaded), np.where(mask, np.float32(1), np.float32(0.99)))
    assert [v.name for v in loaded.trainable_variables] == [v.name for v in model.trainable_variables]
    fit(loaded, 4)
    assert np.isfinite(scores(loaded)).all() and (masks(loaded) != mask).any() and masks(loaded).sum() == mask.sum()


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_frozen_is_trained_if_wanted(whole, tmp_path):
    model = networks.nested_and_shared()
    if whole:
        model.trainable = False
    else:
        mpt_layers(model)[0].scores.trainable = model.get_layer("nested").layers[0].trainable = False
    save_ticket(model, tmp_path / "frozen.mpt")
    loaded = load_ticket(tmp_path / "frozen.mpt", trainable=True)
    assert sum(v.name == "scores" for v in loaded.trainable_variables) == len(mpt_layers(model)) == 4
    assert any(v.name == "gamma" for v in loaded.trainable_variables) != whole


def test_masks_stay_as_they_are_by_default(tmp_path):
    model = networks.nested_and_shared()
    for with_scores in (True, False):
        save_ticket(model, tmp_path / "frozen.mpt", scores=with_scores)
        loaded = load_ticket(tmp_path / "frozen.mpt")
        assert {v.name for v in loaded.trainable_variables} == {"gamma", "beta"}
    kernels_before, gamma = [numpy(layer.kernel) for layer in mpt_layers(loaded)], numpy(loaded.trainable_variables[0])
    fit(loaded, 1)
    for layer, before in zip(mpt_layers(loaded), kernels_before, strict=True):
        np.testing.assert_array_equal(numpy(layer.kernel), before)
    assert (numpy(loaded.trainable_variables[0]) != gamma).any()


@keras.saving.register_keras_serializable(package="test_tickets")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def with_custom_layer():
    return keras.Sequential([keras.Input((3,)), MPTDense(4, seed=1), Doubled()])


def test_layers_of_keras_that_tickets_do_not_hold(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, MPTDense(2, seed=1)(keras.layers.Discretization(bin_boundaries=[0.0])(inputs)))
    with pytest.raises(ValueError, match="apply it before the model. Received: keras.layers.Discretization"):
        save_ticket(model, tmp_path / "a.mpt")


def test_custom_objects_must_be_a_list(tmp_path):
    for call in (
        lambda: save_ticket(chain(), tmp_path / "a.mpt", custom_objects=Doubled),
        lambda: load_ticket(tmp_path / "a.mpt", custom_objects=Doubled),
    ):
        with pytest.raises(
            TypeError, match="`custom_objects` must be a list of classes and functions. Received: custom_objects=<class"
        ):
            call()


def test_custom_objects_are_used_where_they_are_named(tmp_path):
    model, file = with_custom_layer(), tmp_path / "custom.mpt"
    with pytest.raises(ValueError, match="`custom_objects`.*test_tickets>Doubled"):
        save_ticket(model, file)
    assert list(tmp_path.iterdir()) == []
    save_ticket(model, file, custom_objects=[Doubled])
    with pytest.raises(TicketError, match="custom.mpt.*`custom_objects`.*test_tickets>Doubled"):
        load_ticket(file)
    assert_equal_models(model, load_ticket(file, custom_objects=[Doubled]), X)


@keras.saving.register_keras_serializable(package="test_tickets")
class Unnamed(keras.layers.Layer):
    """Layers inside without a name, which Keras numbers: `mpt_dense`, `mpt_dense_1`, ..."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.many = [MPTDense(3, seed=7) for _ in range(12)]  # of 12 numbers, the order by name is another
        self.body = keras.Sequential([MPTDense(3, seed=8), keras.layers.BatchNormalization()])

    def build(self, shape):
        for layer in (*self.many, self.body):
            layer.build(shape)

    def call(self, x):
        for layer in self.many:
            x = x + layer(x)
        return self.body(x)


@pytest.mark.slow_with("tensorflow", "jax")  # which take seconds for 26 layers
def test_unnamed_layers_inside_custom_ones_are_taken_by_their_order(tmp_path):
    inputs = keras.Input((3,))
    model, file = keras.Model(inputs, Unnamed()(Unnamed(name="second")(inputs))), tmp_path / "unnamed.mpt"
    rng = np.random.default_rng(0)
    for layer in mpt_layers(model):
        layer.scores.assign(rng.normal(size=(3, 3)))
    save_ticket(model, file, scores=True, custom_objects=[Unnamed])
    for trainable in (False, True):
        loaded = load_ticket(file, trainable=trainable, custom_objects=[Unnamed])
        assert_equal_models(model, loaded, X)
        assert list(mpt_layers_by_path(loaded)) == list(mpt_layers_by_path(model))
        for ours, theirs in zip(mpt_layers(model), mpt_layers(loaded), strict=True):
            np.testing.assert_array_equal(numpy(ours.scores), numpy(theirs.scores))


@pytest.mark.slow_with("jax")  # which compiles each
def test_operations(tmp_path):
    """All that tickets hold, on tensors of a functional model."""
    ops, unary = keras.ops, "absolute exp log sqrt reciprocal negative sign floor round square sin cos tanh"
    activations = "celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid log_softmax relu relu6 selu"
    activations += " sigmoid silu softmax softplus softsign normalize"
    inputs = keras.Input((3,))
    x = ops.tanh(MPTDense(4, seed=1)(inputs)) + 1.5  # positive
    image = ops.reshape(x, (-1, 2, 2, 1))
    a, b = ops.split(x, 2, axis=-1)
    made = [getattr(ops, name)(x) for name in [*unary.split(), *activations.split()]]
    made += [x + 1.0, x - 1.0, 2.0 * x, x / 2.0, ops.divide(x, 3.0), x**2, ops.mod(x, 0.3), -x, x[:, 1:], x[..., 0]]
    made += [ops.max(x, axis=-1), ops.min(x, axis=-1), ops.mean(x, axis=-1), ops.sum(x, axis=-1), ops.var(x, axis=-1)]
    made += [
        ops.std(x, axis=-1),
        ops.maximum(x, 1.0),
        ops.minimum(x, 1.0),
        ops.clip(x, 0.0, 1.0),
        ops.matmul(a, ops.transpose(b)),
    ]
    made += [ops.einsum("bi,bj->bij", a, b), ops.concatenate([a, b], axis=-1), ops.stack([a, b], axis=1)]
    made += [ops.where(x > 1.0, x, 0.5), ops.where(x < 1.0, x, 0.5), ops.where(ops.equal(x, 1.0), x, 0.5)]
    made += [ops.where(x >= 1.0, x, 0.5), ops.where(x <= 1.0, x, 0.5), ops.where(ops.not_equal(x, 1.0), x, 0.5)]
    made += [ops.expand_dims(x, 1), ops.squeeze(ops.expand_dims(x, 1), 1), ops.swapaxes(image, 1, 2), ops.flip(x, 1)]
    made += [ops.moveaxis(image, 1, 2), ops.transpose(image, (0, 2, 1, 3)), ops.tile(x, (1, 2)), ops.repeat(x, 2, 1)]
    made += [ops.broadcast_to(x[:1, :], (3, 4)), ops.pad(x, ((0, 0), (1, 1))), ops.max_pool(image, 2, strides=2)]
    made += [ops.average_pool(image, 2, strides=2), ops.cast(ops.cast(x, "int32"), "float32"), ops.stop_gradient(x)]
    wide = ops.tile(image, (1, 1, 1, 4))
    made += [ops.depth_to_space(wide, 2), ops.space_to_depth(image, 2)] if hasattr(ops, "depth_to_space") else []
    model, file = keras.Model(inputs, made), tmp_path / "operations.mpt"
    save_ticket(model, file)
    loaded = load_ticket(file)
    for wanted, y in zip(outputs(model, X), outputs(loaded, X), strict=True):
        np.testing.assert_array_equal(y, wanted)
    used = {type(op).__name__ for op in model.operations if not isinstance(op, keras.layers.Layer)}
    known = set().union(*(names for module, names in config._ALLOWED.items() if module.startswith("keras.src.ops")))
    assert len(used) > 60 and used <= known


@pytest.mark.parametrize("value", [0.5, 0.6])
def test_files_of_a_newer_keras(value, tmp_path, monkeypatch):
    """With an argument that this Keras does not know, as `renorm` of batch normalization is to 3.12."""
    monkeypatch.setitem(config._ADDED, "BatchNormalization", {"invented": 0.5})
    model, file = tiny(), tmp_path / "newer.mpt"
    save_ticket(model, file)
    header, blobs = opened(file.read_bytes())
    [norm] = [x["config"] for x in header["model"]["config"]["layers"] if x["class_name"] == "BatchNormalization"]
    norm["invented"] = value
    file.write_bytes(sealed(header, blobs))
    if value == 0.5:  # what it was before there was that argument
        assert_equal_models(model, load_ticket(file), X)
    else:
        with pytest.raises(TicketError, match="invented"):
            load_ticket(file)


@keras.saving.register_keras_serializable(package="test_tickets")
class RawScores(MaskRule):
    """Keep the largest scores with their sign, or the smallest."""

    sign = 1

    def __call__(self, scores, state, training=False):
        flat = keras.ops.reshape(self.sign * scores, (-1,))
        mask = keras.ops.argsort(keras.ops.argsort(-flat)) < state["quota"]
        return keras.ops.reshape(keras.ops.cast(mask, "float32"), scores.shape), state["quota"], {}


@keras.saving.register_keras_serializable(package="test_tickets")
class SmallestScores(RawScores):
    sign = -1


def with_rule(rule):
    return keras.Sequential([keras.Input((3,)), MPTDense(8, mask=rule, seed=1)])


@pytest.mark.parametrize("scores", [False, True])
def test_a_rule_of_ones_own_makes_its_mask_again(scores, tmp_path):
    model, file = with_rule(RawScores(0.5)), tmp_path / "rule.mpt"
    assert (numpy(model.layers[0].scores) < 0).any()
    save_ticket(model, file, scores=scores, custom_objects=[RawScores])
    assert_equal_models(model, load_ticket(file, custom_objects=[RawScores]), X)
    if scores:
        loaded = load_ticket(file, trainable=True, custom_objects=[RawScores])
        np.testing.assert_array_equal(numpy(loaded.layers[0].scores), numpy(model.layers[0].scores))


def test_a_rule_that_makes_another_mask_of_the_scores_is_refused(tmp_path):
    file, model = tmp_path / "rule.mpt", with_rule(SmallestScores(0.5))
    with pytest.raises(TicketError, match=r"SmallestScores\(0.5.* of layer 'mpt_dense\w*' does not make its mask"):
        save_ticket(model, file, custom_objects=[SmallestScores])  # kept weights would start with the larger scores
    assert list(tmp_path.iterdir()) == []
    save_ticket(model, file, scores=True, custom_objects=[SmallestScores])
    assert_equal_models(model, load_ticket(file, custom_objects=[SmallestScores]), X)


def test_a_large_layer_with_a_stored_mask(tmp_path):
    """The reader's limit of what the variables may take knows of the stored mask."""
    layer = MPTDense(2100, mask=Restricted(0.9), kernel_initializer="unsigned_constant", seed=1)
    model = keras.Sequential([keras.Input((2100,)), layer])
    save_ticket(model, tmp_path / "large.mpt")
    loaded = load_ticket(tmp_path / "large.mpt").layers[0]
    np.testing.assert_array_equal(numpy(loaded.subnet_mask), numpy(layer.subnet_mask))


def test_a_search_from_zeros_goes_on(tmp_path):
    zeros = MPTDense(3, seed=1, kernel_initializer="zeros", kernel_quantizer=quantizers.ScaledSign(0.25))
    save_ticket(keras.Sequential([keras.Input((4,)), zeros]), tmp_path / "zeros.mpt")
    loaded = load_ticket(tmp_path / "zeros.mpt", trainable=True)
    np.testing.assert_array_equal(numpy(loaded(np.ones((1, 4), "float32"))), np.zeros((1, 3)))


def test_long_names(tmp_path):
    save_ticket(tiny(), tmp_path / f"{'x' * 250}.mpt")
    assert load_ticket(tmp_path / f"{'x' * 250}.mpt")


def test_infinity_does_not_hide_what_float16_lacks(tmp_path):
    model = tiny()
    model.get_layer("norm").moving_variance.assign([np.inf, 7e4, 1, 1])
    with pytest.raises(ValueError, match="a value of 70000 is beyond the range of float16"):
        save_ticket(model, tmp_path / "tiny.mpt", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_provenance(tmp_path):
    said = {"data": "CIFAR-10 – é", "accuracy": 0.79, "recipe": {"epochs": [100, None, True]}}
    assert save_ticket(tiny(), tmp_path / "said.mpt", provenance=said).provenance == said
    assert Ticket.read(tmp_path / "said.mpt").provenance == said
    assert save_ticket(tiny(), tmp_path / "unsaid.mpt").provenance == {}


def subclassed():
    model = networks.Subclassed()
    model(IMAGES)
    return model


def with_lambda():
    return keras.Sequential([keras.Input((3,)), MPTDense(4), keras.layers.Lambda(lambda x: x + 1)])


def with_nan(variable):
    model = tiny()
    getattr(model.get_layer("second"), variable).assign(np.full((4, 2), np.nan))
    return model


def same_names():
    cells = [keras.layers.GRUCell(3, name="cell"), keras.layers.GRUCell(3, name="cell")]
    rnn = keras.layers.RNN(keras.layers.StackedRNNCells(cells))
    return keras.Sequential([keras.Input((2, 3)), MPTDense(3, seed=1), rnn])


REFUSED = {
    "subclassed": (subclassed, {}, "(?s)functional or Sequential.*Received: Subclassed"),
    "unbuilt": (lambda: keras.Sequential([MPTDense(3)]), {}, "`model` must be a built"),
    "no model": (lambda: MPTDense(3), {}, "`model` must be a built.*Received: MPTDense"),
    "no MPT layer": (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), {}, "layers of keras_mpt"),
    "Lambda": (with_lambda, {}, "Received: keras.layers.Lambda"),
    "custom class": (with_custom_layer, {}, "Received: test_tickets>Doubled"),
    "NaN scores": (lambda: with_nan("scores"), {}, "scores of layer 'second'.*Received: NaN"),
    "NaN weights": (lambda: with_nan("frozen_kernel"), {}, "frozen kernel of layer 'second' must be finite"),
    "layers of one name": (same_names, {}, "names of their own.*cell"),
    "dtype": (tiny, {"dtype": "int8"}, "`dtype` must be.*Received: dtype='int8'"),
    "provenance: no dict": (tiny, {"provenance": "none"}, "`provenance` must be a dict of JSON data"),
    "provenance: NaN": (tiny, {"provenance": {"loss": float("nan")}}, "`provenance` must be.*nan"),
    "provenance: large": (tiny, {"provenance": {"log": "x" * 2**23}}, "`provenance` must take at most"),
    "provenance: object": (tiny, {"provenance": {"model": object()}}, "`provenance` must be.*object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_saved(case, tmp_path):
    build, settings, message = REFUSED[case]
    file = tmp_path / "ticket.mpt"
    file.write_bytes(b"before")
    with pytest.raises(ValueError, match=message):
        save_ticket(build(), file, **settings)
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == b"before"


def test_a_file_that_is_not_read_back_as_written_is_not_kept(tmp_path, monkeypatch):
    model, file, decode, variables = tiny(), tmp_path / "ticket.mpt", kernels.decode, Ticket._variables
    save_ticket(model, file)
    before = file.read_bytes()

    def other_mask(*args):
        kernel = decode(*args)
        return kernels.Kernel(kernel.frozen, ~kernel.mask, kernel.scale)

    def other_weights(*args):
        kernel = decode(*args)
        return kernels.Kernel(2 * kernel.frozen, kernel.mask, kernel.scale and 2 * kernel.scale)

    def other_variables(*args):
        return [value + 1 for value in variables(*args)]

    def failing(*args):
        raise OSError("disk is full")

    wrongs = [(kernels, "decode", other_mask), (kernels, "decode", other_weights)]
    wrongs += [(Ticket, "_variables", other_variables), (os, "fsync", failing), (os, "replace", failing)]
    for module, name, wrong in wrongs:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            with pytest.raises((RuntimeError, OSError), match="not read back|do not make its mask|disk is full"):
                save_ticket(model, file, provenance={"another": "file"})
        assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


@pytest.mark.slow_with("jax", "torch")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    (tmp_path / "old.mpt").write_bytes(b"before")
    code = """
import os, signal, sys
import keras_mpt
from support import ticket_files
from keras_mpt.tickets import Ticket, save_ticket

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

for owner, name in ((os, "fsync"), (Ticket, "_kernel"), (os, "replace")):
    child = os.fork()
    if not child:
        setattr(owner, name, kill)
        save_ticket(ticket_files.tiny(), "old.mpt")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, name
"""
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(keras_mpt.__file__))])
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "old.mpt").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2  # and what the last one had begun, under another name


def test_restore_fills_a_model_that_is_there(tmp_path):
    model = test_models.made("nested_and_shared")
    ticket = save_ticket(model, tmp_path / "nested.mpt")
    for source in (ticket, tmp_path / "nested.mpt", str(tmp_path / "nested.mpt")):
        other = keras.models.clone_model(model)
        restore(other, source)
        assert_equal_models(model, other, IMAGES)
        assert not any(layer.trainable for layer in mpt_layers(other))
    restore(other, ticket, trainable=True)
    assert_equal_models(model, other, IMAGES)
    assert all(layer.trainable for layer in mpt_layers(other))


def test_a_ticket_in_memory_needs_no_file(tmp_path):
    model = test_models.made("nested_and_shared")
    ticket = save_ticket(model, tmp_path / "nested.mpt")
    (tmp_path / "nested.mpt").unlink()
    assert_equal_models(model, load_ticket(ticket), IMAGES)


def test_restored_weights_are_those_of_compiled_functions_too(tmp_path, rng):
    source, model = dense(), dense()
    source.layers[0].frozen_kernel.assign(rng.normal(size=(100, 5)))  # another alpha, which a trace would keep
    ticket, x = save_ticket(source, tmp_path / "wide.mpt"), np.eye(100, dtype=np.float32)
    model.predict(x, verbose=0)
    restore(model, ticket)
    np.testing.assert_allclose(model.predict(x, verbose=0), numpy(source(x)), rtol=1e-5)


def test_loading_draws_no_random_number_of_python(tmp_path):
    """Initializers of Keras without a seed draw one as they are made."""
    save_ticket(keras.Sequential([keras.Input((3,)), MPTDense(3, seed=1), keras.layers.Dense(2)]), tmp_path / "a.mpt")
    state = random.getstate()
    load_ticket(tmp_path / "a.mpt")
    assert random.getstate() == state


def dense(units=5, name="wide", **settings):
    return keras.Sequential([keras.Input((100,)), MPTDense(units, name=name, seed=5, **settings)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "wide"),
        ({"units": 100, "use_bias": True}, "wide"),
        ({"units": 100, "name": "other"}, "no layer 'other'"),
        ({"units": 100, "kernel_quantizer": None}, "wide"),
    ],
    ids=str,
)
def test_restore_refuses_other_models(settings, message, tmp_path):
    ticket = save_ticket(wide("scaled_sign")[0], tmp_path / "wide.mpt")
    model = dense(**settings)
    before = model.get_weights()
    with pytest.raises(TicketError, match=f"(?s)wide.mpt: model .*cannot be filled.*{message}"):
        restore(model, ticket)
    for wanted, weights in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, wanted)


def chain(strides=1, norms=2, epsilon=1e-3, **settings):
    x = inputs = keras.Input((9, 9, 2))
    for index in range(2):
        stride = strides if index else 1
        layer = MPTConv2D(3, 3, strides=stride, seed=index, name=f"conv{index}", **(settings if index else {}))
        x = layer(x)
        if index < norms:
            x = keras.layers.BatchNormalization(epsilon=epsilon, name=f"norm{index}")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": 2}, r"'conv1' has strides=\[1, 1\] in the file, strides=\[2, 2\] in the model"),
        ({"padding": 1}, r"'conv1' has padding='valid' in the file, padding=\[1, 1\] in the model"),
        ({"activation": "relu"}, "'conv1' has activation='linear'"),
        ({"input_quantizer": "approx_sign"}, "'conv1' has input_quantizer=None in the file, .*'ApproxSign'"),
        ({"epsilon": 1e-5}, "'norm0' has epsilon=0.001"),
        ({"norms": 1}, r"the model has no layers \['norm1'\]"),
    ],
    ids=str,
)
def test_restore_refuses_what_would_compute_something_else(settings, message, tmp_path):
    ticket, model = save_ticket(chain(), tmp_path / "chain.mpt"), chain(**settings)
    with pytest.raises(TicketError, match=f"cannot be filled.*{message}"):
        restore(model, ticket)


def test_restore_compares_the_layers_of_nested_models(tmp_path):
    def nested(activation):
        inner = keras.Sequential([keras.Input((3,)), MPTDense(3, activation, seed=1, name="inside")], name="nested")
        return keras.Sequential([keras.Input((3,)), inner, MPTDense(2, seed=2, name="last")])

    ticket = save_ticket(nested(None), tmp_path / "nested.mpt")
    with pytest.raises(TicketError, match="'nested/inside' has activation='linear' in the file, activation='relu'"):
        restore(nested("relu"), ticket)


def test_restore_compares_classes(tmp_path):
    """With kernels and biases of the same shapes."""

    def ending(layer):
        return keras.Sequential([keras.Input((5, 3)), MPTDense(3, seed=1, name="first"), layer])

    einsum = keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 2), bias_axes="d", name="last")
    ticket = save_ticket(ending(keras.layers.Dense(2, name="last")), tmp_path / "last.mpt")
    with pytest.raises(TicketError, match="'last' is of class Dense in the file, EinsumDense in the model"):
        restore(ending(einsum), ticket)


def test_restore_compares_neither_momenta_nor_rates_of_dropout(tmp_path):
    def regularized(momentum, rate):
        norm = keras.layers.BatchNormalization(momentum=momentum, name="norm")
        dropout = keras.layers.Dropout(rate, name="dropout")
        return keras.Sequential([keras.Input((3,)), MPTDense(4, seed=1, name="first"), norm, dropout])

    source, model = regularized(0.9, 0.5), regularized(0.5, 0.2)
    restore(model, save_ticket(source, tmp_path / "regularized.mpt"))
    assert_equal_models(source, model, X)


def test_restore_compares_neither_names_nor_what_training_uses(tmp_path):
    ticket = save_ticket(chain(kernel_quantizer="scaled_sign", sparsity=0.9), tmp_path / "chain.mpt")
    frozen = load_ticket(tmp_path / "chain.mpt")  # whose quantizer has a fixed alpha
    again = save_ticket(frozen, tmp_path / "again.mpt")
    for file in (ticket, again):
        model = chain(kernel_initializer="glorot_normal", scores_initializer="zeros")
        restore(model, file)
        assert_equal_models(frozen, model, np.ones((1, 9, 9, 2), "float32"))


def test_a_part_is_what_lacks_the_last_layers(tmp_path):
    ticket = save_ticket(chain(), tmp_path / "chain.mpt")
    restore(chain(norms=1), ticket, part=True)
    with pytest.raises(TicketError, match=r"no layers \['norm0', 'norm1'\]"):
        restore(chain(norms=0), ticket)
    with pytest.raises(TicketError, match=r"no layers \['norm0'\]"):
        restore(chain(norms=0), ticket, part=True)


def test_other_files(tmp_path):
    file = tmp_path / "ticket.mpt"
    save_ticket(tiny(), file)
    content = file.read_bytes()
    for other in (b"", content[:7], b"PK\x03\x04" + content, content[1:]):
        file.write_bytes(other)
        with pytest.raises(TicketError, match="ticket.mpt is not a ticket"):
            load_ticket(file)
    for size in (3, 47):
        file.write_bytes(content[:size])
        with pytest.raises(TicketError, match="ticket.mpt is not a ticket file: it is cut off"):
            load_ticket(file)
    for version in (0, 3):
        file.write_bytes(content[:8] + version.to_bytes(4, "little") + content[12:])
        message = f"ticket.mpt has format version {version}; this version of keras_mpt reads 1 and 2"
        with pytest.raises(TicketError, match=message):
            load_ticket(file)
    (tmp_path / "folder").mkdir()  # without a ticket.mpt
    for path in (tmp_path / "folder", tmp_path / "missing.mpt"):
        with pytest.raises(OSError):
            load_ticket(path)
    assert issubclass(TicketError, ValueError)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["keras_mpt", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("keras_mpt.__main__", run_name="__main__")
    return exit.value.code


def test_inspect(tmp_path, monkeypatch, capsys):
    model, file = networks.nested_and_shared(), tmp_path / f"{'long' * 30}.mpt"
    recipe = "python train.py" + "".join(f" --flag_{i}={i}" for i in range(40))
    said = {"note": "line\nbreak \x1b[2J" + 100 * "x", "key" * 50: [1, 2], "recipe": recipe, "accuracy": 0.5}
    ticket = save_ticket(model, file, provenance=said)
    assert not command(monkeypatch, "inspect", file)
    printed = capsys.readouterr().out
    assert printed == f"{ticket}\n" and printed.isascii() and "\x1b" not in printed
    lines = printed.splitlines()
    assert recipe in " ".join(printed.split())
    assert max(map(len, lines)) <= 80 and any(line.split() == ["accuracy:", "0.5"] for line in lines)
    sizes = [int(np.prod(layer.frozen_kernel.shape)) for layer in mpt_layers(model)]
    total = next(line.split() for line in lines if line.startswith("Total"))
    assert total[1] == str(sum(sizes) + 4 * 4)
    assert total[2] == str(sum(int(layer.kept) for layer in mpt_layers(model)) + 4 * 4)
    masks = sum(len(data) for name, data in ticket.blobs.items() if name.endswith("/mask"))
    assert total[3:6] == [str(masks), "-", str(4 * 4 * 4)]
    assert f"{file.stat().st_size:,} bytes" in printed
    assert "<table>" in ticket._repr_html_() and "nested/" in ticket._repr_html_()


@pytest.mark.parametrize("scores", [False, True])
def test_inspect_counts_the_bytes_of_everything(scores, tmp_path, rng):
    layer = MPTDense(50, use_bias=True, seed=1, name="a")
    model = keras.Sequential([keras.Input((40,)), layer])
    layer.frozen_kernel.assign(rng.normal(size=(40, 50)))  # of no seed: signs are stored, for a search numbers
    ticket = save_ticket(model, tmp_path / "a.mpt", scores=scores)
    sizes = {name: len(data) for name, data in ticket.blobs.items()}
    assert sizes["a/changes"] > 0 and sizes["a/variables"] == 4 * 50 and sizes.get("a/scores", 0) == 8000 * scores
    of_kernel = sizes["a/changes"] + sizes.get("a/values", 0)
    counted = [sizes["a/mask"], of_kernel, sizes.get("a/scores", 0) + sizes["a/variables"]]
    total = next(line.split() for line in str(ticket).splitlines() if line.startswith("Total"))
    assert total[3:] == [*map(short, counted), f"{8 * sum(counted) / (2000 + 50):.2f}"]
    assert f"masks {sizes['a/mask']} (entropy 250)" in str(ticket)  # a bit for each of 2000, of which half are kept


def test_inspecting_what_cannot_be_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.mpt").write_bytes(b"other")
    for file, message in ((tmp_path / "missing.mpt", "No such file"), (tmp_path / "other.mpt", "not a ticket")):
        assert command(monkeypatch, "inspect", file) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err and file.name in captured.err


def test_the_format_is_as_described(tmp_path):
    """A writer that knows nothing but the description makes files that are read alike."""
    model, file = tiny(), tmp_path / "ticket.mpt"
    save_ticket(model, file)
    content = sealed(*opened(file.read_bytes()))
    file.write_bytes(content)
    assert_equal_models(model, load_ticket(file), X)
    assert outputs(model, X)[0].shape == (5, 2)


def test_no_folder_for_the_file_is_found_out_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be in a folder that exists.*nowhere"):
        keras_mpt.save_ticket(keras.Sequential(), tmp_path / "nowhere" / "x.mpt")


ACTIVATIONS = "elu gelu hard_sigmoid leaky_relu relu relu6 selu sigmoid silu softmax softplus softsign tanh exponential"


def test_activations_as_functions(tmp_path, rng):
    x = inputs = keras.Input((6,))
    for seed, name in enumerate(ACTIVATIONS.split()):
        x = MPTDense(6, seed=seed)(getattr(keras.activations, name)(x))
    model = keras.Model(inputs, MPTDense(3, seed=99)(keras.ops.relu(x)))
    save_ticket(model, tmp_path / "ticket.mpt")
    x = rng.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(numpy(load_ticket(tmp_path / "ticket.mpt")(x)), numpy(model(x)))


def test_other_operations_are_refused_by_name(tmp_path):
    inputs = keras.Input((6,))
    found = keras.ops.reshape(keras.ops.cast(keras.ops.nonzero(inputs)[0], "float32"), (-1, 6))
    model = keras.Model(inputs, MPTDense(3, seed=1)(found))
    with pytest.raises(ValueError, match="call it in a layer of your own, whose class is regist.*Received: Nonzero"):
        save_ticket(model, tmp_path / "ticket.mpt")
