"""One threshold for several layers: exact at every step, shared again by copies, by nobody else."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_mpt
from keras_mpt.callbacks import CheckScores
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.masks import GlobalTopK, TopK, global_top_k
from keras_mpt.models import mpt_layers
from keras_mpt.ops import magnitude_bits, mask_at, search_threshold, sort_threshold, split_kept
from support import reference
from support.layer_contract import numpy
from support.networks import X, Y

BACKEND = keras.backend.backend()
SPARSITY = 0.7
quick_on_torch = pytest.mark.slow_with("tensorflow", "jax")  # which compile the step of each training


def network(rule=None, **settings):
    """A functional model with a nested one and a layer that is called twice; the names are not in the model's order."""
    settings["mask"] = rule or GlobalTopK(SPARSITY)
    nested = keras.Sequential([MPTConv2D(4, 3, strides=2, seed=2, name="third", **settings)], name="nested")
    shared = MPTDense(16, activation="relu", seed=3, name="first", **settings)
    inputs = keras.Input(X.shape[1:])
    x = MPTConv2D(4, 3, activation="relu", padding="same", seed=1, name="second", **settings)(inputs)
    x = shared(shared(keras.layers.Flatten()(nested(x))))
    return keras.Model(inputs, MPTDense(2, seed=4, name="logits", **settings)(x))


def compiled(model, rate=0.5, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, **settings)
    return model


def fit(model, epochs=1, **settings):
    settings = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0, **settings}
    return model.fit(X, Y, **settings).history["loss"]


def by_name(model):
    return sorted(mpt_layers(model), key=lambda layer: layer.name)


def joined(tensors):
    return np.concatenate([numpy(tensor).ravel() for tensor in tensors])


def scores_of(model):
    return joined(layer.scores for layer in by_name(model))


def wanted(size, sparsity=SPARSITY):
    return size - int(np.floor(sparsity * size + 1e-9))


def assert_reference_masks(model, kept=None):
    """Masks and their sizes are those of one sort over all layers, which share one threshold."""
    layers, scores = by_name(model), scores_of(model)
    for layer in layers:
        assert [subnet.layer for subnet in layer.subnets[0].group] == layers
    mask = reference.mask(scores, wanted(scores.size) if kept is None else kept)
    np.testing.assert_array_equal(joined(layer.subnet_mask for layer in layers), mask)
    assert [int(layer.kept) for layer in layers] == [int(numpy(layer.subnet_mask).sum()) for layer in layers]
    return mask


@pytest.mark.parametrize("find", [search_threshold, sort_threshold])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_selection_is_that_of_one_sort(find, data):
    shapes = [(3, 2), (5,), (1, 4)]
    entry = st.one_of(st.sampled_from([0.0, -0.5, 0.5, 1.0]), st.floats(width=32, allow_nan=False))
    entry = data.draw(st.sampled_from([entry, st.sampled_from([0.0, -0.0, 0.5])]))
    arrays = [
        np.reshape(data.draw(st.lists(entry, min_size=n, max_size=n)), s).astype(np.float32)
        for s in shapes
        for n in [int(np.prod(s))]
    ]
    kept = data.draw(st.integers(1, 15))
    keys = [magnitude_bits(ops.convert_to_tensor(a)) for a in arrays]
    total, start = (ops.convert_to_tensor(n, dtype="int32") for n in (kept, data.draw(st.integers(0, 2**31 - 1))))
    threshold, count = find(keys, total, start)
    parts = split_kept(keys, total, threshold, count)
    masks = [mask_at(key, part, threshold, n) for key, part, n in zip(keys, *parts, strict=True)]
    np.testing.assert_array_equal(joined(masks), reference.mask(joined(arrays), kept))
    assert [int(n) for n in parts[0]] == [int(numpy(mask).sum()) for mask in masks]


def test_ties_keep_the_layer_whose_name_comes_first():
    model = network()
    for layer in mpt_layers(model):
        layer.scores.assign(np.ones(layer.scores.shape, "float32"))
    mask = assert_reference_masks(model)
    assert mask[: int(mask.sum())].all()
    for layer in mpt_layers(model):
        layer.scores.assign(numpy(layer.scores) * (np.arange(layer.scores.shape[-1]) % 2))
    assert_reference_masks(model)
    model(X)


