"""Weights that are recycled or drawn again between epochs: values, times, resuming, tickets."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_training import BACKEND, assert_equal_weights, compiled

import keras_mpt
from keras_mpt import initializers
from keras_mpt.callbacks import IteRand, IterativeWeightRecycling
from keras_mpt.callbacks.recycling import recycle, redraw
from keras_mpt.layers import MPTConv2D, MPTDense, MPTSimpleRNN
from keras_mpt.models import mpt_layers
from support import reference
from support.layer_contract import numpy, randomize_scores
from support.networks import Subclassed, X, Y, nested_and_shared

STEPS = 4  # of an epoch
quick_on_torch = pytest.mark.slow_with("tensorflow", "jax")  # which compile the step of each training


def kernels(model):
    return [numpy(layer.frozen_kernel) for layer in mpt_layers(model) if layer.built]


def small():
    layers = [keras.layers.Flatten(), MPTDense(8, activation="relu", seed=1), MPTDense(2, seed=2)]
    return keras.Sequential([keras.Input(X.shape[1:]), *layers])


def fit(model, callbacks, epochs, initial_epoch=0):
    model.fit(X, Y, 8, epochs, 0, callbacks, shuffle=False, initial_epoch=initial_epoch)
    return model


class Record(keras.callbacks.Callback):
    """Keeps the kernels at the beginning of epochs, or at the beginning of steps by the optimizer's iterations."""

    def __init__(self, steps=False):
        super().__init__()
        self.steps, self.seen = steps, {}

    def on_epoch_begin(self, epoch, logs=None):
        if not self.steps:
            self.seen[epoch] = kernels(self.model)

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps:
            self.seen.setdefault(int(self.model.optimizer.iterations), kernels(self.model))


def changes(model, callbacks, epochs, steps=False, initial_epoch=0):
    """Return when the callbacks changed every kernel; at any other time they change none."""
    before, after = Record(steps), Record(steps)
    fit(model, [before, *callbacks, after], epochs, initial_epoch)
    times = []
    for time in before.seen:
        pairs = zip(before.seen[time], after.seen[time], strict=True)
        changed = {bool((old != new).any()) for old, new in pairs}
        assert len(changed) < 2, f"some layers changed at {time}, others did not"
        times += [time] * any(changed)
    return times


# --- values


def few_values(shape):
    """Scores with many ties, zeros of both signs, subnormal and infinite numbers among them."""
    values = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 0.25, -0.25, 1.0, -1.0, np.inf]
    return hnp.arrays(np.float32, shape, elements=st.sampled_from([float(np.float32(value)) for value in values]))


SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)


@settings(max_examples=200, deadline=None)
@given(SHAPES.flatmap(few_values), st.floats(0, 1, exclude_max=True), st.booleans())
def test_recycling_is_the_published_algorithm(scores, rate, ablation):
    rate = rate / 2 if ablation else rate
    frozen = np.arange(scores.size, dtype=np.float32).reshape(scores.shape)
    kept = frozen.copy()
    np.testing.assert_array_equal(
        recycle(frozen, scores, rate, ablation), reference.recycled(frozen, scores, rate, ablation)
    )
    np.testing.assert_array_equal(frozen, kept)


def test_recycling_by_hand():
    frozen, scores = np.array([10.0, 11, 12, 13, 14, 15], np.float32), np.array([3, -1, 2, -2, 9, 0], np.float32)
    # in the order of |scores|, ties by index, the entries are 5, 1, 2, 3, 0, 4
    assert recycle(frozen, scores, 1 / 3).tolist() == [10, 14, 12, 13, 14, 10]
    assert recycle(frozen, scores, 1 / 3, ablation=True).tolist() == [10, 13, 12, 13, 14, 12]
    assert recycle(frozen, scores, 0.9).tolist() == [14, 12, 13, 10, 14, 11]  # the sets overlap
    assert recycle(frozen, scores, 0.0).tolist() == recycle(frozen, scores, 0.16).tolist() == frozen.tolist()


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
def test_redrawing_is_the_published_algorithm(shape, rate, seed):
    rng = np.random.default_rng(seed)
    frozen, fresh, uniform = rng.normal(size=(3, *shape)).astype(np.float32)
    mask = rng.integers(0, 2, shape)
    uniform = np.abs(uniform) / 3
    result = redraw(frozen, mask, fresh, uniform, rate)
    np.testing.assert_array_equal(result, reference.redrawn(frozen, mask, fresh, uniform, rate))
    assert result.dtype == np.float32


