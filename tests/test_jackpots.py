"""Lottery Jackpots: pretrained weights stay, masks start as magnitude pruning, tickets need little more than a mask."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_mpt
from keras_mpt import analysis
from keras_mpt.callbacks import ShortRestriction
from keras_mpt.masks import GlobalTopK, NofM, PartiallyFrozen, Restricted, TopK
from keras_mpt.models import (
    magnitude_sparsity,
    mpt_layers,
    mpt_layers_by_path,
    strip,
    to_jackpot,
    uniform_sparsity,
)
from support.layer_contract import numpy
from support.networks import X, Y

pytestmark = pytest.mark.slow_with("jax")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    block = keras.Sequential(
        [keras.layers.Conv2D(8, 3, name="conv"), keras.layers.BatchNormalization(name="norm")], name="block"
    )
    layers = [keras.layers.Conv2D(8, 3, padding="same", name="stem"), block, keras.layers.ReLU()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(16, "relu", name="hidden"), keras.layers.Dense(2, name="top")]
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0)
    return model


def kernels(model):
    layers = {"stem": model.get_layer("stem"), "block/conv": model.get_layer("block").layers[0]}
    return {path: numpy(layer.kernel) for path, layer in {**layers, "hidden": model.get_layer("hidden")}.items()}


def compiled(model, rate=0.1):
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), LOSS)
    return model


@pytest.mark.parametrize("given, sparsity", [(0.8, 0.8), (uniform_sparsity(0.8), 0.8), (None, 0.9)])
def test_the_start_is_magnitude_pruning_of_the_pretrained_network(trained, given, sparsity):
    jackpot, uniform = to_jackpot(trained, given), callable(given)
    before, layers = kernels(trained), mpt_layers_by_path(jackpot)
    assert list(layers) == list(before) and isinstance(jackpot.get_layer("top"), keras.layers.Dense)
    threshold = np.sort(np.concatenate([np.abs(k).ravel() for k in before.values()]))
    cuts = {path: np.sort(np.abs(k).ravel()) if uniform else threshold for path, k in before.items()}
    for path, layer in layers.items():
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), before[path])
        mask = np.abs(before[path]) >= cuts[path][int(np.floor(sparsity * cuts[path].size + 1e-9))]
        np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)
        np.testing.assert_array_equal(numpy(layer.scores), np.where(mask, np.float32(1), np.float32(0.99)))
        assert int(layer.kept) == mask.sum()
    kept = sum(int(layer.kept) for layer in layers.values())
    size = sum(k.size for k in before.values())
    assert uniform or kept == size - int(np.floor(sparsity * size + 1e-9))


def test_it_predicts_with_the_pretrained_weights(trained):
    whole = to_jackpot(trained, 0.0)
    np.testing.assert_allclose(numpy(whole(X)), numpy(trained(X)), rtol=1e-5, atol=1e-6)
    pruned = keras.models.clone_model(trained)
    pruned.set_weights(trained.get_weights())
    jackpot = to_jackpot(trained, 0.5)
    targets = [pruned.get_layer("stem"), pruned.get_layer("block").layers[0], pruned.get_layer("hidden")]
    for target, layer in zip(targets, mpt_layers(jackpot), strict=True):
        target.kernel.assign(numpy(target.kernel) * numpy(layer.subnet_mask))
    np.testing.assert_allclose(numpy(jackpot(X)), numpy(pruned(X)), rtol=1e-5, atol=1e-6)


def test_a_search_changes_masks_and_never_a_weight(trained):
    jackpot = compiled(to_jackpot(trained, 0.8))
    before = analysis.masks(jackpot)
    for layer in mpt_layers(jackpot):  # searched, not where the scores have just been put
        layer.scores.assign(numpy(layer.scores) * 0.01)
    jackpot.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[ShortRestriction(4)])
    after, frozen = analysis.masks(jackpot), kernels(trained)
    assert sum((before[path] != after[path]).sum() for path in before) > 10
    for path, layer in mpt_layers_by_path(jackpot).items():
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), frozen[path])
        np.testing.assert_array_equal(numpy(layer.kernel), frozen[path] * after[path])
        assert before[path].sum() == after[path].sum()
    np.testing.assert_allclose(numpy(strip(jackpot)(X)), numpy(jackpot(X)), atol=1e-5)


def test_the_search_finds_better_masks_than_it_began_with(trained):
    jackpot = to_jackpot(trained, 0.9)
    scores = {id(layer.scores) for layer in mpt_layers(jackpot)}
    for variable in jackpot.trainable_variables:
        variable.trainable = id(variable) in scores
    jackpot.get_layer("block").get_layer("norm").trainable = False
    start = float(numpy(LOSS(Y, compiled(jackpot, 1.0)(X))))
    jackpot.fit(X, Y, batch_size=8, epochs=6, verbose=0, callbacks=[ShortRestriction(6)])
    assert float(numpy(LOSS(Y, jackpot(X)))) < start


@pytest.mark.parametrize("with_base", [True, False])
def test_a_ticket_refers_to_the_pretrained_network_or_stands_alone(trained, with_base, tmp_path):
    jackpot = to_jackpot(trained, 0.8)
    ticket = keras_mpt.save_ticket(jackpot, tmp_path / "jackpot.mpt", base=trained if with_base else None)
    values = [name for name in ticket.blobs if name.endswith("/values")]
    assert bool(values) != with_base
    trained.save(tmp_path / "dense.keras")
    base = keras.models.load_model(tmp_path / "dense.keras")
    loaded = keras_mpt.load_ticket(tmp_path / "jackpot.mpt", base=base if with_base else None)
    np.testing.assert_array_equal(numpy(loaded(X)), numpy(jackpot(X)))
    for a, b in zip(mpt_layers(jackpot), mpt_layers(loaded), strict=True):
        np.testing.assert_array_equal(numpy(a.subnet_mask), numpy(b.subnet_mask))
    if with_base:
        with pytest.raises(keras_mpt.TicketError, match="`base`"):
            keras_mpt.load_ticket(tmp_path / "jackpot.mpt")


def test_a_searched_jackpot_goes_to_pytorch_and_back(trained):
    pytest.importorskip("torch")
    jackpot = compiled(to_jackpot(trained, 0.8))
    jackpot.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[ShortRestriction(3)])
    names = ["stem", "block/conv", "block/norm", "hidden", "top"]
    settings = {"mapping": {name: name.replace("/", ".") for name in names}, "epsilon": 1e-3}
    state = keras_mpt.convert.to_pytorch_state_dict(jackpot, "lottery_jackpots", **settings)
    mask = numpy(mpt_layers(jackpot)[0].subnet_mask)
    np.testing.assert_array_equal(state["stem.b_mask"].numpy().transpose(2, 3, 1, 0), mask)
    fresh = to_jackpot(trained, 0.5)
    keras_mpt.convert.from_pytorch(state, fresh, **settings)
    np.testing.assert_array_equal(numpy(fresh(X)), numpy(jackpot(X)))


def drawn_size(magnitudes):
    """Magnitudes times what gives them the mean square of scores that are drawn: b^2 / 3 with b = 1 / sqrt(fan_in)."""
    fan_in = np.prod(magnitudes.shape[:-1])
    return magnitudes / np.sqrt(np.mean(np.square(magnitudes, dtype=np.float64)) * 3 * fan_in)


@pytest.mark.parametrize("sparsity", [0.8, uniform_sparsity(0.8, least=1000)])
def test_the_start_of_a_binary_jackpot(trained, sparsity):
    """Signs and one scale, the largest magnitudes; of each of these small layers at least a half stays."""
    jackpot = to_jackpot(trained, sparsity, kernel_quantizer="scaled_sign")
    before, layers = kernels(trained), mpt_layers_by_path(jackpot)
    assert list(layers) == list(before)
    for path, layer in layers.items():
        weights = before[path]
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), weights)
        np.testing.assert_allclose(numpy(layer.scores), drawn_size(np.abs(weights)), rtol=1e-5)
        mask, kept = numpy(layer.subnet_mask), int(layer.kept)
        assert type(layer.mask) is TopK and mask.sum() == kept
        np.testing.assert_array_equal(mask, np.abs(weights) >= np.sort(np.abs(weights).ravel())[-kept])
        alpha = np.abs(weights[mask == 1]).mean()
        np.testing.assert_allclose(numpy(layer.kernel), alpha * np.sign(weights) * mask, rtol=1e-5)
    kept, sizes = [int(layer.kept) for layer in layers.values()], [k.size for k in before.values()]
    assert sizes == [144, 576, 2048] and kept[:2] == [72, 288]
    assert kept[2] == 1000 or sparsity == 0.8 and kept[2] > 1000


def test_small_layers_are_spared():
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((50,)), *(keras.layers.Dense(n, name=f"d{n}") for n in (10, 400, 30, 3))])
    for layer in model.layers:
        layer.kernel.assign(random.normal(size=layer.kernel.shape) / (1 + 99 * (layer.units < 400)))
        layer.bias.assign(random.normal(size=layer.bias.shape))
    settings = {"kernel_quantizer": "scaled_sign", "skip": []}
    sizes = {"d10": 500, "d400": 4000, "d30": 12000, "d3": 90}
    uniform = mpt_layers_by_path(to_jackpot(model, uniform_sparsity(0.95, least=1000), **settings))
    assert {path: int(layer.kept) for path, layer in uniform.items()} == dict(d10=250, d400=1000, d30=1000, d3=45)
    assert uniform["d400"].sparsity != 0.5
    odd = uniform_sparsity(0.9, least=1000)({"odd": np.ones((3, 3), "f4")})["odd"]
    assert 9 - int(np.floor(9 * odd + 1e-9)) == 5
    uniform = mpt_layers_by_path(to_jackpot(model, uniform_sparsity(0.5, least=1000), **settings))
    assert {path: layer.sparsity for path, layer in uniform.items()} == dict.fromkeys(sizes, 0.5)
    one = mpt_layers_by_path(to_jackpot(model, 0.75, **settings))
    kept = {path: int(layer.kept) for path, layer in one.items()}
    assert (kept["d10"], kept["d30"], kept["d3"]) == (250, 1000, 45)  # all of small weights
    assert sum(kept.values()) == sum(sizes.values()) - int(0.75 * sum(sizes.values()) + 1e-9)


@pytest.mark.slow
def test_a_binary_jackpot_is_searched_stripped_and_converted(trained, tmp_path):
    jackpot = to_jackpot(trained, 0.8, kernel_quantizer="scaled_sign", skip=[], data=X)
    before, norm = analysis.masks(jackpot), jackpot.get_layer("block").get_layer("norm")
    assert not np.array_equal(numpy(norm.moving_mean), numpy(trained.get_layer("block").layers[1].moving_mean))
    jackpot.compile(keras.optimizers.Adam(0.02), LOSS)
    start = float(numpy(LOSS(Y, jackpot(X))))
    jackpot.fit(X, Y, batch_size=8, epochs=3, verbose=0)
    after = analysis.masks(jackpot)
    assert float(numpy(LOSS(Y, jackpot(X)))) < start and any((before[path] != after[path]).any() for path in before)
    for path, weights in kernels(trained).items():
        layer = mpt_layers_by_path(jackpot)[path]
        np.testing.assert_array_equal(np.sign(numpy(layer.kernel)), np.sign(weights) * after[path])
    wanted = numpy(jackpot(X))
    np.testing.assert_allclose(numpy(strip(jackpot)(X)), wanted, rtol=1e-4, atol=1e-5)
    if keras.backend.backend() == "tensorflow":
        report = keras_mpt.convert.to_tflite(jackpot, tmp_path / "jackpot.tflite")
        found = keras_mpt.convert.run(report.path, "tflite", X)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_binary_jackpot_takes_its_masks_entropy_and_a_bit_for_each_kept_weight(tmp_path):
    random, sparsity = np.random.default_rng(0), 0.8  # 0.722 + 0.2 bits
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(400), keras.layers.Dense(2, use_bias=False)])
    model.layers[0].set_weights([random.normal(size=(300, 400)).astype("f4"), np.full(400, 0.1, "f4")])
    jackpot = to_jackpot(model, sparsity, kernel_quantizer="scaled_sign")
    for layer in mpt_layers(jackpot):
        layer.scores.assign(numpy(layer.scores) * random.uniform(0.1, 1, layer.scores.shape))  # not by magnitude alone
    ticket = keras_mpt.save_ticket(jackpot, tmp_path / "whole.mpt")
    entropy = -sparsity * np.log2(sparsity) - (1 - sparsity) * np.log2(1 - sparsity)
    name = jackpot.layers[0].name
    bits = 8 * (len(ticket.blobs[f"{name}/mask"]) + len(ticket.blobs[f"{name}/changes"])) / 120_000
    assert entropy < bits - (1 - sparsity) + 1e-2 and bits < 1.02 * (entropy + 1 - sparsity)
    assert f"{name}/values" not in ticket.blobs
    small = keras_mpt.save_ticket(jackpot, tmp_path / "masks.mpt", base=model)
    assert ticket.size - small.size > 0.95 * 120_000 * (1 - sparsity) / 8
    x, loaded = random.normal(size=(5, 300)), keras_mpt.load_ticket(ticket.path)
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(keras_mpt.load_ticket(small.path, base=model)(x)))
    np.testing.assert_allclose(numpy(loaded(x)), numpy(jackpot(x)), rtol=1e-4, atol=1e-4)


RULES = {
    "partially frozen": lambda s: PartiallyFrozen(s, pruned=0.5 * s, locked=0.5 * (1 - s)),
    "n of m": NofM(1, 2),
    "global": GlobalTopK(0.7),
    "restricted": Restricted,
}


@pytest.mark.parametrize("rule", RULES)
def test_jackpots_with_other_masks(trained, rule, tmp_path):
    """Scores are magnitudes, and masks those that the rule makes of them."""
    mask = RULES[rule]
    sparsity = None if isinstance(mask, keras_mpt.masks.MaskRule) else 0.75
    jackpot = to_jackpot(trained, sparsity, mask=mask, kernel_quantizer="scaled_sign", seed=3)
    magnitudes = {path: np.abs(kernel) for path, kernel in kernels(trained).items()}
    masks = analysis.masks(jackpot)
    together = np.concatenate([m.ravel() for m in magnitudes.values()])
    threshold = np.sort(together)[-int(0.3 * 2768 + 1)]
    drawn = sum(m.size / (3 * np.prod(m.shape[:-1])) for m in magnitudes.values()) / together.size
    factor = np.sqrt(drawn / np.mean(together.astype("f8") ** 2))  # the mean square of scores that are drawn
    for path, layer in mpt_layers_by_path(jackpot).items():
        scores, found, chosen = magnitudes[path], masks[path], slice(None)
        if rule == "global":
            np.testing.assert_array_equal(found, scores >= threshold)
            ratio = numpy(layer.scores) / scores
            np.testing.assert_allclose(ratio, factor, rtol=1e-5)
            continue
        if rule == "restricted":
            np.testing.assert_array_equal(numpy(layer.scores), np.where(found, np.float32(1), np.float32(0.99)))
        else:
            np.testing.assert_allclose(numpy(layer.scores), drawn_size(scores), rtol=1e-5)
        if rule == "n of m":
            pairs = np.moveaxis(scores, -2, -1).reshape(-1, 2)
            wanted = np.moveaxis(found, -2, -1).reshape(-1, 2)
            np.testing.assert_array_equal(wanted, pairs == pairs.max(axis=1, keepdims=True))
            continue
        if rule == "partially frozen":
            chosen = layer.subnets[0].searched
            assert np.count_nonzero(~found[~chosen]) == int(layer.mask.pruned * scores.size + 1e-9) > 0
            assert layer.seed in itertools.islice(keras_mpt.initializers.layer_seeds(3), 4)
        kept = np.count_nonzero(found[chosen])
        np.testing.assert_array_equal(found[chosen], scores[chosen] >= np.sort(scores[chosen].ravel())[-kept])
    if rule == "n of m":
        loaded = keras_mpt.load_ticket(keras_mpt.save_ticket(jackpot, tmp_path / "a.mpt").path)
        np.testing.assert_allclose(numpy(loaded(X)), numpy(jackpot(X)), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(sparsity=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_sparsities_are_those_of_one_threshold(sparsity, seed):
    random = np.random.default_rng(seed)
    shapes = {"a": (3, 4), "b": (20,), "c": (2, 2, 5)}
    arrays = {path: np.round(random.normal(size=shape), 1).astype(np.float32) for path, shape in shapes.items()}
    arrays["c"][0, 0, 0] = arrays["b"][0] = arrays["a"][0, 0] = 9  # no layer is left empty
    found = magnitude_sparsity(sparsity)(arrays)
    joined = np.concatenate([np.abs(array).ravel() for array in arrays.values()])
    mask = np.zeros(joined.size, bool)
    mask[
        np.lexsort((np.arange(joined.size), -joined))[: joined.size - int(np.floor(sparsity * joined.size + 1e-9))]
    ] = 1
    for path, part in zip(arrays, np.split(mask, [12, 32]), strict=True):
        size = part.size
        assert size - int(np.floor(found[path] * size + 1e-9)) == part.sum()


def test_pretrained_masks_start_at_magnitudes_under_every_rule(trained):
    for mask in (TopK, Restricted, GlobalTopK(0.7)):
        sparsity = None if isinstance(mask, GlobalTopK) else uniform_sparsity(0.7)
        model = to_jackpot(trained, sparsity, skip=[], mask=mask)
        kept, sizes = [], []
        for layer in mpt_layers(model):
            magnitudes, chosen = np.abs(numpy(layer.frozen_kernel)), numpy(layer.subnet_mask) == 1
            assert magnitudes[chosen].min(initial=np.inf) >= magnitudes[~chosen].max(initial=0)
            kept.append(chosen.sum())
            sizes.append(chosen.size)
        if isinstance(mask, GlobalTopK):
            kept, sizes = [sum(kept)], [sum(sizes)]
        assert kept == [size - int(np.floor(0.7 * size + 1e-9)) for size in sizes]


def test_no_layer_is_emptied_by_one_threshold():
    """A small layer of small weights keeps a tenth of its part; what it takes the others lack."""
    random = np.random.default_rng(0)
    arrays = {"small": random.normal(size=(5, 10)) / 100, "large": random.normal(size=(30, 15))}
    arrays = {path: array.astype("f4") for path, array in arrays.items()}
    with pytest.raises(ValueError, match="(?s)`uniform_sparsity`.*keeps none of small"):
        magnitude_sparsity(0.8)(arrays)
    found = magnitude_sparsity(0.8, least=0.1)(arrays)
    kept = {path: array.size - int(np.floor(found[path] * array.size + 1e-9)) for path, array in arrays.items()}
    assert kept == {"small": 1, "large": 99}
    found = magnitude_sparsity(0.7, least=0.1)({"small": np.ones((10, 10)) / 9, "large": np.ones((20, 20))})
    assert 100 - int(np.floor(100 * found["small"] + 1e-9)) == 3  # a tenth of 30, which floats take for more
    model = keras.Sequential([keras.Input((5,)), *(keras.layers.Dense(n, name=f"d{n}") for n in (10, 30, 15, 3))])
    for layer in model.layers:
        layer.kernel.assign(random.normal(size=layer.kernel.shape))
        layer.bias.assign(random.normal(size=layer.bias.shape))
    model.get_layer("d10").kernel.assign(arrays["small"])
    layers = mpt_layers_by_path(to_jackpot(model, 0.8))
    assert int(layers["d10"].kept) == 1 and sum(int(layer.kept) for layer in layers.values()) == (50 + 300 + 450) // 5
    with pytest.raises(ValueError, match="`skip` must be given .* is 'top', which is taken for the classifier"):
        to_jackpot(keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, name="top")]))


def test_sparsities_of_layers_and_the_layers_themselves_can_be_given(trained):
    jackpot = to_jackpot(trained, {"stem": 0.25, "hidden": 0.75})
    assert [layer.sparsity for layer in mpt_layers(jackpot)] == [0.25, 0.5, 0.75]
    (binary,) = mpt_layers(to_jackpot(trained, 0.8, only=["stem"], input_quantizer="approx_sign"))
    assert binary.name == "stem" and type(binary.input_quantizer) is keras_mpt.quantizers.ApproxSign


def test_criteria_are_their_formulas():
    """On linear layers with squared error, where the gradient is known; normalization acts as in inference."""
    random = np.random.default_rng(3)
    kernel = random.normal(size=(5, 4)).astype(np.float32)
    norm = keras.layers.BatchNormalization(epsilon=1e-3)
    layers = [keras.layers.Dense(4, name="a"), norm, keras.layers.Dense(3, name="b")]
    model = keras.Sequential([keras.Input((5,)), *layers])
    second, bias = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=4).astype(np.float32)
    gamma, beta, mean, variance = random.uniform(0.5, 2, (4, 4)).astype(np.float32)
    model.set_weights([kernel, bias, gamma, beta, mean, variance, second, np.zeros(3, np.float32)])
    jackpot = to_jackpot(model, 0.6)
    state = [numpy(weight) for weight in jackpot.weights]
    batches = [(random.normal(size=(6, 5)).astype("f4"), random.normal(size=(6, 3)).astype("f4")) for _ in range(3)]
    found = analysis.criteria_masks(jackpot, batches, keras.losses.MeanSquaredError(), seed=1)
    products = []
    for x, y in batches:
        scale = gamma / np.sqrt(variance + 1e-3)
        error = 2 * (((x @ kernel + bias - mean) * scale + beta) @ second - y) / y.size
        products.append(kernel * (x.T @ (error @ second.T * scale)))
    importance = {"magnitude": np.abs(kernel), "snip": np.abs(sum(products)), "taylor": sum(p**2 for p in products)}
    importance["random"] = np.random.default_rng(1).random(kernel.shape)
    for name, values in importance.items():
        np.testing.assert_array_equal(found[name]["a"], values >= np.sort(values.ravel())[-8])
    assert found["random"]["a"].sum() == 8 and len({mask["a"].tobytes() for mask in found.values()}) == 4
    np.testing.assert_array_equal(found["magnitude"]["a"], analysis.masks(jackpot)["a"])
    for before, weight in zip(state, jackpot.weights, strict=True):
        np.testing.assert_array_equal(before, numpy(weight))


def test_criteria_of_float16_have_gradients_that_overflow(keras_settings):
    """Keras multiplies the loss of such a model by 2**15, and leaves out a step whose gradients exceed float16."""
    random = np.random.default_rng(3)
    kernel, x, y = (random.normal(size=size).astype("f2").astype("f4") for size in ((5, 4), (6, 5), (6, 4)))
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, use_bias=False, name="a")])
    model.set_weights([kernel])
    jackpot = to_jackpot(model, uniform_sparsity(0.5), skip=[])

    def loss(targets, outputs):
        return keras.ops.sum((keras.ops.cast(outputs, "float32") - targets) ** 2)

    found = analysis.criteria_masks(jackpot, [(x, y)], loss)
    product = np.abs(kernel * (x.T @ (x @ kernel - y)))
    np.testing.assert_array_equal(found["snip"]["a"], product >= np.sort(product.ravel())[10])
    assert jackpot.layers[0].compute_dtype == "float16"


@pytest.mark.slow
def test_criteria_of_layers_with_several_kernels(rng):
    layer = keras.layers.SeparableConv1D(3, 1, use_bias=False, name="a")
    model = keras.Sequential([keras.Input((2, 4)), layer])
    x, y = rng.normal(size=(5, 2, 4)).astype("f4"), rng.normal(size=(5, 2, 3)).astype("f4")
    depthwise, pointwise = rng.normal(size=(1, 4, 1)).astype("f4"), rng.normal(size=(1, 4, 3)).astype("f4")
    layer.set_weights([depthwise, pointwise])
    sparsity = keras_mpt.models.uniform_sparsity(0.5)
    found = analysis.criteria_masks(to_jackpot(model, sparsity, skip=[]), [(x, y)], keras.losses.MeanSquaredError())
    middle = x * depthwise[:, :, 0]
    error = 2 * (middle @ pointwise[0] - y) / y.size
    gradients = {
        "a/depthwise_kernel": np.sum(x * (error @ pointwise[0].T), axis=(0, 1)).reshape(1, 4, 1) * depthwise,
        "a/pointwise_kernel": np.einsum("nti,nto->io", middle, error)[None] * pointwise,
    }
    for path, product in gradients.items():
        kept = np.sort(np.abs(product).ravel())[product.size // 2 :]
        np.testing.assert_array_equal(found["snip"][path], np.abs(product) >= kept[0])


def test_bad_arguments(trained):
    for least in (-1, 1.0, "1", None):
        with pytest.raises(ValueError, match="`least` must be an integer >= 0, or a float in"):
            uniform_sparsity(0.8, least)
    with pytest.raises(ValueError, match="`sparsity` must name layers that are converted. Received: 'stemm'"):
        to_jackpot(trained, {"stemm": 0.8})
    with pytest.raises(ValueError, match="`sparsity` must be a number"):
        to_jackpot(trained, 1.0)
    with pytest.raises(ValueError, match="`sparsity` must be left out where `mask` is a rule"):
        to_jackpot(trained, 0.5, mask=NofM(1, 2))
    with pytest.raises(ValueError, match="`kernel_quantizer` must be"):
        to_jackpot(trained, kernel_quantizer="signs")
    with pytest.raises(ValueError, match="`data` must have samples"):
        to_jackpot(trained, data=X[:0])
    with pytest.raises(ValueError, match="`skip`"):
        to_jackpot(trained, skip=["nothing"])
    outputs = [trained.outputs[0], trained.get_layer("hidden").output]
    with pytest.raises(ValueError, match="`skip` must be given for several outputs. Received: a model of 2"):
        to_jackpot(keras.Model(trained.inputs, outputs))
    with pytest.raises(ValueError, match="keeps none of small"):
        magnitude_sparsity(0.5)({"small": np.zeros(3, "f4"), "large": np.ones(5, "f4")})
    with pytest.warns(UserWarning, match="not pretrained: stem, block/conv, hidden"):
        to_jackpot(keras.models.clone_model(trained))
    with pytest.raises(ValueError, match="must be built"):
        to_jackpot(keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="masks.Restricted"):
        analysis.criteria_masks(to_jackpot(trained, 0.5, mask=TopK), [(X, Y)], LOSS)
    with pytest.raises(ValueError, match="`loss` must be a Keras loss"):
        analysis.criteria_masks(to_jackpot(trained), [(X, Y)], None)
    with pytest.raises(ValueError, match="`batches`"):
        analysis.criteria_masks(to_jackpot(trained), [], LOSS)
    with pytest.raises(ValueError, match="`batches` must be pairs"):
        analysis.criteria_masks(to_jackpot(trained), [X], LOSS)
