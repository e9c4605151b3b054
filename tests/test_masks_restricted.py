"""The short restriction of Lottery Jackpots: equal to a transcription of the paper, exact counts at every step."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_mpt
from keras_mpt.callbacks import ShortRestriction
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.masks import Restricted
from keras_mpt.models import mpt_layers
from keras_mpt.ops import mask_of_largest, search_threshold, sort_threshold
from support.backend import gradient
from support.layer_contract import numpy, with_variable
from support.networks import X, Y

SHAPE = (4, 5)
EXAMPLES = 4 if keras.backend.backend() == "jax" else 15  # JAX compiles each eager step


def largest(values, among, count):
    """The `count` largest of some entries by value; of equal ones those that come first."""
    chosen = np.zeros(values.size, bool)
    candidates = np.flatnonzero(among.ravel())
    order = np.lexsort((candidates, -values.ravel()[candidates].astype(np.float64)))
    chosen[candidates[order[:count]]] = True
    return chosen.reshape(values.shape)


def next_mask(scores, mask, kept, rate):
    """One update of the mask as in Lottery Jackpots: the wanted mask, and of the wanted swaps only the strongest."""
    wanted = largest(scores, np.ones(scores.shape, bool), kept)
    gains, losses = wanted & ~mask, mask & ~wanted
    swaps = min(gains.sum(), losses.sum())
    made = int(min(np.ceil(np.float32(rate) * np.float32(swaps)), swaps))
    coming = largest(scores, gains, made + gains.sum() - swaps)
    going = largest(-scores, losses, made + losses.sum() - swaps)
    return mask & ~going | coming


ENTRY = st.one_of(
    st.sampled_from([0.0, -0.0, 0.99, 1.0, -1.0, float("inf"), -float("inf"), 1e-45, -1e-45]),
    st.floats(-2, 2, width=32),
    st.floats(width=32, allow_nan=False),
)


def layer_with(scores, mask=None, rate=1.0, sparsity=0.6, selector="search"):
    layer = MPTDense(scores.shape[1], mask=Restricted(sparsity, selector), kernel_quantizer=None, seed=0)
    layer.build((None, scores.shape[0]))
    layer.scores.assign(scores)
    if mask is not None:
        layer.assign_mask(mask, scores)
    layer.swap_rate.assign(rate)
    return layer


def draws(data):
    size = int(np.prod(SHAPE))
    scores = np.array(data.draw(st.lists(ENTRY, min_size=size, max_size=size)), np.float32).reshape(SHAPE)
    flat = np.zeros(size, bool)
    flat[: data.draw(st.integers(1, size))] = True
    return scores, np.array(data.draw(st.permutations(list(flat)))).reshape(SHAPE)


@pytest.mark.parametrize("select", [search_threshold, sort_threshold])
@settings(deadline=None, max_examples=2 * EXAMPLES)
@given(data=st.data())
def test_largest_by_value_is_that_of_one_sort(select, data):
    scores, among = draws(data)
    count, start = data.draw(st.integers(0, int(among.sum()))), data.draw(st.integers(0, 2**31 - 1))
    found, _ = mask_of_largest(
        ops.convert_to_tensor(scores),
        ops.convert_to_tensor(among),
        ops.convert_to_tensor(count, dtype="int32"),
        select,
        ops.convert_to_tensor(start, dtype="int32"),
    )
    np.testing.assert_array_equal(numpy(found), largest(scores, among, count))


@pytest.mark.parametrize("select", [search_threshold, sort_threshold])
def test_the_largest_of_values_with_nan_are_unknown(select):
    """NaN among numbers that are all negative, and so less than it by their bits."""
    values, integers = (
        np.array([[-1, np.nan, -2]], np.float32),
        [ops.convert_to_tensor(n, dtype="int32") for n in (2, 0)],
    )
    found, _ = mask_of_largest(
        ops.convert_to_tensor(values), ops.ones((1, 3), "bool"), integers[0], select, integers[1]
    )
    assert np.isnan(numpy(found)).all()


@pytest.mark.parametrize("selector", ["search", "sort"])
@settings(deadline=None, max_examples=EXAMPLES)
@given(data=st.data(), rate=st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32, allow_subnormal=False))
def test_a_step_makes_the_strongest_swaps(selector, data, rate):  # some backends take subnormal rates for zero
    scores, mask = draws(data)
    layer = layer_with(scores, mask, rate, selector=selector)
    np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)  # inference changes nothing
    for _ in range(3):
        mask = next_mask(scores, mask, mask.sum(), rate)
        found, kept = layer.subnets[0].find(training=True)
        np.testing.assert_array_equal(numpy(found), mask)
        np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)
        assert int(kept) == int(layer.kept) == mask.sum()


@pytest.mark.parametrize("selector", ["search", "sort"])
def test_subnormal_scores_of_the_mask_are_swapped(selector):
    scores, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    scores.flat[[3, 16]], scores.flat[[15, 19]], mask.flat[[3, 16]] = 1e-45, 0.99, True
    layer = layer_with(scores, mask, rate=0.5, selector=selector)
    assert np.flatnonzero(numpy(layer.subnets[0].find(training=True)[0])).tolist() == [15, 16]


@settings(deadline=None, max_examples=EXAMPLES)
@given(data=st.data(), sparsity=st.floats(0, 0.96), rate=st.floats(0, 1, width=32))
def test_another_sparsity_is_exact_at_once_and_swaps_nothing_more(data, sparsity, rate):
    scores, mask = draws(data)
    layer = layer_with(scores, mask, rate)
    layer.set_sparsity(sparsity)
    kept = mask.size - int(np.floor(sparsity * mask.size + 1e-9))
    expected = next_mask(scores, mask, kept, 0)
    np.testing.assert_array_equal(numpy(layer.subnet_mask), expected)
    assert int(layer.kept) == expected.sum() == kept
    assert (expected <= mask).all() if kept <= mask.sum() else (expected >= mask).all()


def test_without_a_stored_mask_it_is_that_of_the_largest_scores():
    scores = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    layer = layer_with(scores, rate=0.0)
    expected = largest(scores, np.ones(SHAPE, bool), 8)
    np.testing.assert_array_equal(numpy(layer.subnet_mask), expected)
    layer.scores.assign(-scores)  # nothing is stored by looking at it
    np.testing.assert_array_equal(
        numpy(layer.subnets[0].find(training=True)[0]), largest(-scores, np.ones(SHAPE, bool), 8)
    )
    layer.scores.assign(scores)  # but by training, and a rate of 0 keeps that
    np.testing.assert_array_equal(
        numpy(layer.subnets[0].find(training=True)[0]), largest(-scores, np.ones(SHAPE, bool), 8)
    )


def test_gradient_of_the_scores_is_that_of_the_kernel_times_the_weight():
    layer = layer_with(np.random.default_rng(1).normal(size=SHAPE).astype(np.float32))
    x = np.random.default_rng(2).normal(size=(7, SHAPE[0])).astype(np.float32)
    upstream = np.random.default_rng(3).normal(size=(7, SHAPE[1])).astype(np.float32)
    function = with_variable(layer, layer.scores, ops.convert_to_tensor(x))
    found = gradient(function, numpy(layer.scores), upstream)
    np.testing.assert_allclose(found, (x.T @ upstream) * numpy(layer.frozen_kernel), rtol=1e-5, atol=1e-6)


def test_nan_scores_make_the_kernel_nan_and_leave_the_stored_mask():
    scores = np.ones(SHAPE, np.float32)
    mask = np.arange(scores.size).reshape(SHAPE) % 3 == 0
    layer = layer_with(scores, mask)
    layer.scores.assign(np.where(mask, scores, np.nan))
    for steps in (1, 2):
        assert np.isnan(numpy(layer.subnets[0].find(training=True)[0])).all() and int(layer.nan_steps) == steps
    np.testing.assert_array_equal(numpy(layer.stored_mask), mask)
    layer.scores.assign(scores)
    assert np.isfinite(numpy(layer.subnets[0].find(training=True)[0])).all() and int(layer.nan_steps) == 0


def test_nan_scores_at_the_first_step_store_no_mask():
    scores = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    layer = layer_with(scores)
    mask = numpy(layer.subnet_mask)
    layer.scores.assign(scores * np.nan)
    layer.subnets[0].find(training=True)
    layer.scores.assign(scores)
    np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)


def network(mask=None, **settings):
    layers = [
        MPTConv2D(8, 3, activation="relu", seed=1, mask=mask or Restricted(0.7), kernel_quantizer=None),
        keras.layers.Flatten(),
        MPTDense(10, seed=2, mask=mask or Restricted(0.8), kernel_quantizer=None),
        keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(3)),
    ]
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(2.0, momentum=0.9), loss, **settings)
    for layer in mpt_layers(model):
        random = np.random.default_rng(layer.seed).normal(size=layer.scores.shape)
        layer.assign_mask(random >= np.sort(random.ravel())[-int(layer.kept)])
    return model


class Record(keras.callbacks.Callback):
    """Notes the masks after each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.masks = [*getattr(self, "masks", []), [numpy(layer.subnet_mask) for layer in mpt_layers(self.model)]]