def test_a_ticket_keeps_ties_where_they_were(tmp_path):
    model = network()
    for layer in mpt_layers(model):
        layer.scores.assign(np.ones(layer.scores.shape, "float32"))
    keras_mpt.save_ticket(model, tmp_path / "ties.mpt", scores=True)
    for trainable in (False, True):
        loaded = keras_mpt.load_ticket(tmp_path / "ties.mpt", trainable=trainable)
        np.testing.assert_array_equal(assert_reference_masks(loaded), assert_reference_masks(model))


WAYS = [{}, {"run_eagerly": True}] + [{"jit_compile": True}] * (BACKEND == "tensorflow")  # JAX does without being told


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_every_step_uses_the_threshold_of_its_scores(settings):
    model = compiled(network(), **settings)
    changed = 0
    for step in range(6):
        scores, mask = scores_of(model), assert_reference_masks(model)
        model.train_on_batch(X[step : step + 8], Y[step : step + 8])
        for layer in mpt_layers(model):
            assert (np.abs(scores).view(np.int32) >= int(layer.threshold)).sum() == wanted(scores.size)
        changed += (mask != assert_reference_masks(model)).any()
    assert changed > 2


@pytest.mark.skipif(BACKEND == "torch", reason="Keras executes one step at a time on PyTorch")
@pytest.mark.parametrize(
    "jit_compile",  # quick as users have it: compiled by XLA on JAX only
    [
        pytest.param(False, marks=pytest.mark.slow_with("jax")),
        pytest.param(True, marks=pytest.mark.slow_with("tensorflow")),
    ],
)
def test_steps_per_execution(jit_compile):
    one, four = (compiled(network(), steps_per_execution=n, jit_compile=jit_compile) for n in (1, 4))
    first = scores_of(one)
    np.testing.assert_allclose(fit(one, 2), fit(four, 2), rtol=1e-5)
    np.testing.assert_allclose(scores_of(one), scores_of(four), atol=1e-5)
    assert (reference.mask(first, wanted(first.size)) != assert_reference_masks(one)).any()


def test_one_search_in_a_call_of_the_model(monkeypatch):
    searches, split = [], global_top_k.split_kept
    monkeypatch.setattr(global_top_k, "split_kept", lambda *args: searches.append(1) or split(*args))
    model = network()
    for number in (1, 2):
        model(X, training=True)
        assert len(searches) == number
    model.stateless_call(model.trainable_variables, model.non_trainable_variables, X)  # how JAX trains
    assert len(searches) == 3


def test_layers_inside_of_other_traces():
    rule = GlobalTopK(SPARSITY)
    repeated = keras.layers.TimeDistributed(MPTDense(5, mask=rule, seed=1, name="inner"))
    layers = [keras.Input((3, 4)), repeated, keras.layers.Flatten(), MPTDense(2, mask=rule, seed=2, name="outer")]
    model = compiled(keras.Sequential(layers))
    model.fit(X.reshape(-1, 3, 4)[:32], Y, epochs=2, batch_size=8, verbose=0)
    assert_reference_masks(model)


def test_a_layer_on_its_own_sees_all_scores():
    model = network()
    layer = model.get_layer("logits")
    other = model.get_layer("first")
    x = np.ones((1, 16), np.float32)
    assert numpy(layer(x)).any()
    other.scores.assign(numpy(other.scores) + 10)  # now the other layer takes all there is to keep
    assert not numpy(layer(x)).any() and int(layer.kept) == 0
    assert not numpy(layer.kernel).any()  # and no 0/0


def test_training_end_to_end():
    model = compiled(network(), 0.1)
    frozen = joined(layer.frozen_kernel for layer in mpt_layers(model))
    before = assert_reference_masks(model)
    losses = fit(model, 8)
    assert losses[-1] < 0.9 * losses[0]
    assert (before != assert_reference_masks(model)).any()
    np.testing.assert_array_equal(frozen, joined(layer.frozen_kernel for layer in mpt_layers(model)))
    np.testing.assert_allclose(numpy(keras_mpt.models.strip(model)(X)), numpy(model(X)), rtol=1e-4, atol=1e-5)
    rows = keras_mpt.summary(model, print_fn=len).rows
    assert {row["name"]: row["kept"] for row in rows if row["weights"]} == {
        layer.name: int(numpy(layer.subnet_mask).sum()) for layer in mpt_layers(model)
    }


