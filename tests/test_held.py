"""Kernels that layers keep: as fast as plain ones, and never older than what they are made of."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_mpt
from keras_mpt.layers import MPTDense, MPTSeparableConv1D
from keras_mpt.masks import rule
from keras_mpt.models import mpt_layers
from support.layer_contract import numpy

X = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")


def network(**settings):
    layers = [MPTDense(8, seed=0, **settings), keras.layers.BatchNormalization()]
    layers += [keras.layers.Reshape((8, 1)), MPTSeparableConv1D(4, 3, seed=1), keras.layers.Flatten()]
    return compiled(keras.Sequential([keras.Input((5,)), *layers, MPTDense(3, seed=2, use_bias=True)]))


def compiled(model):
    model.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tickets") / "a.mpt"
    keras_mpt.save_ticket(network(), path, scores=True)
    return path


def held(file):
    model = keras_mpt.load_ticket(file)
    assert all(layer.is_held for layer in mpt_layers(model))
    return model


def searching(file):
    """Return the same model, whose layers make their kernels at each call."""
    model = keras_mpt.load_ticket(file)
    for layer in mpt_layers(model):
        layer._release()
    return model


def stateless(model):
    state = [[ops.copy(v.value) for v in v_] for v_ in (model.trainable_variables, model.non_trainable_variables)]
    return model.stateless_call(*state, X)[0]


def traced(model):
    """Return what a compiled function of one's own gives, made anew."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(model)(X)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda x: model(x))(X)  # which JAX has not met before
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(X))


CALLS = {
    "eager": lambda model: model(X),
    "predict": lambda model: model.predict(X, batch_size=2, verbose=0),
    "predict_on_batch": lambda model: model.predict_on_batch(X),
    "stateless": stateless,
    "traced": traced,
}


def same(model, other, calls=CALLS):
    for name in calls:
        assert np.array_equal(numpy(CALLS[name](model)), numpy(CALLS[name](other))), name


def test_outputs_are_those_of_layers_that_search(file):
    model, other = held(file), searching(file)
    same(model, other)
    for layer, twin in zip(mpt_layers(model), mpt_layers(other), strict=True):
        for mine, its in zip(layer.subnets, twin.subnets, strict=True):
            np.testing.assert_array_equal(numpy(mine.mask), numpy(its.mask))
            np.testing.assert_array_equal(numpy(mine.scores), numpy(its.scores))
        assert layer.is_held  # reading changes nothing
    assert model.count_params() == other.count_params()
    model.save_own_variables({})
    assert all(layer.is_held for layer in mpt_layers(model))


def first(model):
    return mpt_layers(model)[0]


def other_scores(layer):
    return np.random.default_rng(5).normal(size=layer.scores.shape).astype("float32")


def train(model):
    model.trainable = True
    compiled(model).fit(X, np.ones((4, 3)), epochs=2, verbose=0)
    model.trainable = False


def search(model):
    first(model).trainable = True
    compiled(model).train_on_batch(X, np.ones((4, 3)))


def new_weights(model):
    model.set_weights([w[::-1].copy() if w.ndim else w for w in model.get_weights()])


def from_file(model, path):
    network(sparsity=0.3).save_weights(path / "a.weights.h5")
    model.load_weights(path / "a.weights.h5")


def to_tf_checkpoint(model, path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a way of TensorFlow")
    import tensorflow as tf

    other = network(sparsity=0.3)
    model(X)
    tf.train.Checkpoint(model=model).restore(tf.train.Checkpoint(model=other).save(str(path / "checkpoint")))


SCALED = keras_mpt.quantizers.ScaledSign(3.0)


def in_place(model, path):
    """Change scores behind Keras' back, as PyTorch's own optimizers do; elsewhere that is not possible."""
    scores = first(model).scores
    if keras.backend.backend() == "tensorflow":
        assert not hasattr(scores.value, "assign") or not first(model).is_held
    if keras.backend.backend() == "jax":
        assert not any(v is scores for v in model.variables) or not first(model).is_held
    if keras.backend.backend() != "torch":
        pytest.skip("a way of PyTorch")
    import torch

    with torch.no_grad():
        scores.value.neg_().add_(torch.from_numpy(other_scores(first(model))))


CHANGES = {
    "in place": in_place,
    "scores": lambda model, path: first(model).scores.assign(other_scores(first(model))),
    "scores by adding": lambda model, path: first(model).scores.assign_sub(other_scores(first(model))),
    "frozen kernel": lambda model, path: first(model).frozen_kernel.assign(-first(model).frozen_kernel.value),
    "quota": lambda model, path: first(model).kept.assign(3),
    "second kernel": lambda model, path: mpt_layers(model)[1].subnets[1].state["quota"].assign(1),
    "set_sparsity": lambda model, path: first(model).set_sparsity(0.9),
    "assign_mask": lambda model, path: first(model).assign_mask(np.eye(5, 8)),
    "quantizer": lambda model, path: setattr(first(model), "kernel_quantizer", SCALED),
    "one kernel's quantizer": lambda model, path: setattr(mpt_layers(model)[1].subnets[0], "kernel_quantizer", SCALED),
    "set_weights": lambda model, path: new_weights(model),
    "load_weights": from_file,
    "training": lambda model, path: train(model),
    "training of a layer": lambda model, path: search(model),
    "checkpoint of TensorFlow": to_tf_checkpoint,
}
QUICK = {"scores", "set_weights", "training"}


@pytest.mark.parametrize("change", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CHANGES])
def test_the_next_call_sees_every_change(change, file, tmp_path):
    model, other = held(file), searching(file)
    calls = {name: call for name, call in CALLS.items() if change not in QUICK or name != "traced"}
    before = {name: numpy(call(model)) for name, call in calls.items()}
    for each in (model, other):
        keras.utils.set_random_seed(0)
        CHANGES[change](each, tmp_path)
    expected = numpy(other(X))
    for name, call in calls.items():
        np.testing.assert_allclose(numpy(call(model)), expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert not np.allclose(expected, before[name]), name


@pytest.mark.slow_with("torch")
def test_a_held_layer_may_change_during_fit(tmp_path):
    """`BackupAndRestore` assigns its weights once `fit` has made its function."""

    def fit(epochs, change=None):
        model = keras.Sequential([keras.Input((5,)), MPTDense(8, seed=0, trainable=False), keras.layers.Dense(3)])
        keras.utils.set_random_seed(0)
        model.layers[1].set_weights([np.ones((8, 3), "float32"), np.zeros(3, "float32")])
        compiled(model)
        keras_mpt.layers.hold(model)
        begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: change and change(epoch, model))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        history = model.fit(X, np.ones((4, 3)), epochs=epochs, callbacks=[begin] if change else [backup], verbose=0)
        return history.history["loss"], model

    def turn(epoch, model):
        if epoch == 1:
            model.layers[0].frozen_kernel.assign(-model.layers[0].frozen_kernel.value)
            model.layers[1].kernel.assign(-model.layers[1].kernel.value)

    whole, _ = fit(2, lambda epoch, model: None)
    fit(1)
    resumed, model = fit(2)
    np.testing.assert_allclose(resumed, whole[1:], rtol=1e-5)
    assert not model.layers[0].is_held
    turned, _ = fit(2, turn)
    np.testing.assert_allclose(turned, whole, rtol=1e-5)


