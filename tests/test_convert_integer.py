"""Layers from signs to signs as integers: in numpy, and as operations of LiteRT."""

import keras
import numpy as np
import pytest

from keras_mpt import convert, quantizers
from keras_mpt.convert import integer, tflite
from keras_mpt.convert.flatbuffer import File
from keras_mpt.convert.integer.form import integer_writer
from keras_mpt.convert.integer.tflite import decoded
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.tensors import outputs_of
from keras_mpt.layers import MPTConv1D, MPTConv2D, MPTDense, MPTDepthwiseConv2D

pytestmark = pytest.mark.tensorflow_only
SIGN = {"input_quantizer": "approx_sign"}


@pytest.fixture(autouse=True)
def extras():
    pytest.importorskip("tensorflow")


def settled(model, negative=True, seed=0):
    """Give batch normalization statistics and factors, by default of both signs."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.3, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, layer.moving_variance.shape))
            if layer.scale:
                gamma = random.uniform(0.5, 1.5, layer.gamma.shape)
                layer.gamma.assign(gamma * (random.choice([-1, 1], gamma.shape) if negative else 1))
            if layer.center:
                layer.beta.assign(random.normal(0, 0.3, layer.beta.shape))
    return model


def signed(*layers, shape=(8, 8, 4), **kwargs):
    """Return a model of signs: an image's, and those of what the layers give."""
    sign = keras.layers.Activation(quantizers.ApproxSign())
    return settled(keras.Sequential([keras.Input(shape), norm(), *layers, sign]), **kwargs)


def norm(**kwargs):
    return keras.layers.BatchNormalization(**kwargs)


# --- thresholds


def normalized(mean, variance, gamma, beta):
    layer = keras.layers.BatchNormalization(epsilon=1e-3)
    layer.build((None, len(mean)))
    for variable, value in zip(layer.weights, (gamma, beta, mean, variance), strict=True):
        variable.assign(value)
    return lambda values: keras.ops.convert_to_numpy(layer(values))


def test_thresholds_decide_every_sum_as_the_floats_do():
    random = np.random.default_rng(0)
    kernel = random.integers(-1, 2, (30, 40)).astype(np.int8)
    scales = random.uniform(0.01, 1, 40).astype(np.float32)
    mean, beta = random.normal(0, 2, (2, 40))
    gamma = random.normal(0, 1, 40)
    gamma[:3] = 0
    function = normalized(mean, random.uniform(0.1, 2, 40), gamma, beta)
    turns, thresholds, _ = integer.thresholds((kernel != 0).sum(axis=0), scales, [function])
    for channel in range(40):
        sums = np.arange(-(kernel[:, channel] != 0).sum(), (kernel[:, channel] != 0).sum() + 1)
        values = function(scales * np.repeat(sums[:, None], 40, axis=1).astype(np.float32))[:, channel]
        np.testing.assert_array_equal(turns[channel] * sums >= thresholds[channel], values >= 0)
    assert set(turns) == {-1, 1}


def test_a_sum_exactly_on_the_threshold_is_decided_as_the_model_decides_it():
    mean = np.array([3, 3, -2, 0]) * np.float32(0.1)
    function = normalized(mean, np.ones(4), np.array([1, -1, 1, -1]), np.zeros(4))
    turns, thresholds, _ = integer.thresholds(np.full(4, 8), np.full(4, 0.1, np.float32), [function])
    at_zero = function(np.float32(0.1) * np.array([[3, 3, -2, 0]], np.float32))[0]
    decided = turns * np.array([3, 3, -2, 0]) >= thresholds
    np.testing.assert_array_equal(decided, at_zero >= 0)
    assert decided[3]  # of 0 the sign is +1


def test_thresholds_are_found_in_parts_of_the_sums(monkeypatch):
    monkeypatch.setattr(integer.layer, "_ROWS", 28)
    limits, most = np.array([-30, 12.5, 30, 50], np.float32), np.array([40, 40, 40, 7])
    turns, thresholds, _ = integer.thresholds(most, np.ones(4, np.float32), [lambda x: [1, -1, 1, 1] * (x - limits)])
    assert (turns.tolist(), thresholds.tolist()) == ([1, -1, 1, 1], [-30, -12, 30, 8])


def test_what_has_no_threshold_is_refused():
    most, scales = np.full(2, 8), np.ones(2, np.float32)
    with pytest.raises(ValueError, match="not monotonic"):
        integer.thresholds(most, scales, [lambda x: x * x - 4])
    with pytest.raises(ValueError, match="not finite"):
        integer.thresholds(most, scales, [lambda x: x * np.nan])


