"""`to_mpt`, `strip`, `dense_twin` and `summary` of layers with several kernels, and of those in Keras' wrappers."""

import warnings

import keras
import numpy as np
import pytest
from test_layers_composed import GATE

from keras_mpt import layers, load_ticket, save_ticket
from keras_mpt.masks import GlobalTopK, TopK
from keras_mpt.models import dense_twin, mpt_layers_by_path, strip, summary, to_jackpot, to_mpt, uniform_sparsity
from keras_mpt.models.plain import holds_mpt
from support import reference
from support.layer_contract import numpy

WORDS = np.random.default_rng(0).integers(0, 11, (4, 6))
LAYERS_OF_MPT = (layers.MPTLayer, layers.MPTComposite)


class Doubled(keras.layers.Dense):
    """A layer of a user's."""

    def call(self, inputs):
        return 2 * super().call(inputs)


class MPTDoubled(layers.MPTLayer, Doubled):
    """Its twin."""


def test_a_twin_of_a_class_of_ones_own(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), Doubled(6, name="doubled"), keras.layers.Dense(2, name="logits")])
    with pytest.warns(UserWarning, match=r"add it to `keras_mpt.layers.TWINS`\): Doubled .*: doubled$"):
        to_mpt(model)
    monkeypatch.setitem(layers.TWINS, Doubled, MPTDoubled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ticket = to_mpt(model, seed=0)
    plain = strip(ticket)
    assert type(ticket.layers[0]) is MPTDoubled and type(plain.get_layer("doubled")) is Doubled
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(numpy(ticket.layers[0](x)), 2 * x @ numpy(ticket.layers[0].kernel), rtol=1e-5)
    np.testing.assert_allclose(numpy(plain(x)), numpy(ticket(x)), rtol=1e-4, atol=1e-6)
    for variable in model.variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    assert type(to_jackpot(model, 0.5, skip=["logits"]).layers[0]) is MPTDoubled
    for other in (layers.MPTDense, layers.MPTLayer, MPTDoubled(6), "MPTDoubled"):
        monkeypatch.setitem(layers.TWINS, Doubled, other)
        with pytest.raises(ValueError, match="must give a class that derives from MPTLayer and Doubled"):
            to_mpt(model)


slow_on_jax = pytest.mark.slow_with("jax")  # which compiles something for each of the many shapes


def text():
    """Words: embedding, attention with a mask and dropout, dense projections, recurrent layers, wrappers."""
    kl = keras.layers
    words = keras.Input((6,), dtype="int32", name="words")
    x = kl.Embedding(11, 8, mask_zero=True, name="embedding")(words)
    x = x + kl.MultiHeadAttention(2, 4, dropout=0.1, name="attention")(x, x, use_causal_mask=True)
    x = x + kl.GroupQueryAttention(4, 2, 1, name="grouped")(x, x)
    x = kl.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", activation="gelu", name="einsum")(x)
    x = kl.Bidirectional(kl.LSTM(4, return_sequences=True, name="lstm"), name="both")(x)
    cells = [kl.GRUCell(5, name="first"), kl.SimpleRNNCell(4, name="second")]
    x = kl.RNN(kl.StackedRNNCells(cells, name="cells"), return_sequences=True, name="rnn")(x)
    x = kl.TimeDistributed(kl.Dense(4, activation="relu", name="inner"), name="steps")(x)
    x = kl.GRU(3, reset_after=False, name="gru")(x)
    return keras.Model(words, kl.Dense(2, name="logits")(x), name="text")


def signal():
    """Sequences and images: separable, depthwise and transposed convolutions."""
    kl = keras.layers
    sound, image = keras.Input((8, 3), name="sound"), keras.Input((6, 6, 3), name="image")
    x = kl.SeparableConv1D(4, 3, padding="same", depth_multiplier=2, name="separable1")(sound)
    x = kl.Conv1DTranspose(3, 2, strides=2, name="transposed1")(kl.DepthwiseConv1D(3, name="depthwise1")(x))
    y = kl.SeparableConv2D(5, 3, activation="relu", name="separable2")(image)
    y = kl.Conv3DTranspose(2, 2, name="transposed3")(kl.Reshape((4, 4, 1, 5))(y))
    z = kl.Concatenate()([kl.Flatten()(x), kl.Flatten()(y)])
    return keras.Model([sound, image], kl.Dense(2, name="logits")(z), name="signal")


def numbers(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


SOURCES = {"text": (text, WORDS), "signal": (signal, [numbers(4, 8, 3), numbers(4, 6, 6, 3)])}


@pytest.fixture(params=SOURCES)
def source(request):
    make, x = SOURCES[request.param]
    model = make()
    for variable in model.trainable_variables:  # biases, too, as after training
        variable.assign(numpy(variable) + 0.1 * numbers(*variable.shape))
    return model, x


def test_nothing_pruned_is_the_model_itself(source):
    model, x = source
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer has a twin, and none was left as it was drawn
        twin = to_jackpot(model, 0.0, skip=[])
    wanted = numpy(model(x))
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(numpy(twin(x)), wanted, rtol=1e-4, atol=1e-5)
    plain = [layer for layer in twin.layers if layer.weights and not isinstance(layer, LAYERS_OF_MPT)]
    assert all(map(holds_mpt, plain))
    assert [layer.name for layer in twin.layers] == [layer.name for layer in model.layers]


@slow_on_jax
def test_pretrained_masks_are_magnitude_pruning(source):
    twin = to_jackpot(source[0], uniform_sparsity(0.7), skip=[], mask=TopK)
    for layer in mpt_layers_by_path(twin).values():
        for subnet in layer.subnets:
            size = int(np.prod(subnet.shape))
            magnitudes = np.abs(numpy(subnet.frozen_kernel))
            np.testing.assert_array_equal(numpy(subnet.mask), reference.mask(magnitudes, size - int(0.7 * size + 1e-9)))


@pytest.mark.slow
def test_binary_jackpots_have_signs_of_every_kernel(source):
    model, x = source
    jackpot = to_jackpot(model, 0.7, kernel_quantizer="scaled_sign", skip=[])
    drawn = mpt_layers_by_path(to_mpt(model, 0.7, seed=0))
    for path, layer in mpt_layers_by_path(jackpot).items():
        for subnet, other in zip(layer.subnets, drawn[path].subnets, strict=True):
            frozen, mask, scores = numpy(subnet.frozen_kernel), numpy(subnet.mask), numpy(subnet.scores)
            alpha = np.abs(frozen[mask == 1]).mean()
            np.testing.assert_allclose(numpy(subnet.effective()), alpha * np.sign(frozen) * mask, rtol=1e-5)
            assert mask.size < 64 or np.mean(scores**2) == pytest.approx(np.mean(numpy(other.scores) ** 2), rel=0.35)
            assert mask.mean() >= 0.5  # all of them are small
    assert np.isfinite(numpy(jackpot(x))).all() and np.ptp(numpy(jackpot(x))) > 1e-3


@pytest.mark.slow
def test_trained_saved_and_stripped(source, tmp_path):
    model, x = source
    ticket = to_mpt(model, 0.5, seed=3)
    ticket.compile(keras.optimizers.SGD(0.5), "mse")
    paths = mpt_layers_by_path(ticket)
    before = {path: [numpy(s.frozen_kernel) for s in layer.subnets] for path, layer in paths.items()}
    losses = ticket.fit(x, np.ones((4, 2)), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    wanted = ticket.predict(x, verbose=0)
    assert np.ptp(wanted) > 1e-3
    for path, layer in paths.items():
        for subnet, frozen in zip(layer.subnets, before[path], strict=True):
            np.testing.assert_array_equal(numpy(subnet.frozen_kernel), frozen)
            size = int(np.prod(subnet.shape))
            np.testing.assert_array_equal(numpy(subnet.mask), reference.mask(numpy(subnet.scores), size - size // 2))
    save_ticket(ticket, tmp_path / "a.mpt")
    ticket.save(tmp_path / "a.keras")
    plain = strip(ticket)
    assert not any(isinstance(layer, LAYERS_OF_MPT) for layer in plain._flatten_layers())
    shapes = [[w.shape for w in each.weights if "seed" not in w.path] for each in (plain, model)]
    assert shapes[0] == shapes[1]
    plain.save(tmp_path / "plain.keras")
    for copy in (
        load_ticket(tmp_path / "a.mpt"),
        keras.models.load_model(tmp_path / "a.keras"),
        plain,
        keras.models.load_model(tmp_path / "plain.keras"),
    ):
        np.testing.assert_allclose(copy.predict(x, verbose=0), wanted, rtol=1e-4, atol=1e-5)


def test_dense_twin_is_trained_as_a_whole(source):
    model, x = source
    twin = dense_twin(to_mpt(model, 0.5, seed=3))
    assert sum(int(np.prod(w.shape)) for w in twin.trainable_weights) == sum(
        int(np.prod(w.shape)) for w in model.trainable_weights
    )
    assert twin.predict(x, verbose=0).shape == (4, 2)
    kernels = [w for w in twin.trainable_weights if len(w.shape) > 1 and w.name != "bias"]
    assert kernels and all(np.any(numpy(w)) for w in kernels)


@slow_on_jax
def test_only_skip_and_sparsities_within_wrappers():
    model = text()
    twin = to_mpt(model, {"both/forward_lstm": 0.9, "attention": 0.75}, only=["both", "attention"], seed=0)
    paths = mpt_layers_by_path(twin)
    kinds = [path.split("/")[0] for path in paths]
    assert set(kinds) == {"both", "attention"}
    assert {layer.sparsity for path, layer in paths.items() if path.startswith("attention/")} == {0.75}
    assert {path.split("/")[1]: layer.sparsity for path, layer in paths.items() if path.startswith("both/")} == {
        "forward_lstm": 0.9,
        "backward_lstm": 0.5,
    }
    only_one = to_mpt(model, only=["both/backward_lstm"], seed=0)
    assert [path.split("/")[1] for path in mpt_layers_by_path(only_one)] == ["backward_lstm"]
    both = only_one.get_layer("both")
    assert type(both.forward_layer) is keras.layers.LSTM
    np.testing.assert_array_equal(numpy(both.forward_layer.cell.kernel), numpy(model.get_layer("both").weights[0]))
    skipped = to_mpt(model, skip=[keras.layers.Bidirectional, "rnn", keras.layers.Dense, "embedding"], seed=0)
    assert {path.split("/")[0] for path in mpt_layers_by_path(skipped)} == {"attention", "grouped", "einsum", "gru"}
    with pytest.raises(ValueError, match="`only` must name.*'forward_lstm'.*Did you mean 'both/forward_lstm'"):
        to_mpt(model, only=["forward_lstm"])


@slow_on_jax
def test_one_threshold_and_jackpots():
    twin = to_mpt(text(), mask=GlobalTopK(0.8), seed=0)
    subnets = [subnet for layer in mpt_layers_by_path(twin).values() for subnet in layer.subnets]
    size = sum(int(np.prod(subnet.shape)) for subnet in subnets)
    assert sum(int(numpy(subnet.mask).sum()) for subnet in subnets) == size - int(0.8 * size + 1e-9)
    with pytest.warns(UserWarning, match="what their initializers drew"):
        jackpot = to_jackpot(text(), 0.8)
    assert "logits" not in mpt_layers_by_path(jackpot)
    kept = sum(float(numpy(s.mask).sum()) for layer in mpt_layers_by_path(jackpot).values() for s in layer.subnets)
    assert kept == pytest.approx(0.2 * (size - 6), abs=40)  # sparsities of layers, rounded for each kernel


@slow_on_jax
def test_frozen_parts_stay_frozen():
    model = text()
    model.get_layer("attention")._key_dense.trainable = False
    model.get_layer("both").forward_layer.trainable = False
    twin = to_mpt(model, seed=0)
    trained = {path: layer.trainable for path, layer in mpt_layers_by_path(twin).items()}
    frozen = [path for path in trained if not trained[path]]
    assert [path.split("/")[:2] for path in frozen] == [["attention", "key"], ["both", "forward_lstm"]]


def test_what_stays_float_is_listed_with_its_share():
    kl = keras.layers
    stack = [kl.ConvLSTM1D(4, 2, name="memory"), kl.Flatten(), kl.Dense(2, name="logits")]
    model = keras.Sequential([keras.Input((3, 8, 2)), *stack])
    share = f"{model.get_layer('memory').count_params() / model.count_params():.2%}"
    with pytest.warns(UserWarning, match=f"floats with {share} of .*: ConvLSTM1D \\({share}\\): memory$"):
        to_mpt(model)


def test_a_model_in_a_wrapper_stays_as_it_is():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)], name="inner")
    steps = keras.layers.TimeDistributed(inner, name="steps")
    model, x = keras.Sequential([keras.Input((5, 2)), steps, keras.layers.Dense(2, name="logits")]), numbers(4, 5, 2)
    with pytest.warns(UserWarning, match="TimeDistributed \\(.*%\\): steps$"):
        twin = to_jackpot(model, 0.0, skip=[])
    assert list(mpt_layers_by_path(twin)) == ["logits"]
    np.testing.assert_allclose(numpy(twin(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)


def test_lost_regularizers_of_several_kernels():
    lstm = keras.layers.LSTM(2, recurrent_regularizer="l2", name="lstm")
    with pytest.warns(UserWarning, match="dropped: lstm \\(recurrent_regularizer\\)"):
        to_mpt(keras.Sequential([keras.Input((3, 2)), lstm]))


def test_binary_inputs():
    kl = keras.layers
    stack = [kl.Bidirectional(kl.LSTM(4, return_sequences=True)), kl.RNN(kl.GRUCell(3)), kl.Dense(2)]
    model, x = keras.Sequential([keras.Input((5, 3)), *stack]), numbers(4, 5, 3)
    twin = to_mpt(model, input_quantizer="approx_sign", seed=0)
    wanted = numpy(twin(x))
    assert np.abs(wanted - numpy(to_mpt(model, seed=0)(x))).max() > 1e-3
    np.testing.assert_allclose(numpy(strip(twin)(x)), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="trainable dense twin.*ApproxSign"):
        dense_twin(twin)
    words = keras.Sequential([keras.Input((5,), dtype="int32"), kl.Embedding(9, 4), kl.Dense(2)])
    found = [layer.input_quantizer for layer in to_mpt(words, input_quantizer="approx_sign", seed=0).layers]
    assert found[0] is None and found[1] is not None  # indices have no signs
    stacked = keras.Sequential([keras.Input((5, 3)), kl.RNN([kl.GRUCell(3), kl.GRUCell(2)], name="rnn")])
    with pytest.raises(ValueError, match="in wrappers of Keras.*'stacked"):
        strip(to_mpt(stacked, input_quantizer="approx_sign"))


MACS = [
    (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 5)), [(7, 3)], 7 * 3 * 2 * 5),
    (keras.layers.EinsumDense("...x,xy->...y", 5), [(7, 2, 3)], 7 * 2 * 3 * 5),
    (keras.layers.MultiHeadAttention(2, 4, value_dim=3), [(7, 6), (5, 10)], 7 * 48 + 5 * 80 + 5 * 60 + 7 * 36),
    (keras.layers.GroupQueryAttention(4, 2, 1, **GATE), [(7, 6), (7, 6)], 7 * (48 + 24 + 24 + 48 + 48 * len(GATE))),
    (keras.layers.SeparableConv1D(4, 3), [(8, 3)], 6 * (9 + 12)),
    (keras.layers.LSTM(4), [(7, 3)], 7 * 16 * (3 + 4)),
    (keras.layers.Bidirectional(keras.layers.GRU(4)), [(7, 3)], 2 * 7 * 12 * (3 + 4)),
    (keras.layers.RNN(keras.layers.SimpleRNNCell(4)), [(7, 3)], 7 * 4 * (3 + 4)),
    (keras.layers.TimeDistributed(keras.layers.Conv1D(4, 3)), [(7, 5, 2)], 7 * 3 * 3 * 2 * 4),
    (keras.layers.Embedding(9, 4), [(7,)], 0),
]


@slow_on_jax
@pytest.mark.parametrize("layer, shapes, macs", MACS, ids=lambda value: type(value).__name__)
def test_macs(layer, shapes, macs):
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, layer(*inputs))
    for network in (model, to_mpt(model, 0.5, seed=0)):
        assert summary(network, print_fn=str).totals["macs_32bit"] == macs
    kept = [subnet for layer in mpt_layers_by_path(network).values() for subnet in layer.subnets]
    totals = summary(network, print_fn=str).totals
    assert totals["weights"] == model.count_params()
    sizes = [int(np.prod(subnet.shape)) for subnet in kept]
    assert totals["kept"] == model.count_params() - sum(size // 2 for size in sizes)
    if macs:
        assert 0.45 < totals["macs_kept"] / macs < 0.55