def test_what_is_made_by_hand(file):
    """State that a caller gives counts, and functions that were traced before a change do not return what was."""
    model = held(file)
    layer, scores = first(model), other_scores(first(model))
    if keras.backend.backend() != "jax":  # whose state has the kernel, and no scores that could be given
        with keras.StatelessScope(state_mapping=[(layer.scores, ops.convert_to_tensor(scores))]):
            replaced = numpy(model(X))
        assert layer.is_held
    with pytest.raises(RuntimeError, match="stateless code cannot end that"), keras.StatelessScope():
        layer.scores.assign(scores)
    before = numpy(model(X))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(model)
        np.testing.assert_allclose(function(X), before, rtol=1e-6)
    layer.scores.assign(scores)
    assert not layer.is_held and not np.allclose(numpy(model(X)), before)
    if keras.backend.backend() != "jax":
        np.testing.assert_array_equal(numpy(model(X)), replaced)
    if keras.backend.backend() == "tensorflow":
        assert np.isnan(function(X)).all()
    keras_mpt.layers.hold(model)
    assert layer.is_held


def test_scores_that_are_not_trained():
    model = keras.Sequential([keras.Input((5,)), MPTDense(8, seed=0, use_bias=True), MPTDense(3, seed=1)])
    layer = model.layers[0]
    layer.scores.trainable = False
    keras_mpt.layers.hold(model)
    assert [each.is_held for each in model.layers] == [True, False]
    kernel, bias = numpy(layer.kernel), numpy(layer.bias)
    compiled(model).fit(X, np.ones((4, 3)), verbose=0)
    assert layer.is_held and (numpy(layer.bias) != bias).any()
    np.testing.assert_array_equal(numpy(layer.kernel), kernel)
    layer.scores.trainable = True
    assert not layer.is_held and any(variable is layer.scores for variable in model.trainable_variables)


def test_what_cannot_be_held():
    model = keras.Sequential(
        [keras.Input((4,)), MPTDense(3, seed=0), MPTDense(3, mask=keras_mpt.masks.GlobalTopK(0.5))]
    )
    keras_mpt.layers.hold(model)
    model.trainable = False
    assert not any(layer.is_held for layer in model.layers)
    keras_mpt.layers.hold(model)
    assert [layer.is_held for layer in model.layers] == [True, False]
    with pytest.raises(ValueError, match=r"`model` must be built. Received: layers \['late'\]"):
        keras_mpt.layers.hold(keras.Sequential([MPTDense(3, name="late")]))
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        keras_mpt.layers.hold(3)


def test_restrictions_leave_frozen_layers_alone():
    rule = keras_mpt.masks.Restricted(0.5)
    frozen, trained = MPTDense(3, seed=0, mask=rule, trainable=False), MPTDense(3, seed=1, mask=rule)
    model = keras.Sequential([keras.Input((4,)), frozen, trained])
    keras_mpt.layers.hold(model)
    restriction = keras_mpt.callbacks.ShortRestriction(2)
    restriction.set_model(model)
    restriction.on_epoch_begin(1)
    assert frozen.is_held
    assert [float(numpy(layer.swap_rate)) for layer in (frozen, trained)] == [1, 1 / 16]


def test_masks_of_the_largest_are_told_from_others(monkeypatch, rng):
    monkeypatch.setattr(rule, "_BLOCK", 7)
    for _ in range(200):
        scores = rng.integers(-4, 5, rng.integers(1, 40)).astype("float32") / 2
        order = np.argsort(-np.abs(scores), kind="stable")
        kept = rng.integers(0, scores.size + 1)
        wanted = np.isin(np.arange(scores.size), order[:kept])
        for mask in (wanted, rng.permutation(wanted)):
            found = rule.is_of_largest(mask, scores, rule.smallest_kept(scores, kept))
            assert found == np.array_equal(mask, wanted)