def test_loaded_models_share_a_rule_each(tmp_path):
    model = compiled(network())
    fit(model)
    model.save(tmp_path / "model.keras")
    first, second = (keras.models.load_model(tmp_path / "model.keras") for _ in range(2))
    for each in (first, second):
        np.testing.assert_array_equal(assert_reference_masks(each), assert_reference_masks(model))
        np.testing.assert_array_equal(each.predict(X, verbose=0), model.predict(X, verbose=0))
    assert fit(first) == fit(model)
    np.testing.assert_array_equal(scores_of(first), scores_of(model))
    assert (scores_of(first) != scores_of(second)).any()
    assert_reference_masks(second)


COPIES = {
    "clone": keras.models.clone_model,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_share_a_rule_each(copy):
    model = network()
    copies = [copy(model) for _ in range(2)]
    for each in (model, *copies):
        assert_reference_masks(each)
    copies[0].set_weights(model.get_weights())
    np.testing.assert_array_equal(assert_reference_masks(copies[0]), assert_reference_masks(model))
    model.get_layer("first").scores.assign(numpy(model.get_layer("first").scores) + 10)
    assert (assert_reference_masks(copies[0]) != assert_reference_masks(model)).any()


@keras.saving.register_keras_serializable(package="test_masks_global")
class Subclassed(keras.Model):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule
        self.first, self.last = MPTDense(8, mask=rule, seed=1, name="a"), MPTDense(2, mask=rule, seed=2, name="b")

    def call(self, x):
        return self.last(self.first(x))

    def get_config(self):
        return {"rule": keras.saving.serialize_keras_object(self.rule)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["rule"]))


def test_copies_that_are_made_before_one_is_built():
    model = Subclassed(GlobalTopK(SPARSITY))
    model(X.reshape(len(X), -1))
    copies = [Subclassed.from_config(model.get_config()) for _ in range(2)]
    for copy in copies:
        copy(X.reshape(len(X), -1))
    for each in (model, *copies):
        assert_reference_masks(each)


def test_models_do_not_interfere():
    model, other = compiled(network()), compiled(network())
    alone = compiled(network())
    for _ in range(3):
        model.train_on_batch(X, Y)
        other.train_on_batch(X[::-1].copy(), Y)
        alone.train_on_batch(X, Y)
    np.testing.assert_array_equal(scores_of(model), scores_of(alone))
    assert (scores_of(model) != scores_of(other)).any()


def test_models_of_one_rule_do_not_prune_each_other():
    rule = GlobalTopK(SPARSITY)
    first, second = network(rule), network(rule)  # before either is called
    scores = numpy(second.get_layer("first").scores)
    second.get_layer("first").scores.assign(scores + 10)
    for model in (first, second):
        assert_reference_masks(model)
        model(X)
        assert_reference_masks(model)
    assert numpy(first.get_layer("logits").kernel).any() and not numpy(second.get_layer("logits").kernel).any()


@pytest.mark.parametrize("called", [False, True])
def test_subclassed_models_of_one_rule_do_not_prune_each_other(called):
    rule, x = GlobalTopK(SPARSITY), X.reshape(len(X), -1)
    first, second = Subclassed(rule), Subclassed(rule)
    for model in (first, second):
        model(x)
    second.first.scores.assign(numpy(second.first.scores) + 10)
    for model in (first, second):
        if called:
            compiled(model).fit(x, Y, verbose=0)
        assert_reference_masks(model)
        model.last(numpy(model.first(x)))  # a layer on its own stays with its model
        assert_reference_masks(model)


def test_a_model_within_another_one():
    rule, x = GlobalTopK(SPARSITY), X.reshape(len(X), -1)

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.head = Subclassed(rule), MPTDense(3, mask=rule, seed=5, name="head")

        def call(self, x):
            return self.head(self.inner(x))

    outer = Outer()
    outer.inner(x)
    assert_reference_masks(outer.inner)
    outer(x)
    outer.inner(x)
    assert_reference_masks(outer)


def test_models_with_one_input_are_two_models():
    rule, inputs = GlobalTopK(SPARSITY), keras.Input((4,))
    first, second = (
        keras.Model(inputs, MPTDense(3, mask=rule, seed=i)(MPTDense(5, mask=rule, seed=i + 2)(inputs)))
        for i in range(2)
    )
    assert_reference_masks(first)
    assert_reference_masks(second)