def layers_of(model):
    for layer in mpt_layers(model):
        randomize_scores(layer)
    return mpt_layers(model)


def begin(callback, model, epoch):
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(epoch)


@pytest.mark.parametrize("rate, ablation", [(0.2, False), (0.2, True), (0.5, True), (0.7, False)])
def test_recycling_a_model(rate, ablation):
    model = compiled(nested_and_shared())
    expected = [
        reference.recycled(numpy(layer.frozen_kernel), numpy(layer.scores), rate, ablation)
        for layer in layers_of(model)
    ]
    begin(IterativeWeightRecycling(rate, 3, ablation), model, epoch=6)
    for layer, kernel in zip(mpt_layers(model), expected, strict=True):
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), kernel)
        assert not layer.frozen_kernel.trainable


def redrawn(layer, rate, seed, time):
    """What IteRand makes of a layer with one of our initializers."""
    frozen = numpy(layer.frozen_kernel)
    initializer, settings = layer.subnets[0].draw()
    (derived,) = map(int, np.random.SeedSequence([seed, layer.seed, time]).generate_state(1, np.uint64))
    fresh = initializer.draw(frozen.shape, **{**settings, "seed": derived})
    uniform = initializers.random_uniform(frozen.size, derived, 2).reshape(frozen.shape)
    mask = reference.mask(numpy(layer.scores), int(layer.kept))
    return reference.redrawn(frozen, mask, fresh, uniform, rate)


def test_redrawing_a_model():
    model = compiled(nested_and_shared())
    expected = [redrawn(layer, 0.4, 5, 6) for layer in layers_of(model)]
    begin(IteRand(0.4, 3, seed=5), model, epoch=6)
    for layer, kernel in zip(mpt_layers(model), expected, strict=True):
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), kernel)
        assert not layer.frozen_kernel.trainable


def large(**settings):
    layer = MPTDense(200, sparsity=0.7, seed=1, **settings)
    return layer, compiled(keras.Sequential([keras.Input((200,)), layer]))


@pytest.mark.parametrize("initializer", ["kaiming_normal", "glorot_normal", keras.initializers.HeUniform(seed=3)])
def test_pruned_weights_alone_are_redrawn_at_the_rate_and_from_the_initializer(initializer):
    layer, model = large(kernel_initializer=initializer)
    before, mask = numpy(layer.frozen_kernel), numpy(layer.subnet_mask)
    seen = []
    for seed, epoch in [(0, 1), (0, 1), (0, 2), (1, 1)]:
        layer.frozen_kernel.assign(before)
        begin(IteRand(0.3, 1, seed=seed), model, epoch)
        seen.append(numpy(layer.frozen_kernel))
    changed = seen[0] != before
    assert not changed[mask == 1].any()
    assert abs(changed[mask == 0].mean() - 0.3) < 4 * np.sqrt(0.21 / 28_000)
    assert abs(seen[0][changed].std() / before.std() - 1) < 0.05 and abs(seen[0][changed].mean()) < 0.05 * before.std()
    assert abs(np.corrcoef(seen[0][changed], before[changed])[0, 1]) < 0.05
    np.testing.assert_array_equal(seen[0], seen[1])
    for other in seen[2:]:  # other entries, other values
        again = (other != before) & changed
        assert abs(again.sum() / changed.sum() - 0.3) < 0.05 and (other[again] != seen[0][again]).all()