def test_wrong_thresholds_are_refused_however_many_activations_are_at_zero(tmp_path, monkeypatch):
    def others(*args):
        turns, found, directions = thresholds(*args)
        return turns, found + 2, directions

    thresholds = integer.thresholds
    monkeypatch.setattr(integer, "thresholds", others)
    with pytest.raises(convert.ConversionError, match="signs of .* are decided otherwise in integers"):
        convert.to_tflite(signed(MPTConv2D(8, 3, seed=1, **SIGN), norm()), tmp_path / "model.tflite")


# --- layers in numpy


CONVOLUTIONS = {
    "valid": {},
    "same": {"padding": "same"},
    "ones": {"padding": "same", "pad_values": 1.0},
    "minus ones": {"padding": "same", "pad_values": -1.0},
    "strides": {"padding": "same", "strides": 2},
    "strides, ones": {"padding": 1, "pad_values": 1.0, "strides": 2},
    "dilation": {"padding": "same", "dilation_rate": 2},
}


def layers_of(kind, seed, how):
    how = {"seed": seed, **SIGN, **how}
    if kind == "conv2d":
        return MPTConv2D(8, 3, **how), (8, 8, 4)
    if kind == "depthwise":
        return MPTDepthwiseConv2D(3, depth_multiplier=2, **how), (8, 8, 4)
    return MPTConv1D(8, 3, **how), (9, 4)


def samples(shape, number=4, seed=0):
    return np.random.default_rng(seed).normal(size=(number, *shape)).astype("float32")


def outputs(model, path, x, **kwargs):
    """Return the report of a conversion, and the outputs of the file, a list."""
    report = convert.to_tflite(model, path, samples=x, **kwargs)
    found = convert.run(path, "tflite", x)
    return report, list(found.values()) if isinstance(found, dict) else [found]


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("conv2d", "integer"),
        ("conv1d", "integer"),
        ("depthwise", "integer"),
        pytest.param("conv2d", "integer2", marks=pytest.mark.slow),
        pytest.param("conv1d", "integer2", marks=pytest.mark.slow),
    ],
)
def test_convolutions_with_normalization_and_sign_are_one_exact_operation_each(tmp_path, kind, weights):
    branches = [layers_of(kind, *case) for case in enumerate(CONVOLUTIONS.values(), start=1)]
    image = keras.Input(branches[0][1])
    inputs = norm()(image)
    signs = [keras.layers.Activation(quantizers.ApproxSign())(norm()(layer(inputs))) for layer, _ in branches]
    model, x = settled(keras.Model(image, signs)), samples(image.shape[1:])
    report, found = outputs(model, tmp_path / "model.tflite", x, weights=weights)
    for ours, theirs in zip(found, model.predict(x, verbose=0), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    two_bits = weights == "integer2"
    assert {entry.form for entry in report.layers} == {"integer, 2 bits" if two_bits else "integer"}
    operation = {"depthwise": "DEPTHWISE_CONV_2D"}.get(kind, "FULLY_CONNECTED" if two_bits else "CONV_2D")
    assert report.operations[operation] == len(branches) and report.flips == 0
    others = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LESS", "CAST"} - {operation}
    assert not others & set(report.operations)  # with two bits, CONV_2D would give NaN


POOLS = {
    "pool, norm": [keras.layers.MaxPooling2D, norm],
    "norm, pool": [norm, keras.layers.MaxPooling2D],
    "pool with padding": [lambda: keras.layers.MaxPooling2D(3, 2, padding="same"), norm],
    "global pool": [lambda: keras.layers.GlobalMaxPooling2D(keepdims=True), norm],
}


@pytest.mark.parametrize("pad", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_pooling_commutes_with_signs_of_channels_that_rise_and_fall(tmp_path, pad):
    image, signs = keras.Input((9, 9, 4)), []
    inputs = norm()(image)
    for seed, layers in enumerate(POOLS.values(), start=1):
        y = MPTConv2D(8, 3, seed=seed, padding="same", pad_values=pad, **SIGN)(inputs)
        for layer in layers:
            y = layer()(y)
        y = norm()(MPTConv2D(4, 3, seed=-seed % 99, padding="same", pad_values=pad, **SIGN)(y))
        signs.append(keras.layers.Activation(quantizers.ApproxSign())(y))
    model, x = settled(keras.Model(image, signs)), samples((9, 9, 4))
    report, found = outputs(model, tmp_path / "model.tflite", x, weights="integer")
    for ours, theirs in zip(found, model.predict(x, verbose=0), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [entry.form for entry in report.layers] == ["integer"] * 8
    assert report.operations["DEPTHWISE_CONV_2D"] == 3  # which turn signs: not where pooling follows normalization


def sequential():
    return settled(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                MPTConv2D(8, 3, padding="same", name="stem", seed=1),
                norm(),
                MPTConv2D(8, 3, padding="same", pad_values=1.0, name="conv", seed=2, **SIGN),
                keras.layers.MaxPooling2D(),
                norm(scale=False, center=False),
                keras.layers.Flatten(),
                MPTDense(16, name="dense", use_bias=True, seed=3, **SIGN),
                norm(),
                keras.layers.ReLU(negative_slope=0.1),
                MPTDense(5, name="logits", seed=4, **SIGN),
            ]
        )
    )


def test_a_sequential_network_has_no_float_between_stem_and_logits(tmp_path):
    model = sequential()
    x = samples((8, 8, 3), 16)
    report, (found,) = outputs(model, tmp_path / "model.tflite", x, weights="integer")
    forms = {entry.name: (entry.form, entry.why) for entry in report.layers}
    assert forms["conv"] == forms["dense"] == ("integer", "")
    assert forms["stem"] == ("int8", "float input")
    assert forms["logits"] == ("exact int8", "its results are needed as numbers, not only as signs")
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)
    file = File((tmp_path / "model.tflite").read_bytes())
    floats = [file.kind(operator) for operator in file.graph.operators if _gives_floats(file, operator)]
    # the stem, its large multiple, and what follows the last signs
    assert sorted(floats) == ["CONV_2D", "DEQUANTIZE", "DEQUANTIZE", "FULLY_CONNECTED", "MUL"], report.operations


