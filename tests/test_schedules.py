"""Sparsity by epoch: the formula, on each kind of rule, without recompilation."""

import keras
import numpy as np
import pytest

from keras_mpt.callbacks import CheckScores, MaskStatistics, ShortRestriction, SparsitySchedule
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.masks import GlobalTopK, Restricted, TopK
from keras_mpt.models import mpt_layers
from support import reference
from support.layer_contract import numpy
from support.networks import X, Y, nested_and_shared

BACKEND = keras.backend.backend()


class Record(keras.callbacks.Callback):
    """Notes how many weights are kept, by layer, in the first step of each epoch and after."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_epoch_begin(self, epoch, logs=None):
        self.kept.append([int(numpy(layer.subnet_mask).sum()) for layer in mpt_layers(self.model)])


class Traced(keras.layers.Layer):
    """Counts how often Python runs its call: once for each compilation."""

    traces = 0

    def call(self, inputs):
        self.traces += 1
        return inputs


def kept(size, sparsity):
    return size - int(np.floor(sparsity * size + 1e-9))


def network(mask=None, **settings):
    layers = [MPTConv2D(4, 3, seed=1, mask=mask, **settings), keras.layers.Flatten(), MPTDense(2, seed=2, mask=mask)]
    model = keras.Sequential([keras.Input(X.shape[1:]), Traced(), *layers])
    model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model, *callbacks, epochs=5, initial_epoch=0):
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, Y, epochs=epochs, initial_epoch=initial_epoch, callbacks=list(callbacks), **settings)


def sizes(model):
    return [int(np.prod(layer.scores.shape)) for layer in mpt_layers(model)]


CURVES = {  # from 0.5 to 0.9 in four epochs
    "constant": [0.9] * 5,
    "linear": [0.5, 0.6, 0.7, 0.8, 0.9],
    "cubic": [0.5, 0.9 - 0.4 * 0.75**3, 0.9 - 0.4 * 0.5**3, 0.9 - 0.4 * 0.25**3, 0.9],
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("rule", [None, pytest.param(GlobalTopK, marks=pytest.mark.slow_with("tensorflow", "jax"))])
def test_curves(curve, rule):
    model, record = network(rule and rule(0.3)), Record()
    fit(model, SparsitySchedule(0.9, epochs=4, curve=curve), record)
    expected = [[kept(size, sparsity) for size in sizes(model)] for sparsity in CURVES[curve]]
    if rule is None:
        assert record.kept == expected
    else:
        assert [sum(parts) for parts in record.kept] == [kept(sum(sizes(model)), s) for s in CURVES[curve]]
        scores = np.concatenate([numpy(layer.scores).ravel() for layer in mpt_layers(model)])
        masks = np.concatenate([numpy(layer.subnet_mask).ravel() for layer in mpt_layers(model)])
        np.testing.assert_array_equal(masks, reference.mask(scores, kept(scores.size, 0.9)))


def test_published_defaults():
    """p_e = p + (0.5 - p)(1 - e / E)^3 for e < E = 10, the fraction kept, where p <= 0.5."""
    schedule = SparsitySchedule()
    for p in (0.05, 0.2, 0.5):
        for e in range(12):
            expected = p + (0.5 - p) * (1 - e / 10) ** 3 if e < 10 else p
            assert 1 - schedule.at(e, 1 - p) == pytest.approx(expected, abs=1e-12)
    assert [schedule.at(e, 0.3) for e in (0, 5, 20)] == [0.3] * 3


def test_each_layer_has_its_own_final_sparsity():
    record = Record()
    other = keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            MPTConv2D(4, 3, sparsity=0.8),
            keras.layers.Flatten(),
            MPTDense(2, mask=TopK(0.6)),
        ]
    )
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(other, SparsitySchedule(epochs=2, curve="linear"), record, epochs=3)
    (a, b), pairs = sizes(other), [(0.5, 0.5), (0.65, 0.55), (0.8, 0.6)]
    assert record.kept == [[kept(a, s), kept(b, t)] for s, t in pairs]


@pytest.mark.parametrize("rule", [None, GlobalTopK])
def test_nothing_is_compiled_again(rule):
    model, record = network(rule and rule(0.9)), Record()
    schedule = SparsitySchedule(epochs=4, sparsity=0.9)
    fit(model, schedule, record, epochs=1)
    traces = model.layers[0].traces
    fit(model, schedule, record, epochs=5, initial_epoch=1)
    assert len({sum(parts) for parts in record.kept}) == 5
    if BACKEND != "torch":  # which compiles nothing
        assert model.layers[0].traces == traces


@pytest.mark.parametrize("rule", [None, GlobalTopK])
def test_a_resumed_training_goes_on_as_it_would_have(rule, tmp_path):
    whole, first = (network(rule and rule(0.9)) for _ in range(2))
    fit(whole, SparsitySchedule(0.9, epochs=4))
    fit(first, SparsitySchedule(0.9, epochs=4), epochs=2)
    first.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Traced": Traced})
    fit(loaded, SparsitySchedule(0.9, epochs=4), initial_epoch=2)
    for one, other in zip(whole.weights, loaded.weights, strict=True):
        if one.name != "threshold":  # a hint, which saving brings up to date
            np.testing.assert_array_equal(numpy(one), numpy(other))


def test_a_frozen_layer_under_one_threshold_has_the_new_sparsity_too():
    model = network(GlobalTopK(0.5))
    mpt_layers(model)[0].trainable = False
    schedule = SparsitySchedule(0.75, curve="constant")
    schedule.set_model(model)
    schedule.on_epoch_begin(0)  # as a training loop of one's own may call it
    assert sum(int(layer.kept) for layer in mpt_layers(model)) == kept(sum(sizes(model)), 0.75)


def test_nested_and_shared_layers():
    model = nested_and_shared()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, SparsitySchedule(0.75, epochs=1), epochs=2)
    assert [int(layer.kept) for layer in mpt_layers(model)] == [kept(size, 0.75) for size in sizes(model)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        *[
            ({name: s}, f"`{name}` must be")
            for name in ("sparsity", "initial_sparsity")
            for s in (-0.1, 1.0, "1", True)
        ],
        *[({"epochs": n}, "`epochs` must be") for n in (0, 1.5, True, None)],
        ({"curve": "square"}, "`curve` must be one of .*'cubic'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsitySchedule(**arguments)


def test_the_layer_that_would_keep_no_weight_is_named():
    model = network()
    with pytest.raises(ValueError, match=f"^Layer '{mpt_layers(model)[0].name}' cannot have another.* one weight"):
        fit(model, SparsitySchedule(1 - 1e-12))


def test_a_model_without_mpt_layers():
    model = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="needs a model with MPT layers"):
        fit(model, SparsitySchedule())


def test_layers_that_are_not_trained_stay_as_they_are():
    model = network()
    for layer in mpt_layers(model):
        layer.trainable = False
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="needs a model with MPT layers that are trained.*of which none is trainable"):
        fit(model, SparsitySchedule(0.9, curve="constant"))
    first, last = mpt_layers(model)[0], mpt_layers(model)[-1]
    before = int(numpy(first.kept))
    first.trainable = last.trainable = True
    first.scores.trainable = False
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, SparsitySchedule(0.9, curve="constant"))
    assert int(numpy(first.kept)) == before and int(numpy(last.kept)) == kept(numpy(last.scores).size, 0.9)


def test_a_part_of_the_layers_that_share_a_rule():
    model = network(GlobalTopK(0.9))
    part = keras.Sequential([keras.Input(X.shape[1:]), model.layers[1], keras.layers.Flatten()])
    part.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="must have all layers that share the rule .* without"):
        fit(part, SparsitySchedule())


@pytest.mark.parametrize("callback", [SparsitySchedule(0.8), MaskStatistics(), ShortRestriction(2), CheckScores()])
def test_models_that_fit_builds(callback):
    """On TensorFlow, `fit` builds a model at its first step: too late for callbacks that change a layer before."""
    restricted = isinstance(callback, ShortRestriction)
    rule = {"mask": Restricted(0.5)} if restricted else {}
    rule = {"mask": GlobalTopK(0.5)} if isinstance(callback, SparsitySchedule) else rule
    model = keras.Sequential([keras.layers.Flatten(), MPTDense(2, seed=1, name="late", **rule)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if keras.backend.backend() != "tensorflow" or isinstance(callback, CheckScores):
        model.fit(X, Y, verbose=0, callbacks=[callback])
        return
    with pytest.raises(ValueError, match=f"{type(callback).__name__} needs a built model.*'late'"):
        model.fit(X, Y, verbose=0, callbacks=[callback])