def test_layers_that_a_graph_still_connects():
    model = network()
    model.get_layer("first").set_sparsity(0.9)  # which the layers of the other model keep, and a new one does not have
    new = MPTDense(3, mask=model.get_layer("first").mask, seed=9, name="new")
    cut = keras.Model(model.inputs, new(model.get_layer("logits").input))
    keras_mpt.layers.share(cut)
    assert_reference_masks(cut)
    cut(X)
    assert_reference_masks(cut)
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        keras_mpt.layers.share(mpt_layers(cut))
    with pytest.raises(ValueError, match=r"`model` must be built. Received: layers \['late'\]"):
        keras_mpt.layers.share(keras.Sequential([MPTDense(3, name="late")]))


def test_two_nested_models():
    rule, parts = GlobalTopK(SPARSITY), []
    for i in range(2):
        inputs = keras.Input((4,))
        parts.append(keras.Model(inputs, MPTDense(4, mask=rule, seed=i, name=f"part{i}")(inputs)))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, parts[1](parts[0](inputs)))
    assert_reference_masks(model)
    assert_reference_masks(keras.models.clone_model(model))
    model(np.ones((1, 4), "float32"))
    assert_reference_masks(model)


def test_a_layer_of_its_own_keeps_its_own_share():
    model = network()
    lone = MPTDense.from_config(model.get_layer("logits").get_config())
    assert lone(np.ones((1, 16), np.float32)).shape == (1, 2) and int(lone.kept) == 10
    assert_reference_masks(model)


def test_another_sparsity_is_that_of_all_layers_together():
    model = network()
    by_name(model)[2].set_sparsity(0.9)
    assert_reference_masks(model, wanted(scores_of(model).size, 0.9))
    model.set_weights(model.get_weights())
    assert_reference_masks(model, wanted(scores_of(model).size, 0.9))


def test_a_saved_file_holds_the_number_of_weights(tmp_path):
    model = network()
    assert {int(layer.quota) for layer in mpt_layers(model)} == {-1}
    model.save(tmp_path / "model.keras")
    assert sum(int(layer.quota) for layer in mpt_layers(model)) == wanted(scores_of(model).size)
    assert_reference_masks(keras.models.load_model(tmp_path / "model.keras"))


def test_copies_of_an_unbuilt_model():
    rule = GlobalTopK(SPARSITY)
    unbuilt = keras.Sequential([MPTDense(8, mask=rule, name="a"), MPTDense(2, mask=rule, name="b")])
    clones = [keras.models.clone_model(unbuilt) for _ in range(2)]
    x = np.ones((4, 6), np.float32)
    clones[0].build(x.shape)
    for model in (*clones, unbuilt):
        model(x)
    for model in (*clones, unbuilt):
        assert_reference_masks(model)


@pytest.mark.parametrize(
    "scores, trainable, quantizer",
    [
        pytest.param(False, False, "scaled_sign", marks=quick_on_torch),
        pytest.param(False, True, "scaled_sign", marks=quick_on_torch),
        (True, True, "scaled_sign"),
        (False, False, None),
    ],
)
def test_ticket(scores, trainable, quantizer, tmp_path):
    model = compiled(network(kernel_quantizer=quantizer))
    fit(model, 2)
    keras_mpt.save_ticket(model, tmp_path / "model.mpt", scores=scores)
    loaded, other = (keras_mpt.load_ticket(tmp_path / "model.mpt", trainable=trainable) for _ in range(2))
    np.testing.assert_array_equal(assert_reference_masks(loaded), assert_reference_masks(model))
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-5)
    if trainable:
        fit(compiled(loaded), 2)
        assert_reference_masks(loaded)
    np.testing.assert_array_equal(assert_reference_masks(other), assert_reference_masks(model))


def test_ticket_of_a_part(tmp_path):
    model = network()
    part = keras.Model(model.inputs, model.get_layer("nested").output)
    keras_mpt.save_ticket(part, tmp_path / "part.mpt")
    loaded = keras_mpt.load_ticket(tmp_path / "part.mpt")
    for layer, original in zip(by_name(loaded), by_name(part), strict=True):
        np.testing.assert_array_equal(numpy(layer.subnet_mask), numpy(original.subnet_mask))
    np.testing.assert_allclose(numpy(loaded(X)), numpy(part(X)), rtol=1e-5, atol=1e-5)