@pytest.mark.slow
def test_two_bits_in_dense_layers_only(tmp_path):
    model, x = sequential(), samples((8, 8, 3), 16)
    report, (found,) = outputs(model, tmp_path / "model.tflite", x, weights="integer2_dense")
    forms = {entry.name: entry.form for entry in report.layers}
    assert forms == {"stem": "int8", "conv": "integer", "dense": "integer, 2 bits", "logits": "exact, 2 bits"}
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_dense_layer_of_one_output_keeps_eight_bits(tmp_path):
    """The runtimes refuse two bits with a single scale."""
    model = signed(MPTDense(1, seed=1, **SIGN), norm(), shape=(8,))
    report, (found,) = outputs(model, tmp_path / "model.tflite", x := samples((8,), 16), weights="integer2")
    np.testing.assert_array_equal(found, model.predict(x, verbose=0))
    assert report.layers[0].form == "integer"


def _gives_floats(file, operator):
    return file.graph.tensors[operator.outputs[0]].type == 0


def test_the_signs_inside_are_those_of_numpys_integers():
    model, x = sequential(), samples((8, 8, 3), 16)
    target = tflite.TensorFlowLite("integer")
    plan = Plan(model)
    for kernel in plan.kernels:
        target.choose(kernel)
    writer = integer_writer(target, plan.graph(1))
    writer.sign_outputs()
    found = outputs_of(target.session(writer.file.content()), [x], 1)
    points = writer.program.coded
    expected = writer.program.signs({points[0]: decoded(found[0])})
    assert len(points) == 3
    for point, codes in zip(points, found, strict=True):
        np.testing.assert_array_equal(decoded(codes), expected[point])


def residual(pad):
    def conv(x, filters, name, strides=1):
        layer = MPTConv2D(filters, 3, padding=1, strides=strides, pad_values=pad, name=name, seed=len(name), **SIGN)
        return norm()(layer(x))

    image = keras.Input((8, 8, 4))
    x = norm()(image)
    y = conv(conv(x, 8, "one", 2), 8, "two")
    shortcut = norm()(MPTConv2D(8, 1, strides=2, name="three", seed=9, **SIGN)(x))
    x = keras.layers.Add()([y, shortcut])
    x = keras.layers.Add()([conv(x, 8, "fourth"), keras.layers.Activation(quantizers.ApproxSign())(x)])
    return settled(keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("pad", "weights"),
    [
        (1.0, "integer2"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1.0, "integer"), (0.0, "integer"), (0.0, "integer2"))
        ),
    ],
)
def test_sums_that_are_added_stay_numbers(tmp_path, pad, weights):
    model, x = residual(pad), samples((8, 8, 4), 8)
    report, (found,) = outputs(model, tmp_path / "model.tflite", x, weights=weights)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    whys = {entry.name: entry.why for entry in report.layers}
    assert whys["one"] == ""
    assert all("numbers" in whys[name] for name in ("two", "three", "fourth"))


