"""Layers with several kernels, and layers made of MPT layers: equal to plain layers that hold the masked kernels."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_mpt import layers, quantizers
from keras_mpt.callbacks import IterativeWeightRecycling, MaskStatistics, SparsitySchedule
from keras_mpt.masks import GlobalTopK, NofM, Restricted, TopK
from keras_mpt.models import to_mpt
from support import reference
from support.backend import gradient
from support.layer_contract import inputs, numpy

VALUES = 3 if keras.backend.backend() == "jax" else 4  # JAX's attention takes values of the keys' size only
GATE = {"use_gate": True} if "use_gate" in inspect.signature(keras.layers.GroupQueryAttention).parameters else {}  # new
# Class, arguments, shape of an input without batch, the kernels' names and their fan-ins.
KERNELS = [
    (
        layers.MPTSeparableConv1D,
        {"filters": 4, "kernel_size": 3, "strides": 2},
        (8, 3),
        {"depthwise": 3, "pointwise": 3},
    ),
    (
        layers.MPTSeparableConv2D,
        {"filters": 4, "kernel_size": 3, "depth_multiplier": 2, "padding": "same", "use_bias": True},
        (5, 6, 3),
        {"depthwise": 9, "pointwise": 6},
    ),
    (layers.MPTSimpleRNN, {"units": 4, "use_bias": True}, (5, 6), {"": 6, "recurrent": 4}),
    (layers.MPTLSTM, {"units": 4, "return_sequences": True}, (5, 6), {"": 6, "recurrent": 4}),
    (layers.MPTLSTM, {"units": 3, "use_bias": True, "go_backwards": True}, (5, 6), {"": 6, "recurrent": 3}),
    (layers.MPTGRU, {"units": 4, "reset_after": False}, (5, 6), {"": 6, "recurrent": 4}),
    (layers.MPTGRU, {"units": 4, "use_bias": True, "unroll": True}, (5, 6), {"": 6, "recurrent": 4}),
]
ATTENTION = [
    (layers.MPTMultiHeadAttention, {"num_heads": 2, "key_dim": 3, "use_bias": True}, (5, 6), None),
    (
        layers.MPTMultiHeadAttention,
        {"num_heads": 2, "key_dim": 3, "value_dim": VALUES, "output_shape": 7},
        (5, 6),
        None,
    ),
    (
        layers.MPTGroupQueryAttention,
        {"head_dim": 4, "num_query_heads": 4, "num_key_value_heads": 2, **GATE},
        (5, 6),
        None,
    ),
]
CASES = KERNELS + ATTENTION
slow_on_jax = pytest.mark.slow_with("jax")
# On JAX, each case is a quick test with one quantizer only: it compiles all of them for seconds.
QUANTIZED = [
    pytest.param(*case, quantizer, marks=[slow_on_jax] * (number % 2 == (quantizer == "identity")))
    for number, case in enumerate(CASES)
    for quantizer in ("scaled_sign", "identity")
]


def arguments(layer, x):
    return (x, x) if isinstance(layer, layers.attention.MPTAttention) else (x,)


def built(cls, settings, shape, **more):
    layer, x = cls(**settings, sparsity=0.6, **more), inputs(shape)
    layer(*arguments(layer, x))
    return layer, x


def randomized(layer):
    """Give a layer scores and frozen weights that no seed stands for, and biases."""
    random = np.random.default_rng(2)
    for subnet in layer.subnets:
        subnet.scores.assign(random.normal(size=subnet.shape).astype("float32"))
        subnet.frozen_kernel.assign(random.normal(size=subnet.shape).astype("float32"))
    for variable in layer.trainable_variables:
        if variable.name == "bias":
            variable.assign(random.normal(size=variable.shape))
    return layer


def model_of(layer, shape):
    x = keras.Input(shape)
    return keras.Model(x, keras.layers.Flatten()(layer(*arguments(layer, x))))


@pytest.mark.parametrize(
    "cls, settings, shape, fan_ins, quantizer", QUANTIZED, ids=lambda case: getattr(case, "__name__", None)
)
def test_equal_to_the_plain_layer_with_the_masked_kernels(cls, settings, shape, fan_ins, quantizer):
    layer, x = built(cls, settings, shape, kernel_quantizer=quantizer, seed=3)
    randomized(layer)
    twin = layer.plain()
    assert type(twin) is cls._plain_class() and type(twin).__module__.startswith("keras.")
    twin(*arguments(layer, x))
    layer.fill_plain(twin)
    np.testing.assert_allclose(
        numpy(layer(*arguments(layer, x))), numpy(twin(*arguments(layer, x))), rtol=1e-5, atol=1e-6
    )
    kernels = []
    for subnet in layer.subnets:
        mask = reference.mask(numpy(subnet.scores), _kept(subnet))
        np.testing.assert_array_equal(numpy(subnet.mask), mask)
        kernels.append(reference.KERNELS[quantizer](numpy(subnet.frozen_kernel), mask))
        np.testing.assert_allclose(numpy(subnet.kernel), kernels[-1], rtol=1e-6)
        with pytest.raises(AttributeError, match=f"`{subnet.name}` of layer .* cannot be assigned to"):
            setattr(subnet.layer, subnet.name, kernels[-1])
    theirs = [numpy(w) for w in twin.weights]
    assert all(any(w.shape == k.shape and np.allclose(w, k) for w in theirs) for k in kernels)


def _kept(subnet):
    size = int(np.prod(subnet.shape))
    return size - int(np.floor(0.6 * size + 1e-9))


@pytest.mark.parametrize("cls, settings, shape, fan_ins", KERNELS, ids=lambda case: getattr(case, "__name__", None))
def test_each_kernel_has_streams_of_its_own(cls, settings, shape, fan_ins):
    layer, _ = built(cls, settings, shape, seed=3)
    again, _ = built(cls, settings, shape, seed=3)
    other, _ = built(cls, settings, shape, seed=4)
    for subnet, same, different, fan_in in zip(
        layer.subnets, again.subnets, other.subnets, fan_ins.values(), strict=True
    ):
        for what in ("frozen_kernel", "scores"):
            np.testing.assert_array_equal(numpy(getattr(subnet, what)), numpy(getattr(same, what)))
            assert (numpy(getattr(subnet, what)) != numpy(getattr(different, what))).any()
        np.testing.assert_allclose(np.abs(numpy(subnet.frozen_kernel)), np.sqrt(2 / fan_in), rtol=1e-6)
    first, second = (numpy(subnet.frozen_kernel).ravel() for subnet in layer.subnets)
    assert (first[: second.size] != second[: first.size]).any()


@pytest.mark.parametrize("cls, settings, shape, fan_ins", CASES, ids=lambda case: getattr(case, "__name__", None))
def test_the_seed_is_that_of_the_constructor(cls, settings, shape, fan_ins):
    seed, dropout = 2**63 + 5, {"dropout": 0.5} if "Separable" not in cls.__name__ else {}  # Keras' takes 31 bits of it
    layer, x = cls(**settings, **dropout, seed=seed), inputs(shape)
    for _ in range(2):  # before it is built, and afterwards
        with pytest.raises(AttributeError, match=f"`seed` of layer '{layer.name}' cannot be assigned to.*Received: 5"):
            layer.seed = 5
        assert layer.seed == layer.get_config()["seed"] == seed
        layer(*arguments(layer, x), training=True)
    again = cls.from_config(layer.get_config())
    first, second = (numpy(each(*arguments(each, x), training=True)) for each in (again, cls(**again.get_config())))
    np.testing.assert_array_equal(first, second)  # kernels and dropout are those of the seed


@pytest.mark.parametrize("cls, settings, shape, fan_ins", CASES, ids=lambda case: getattr(case, "__name__", None))
def test_copies(cls, settings, shape, fan_ins, tmp_path):
    regularizer = keras.regularizers.L2(0.5)
    layer = cls(**settings, sparsity=0.6, seed=2**63 + 5, scores_initializer="ones", scores_regularizer=regularizer)
    model, x = model_of(layer, shape), inputs(shape)
    config = layer.get_config()
    again = cls.from_config(json.loads(json.dumps(config))).get_config()
    assert json.dumps(again) == json.dumps(config)  # in which Keras' tuples are lists
    clone = keras.models.clone_model(model)
    for first, second in zip(model.get_weights(), clone.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    randomized(layer)
    layer.set_sparsity(0.3)
    expected = numpy(model(x))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    for again in (keras.models.load_model(tmp_path / "model.keras"), clone):
        np.testing.assert_array_equal(numpy(again(x)), expected)
        np.testing.assert_allclose(float(sum(again.losses)), float(sum(model.losses)), rtol=1e-6)


@pytest.mark.parametrize("cls, settings, shape, fan_ins", CASES[::2], ids=lambda case: getattr(case, "__name__", None))
def test_score_gradients_are_those_of_the_plain_kernels(cls, settings, shape, fan_ins):
    layer, x = built(cls, settings, shape, kernel_quantizer="identity", seed=3)
    randomized(layer)
    twin = layer.plain()
    x = ops.convert_to_tensor(x)
    upstream = np.random.default_rng(3).normal(size=twin(*arguments(layer, x)).shape).astype(np.float32)
    layer.fill_plain(twin)

    def outputs_with(layer_, variable):
        def outputs(value):
            trainable, other = (
                [value if v is variable else ops.convert_to_tensor(v) for v in variables]
                for variables in (layer_.trainable_variables, layer_.non_trainable_variables)
            )
            return layer_.stateless_call(trainable, other, *arguments(layer, x))[0]

        return outputs

    for subnet in layer.subnets:
        kernel = next(
            w for w in twin.weights if w.shape == subnet.shape and np.allclose(numpy(w), numpy(subnet.kernel))
        )
        wanted = gradient(outputs_with(twin, kernel), numpy(kernel), upstream)
        found = gradient(outputs_with(layer, subnet.scores), numpy(subnet.scores), upstream)
        expected = reference.score_gradient(wanted, numpy(subnet.frozen_kernel), numpy(subnet.scores))
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls, settings, shape, fan_ins", CASES[1::2], ids=lambda case: getattr(case, "__name__", None))
def test_training(cls, settings, shape, fan_ins):
    layer = cls(**settings, sparsity=0.6, seed=1)
    model, x = model_of(layer, shape), inputs(shape)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    before = [(numpy(subnet.mask), numpy(subnet.frozen_kernel)) for subnet in layer.subnets]
    y = np.ones((len(x), *model.output_shape[1:]), "float32")
    losses = model.fit(x, y, epochs=6, verbose=0, callbacks=[MaskStatistics()]).history["loss"]
    assert losses[-1] < losses[0]
    changed = sum((numpy(subnet.mask) != mask).sum() for subnet, (mask, _) in zip(layer.subnets, before, strict=True))
    assert changed > 0 and all(int(subnet.state["threshold"]) > 0 for subnet in layer.subnets)
    for subnet, (_, frozen) in zip(layer.subnets, before, strict=True):
        np.testing.assert_array_equal(numpy(subnet.frozen_kernel), frozen)
        np.testing.assert_array_equal(numpy(subnet.mask), reference.mask(numpy(subnet.scores), _kept(subnet)))


@pytest.mark.parametrize("rule", [GlobalTopK(0.6), Restricted(0.6)], ids=["global", "restricted"])
def test_rules_of_recurrent_layers(rule):
    layer = layers.MPTLSTM(4, mask=rule, seed=1)
    model, x = model_of(layer, (5, 6)), inputs((5, 6))
    model.compile(keras.optimizers.SGD(1.0), "mse")
    masks = [numpy(subnet.mask) for subnet in layer.subnets]
    model.fit(x, np.ones((2, 4)), epochs=4, verbose=0, callbacks=[SparsitySchedule(0.7, curve="constant")])
    kept = [int(numpy(subnet.mask).sum()) for subnet in layer.subnets]
    assert sum(kept) == (160 - int(0.7 * 160) if rule.shared else 29 + 20)
    assert any((numpy(subnet.mask) != mask).any() for subnet, mask in zip(layer.subnets, masks, strict=True))


@pytest.mark.parametrize("case", [layers.MPTGRU(3, seed=1), layers.MPTSeparableConv1D(3, 2, seed=1)])
def test_a_quantizer_that_is_assigned_is_that_of_all_kernels(case):
    layer = type(case).from_config(case.get_config())
    layer.mask = Restricted(0.25)
    layer.build((None, 5, 4))
    for subnet in layer.subnets:
        subnet.kernel_quantizer = subnet.kernel_quantizer.frozen((2.0,))
    layer.kernel_quantizer = None
    for subnet in layer.subnets:
        assert subnet.layer.mask.sparsity == 0.25 and numpy(subnet.mask).mean() == pytest.approx(0.75, abs=0.05)
        np.testing.assert_allclose(numpy(subnet.kernel), numpy(subnet.frozen_kernel) * numpy(subnet.mask))
    with pytest.raises(ValueError, match="kernel_quantizer"):
        layer.kernel_quantizer = "approx_sign"
    assert type(layer.subnets[0].kernel_quantizer).__name__ == "Identity"


@pytest.mark.parametrize("case", [layers.MPTDense(3, seed=1), layers.MPTGRU(3, seed=1)], ids=["dense", "gru"])
def test_quantizers_may_be_assigned_by_name_and_config(case):
    layer, x = type(case).from_config(case.get_config()), inputs((5, 4))
    before = numpy(layer(x))
    signs = np.where(x < 0, -1, 1).astype("float32")
    wanted = numpy(layer(signs))
    config = quantizers.serialize(quantizers.SteSign())
    for given in ("ste_sign", config, quantizers.SteSign()):
        layer.input_quantizer = given
        np.testing.assert_allclose(numpy(layer(x)), wanted, rtol=1e-4, atol=1e-6)
        assert layer.get_config()["input_quantizer"] == config
        layer.input_quantizer = None
        np.testing.assert_allclose(numpy(layer(x)), before, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="`input_quantizer` must be"):
        layer.input_quantizer = "no_sign"
    assert layer.input_quantizer is None
    for subnet in layer.subnets:
        subnet.kernel_quantizer = "identity"
        np.testing.assert_allclose(numpy(subnet.kernel), numpy(subnet.frozen_kernel) * numpy(subnet.mask))
        with pytest.raises(ValueError, match="kernel_quantizer"):
            subnet.kernel_quantizer = "approx_sign"


@pytest.mark.parametrize(
    ("layer", "quantizer"),
    [
        (layers.MPTEmbedding(3, 2, seed=1), "ste_sign"),
        (layers.MPTMultiHeadAttention(2, 3, seed=1), "ste_sign"),
        (layers.MPTConv2D(2, 3, data_format="channels_first", seed=1), "magnitude_aware_sign"),
    ],
    ids=["embedding", "attention", "channels_first"],
)
def test_input_quantizers_that_cannot_be_assigned(layer, quantizer):
    with pytest.raises(ValueError, match="`input_quantizer`"):
        layer.input_quantizer = quantizer
    assert layer.input_quantizer is None


def test_parts_that_are_frozen_on_their_own_stay_frozen(tmp_path):
    x = keras.Input((5, 6))
    attention = layers.MPTMultiHeadAttention(2, 3, use_bias=True, seed=1, name="attention")
    rest = [
        layers.MPTGRU(3, use_bias=True, return_sequences=True, seed=2),
        layers.MPTSeparableConv1D(4, 3, seed=3, non_trainable=["pointwise_kernel"]),
        layers.MPTDense(4, use_bias=True, seed=4),
    ]
    model = keras.Model(x, keras.Sequential(rest)(attention(x, x)))
    attention._query_dense.trainable = attention._output_dense.scores.trainable = False
    rest[0].cell.subnets[1].scores.trainable = rest[2].scores.trainable = False
    assert attention.non_trainable == ("query_dense", "output_dense/kernel")
    assert [layer.non_trainable for layer in rest] == [("cell/recurrent_kernel",), ("pointwise_kernel",), ("kernel",)]
    names = [variable.path.split("/")[-2:] for variable in model.trainable_variables]
    assert len(names) == 9 and ["query", "bias"] not in names and ["attention_output", "bias"] in names
    model.save(tmp_path / "model.keras")
    copies = {
        "file": keras.models.load_model(tmp_path / "model.keras"),
        "clone": keras.models.clone_model(model),
        "to_mpt": to_mpt(keras.Sequential([keras.Input((5, 6)), model, keras.layers.Dense(2)]), seed=0).layers[0],
    }
    shapes = [variable.shape for variable in model.trainable_variables]
    for way, found in copies.items():
        assert [variable.shape for variable in found.trainable_variables] == shapes, way


@pytest.mark.parametrize("wrap", ["rnn", "stacked", "bidirectional", "time"])
def test_wrappers_of_keras(wrap):
    cell = layers.MPTLSTMCell(4, seed=1)
    layer = {
        "rnn": lambda: keras.layers.RNN(cell),
        "stacked": lambda: keras.layers.RNN(keras.layers.StackedRNNCells([cell, layers.MPTGRUCell(3, seed=2)])),
        "bidirectional": lambda: keras.layers.Bidirectional(layers.MPTLSTM(4, seed=1, dropout=0.1)),
        "time": lambda: keras.layers.TimeDistributed(layers.MPTDense(4, seed=1)),
    }[wrap]()
    x = inputs((5, 6))
    model = keras.Sequential([keras.Input((5, 6)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    cells = [part for part in model._flatten_layers() if isinstance(part, layers.MPTLayer)]
    scores = [numpy(part.subnets[-1].scores) for part in cells]
    model.fit(x, np.ones((2, *model.output_shape[1:])), epochs=2, verbose=0)
    for part, before in zip(cells, scores, strict=True):
        assert (numpy(part.subnets[-1].scores) != before).any()
        assert all(int(subnet.state["threshold"]) > 0 for subnet in part.subnets)
    if wrap == "bidirectional":
        ahead, back = cells
        assert (numpy(ahead.subnets[0].frozen_kernel) != numpy(back.subnets[0].frozen_kernel)).any()


def test_binary_inputs_of_recurrent_layers():
    x = inputs((5, 6))
    layer = layers.MPTGRU(4, seed=1, input_quantizer="approx_sign")
    y, twin = numpy(layer(x)), layer.plain()
    twin(x)
    layer.fill_plain(twin)
    signs = np.where(x >= 0, 1, -1).astype("float32")
    np.testing.assert_array_equal(numpy(layer.prepare_plain(ops.convert_to_tensor(x))), signs)
    np.testing.assert_allclose(numpy(twin(signs)), y, rtol=1e-5, atol=1e-6)
    assert np.abs(numpy(twin(x)) - y).max() > 0.01


@pytest.mark.parametrize("cls", [layers.MPTLSTM, layers.MPTGRU])
def test_a_quantizer_that_is_removed_leaves_keras_free_to_use_cudnn(cls):
    for given in ("auto", False):
        layer = cls(3, use_cudnn=given, input_quantizer="ste_sign", seed=0)
        assert layer.use_cudnn is False
        layer.input_quantizer = None
        assert layer.use_cudnn == given


def test_recycling_changes_all_kernels():
    layer = layers.MPTLSTM(4, kernel_initializer="kaiming_normal", recurrent_initializer="kaiming_normal", seed=1)
    model, x = model_of(layer, (5, 6)), inputs((5, 6))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = [numpy(subnet.frozen_kernel) for subnet in layer.subnets]
    model.fit(x, np.ones((2, 4)), epochs=2, verbose=0, callbacks=[IterativeWeightRecycling(0.4, 1)])
    assert all((numpy(s.frozen_kernel) != w).any() for s, w in zip(layer.subnets, before, strict=True))


@pytest.mark.parametrize("attribute", ["frozen_kernel", "scores", "subnet_mask", "kept"])
def test_attributes_of_one_kernel(attribute):
    layer, _ = built(layers.MPTSeparableConv1D, {"filters": 4, "kernel_size": 3}, (8, 3))
    ours = f"`{attribute}` of .* there are depthwise_kernel, pointwise_kernel"
    torchs = f"no attribute '{attribute}'"  # its modules put a message of their own in the place of a property's
    with pytest.raises(AttributeError, match=torchs if keras.backend.backend() == "torch" else ours):
        getattr(layer, attribute)


@pytest.mark.parametrize("cls, settings, shape, fan_ins", CASES, ids=lambda case: getattr(case, "__name__", None))
def test_from_plain_and_its_weights(cls, settings, shape, fan_ins):
    plain, x = cls._plain_class()(**settings), inputs(shape)
    given = (x, x) if "Attention" in cls.__name__ else (x,)
    y = numpy(plain(*given))
    layer = cls.from_plain(plain, sparsity=0.0, kernel_quantizer=None, seed=0)
    layer(*given)
    layer.take_weights(plain, kernels=True)
    np.testing.assert_allclose(numpy(layer(*given)), y, rtol=1e-5, atol=1e-6)
    assert layers.TWINS[type(plain)] is cls


def test_a_build_that_fails_leaves_nothing_behind():
    settings, x = {"num_heads": 2, "key_dim": 3, "dropout": 0.1, "seed": 2**63 + 5}, inputs((5, 6))
    layer, other = layers.MPTMultiHeadAttention(**settings, mask=NofM(2, 4)), layers.MPTMultiHeadAttention(**settings)
    config = layer.get_config()
    for call in (lambda: layer(x, x), lambda: layer(x, x), lambda: layer.build((2, 5, 6), (2, 5, 6), (2, 4, 6))):
        with pytest.raises(ValueError, match="cannot have the rule NofM|must be equal"):
            call()
        assert not layer.built and not layer.weights
        assert {**layer.get_config(), "attention_axes": None} == config  # which Keras has found out
    layer.mask = TopK(0.5)
    np.testing.assert_array_equal(numpy(layer(x, x)), numpy(other(x, x)))
    assert [weight.shape for weight in layer.weights] == [weight.shape for weight in other.weights]


def test_bad_arguments():
    for cls, settings, message in [
        (layers.MPTLSTM, {"units": True}, "`units` must be an integer > 0"),
        (layers.MPTLSTM, {"units": 3, "unroll": "no"}, "`unroll` must be True or False"),
        (layers.MPTGRU, {"units": 3, "recurrent_regularizer": "l2"}, "`recurrent_regularizer` has no meaning"),
        (layers.MPTMultiHeadAttention, {"num_heads": 2.0, "key_dim": 2}, "`num_heads` must be an integer > 0"),
        (
            layers.MPTMultiHeadAttention,
            {"num_heads": 2, "key_dim": 2, "input_quantizer": "ste_sign"},
            "`input_quantizer`",
        ),
        (layers.MPTEmbedding, {"input_dim": 3, "output_dim": 2, "input_quantizer": "ste_sign"}, "`input_quantizer`"),
        (layers.MPTEmbedding, {"input_dim": 3, "output_dim": 2, "weights": np.ones((3, 2))}, "`weights`"),
        (
            layers.MPTDense,
            {"units": 3, "non_trainable": "kernel"},
            "`non_trainable` must be a list .* of \\['kernel'\\]",
        ),
        (layers.MPTGRU, {"units": 3, "non_trainable": ["kernel"]}, "`non_trainable` .* 'cell/recurrent_kernel'"),
        (layers.MPTSeparableConv2D, {"filters": 3, "kernel_size": 3, "pointwise_constraint": "non_neg"}, "`pointwise"),
    ]:
        with pytest.raises(ValueError, match=message):
            cls(**settings)