def test_an_emptied_layer_is_reported(tmp_path):
    model = compiled(network(), 0.0)
    layers = {layer.name: layer for layer in mpt_layers(model)}
    fit(model, callbacks=[CheckScores()])  # no warning
    layers["first"].scores.assign(numpy(layers["first"].scores) + 10)
    with pytest.warns(UserWarning, match=r"After epoch 2 no weight is kept in layers .*'nested/third' \(for 4 steps\)"):
        losses = fit(model, 2, initial_epoch=1, callbacks=[CheckScores()])
    assert np.isfinite(losses).all() and int(layers["first"].empty_steps) == 0
    assert int(layers["logits"].empty_steps) == 4
    model.save(tmp_path / "model.keras")  # which is no training step
    assert int(layers["logits"].empty_steps) == 4
    assert_reference_masks(model)
    loaded = keras_mpt.load_ticket(keras_mpt.save_ticket(model, tmp_path / "model.mpt").path)
    np.testing.assert_array_equal(assert_reference_masks(loaded), assert_reference_masks(model))
    layers["first"].scores.assign(numpy(layers["first"].scores) - 10)
    fit(model, callbacks=[CheckScores()])  # steps that are over count no more
    assert int(layers["logits"].empty_steps) == 0


def test_nan_scores_are_seen():
    model = compiled(network())
    layer = model.get_layer("first")
    layer.scores.assign(numpy(layer.scores) * np.nan)
    with pytest.raises(FloatingPointError, match=r"in layers 'first' \(8 steps\)"):
        fit(model, callbacks=[CheckScores()])


def test_groups():
    one, two = GlobalTopK(0.5, group="one"), GlobalTopK(0.5, group="two")
    layers = [MPTDense(6, mask=rule, seed=i, name=f"dense{i}") for i, rule in enumerate([one, two, one, two])]
    model = keras.Sequential([keras.Input((6,)), *layers])
    for each in (model, keras.models.clone_model(model)):
        for pair in (mpt_layers(each)[::2], mpt_layers(each)[1::2]):
            assert pair[0].mask == pair[1].mask
            scores = joined(layer.scores for layer in pair)
            np.testing.assert_array_equal(joined(layer.subnet_mask for layer in pair), reference.mask(scores, 36))


def test_zoo():
    rule = GlobalTopK(0.8)
    first, second = (keras_mpt.zoo.conv2_mpt(mask=rule, width=0.0625, seed=0) for _ in range(2))
    for model in (first, second):
        assert_reference_masks(model, wanted(scores_of(model).size, 0.8))


def test_config():
    rule = GlobalTopK(0.8, selector="sort", group="convolutions")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    assert keras.saving.deserialize_keras_object(config).get_config() == rule.get_config()
    layer = MPTDense(3, mask=rule)
    assert MPTDense.from_config(json.loads(json.dumps(layer.get_config()))).get_config() == layer.get_config()
    assert GlobalTopK.from_config({"sparsity": 0.8, "size": 12}) == GlobalTopK(0.8)  # as files of 0.1 have it
    assert len({rule, GlobalTopK(0.8, "sort", "convolutions"), GlobalTopK(0.8, "sort"), TopK(0.8, "sort")}) == 3
    assert GlobalTopK.from_config({"sparsity": 0.8}).get_config() == GlobalTopK(0.8).get_config()


@pytest.mark.parametrize(
    "arguments, message",
    [
        *[({"sparsity": s}, "`sparsity` must be") for s in (-0.1, 1.0, "0.5")],
        ({"sparsity": 0.5, "selector": "guess"}, "`selector` must be"),
        ({"sparsity": 0.5, "group": 3}, "`group` must be"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalTopK(**arguments)


def test_a_selector_changes_nothing():
    by_search, by_sort = (compiled(network(GlobalTopK(SPARSITY, selector=s))) for s in ("search", "sort"))
    assert fit(by_search, 2) == fit(by_sort, 2)
    np.testing.assert_array_equal(scores_of(by_search), scores_of(by_sort))


def test_top_k_is_still_each_layers_own():
    model = network(TopK(SPARSITY))
    model.get_layer("first").scores.assign(numpy(model.get_layer("first").scores) + 10)
    for layer in mpt_layers(model):
        assert int(layer.kept) == numpy(layer.subnet_mask).sum() == wanted(int(np.prod(layer.scores.shape)))