@pytest.mark.slow
def test_what_changes_its_direction_stays_a_number_and_is_named(tmp_path):
    model = signed(MPTConv2D(8, 3, name="conv", seed=1, **SIGN), norm(), keras.layers.Activation("gelu"), norm())
    report, (found,) = outputs(model, tmp_path / "model.tflite", x := samples((8, 8, 4)), weights="integer")
    assert report.layers[0].why == "its results are needed as numbers, not only as signs"
    assert (found != model.predict(x, verbose=0)).mean() < 0.01


def test_a_batch_of_two_and_of_any_size(tmp_path):
    model, x = signed(MPTConv2D(8, 3, seed=1, **SIGN), norm()), samples((8, 8, 4))
    for batch, weights in ((2, "auto"), (None, "integer")):
        report, (found,) = outputs(model, tmp_path / "model.tflite", x, weights=weights, batch=batch)
        assert report.layers[0].form == ("integer" if batch else "exact int8")
        np.testing.assert_array_equal(found, model.predict(x, verbose=0))


def test_a_model_without_a_layer_of_integers_is_refused_by_name(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 2)), MPTConv2D(3, 3, seed=1, name="floats")])
    with pytest.raises(convert.ConversionError, match="'auto'.*'floats': float input"):
        convert.to_tflite(model, tmp_path / "model.tflite", weights="integer2")
    assert not list(tmp_path.iterdir())


def test_names_of_inputs_and_a_flattening_that_transposes(tmp_path):
    image = keras.Input((4, 4, 4), name="keras_mpt_1")
    conv = MPTConv2D(8, 3, seed=1, name="conv", **SIGN)
    y = keras.layers.Flatten(data_format="channels_first")(norm()(conv(norm()(image))))
    model = settled(keras.Model(image, MPTDense(3, seed=2, **SIGN)(y)))
    report, (found,) = outputs(model, tmp_path / "model.tflite", x := samples((4, 4, 4)))
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    assert [tensor.name for tensor in report.inputs] == ["keras_mpt_1"]


def test_outputs_whose_signs_are_taken_that_are_there_twice_or_are_the_input(tmp_path):
    image = keras.Input((4, 4, 4))
    y = norm()(MPTConv2D(8, 3, padding="same", seed=1, **SIGN)(norm()(image)))
    z = norm()(MPTDense(3, seed=2, **SIGN)(y))
    model, x = settled(keras.Model(image, [image, y, z, z])), samples((4, 4, 4))
    _, found = outputs(model, tmp_path / "model.tflite", x)
    for ours, theirs in zip(found, model.predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_outputs_that_are_always_equal(tmp_path):
    image, random = keras.Input((6,)), np.random.default_rng(0)
    layer = MPTDense(3, seed=1, **SIGN)
    y = norm(name="norm")(layer(image))
    signs = [keras.layers.Activation(quantizers.ApproxSign(), name=name)(y) for name in ("first", "again")]
    constant = keras.layers.Activation(quantizers.ApproxSign(), name="constant")(norm(gamma_initializer="zeros")(y))
    model = keras.Model(image, [*signs, MPTDense(3, seed=1, name="same")(image), constant])
    model.get_layer("norm").beta.assign([0.3, -0.2, 1e9])
    report, found = outputs(model, tmp_path / "model.tflite", x := random.normal(size=(8, 6)).astype("float32"))
    assert [tensor.name for tensor in report.outputs] == ["first", "again", "same", "constant"]
    for ours, theirs in zip(found, model.predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_dense_layers_of_several_rows_keep_eight_bits(tmp_path):
    image = keras.Input((6, 16))
    y = norm()(MPTDense(16, name="rows", seed=1, **SIGN)(norm()(image)))
    model = settled(keras.Model(image, MPTDense(8, name="row", seed=2, **SIGN)(keras.layers.Flatten()(y))))
    report, _ = outputs(model, tmp_path / "model.tflite", samples((6, 16)), weights="integer2_dense")
    assert {entry.name: entry.form for entry in report.layers} == {"rows": "integer", "row": "exact, 2 bits"}


@pytest.mark.slow
def test_a_layer_that_is_called_twice(tmp_path):
    layer, image = MPTDense(16, seed=1, **SIGN), keras.Input((16,))
    x = norm()(layer(norm()(layer(norm()(image)))))
    model = settled(keras.Model(image, MPTDense(3, seed=2, **SIGN)(x)))
    report, (found,) = outputs(model, tmp_path / "model.tflite", x := samples((16,), 16), weights="integer")
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    assert report.operations["FULLY_CONNECTED"] == 3
    # its calls turn other channels: behind the kernel, which is there once
    signs = keras.ops.convert_to_numpy(keras.ops.sign(layer.subnets[0].effective())).astype(np.int8)
    assert report.path.read_bytes().count(signs.T.tobytes()) == 1