@pytest.mark.parametrize("initializer", ["kaiming_normal", "he_normal", keras.initializers.HeNormal(seed=3)])
def test_the_kernels_of_a_layer_are_redrawn_independently(initializer):
    given = {"kernel_initializer": initializer, "recurrent_initializer": initializer, "sparsity": 0.9}
    model = keras.Sequential([keras.Input((3, 50)), MPTSimpleRNN(50, **given, seed=1)])
    begin(IteRand(0.9, 1), compiled(model), 1)
    subnets = mpt_layers(model)[0].subnets
    pruned = np.logical_and(*(numpy(subnet.mask) == 0 for subnet in subnets))
    first, second = (numpy(subnet.frozen_kernel)[pruned] for subnet in subnets)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(pruned.sum())


def test_an_initializer_that_is_a_function_is_called():
    layer, model = large(kernel_initializer=lambda shape, dtype=None: keras.ops.full(shape, 0.5, dtype))
    layer.frozen_kernel.assign(-numpy(layer.frozen_kernel))
    begin(IteRand(0.3, 1), model, 1)
    assert set(np.unique(numpy(layer.frozen_kernel))) == {-0.5, 0.5}


@pytest.mark.parametrize("callback", [IterativeWeightRecycling(0, 1), IteRand(0, 1), IterativeWeightRecycling(0.01, 1)])
def test_nothing_changes_at_rate_0_or_below_one_weight(callback):
    model = compiled(keras.Sequential([keras.Input((9,)), MPTDense(10, seed=1)]))  # int(0.01 * 90) = 0
    before = kernels(model)
    begin(callback, model, 1)
    np.testing.assert_array_equal(kernels(model)[0], before[0])


@pytest.mark.parametrize("callback", [IterativeWeightRecycling(0.3, 1), IteRand(0.3, 1), IteRand(0.3, 1, "step")])
def test_only_kernels_of_layers_that_are_trained_change(callback):
    model = fit(compiled(nested_and_shared(), keras.optimizers.Adam(0.05)), [], 1)
    fixed, fixed_too, *others = mpt_layers(model)
    fixed.trainable = fixed_too.scores.trainable = False
    expected = {id(layer.frozen_kernel) for layer in others}
    if getattr(callback, "unit", "epoch") == "epoch":
        expected |= {id(layer.kernel_epoch) for layer in others}
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    begin(callback, model, 1)
    callback.on_train_batch_begin(0)
    pairs = zip(variables, before, strict=True)
    assert {id(v) for v, old in pairs if (np.array(keras.ops.convert_to_numpy(v)) != old).any()} == expected


# --- times


@pytest.mark.parametrize("build", [pytest.param(nested_and_shared, marks=quick_on_torch), Subclassed])
def test_epochs(build):
    model = compiled(build())
    assert changes(model, [IteRand(0.5, 3)], 4) == [3]
    assert changes(model, [IteRand(0.5, 2), IterativeWeightRecycling(0.2, 3)], 7, initial_epoch=4) == [4, 6]


@pytest.mark.parametrize("callback", [IteRand(0.5, 2), IterativeWeightRecycling(0.2, 2)])
def test_a_model_that_is_not_built_cannot_begin_late(callback):
    """On TensorFlow `fit` builds it at the first step, after the kernels should have changed."""
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="needs a built model: .*Received: layers .* that are not built"):
            fit(compiled(Subclassed()), [callback], 5, initial_epoch=4)
    else:
        assert changes(compiled(Subclassed()), [callback], 5, initial_epoch=4) == [4]


def test_a_layer_that_is_never_called_does_not_matter():
    model = Subclassed()
    model.idle = MPTDense(3, seed=9)
    assert changes(compiled(model), [IterativeWeightRecycling(0.2, 2)], 3) == [2]
    assert not model.idle.built


def test_steps():
    seen = changes(compiled(small()), [IteRand(0.5, 3, "step")], 3, steps=True)
    assert seen == [3, 6, 9]
    model = compiled(small())
    assert changes(model, [IteRand(0.5, STEPS, "step")], 2, steps=True) == [4]
    assert changes(model, [IteRand(0.5, STEPS, "step")], 3, steps=True, initial_epoch=2) == [8]