def fit(model, *callbacks, epochs=4, initial_epoch=0):
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, Y, epochs=epochs, initial_epoch=initial_epoch, callbacks=list(callbacks), **settings)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_training_follows_the_transcription_step_by_step(rate):
    model = network()
    layers, swaps = mpt_layers(model), 0
    for layer in layers:
        layer.swap_rate.assign(rate)
    masks = [numpy(layer.subnet_mask) == 1 for layer in layers]
    for step in range(6):
        scores = [numpy(layer.scores) for layer in layers]
        model.train_on_batch(X[step % 4 * 8 :][:8], Y[step % 4 * 8 :][:8])
        expected = [next_mask(s, m, m.sum(), rate) for s, m in zip(scores, masks, strict=True)]
        swaps += sum((a & ~b).sum() for a, b in zip(expected, masks, strict=True))
        for layer, mask in zip(layers, expected, strict=True):
            np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)
            np.testing.assert_array_equal(numpy(layer.kernel), numpy(layer.frozen_kernel) * mask)
        masks = expected
    assert swaps > 10


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras' PyTorch backend has no steps_per_execution")
def test_several_steps_per_execution_make_the_same_masks():
    ones, fours = network(), network(steps_per_execution=4)
    fit(ones, ShortRestriction(4))
    fit(fours, ShortRestriction(4))
    for a, b in zip(mpt_layers(ones), mpt_layers(fours), strict=True):
        np.testing.assert_allclose(numpy(a.scores), numpy(b.scores), atol=1e-5)
        np.testing.assert_array_equal(numpy(a.subnet_mask), numpy(b.subnet_mask))


