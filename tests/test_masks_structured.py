"""Rules whose masks cost less than their entropy: equal to numpy, to the bit on every backend, small in a file."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import keras_mpt
from keras_mpt import layers, random
from keras_mpt.callbacks import IterativeWeightRecycling, MaskStatistics, SparsitySchedule
from keras_mpt.masks import NofM, PartiallyFrozen, TopK
from keras_mpt.ops import search_threshold, sort_threshold, top_k_mask
from support.layer_contract import numpy

EXAMPLES = 4 if keras.backend.backend() == "jax" else 10  # JAX compiles each shape
ENTRY = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, float("inf"), 1e-45, 2e-45]) | st.floats(width=32, allow_nan=False)
SHAPE = (3, 8, 5)
SCORES = st.lists(ENTRY, min_size=120, max_size=120).map(lambda entries: np.array(entries, np.float32).reshape(SHAPE))


def words(seed, stream, size):
    """The 32-bit numbers of a seed, as numpy alone draws them."""
    raw = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(-(-size // 2))
    return raw.astype("<u8").view("<u4")[:size]


def frozen_parts(seed, size, pruned, locked):
    order = np.argsort(words(seed, 5, size), kind="stable")
    return order[:pruned], order[pruned : pruned + locked]


def magnitudes(scores):
    """|scores| as integers of the same order: some libraries let numpy take the smallest for 0."""
    return np.abs(scores).view(np.int32)


def largest(keys, indices, count):
    """The `count` of these indices with the largest keys; ties: the lower."""
    return sorted(indices, key=lambda i: (-int(keys[i]), i))[:count]


def frozen_mask(scores, seed, sparsity, pruned, locked):
    size, flat = scores.size, magnitudes(scores).ravel()
    kept = size - math.floor(sparsity * size + 1e-9)
    zeros, ones = frozen_parts(seed, size, math.floor(pruned * size), math.floor(locked * size))
    mask = np.zeros(size)
    mask[ones] = 1
    mask[largest(flat, sorted(set(range(size)) - {*zeros, *ones}), kept - len(ones))] = 1
    return mask.reshape(scores.shape)


def n_of_m_mask(scores, n, m, axis):
    """Sort each group on its own."""
    groups = magnitudes(scores).reshape((-1, m, 1) if axis == "flat" else (-1, m, scores.shape[-1]))
    mask = np.zeros(groups.shape)
    for block in range(groups.shape[0]):
        for column in range(groups.shape[2]):
            mask[block, largest(groups[block, :, column], range(m), n), column] = 1
    return mask.reshape(scores.shape)


def conv(mask, scores=None, shape=SHAPE, **kwargs):
    layer = layers.MPTConv1D(shape[2], shape[0], mask=mask, seed=kwargs.pop("seed", 9), **kwargs)
    layer.build((None, 20, shape[1]))
    if scores is not None:
        layer.scores.assign(scores)
    return layer


@settings(max_examples=EXAMPLES, deadline=None)
@given(SCORES, st.sampled_from([(0, 0.1), (0.3, 0), (0.55, 0.3), (0.6, 0)]))
def test_partially_frozen_equals_numpy(scores, fractions):
    for selector in ("search", "sort"):
        layer = conv(PartiallyFrozen(0.6, *fractions, selector=selector), scores)
        np.testing.assert_array_equal(numpy(layer.subnet_mask), frozen_mask(scores, 9, 0.6, *fractions))
        assert int(layer.kept) == numpy(layer.subnet_mask).sum()


def test_nothing_frozen_is_top_k():
    scores = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32).round(1)
    np.testing.assert_array_equal(
        numpy(conv(PartiallyFrozen(0.7), scores).subnet_mask), numpy(conv(TopK(0.7), scores).subnet_mask)
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(SCORES, st.sampled_from([(1, 2), (2, 4), (3, 4), (1, 8), (5, 8)]))
def test_n_of_m_equals_numpy(scores, n_and_m):
    for axis in ("inputs", "flat"):
        mask = numpy(conv(NofM(*n_and_m, axis=axis), scores).subnet_mask)
        np.testing.assert_array_equal(mask, n_of_m_mask(scores, *n_and_m, axis))


def test_groups_are_consecutive_input_channels():
    scores = np.zeros((1, 8, 2), np.float32)
    scores[0, [1, 3, 4, 6], 0] = scores[0, [0, 1, 6, 7], 1] = 1
    layer = layers.MPTConv1D(2, 1, mask=NofM(2, 4), seed=0)
    layer.build((None, 3, 8))
    layer.scores.assign(scores)
    np.testing.assert_array_equal(numpy(layer.subnet_mask), scores)


@pytest.mark.parametrize("rule", [PartiallyFrozen(0.6, 0.3, 0.1), NofM(2, 4)], ids=str)
def test_nan_is_seen(rule):
    layer = conv(rule, np.full(SHAPE, np.nan, np.float32))
    assert np.isnan(numpy(layer.subnet_mask)).all()
    layer(np.ones((1, 20, 8), np.float32), training=True)
    assert int(layer.nan_steps) == 1


def trained(rule, epochs=2, callbacks=()):
    x = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(int)
    model = keras.Sequential(
        [keras.Input((8,)), layers.MPTDense(16, mask=rule, seed=3), layers.MPTDense(4, mask=rule, seed=4)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    history = model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=list(callbacks), shuffle=False)
    return model, history, x


RULES = {
    "partially frozen": (PartiallyFrozen(0.6, 0.4, 0.2), lambda s, seed: frozen_mask(s, seed, 0.6, 0.4, 0.2)),
    "n of m": (NofM(1, 4), lambda s, seed: n_of_m_mask(s, 1, 4, "inputs")),
}


@pytest.mark.parametrize("name", RULES)
def test_training_saving_and_tickets(name, tmp_path):
    rule, expected = RULES[name]
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule)) == rule
    model, history, x = trained(rule, callbacks=[MaskStatistics()])
    assert history.history["mask_flip_ratio"][0] > 0
    for layer in model.layers:
        before = expected(numpy(conv_scores(layer)), layer.seed)
        assert not np.array_equal(before, numpy(layer.subnet_mask))  # it was searched
        np.testing.assert_array_equal(numpy(layer.subnet_mask), expected(numpy(layer.scores), layer.seed))
    keras_mpt.save_ticket(model, tmp_path / "a.mpt")
    keras_mpt.save_ticket(model, tmp_path / "b.mpt", scores=True)
    model.save(tmp_path / "a.keras")
    others = [keras_mpt.load_ticket(tmp_path / "a.mpt", trainable=trainable) for trainable in (False, True)]
    others += [keras_mpt.load_ticket(tmp_path / "b.mpt"), keras.saving.load_model(tmp_path / "a.keras")]
    for other in others:
        for ours, theirs in zip(model.layers, other.layers, strict=True):
            np.testing.assert_array_equal(numpy(ours.subnet_mask), numpy(theirs.subnet_mask))
        np.testing.assert_allclose(numpy(model(x)), numpy(other(x)), rtol=1e-5, atol=1e-6)
    plain = keras_mpt.models.strip(model)
    np.testing.assert_allclose(numpy(model(x)), numpy(plain(x)), rtol=1e-5, atol=1e-6)


def conv_scores(layer):
    """The scores that a layer started with."""
    twin = type(layer).from_config(layer.get_config())
    twin.build((None, layer.scores.shape[0]))
    return twin.scores


def test_recycling_and_schedules_leave_frozen_weights_alone():
    rule, _ = RULES["partially frozen"]
    schedule = SparsitySchedule(initial_sparsity=0.45, epochs=2)
    model, *_ = trained(rule, 3, [schedule, IterativeWeightRecycling(0.4, every=1)])
    changed = 0
    for layer in model.layers:
        size = math.prod(layer.scores.shape)
        zeros, ones = frozen_parts(layer.seed, size, math.floor(0.4 * size), math.floor(0.2 * size))
        fresh = layer.kernel_initializer.draw(layer.scores.shape, layer.seed, fan_in=layer.scores.shape[0])
        same = (numpy(layer.frozen_kernel) == fresh).ravel()
        assert same[zeros].all() and same[ones].all()
        changed += np.count_nonzero(~same)
        mask = numpy(layer.subnet_mask).ravel()
        assert mask.sum() == size - math.floor(0.6 * size) and mask[ones].all() and not mask[zeros].any()
    assert changed


def test_sparsities_that_do_not_fit_are_refused():
    layer = conv(PartiallyFrozen(0.6, 0.5, 0.1))
    for sparsity in (0.4, 0.95):
        with pytest.raises(ValueError, match="Of its 120 weights 60 are pruned for good and 12 locked, so that 13 to"):
            layer.set_sparsity(sparsity)
    layer.set_sparsity(0.5)
    assert numpy(layer.subnet_mask).sum() == 60
    with pytest.raises(ValueError, match="always has 60 of 120 weights. Received: a sparsity that keeps 30"):
        conv(NofM(2, 4)).set_sparsity(0.75)


def test_masks_that_frozen_weights_do_not_allow_are_refused():
    layer = conv(PartiallyFrozen(0.6, pruned=0.4, locked=0.2))
    before = [numpy(variable) for variable in layer.weights]
    one = np.zeros(layer.scores.shape)
    one.flat[0] = 1
    for mask in (np.ones(layer.scores.shape), one):  # the first one let a search run forever
        with pytest.raises(
            ValueError, match="`mask` must be .* 48 are pruned for good and 24 locked, so that 24 to 72"
        ):
            layer.assign_mask(mask)
    for variable, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)
    with pytest.raises(ValueError, match="`mask` must be zeros and ones .* Received: shape .* values <U1"):
        layer.assign_mask(np.full(layer.scores.shape, "1"))
    for allowed in (numpy(layer.frozen) < 0, numpy(layer.frozen) != 0):  # the fewest and the most
        layer.assign_mask(allowed)
        np.testing.assert_array_equal(numpy(layer.subnet_mask), allowed)


def test_a_search_for_more_than_there_are_ends():
    keys = ops.convert_to_tensor(np.array([[5, 7, 7], [7, 0, 0]], np.int32))
    frozen = ops.convert_to_tensor(np.array([[1, 1, 1], [1, 0, 0]], np.int32))
    for select in (search_threshold, sort_threshold):
        mask, *_ = top_k_mask(keys, 5, 1, select, frozen, 4)
        assert numpy(mask).sum() <= 4 and numpy(mask)[1, 1:].sum() == 0


def test_files_of_other_fractions_are_refused(tmp_path):
    model, other = (
        keras.Sequential([keras.Input((8,)), layers.MPTDense(15, mask=PartiallyFrozen(0.6, *fractions), seed=1)])
        for fractions in ((0.4, 0.2), (0.0, 0.3))
    )
    model.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="0 are pruned for good and 36 locked. Received: 48 and 24"):
        other.load_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="Layer .* has weights that do not fit its rule. Of its 120 weights"):
        other.save(tmp_path / "b.keras")  # it could not be loaded


def test_weights_of_a_layer_with_other_numbers():
    """`set_weights` copies masks: their numbers of ones are part of the state, or the rule knows them."""
    layer, other = (
        conv(PartiallyFrozen(0.6, *fractions), seed=seed) for fractions, seed in [((0, 0.3), 1), ((0.4, 0), 2)]
    )
    layer.set_weights(other.get_weights())
    np.testing.assert_array_equal(numpy(layer.subnet_mask), numpy(other.subnet_mask))
    layer, other = (conv(rule, kernel_initializer="kaiming_normal") for rule in (NofM(2, 4), NofM(1, 4)))
    layer.set_weights(other.get_weights())
    kept = numpy(layer.frozen_kernel) * numpy(layer.subnet_mask)
    np.testing.assert_allclose(np.abs(numpy(layer.kernel)).max(), np.abs(kept).sum() / 60, rtol=1e-5)
    with pytest.raises(ValueError, match=r"NofM\(2, 4, .* keep 60 weights. Received: a number of 30"):
        layer.save_own_variables({})


def test_refused_sparsities_change_no_kernel():
    separable = layers.MPTSeparableConv2D(6, 3, mask=PartiallyFrozen(0.8, pruned=0.5), seed=1)
    separable.build((None, 5, 5, 1))
    before = [int(numpy(subnet.kept)) for subnet in separable.subnets]
    with pytest.raises(ValueError, match="Of its 6 weights 3 are pruned for good"):
        separable.set_sparsity(0.45)
    assert [int(numpy(subnet.kept)) for subnet in separable.subnets] == before == [2, 2]

    rules = [TopK(0.5), PartiallyFrozen(0.5, locked=0.3)]
    model = keras.Sequential([keras.Input((8,)), *(layers.MPTDense(10, mask=rule, seed=1) for rule in rules)])
    model.compile("sgd", "mse")
    first = [numpy(layer.scores) for layer in model.layers]
    for schedule in (SparsitySchedule(0.4, initial_sparsity=0.8), SparsitySchedule(0.8, initial_sparsity=0.4)):
        with pytest.raises(ValueError, match="Layer .* cannot have another sparsity. .* 30 locked"):
            model.fit(np.ones((4, 8)), np.ones((4, 10)), epochs=1, verbose=0, callbacks=[schedule])
    assert [int(numpy(layer.kept)) for layer in model.layers] == [40, 50]
    for layer, scores in zip(model.layers, first, strict=True):
        np.testing.assert_array_equal(numpy(layer.scores), scores)


@pytest.mark.parametrize("rule", [PartiallyFrozen(0.5, 0.2, 0.2), NofM(2, 4)], ids=str)
def test_pretrained_kernels_start_with_the_largest_that_the_rule_can_keep(rule):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(2)])
    model.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in model.weights])
    twin = keras_mpt.models.to_jackpot(model, mask=rule, skip=[model.layers[1].name])
    layer = twin.layers[0]
    weights = numpy(model.layers[0].kernel)
    expected = n_of_m_mask(weights, 2, 4, "inputs")
    if isinstance(rule, PartiallyFrozen):
        expected = frozen_mask(weights, layer.seed, 0.5, 0.2, 0.2)
    np.testing.assert_array_equal(numpy(layer.subnet_mask), expected)


def test_kernels_without_groups_along_the_inputs():
    refused = [layers.MPTDepthwiseConv2D(3, mask=NofM(2, 4)), layers.MPTConv2DTranspose(8, 3, mask=NofM(2, 4))]
    refused += [layers.MPTSeparableConv2D(8, 3, mask=NofM(2, 4)), layers.MPTEmbedding(8, 4, mask=NofM(2, 4))]
    refused += [layers.MPTEinsumDense("abcd,def->abcef", (9, 9, 4, 4), mask=NofM(2, 4))]
    for layer in refused:
        for _ in range(2):  # a build that fails leaves nothing behind
            with pytest.raises(ValueError, match='where this kernel does not have its input channels: use axis="flat"'):
                layer.build((None, 9, 9, 4))
            assert not layer.built and not layer.weights
    with pytest.raises(ValueError, match="`m` must divide the number of input channels, 3. Received: m=4"):
        layers.MPTConv2D(8, 3, mask=NofM(2, 4)).build((None, 9, 9, 3))
    layer = layers.MPTDepthwiseConv2D(3, mask=NofM(2, 4, axis="flat"))
    layer.build((None, 9, 9, 4))
    assert numpy(layer.subnet_mask).reshape(-1, 4).sum(axis=1).tolist() == [2] * 9
    einsum = layers.MPTEinsumDense("abcd,cde->abe", (None, 6), mask=NofM(2, 4))
    einsum.build((None, 5, 3, 4))
    assert (numpy(einsum.subnet_mask).sum(axis=1) == 2).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PartiallyFrozen(0.5, pruned=0.6), "`pruned` must be at most `sparsity`, 0.5. Received: pruned=0.6"),
        (lambda: PartiallyFrozen(0.5, locked=0.5), "`locked` must be less than 1 - `sparsity`, 0.5."),
        (lambda: PartiallyFrozen(0.5, locked="x"), "`locked` must be a number in"),
        (lambda: NofM(4, 4), "`n` must be an integer"),
        (lambda: NofM(2, 64), "`m` must be an integer"),
        (lambda: NofM(2, 4, axis="input"), "`axis` must be one of .* Did you mean 'inputs'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def bits_of(d):
    return -d * math.log2(d) - (1 - d) * math.log2(1 - d)


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        (PartiallyFrozen(0.8, 0.6, 0.1), 0.3 * bits_of(1 / 3)),
        (PartiallyFrozen(0.8, 0.7, 0.0), 0.3 * bits_of(2 / 3)),
        (PartiallyFrozen(0.5, 0.4, 0.45), 0.15 * bits_of(1 / 3)),
        *((NofM(n, m), math.log2(math.comb(m, n)) / m) for n, m in [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8), (4, 8)]),
        (NofM(4, 16), math.log2(1820) / 16),
        (NofM(16, 32), math.log2(601080390) / 32),
        (NofM(2, 4, axis="flat"), math.log2(6) / 4),
    ],
    ids=str,
)
def test_bytes_are_those_of_the_formula(rule, bits, tmp_path):
    layer = layers.MPTDense(500, mask=rule, seed=1)
    model = keras.Sequential([keras.Input((800,)), layer])
    ticket = keras_mpt.save_ticket(model, tmp_path / "ticket.mpt")
    (entry,) = (e["kernel"] for e in ticket.layers.values())
    size = len(ticket.blobs[entry["mask"]["blob"]])
    assert abs(size / (400_000 * bits / 8) - 1) < 0.03
    row = keras_mpt.models.summary(model, print_fn=str).rows[0]
    assert row["file_bits"] == pytest.approx(400_000 * bits + 32, rel=1e-5)


@pytest.mark.slow
def test_resnet18_at_80_percent_in_450_kb(tmp_path):
    rule = PartiallyFrozen(0.8, 0.65, 0.1)
    model = keras_mpt.zoo.resnet18_mpt(mask=rule, seed=0)
    assert keras_mpt.save_ticket(model, tmp_path / "ticket.mpt").size <= 450_000


def test_tickets_of_a_layer_with_the_frozen_weights_of_another_seed(tmp_path):
    rule = PartiallyFrozen(0.8, 0.4, 0.1)
    model, other = (keras.Sequential([keras.Input((8,)), layers.MPTDense(16, mask=rule, seed=s)]) for s in (1, 2))
    model.set_weights(other.get_weights())
    with pytest.raises(ValueError, match="locked for good are not those of the layer's seed"):
        keras_mpt.save_ticket(model, tmp_path / "ticket.mpt")


def test_frozen_weights_are_the_same_bits_everywhere():
    layer = conv(PartiallyFrozen(0.5, 0.2, 0.2), seed=2**64 - 1)
    found = ops.convert_to_numpy(layer.subnets[0].state["frozen"]).ravel()
    zeros, ones = frozen_parts(2**64 - 1, 120, 24, 24)
    assert sorted(zeros) == np.flatnonzero(found == 0).tolist() and sorted(ones) == np.flatnonzero(found < 0).tolist()


def test_equal_numbers_are_parted_by_index(monkeypatch):
    monkeypatch.setattr(random, "random_uniform", lambda *args: np.array([0.5, 0.25, 0.5, 0.5, 0.75, 0.25]))
    parts = random.partition(6, (3, 0, 2), seed=0, stream=0)
    assert [np.flatnonzero(part).tolist() for part in parts] == [[0, 1, 5], [], [2, 3]]


def test_layers_that_a_2_of_4_engine_takes():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.MPTConv2D(8, 3, sparsity=0.5, seed=1, name="stem"),
            layers.MPTDepthwiseConv2D(3, sparsity=0.5, seed=2, name="depthwise"),
            layers.MPTConv2D(8, 1, mask=NofM(2, 4), seed=3, name="conv"),
            layers.MPTConv2D(4, 1, mask=TopK(0.5), seed=4, name="other"),
            keras.layers.Flatten(),
            layers.MPTDense(5, mask=NofM(1, 4), seed=5, name="head"),
        ]
    )
    found = keras_mpt.analysis.n_of_m(model)
    assert found.fitting == ["conv", "head"]
    shares = {row["name"]: row["share"] for row in found.rows}
    assert shares["stem"] is None and shares["depthwise"] is None and shares["conv"] == shares["head"] == 1
    other = numpy(model.get_layer("other").subnet_mask)[0, 0]
    assert shares["other"] == np.mean([other[i : i + 4, j].sum() <= 2 for i in (0, 4) for j in range(4)]) < 1
    assert "2 of 5" in str(found) and found._repr_html_()
    with pytest.raises(ValueError, match="`n` must be an integer"):
        keras_mpt.analysis.n_of_m(model, 4, 4)