def test_a_callback_serves_several_trainings():
    callback = IteRand(0.5, 3, "step")
    for _ in range(2):
        model = compiled(small())
        model.optimizer.iterations.assign(3)
        before = kernels(model)
        begin(callback, model, 0)
        callback.on_train_batch_begin(0)
        assert all((new != old).any() for new, old in zip(kernels(model), before, strict=True))


def test_steps_do_not_depend_on_who_looks():
    """With JAX, looking at the model within an epoch makes Keras put its state back into it."""
    observed, alone = (compiled(small()) for _ in range(2))
    changes(observed, [IteRand(0.5, 3, "step")], 3, steps=True)
    assert_equal_weights(fit(alone, [IteRand(0.5, 3, "step")], 3), observed)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no gradient accumulation there on CPUs")
def test_steps_are_updates_of_the_weights():
    model = compiled(small(), keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    assert changes(model, [IteRand(0.5, 1, "step")], 2, steps=True) == [1, 2, 3]


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution for PyTorch")
def test_steps_per_execution():
    model = compiled(small(), steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1. Received: steps_per_execution=2"):
        fit(model, [IteRand(0.5, 4, "step")], 1)
    assert changes(model, [IteRand(0.5, 1), IterativeWeightRecycling(0.3, 1)], 2) == [1]


def test_steps_are_those_of_an_optimizer():
    callbacks = keras.callbacks.CallbackList([IteRand(0.5, 4, "step")], model=small())
    with pytest.raises(ValueError, match="needs a compiled model: steps are the iterations of its optimizer"):
        callbacks.on_train_begin()


def test_both_act_in_the_order_of_the_list_and_the_training_goes_on_with_what_they_made():
    model, other = compiled(small()), compiled(small())
    mixed = [IteRand(0.2, 2, seed=7), IterativeWeightRecycling(0.2, 2)]
    fit(model, mixed, 4)
    fit(other, [], 2)
    for layer in mpt_layers(other):
        layer.frozen_kernel.assign(redrawn(layer, 0.2, 7, 2))
        layer.frozen_kernel.assign(reference.recycled(numpy(layer.frozen_kernel), numpy(layer.scores), 0.2))
        layer.kernel_epoch.assign(2)
    assert_equal_weights(fit(other, [], 4, initial_epoch=2), model)


# --- resuming


class Stop(keras.callbacks.Callback):
    """Fails as a killed process does, after an epoch or in the midst of it."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "unit, every, stop",
    [
        ("epoch", 2, 1),
        pytest.param("epoch", 2, 2, marks=quick_on_torch),
        pytest.param("step", STEPS, 1, marks=quick_on_torch),
        ("step", 3, 2),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(unit, every, stop, tmp_path):
    def run(*more):
        model = compiled(small(), keras.optimizers.Adam(0.05))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        changing = [IteRand(0.2, every, unit, seed=3), IterativeWeightRecycling(0.2, 2)]
        return fit(model, [*changing, backup, *more], 4)

    whole = run()
    for file in (tmp_path / "backup").iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(Stop(stop))
    resumed = run()
    assert_equal_weights(resumed, whole)
    for ours, theirs in zip(resumed.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


def accumulating():
    return keras.optimizers.SGD(0.5, momentum=0.9, gradient_accumulation_steps=STEPS)


@pytest.mark.parametrize("optimizer", [lambda: None, accumulating])
def test_never_twice_for_one_epoch(optimizer, tmp_path):
    def run(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
        return changes(compiled(small(), optimizer()), [backup, IterativeWeightRecycling(0.3, 2), *more], 5)

    with pytest.raises(KeyboardInterrupt):
        run(Stop(2, 1))  # within epoch 2, after its kernels had changed and were saved
    assert run() == [4]


def test_steps_before_a_training_do_not_hide_where_it_stopped(tmp_path):
    """The optimizer has more steps than the epochs of this training."""

    def run(*more):
        model = compiled(small())
        model.fit(X[:16], Y[:16], batch_size=8, verbose=0)
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        return changes(model, [IterativeWeightRecycling(0.5, 1), backup, *more], 4)

    with pytest.raises(KeyboardInterrupt):
        run(Stop(1))
    assert run() == [2, 3]


def test_a_second_training_of_the_same_model_is_no_resumed_one():
    model = fit(compiled(small()), [], 3)
    assert changes(model, [IterativeWeightRecycling(0.3, 1)], 3) == [1, 2]


def test_a_restored_training_after_another_one(tmp_path):
    """Both change kernels in epoch 2."""

    def run(model, *more):
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        return changes(model, [backup, IterativeWeightRecycling(0.3, 2), *more], 4)

    model = fit(compiled(small()), [IterativeWeightRecycling(0.3, 1)], 3)
    with pytest.raises(KeyboardInterrupt):
        run(model, Stop(1))
    assert run(compiled(small())) == [2]


def test_a_second_training_with_other_batches_is_no_resumed_one():
    """Its first epoch seems to be half done, by the number of the optimizer's steps."""
    model = compiled(small())
    model.fit(X, Y, batch_size=len(X) // (STEPS + STEPS // 2), verbose=0)
    assert changes(model, [IterativeWeightRecycling(0.3, 1)], 3, initial_epoch=1) == [1, 2]


# --- tickets


@pytest.mark.parametrize(
    "kernel_quantizer, callback",
    [
        ("scaled_sign", IterativeWeightRecycling(0.3, 1)),
        pytest.param("scaled_sign", IteRand(0.3, 1), marks=quick_on_torch),
        pytest.param(None, IterativeWeightRecycling(0.3, 1), marks=quick_on_torch),
        (None, IteRand(0.3, 1)),
    ],
)
def test_tickets(kernel_quantizer, callback, tmp_path):
    flat, quantized = keras.layers.Flatten(), {"kernel_quantizer": kernel_quantizer}
    first = MPTConv2D(8, 3, activation="relu", kernel_initializer="kaiming_normal", seed=8, **quantized)
    last = MPTDense(2, kernel_initializer="signed_constant", seed=9, **quantized)
    model = compiled(keras.Sequential([keras.Input(X.shape[1:]), first, flat, last]))
    fit(model, [callback], 3)
    keras_mpt.save_ticket(model, tmp_path / "model.mpt")
    loaded = keras_mpt.load_ticket(tmp_path / "model.mpt")
    np.testing.assert_array_equal(numpy(loaded(X)), numpy(model(X)))
    for ours, theirs in zip(mpt_layers(loaded), mpt_layers(model), strict=True):
        np.testing.assert_array_equal(numpy(ours.subnet_mask), numpy(theirs.subnet_mask))
        np.testing.assert_array_equal(numpy(ours.kernel), numpy(theirs.kernel))
    with pytest.raises(ValueError, match="of which none is trainable"):
        fit(compiled(loaded), [callback], 1)


# --- bad input


@pytest.mark.parametrize("cls", [IterativeWeightRecycling, IteRand])
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), None, "half", True])
def test_bad_rate(cls, rate):
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\). Received: rate="):
        cls(rate, 1)


@pytest.mark.parametrize("cls", [IterativeWeightRecycling, IteRand])
@pytest.mark.parametrize("every", [0, -1, 1.5, None, True])
def test_bad_every(cls, every):
    with pytest.raises(ValueError, match="`every` must be an integer > 0. Received: every="):
        cls(0.1, every)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="at most 0.5 with ablation=True"):
        IterativeWeightRecycling(0.6, 1, ablation=True)
    with pytest.raises(ValueError, match="`unit` must be one of .*'epoch', 'step'.*Received: unit='batch'"):
        IteRand(0.1, 1, unit="batch")
    for seed in (None, -1, 2**64, 0.5):
        with pytest.raises(ValueError, match="`seed` must be an integer"):
            IteRand(0.1, 1, seed=seed)


@pytest.mark.parametrize("callback", [IterativeWeightRecycling(0.1, 1), IteRand(0.1, 1), IteRand(0.1, 1, "step")])
def test_a_model_without_mpt_layers(callback):
    model = compiled(keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(2)]))
    record = Record()
    with pytest.raises(ValueError, match="needs a model with MPT layers that are trained"):
        fit(model, [callback, record], 1)
    assert not record.seen