def test_the_rate_is_that_of_the_paper_in_each_epoch():
    rates = []
    model = network()
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: rates.append([float(layer.swap_rate) for layer in mpt_layers(model)])
    )
    fit(model, ShortRestriction(4), look, epochs=5)
    np.testing.assert_allclose(rates, np.repeat([[(1 - e / 4) ** 4] for e in range(4)] + [[0]], 2, axis=1), rtol=1e-6)


def test_restriction_ends_the_search_calmly():
    """In the last epoch hardly a weight changes; without restriction more do."""
    changed = []
    for restriction in ([], [ShortRestriction(6)]):
        record = Record()
        fit(network(), *restriction, record, epochs=6)
        before, after = record.masks[-2:]
        changed.append(sum((a != b).sum() for a, b in zip(before, after, strict=True)))
    assert changed[1] < changed[0] / 2


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole, first = network(), network()
    fit(whole, ShortRestriction(4))
    fit(first, ShortRestriction(4), epochs=2)
    first.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(mpt_layers(first), mpt_layers(resumed), strict=True):
        np.testing.assert_array_equal(numpy(a.stored_mask), numpy(b.stored_mask))
    fit(resumed, ShortRestriction(4), initial_epoch=2)
    for a, b in zip(mpt_layers(whole), mpt_layers(resumed), strict=True):
        np.testing.assert_allclose(numpy(a.scores), numpy(b.scores), rtol=1e-6)
        np.testing.assert_array_equal(numpy(a.subnet_mask), numpy(b.subnet_mask))


@pytest.mark.parametrize("scores", [False, True])
def test_a_ticket_has_the_stored_mask(tmp_path, scores):
    model = network()
    fit(model, ShortRestriction(3), epochs=2)
    pending = [next_mask(numpy(x.scores), numpy(x.subnet_mask) == 1, int(x.kept), 0.5) for x in mpt_layers(model)]
    assert any((a != numpy(x.subnet_mask)).any() for a, x in zip(pending, mpt_layers(model), strict=True))
    keras_mpt.save_ticket(model, tmp_path / "model.mpt", scores=scores)
    for trainable in (False, True):
        loaded = keras_mpt.load_ticket(tmp_path / "model.mpt", trainable=trainable)
        np.testing.assert_array_equal(numpy(loaded(X)), numpy(model(X)))
        for a, b in zip(mpt_layers(model), mpt_layers(loaded), strict=True):
            np.testing.assert_array_equal(numpy(a.subnet_mask), numpy(b.subnet_mask))
            if scores:
                np.testing.assert_array_equal(numpy(a.scores), numpy(b.scores))


def test_nan_scores_are_not_saved(tmp_path):
    model = network()
    layer = mpt_layers(model)[0]
    layer.scores.assign(np.full(layer.scores.shape, np.nan))
    for action in (
        lambda: model.save(tmp_path / "model.keras"),
        lambda: keras_mpt.save_ticket(model, tmp_path / "model.mpt"),
        lambda: layer.set_sparsity(0.5),
    ):
        mask, quota = numpy(layer.stored_mask), int(layer.quota)
        with pytest.raises(ValueError, match="NaN"):
            action()
        np.testing.assert_array_equal(numpy(layer.stored_mask), mask)
        assert int(layer.quota) == quota


def test_a_layer_that_is_called_twice_swaps_once_a_step():
    shared = MPTDense(32, mask=Restricted(0.5), kernel_quantizer=None, seed=1)
    inputs = keras.Input((32,))
    model = keras.Model(inputs, shared(shared(inputs)))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    scores = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    mask = np.random.default_rng(1).permutation(np.arange(1024) < 512).reshape(32, 32)
    shared.assign_mask(mask, scores)
    shared.swap_rate.assign(0.5)
    for _ in range(2):
        model.train_on_batch(np.ones((4, 32)), np.ones((4, 32)))
        mask = next_mask(scores, mask, 512, 0.5)
        np.testing.assert_array_equal(numpy(shared.subnet_mask), mask)


def test_frozen_layers_and_frozen_tickets_keep_their_masks(tmp_path):
    model = network()
    fit(model, ShortRestriction(3), epochs=2)
    keras_mpt.save_ticket(model, tmp_path / "model.mpt", scores=True)
    loaded = keras_mpt.load_ticket(tmp_path / "model.mpt")
    model.trainable = False
    for frozen in (model, loaded):
        masks = [numpy(layer.subnet_mask) for layer in mpt_layers(frozen)]
        frozen.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        fit(frozen, epochs=1)
        for layer, mask in zip(mpt_layers(frozen), masks, strict=True):
            np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)


@pytest.mark.parametrize("mask, scores, message", [
    (np.full(SHAPE, 0.5), None, "`mask` must be zeros and ones"),
    (np.ones((2, 2)), None, "`mask` must be zeros and ones"),
    (np.ones(SHAPE), np.ones(3), "`scores` must be numbers of shape"),
    (np.ones(SHAPE), np.full(SHAPE, np.nan), "`scores` must be numbers of shape"),
])  # fmt: skip
def test_bad_masks_leave_the_layer_as_it_was(mask, scores, message):
    layer = layer_with(np.ones(SHAPE, np.float32), np.arange(20).reshape(SHAPE) < 8)
    before = [numpy(weight) for weight in layer.weights]
    with pytest.raises(ValueError, match=message):
        layer.assign_mask(mask, scores)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


def test_recycling_is_refused():
    with pytest.raises(ValueError, match="masks.Restricted, whose kernels are pretrained"):
        fit(network(), keras_mpt.callbacks.IterativeWeightRecycling(0.1, 1))


@pytest.mark.parametrize("arguments, message", [
    ({"epochs": 0}, "`epochs` must be an integer > 0. Received: epochs=0"),
    ({"epochs": True}, "`epochs`"),
    ({"epochs": 3, "power": -1}, "`power` must be a finite number >= 0. Received: power=-1"),
])  # fmt: skip
def test_bad_arguments_of_the_callback(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShortRestriction(**arguments)


def test_the_callback_needs_the_rule():
    with pytest.raises(ValueError, match="masks.Restricted"):
        fit(network(keras_mpt.masks.TopK(0.5)), ShortRestriction(4))


def test_config_and_text():
    rule = Restricted(0.9, selector="sort")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    assert repr(again) == repr(rule) == "Restricted(0.9, selector='sort')"
    with pytest.raises(ValueError, match="`sparsity`"):
        Restricted(1.0)
