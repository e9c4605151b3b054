"""QONNX files compute what the model does, of nodes that FINN and hls4ml know, with thresholds between integers."""

import itertools
import re

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_mpt
from keras_mpt import convert, quantizers, zoo
from keras_mpt.__main__ import main
from keras_mpt.convert import ConversionError
from keras_mpt.convert.qonnx import graph as qonnx_graph
from keras_mpt.layers import MPTConv1D, MPTConv2D, MPTConv2DTranspose, MPTDense, MPTDepthwiseConv2D

pytestmark = pytest.mark.tensorflow_only
SIGN = {"input_quantizer": "approx_sign"}
FORMATS = ["channels_first", "channels_last"]


@pytest.fixture(autouse=True)
def extras():
    pytest.importorskip("tensorflow")
    pytest.importorskip("qonnx")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def settled(model, seed=0):
    """Give batch normalization statistics as if trained, and gammas of both signs."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            layer.moving_mean.assign(random.normal(0.3, 0.3, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, layer.moving_variance.shape))
            if layer.scale:
                layer.gamma.assign(random.normal(0, 1, layer.gamma.shape))
            if layer.center:
                layer.beta.assign(random.normal(0, 0.5, layer.beta.shape))
    return model


def chain(*layers, shape=(8, 8, 2)):
    return settled(keras.Sequential([keras.Input(shape), *layers]))


def on_grid(*shape, seed=0):
    """Images of eighths from -2 to 2."""
    return (np.random.default_rng(seed).integers(-16, 16, shape) / 8).astype(np.float32)


def exported(model, path, **kwargs):
    """Export a model that must be exact; return the report and the nodes."""
    import onnx

    kwargs.setdefault("samples", on_grid(12, *model.input_shape[1:]))
    report = convert.to_qonnx(model, path, **kwargs)
    assert report.flips == 0 and report.agreement == 1
    assert report.max_error < 1e-5 * report.scale and (report.piece_error or 0) < 1e-5
    expected = keras.ops.convert_to_numpy(model(kwargs["samples"]))
    np.testing.assert_allclose(convert.run(path, "qonnx", kwargs["samples"]), expected, atol=1e-5 * report.scale)
    return report, onnx.load(path).graph.node


def count(nodes, kind):
    return sum(node.op_type == kind for node in nodes)


def inputs_of(path):
    """Return the initializers of a file, and the nodes by what they give."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    return {x.name: numpy_helper.to_array(x) for x in graph.initializer}, {n.output[0]: n for n in graph.node}


PADDINGS = {
    "valid": {"padding": "valid"},
    "zeros": {"padding": "same"},
    "ones": {"padding": "same", "pad_values": 1.0},
    "minus ones": {"padding": "same", "pad_values": -1.0},
    "half": {"padding": "same", "pad_values": 0.5},
    "strides, zeros": {"padding": "same", "strides": 2},
    "strides, symmetric ones": {"padding": 1, "pad_values": 1.0, "strides": 2},
    "dilation": {"padding": "same", "dilation_rate": 2},
}


def each(cases, *quick):
    """Return the cases in each data format, all slow but the quick ones."""
    marks = {case: () if case in quick else (pytest.mark.slow,) for case in cases}
    return [pytest.param(case, name, marks=marks[case]) for case in cases for name in FORMATS]


@pytest.mark.parametrize("padding, data_format", each(PADDINGS, "zeros", "strides, symmetric ones"))
def test_paddings_of_images_and_signs(padding, data_format, path):
    settings = PADDINGS[padding]
    model = chain(
        MPTConv2D(4, 3, seed=0, **settings),
        kl.BatchNormalization(),
        MPTConv2D(6, 3, seed=1, **{**settings, "strides": 1}, **SIGN),
        kl.BatchNormalization(),
        kl.Flatten(),
        MPTDense(5, seed=2, **SIGN),
    )
    report, nodes = exported(model, path, data_format=data_format, input_precision=(5, 2))
    assert [layer.form for layer in report.layers] == ["ternary", "binary", "binary"]
    assert count(nodes, "Conv") == 2 and count(nodes, "MatMul") == 1
    shape = (1, 8, 8, 2) if data_format == "channels_last" else (1, 2, 8, 8)
    assert [x.shape for x in report.inputs] == [shape] and [x.shape for x in report.outputs] == [(1, 5)]


def pooled(*layers):
    return (MPTConv2D(6, 3, padding="same", seed=0), *layers, MPTConv2D(4, 2, seed=1, **SIGN), kl.Flatten())


BODIES = {
    "pool, norm": pooled(kl.MaxPooling2D(), kl.BatchNormalization()),
    "norm, pool": pooled(kl.BatchNormalization(), kl.MaxPooling2D()),
    "overlapping pool": pooled(kl.MaxPooling2D(3, 2, padding="same"), kl.BatchNormalization()),
    "average": pooled(kl.AveragePooling2D(3, 2), kl.BatchNormalization()),
    "zero padding": pooled(kl.BatchNormalization(), kl.ZeroPadding2D(((1, 0), (2, 1)))),
    "bias, relu, dropout": (MPTConv2D(6, 3, seed=0, use_bias=True, activation="relu"), kl.Dropout(0.5), kl.Flatten()),
    "groups": (MPTConv2D(6, 3, seed=0, groups=2), kl.BatchNormalization(), MPTConv2D(4, 3, seed=1, groups=2, **SIGN)),
    "depthwise": (
        MPTDepthwiseConv2D(3, depth_multiplier=2, seed=0),
        kl.BatchNormalization(),
        MPTDepthwiseConv2D(3, padding="same", seed=1, **SIGN),
        kl.BatchNormalization(),
        MPTConv2D(3, 1, seed=2, **SIGN),
    ),
    "global average": (
        MPTConv2D(6, 3, seed=0),
        kl.BatchNormalization(),
        MPTConv2D(6, 3, seed=1, **SIGN),
        kl.GlobalAveragePooling2D(),
        kl.BatchNormalization(),
        MPTDense(5, seed=2, **SIGN),
        kl.BatchNormalization(),
    ),
    "global average, kept axes": (MPTConv2D(6, 3, seed=0), kl.GlobalAveragePooling2D(keepdims=True), kl.Flatten()),
    "flat norm": (MPTConv2D(3, 3, seed=0), kl.Flatten(), kl.BatchNormalization(), MPTDense(5, seed=2, **SIGN)),
    "floats": (kl.Conv2D(4, 3, activation="relu"), MPTConv2D(4, 3, kernel_quantizer=None, seed=0), kl.Flatten()),
    "signs as an activation": (
        MPTConv2D(6, 3, seed=0),
        kl.BatchNormalization(),
        kl.Activation(keras_mpt.quantizers.ApproxSign()),
        MPTConv2D(4, 3, padding="same", seed=1),
        kl.BatchNormalization(),
    ),
}


@pytest.mark.parametrize("body, data_format", each(BODIES, "norm, pool", "global average"))
def test_layers(body, data_format, path):
    copies = [type(layer).from_config(layer.get_config()) for layer in BODIES[body]]
    exported(chain(*copies), path, data_format=data_format, input_precision=(5, 2))


@pytest.mark.parametrize("data_format", FORMATS)
def test_sums_of_branches(data_format, path):
    inputs = keras.Input((6, 6, 3))
    x = kl.BatchNormalization()(MPTConv2D(4, 3, padding="same", seed=0)(inputs))
    for i in range(2):  # each sum goes to a sign and past it
        value = 1.0 if data_format == "channels_last" else i
        y = kl.BatchNormalization()(MPTConv2D(4, 3, padding="same", seed=i + 1, pad_values=value, **SIGN)(x))
        x = kl.Add()([x, y])
    model = settled(keras.Model(inputs, MPTDense(3, seed=3, **SIGN)(kl.GlobalAveragePooling2D()(x))))
    _, nodes = exported(model, path, data_format=data_format)
    assert count(nodes, "Add") == 2


@pytest.mark.slow
def test_networks_of_the_zoo(path):
    for build, settings in itertools.product((zoo.conv2_mpt, zoo.resnet18_mpt), ({}, SIGN)):
        model = settled(build(width=0.06, seed=0, input_shape=(16, 16, 3), batch_norm_affine=True, **settings))
        exported(model, path, samples=np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32))


def test_thresholds_decide_as_keras_does_for_every_integer():
    random, channels, bound = np.random.default_rng(0), 40, 30
    alpha = random.uniform(0.01, 0.3, channels).astype(np.float32)
    norm = kl.BatchNormalization(epsilon=1e-3)
    norm.build((None, channels))
    gamma = random.normal(size=channels)
    gamma[:3] = 0
    mean = random.normal(0, 2, channels).astype(np.float32)
    mean[::2] = alpha[::2] * random.integers(-bound, bound, 20)  # on an integer
    mean[-2:] = 100, -100  # never reached
    norm.set_weights([gamma, np.where(np.arange(channels) % 4 < 2, 0, 0.1), mean, random.uniform(0.5, 2, channels)])
    tensor = qonnx_graph.Tensor("x", (channels,), qonnx_graph.Grid(1.0, bound))
    tensor = tensor.linked(qonnx_graph.scaled(alpha)).linked(qonnx_graph.normalized(norm))
    direction, threshold = qonnx_graph.half_way(tensor)
    n = np.arange(-bound, bound + 1, dtype=np.float32)[:, None]
    expected = keras.ops.convert_to_numpy(norm(alpha * n)) >= 0
    np.testing.assert_array_equal(direction * (n - threshold) > 0, expected)
    assert {1, -1} == set(direction.tolist()) and (threshold % 1 == 0.5).all()


def test_types_for_finn_and_half_integers(path):
    import onnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_datatypes import InferDataTypes

    model = chain(
        *(layer for i in range(3) for layer in (MPTDense(8, seed=i, **SIGN), kl.BatchNormalization())), shape=(16,)
    )
    report, _ = exported(model, path)
    constants, makers = inputs_of(path)
    signs = [node for node in makers.values() if node.op_type == "BipolarQuant"]
    norms = [makers[node.input[0]] for node in signs[1:]]
    assert len(signs) == 3
    for norm in norms:  # a threshold is a half, a sign of 1
        scale, offset, mean, variance = (constants[name] for name in norm.input[1:])
        assert (scale == 1).all() and (np.abs(offset) % 1 == 0.5).all() and not mean.any() and (variance == 1).all()
    kernels = [node for node in makers.values() if node.op_type == "Quant"]
    for node in kernels:
        kernel, scale, zero, bits = (constants[name] for name in node.input)
        assert set(np.unique(kernel)) == {-1, 0, 1} and (scale, zero, bits) == (1, 0, 2)
    inferred = ModelWrapper(onnx.load(path)).transform(InferDataTypes())
    assert {inferred.get_tensor_datatype(node.output[0]).name for node in signs} == {"BIPOLAR"}
    assert {inferred.get_tensor_datatype(node.input[0]).name for node in kernels} == {"TERNARY"}
    kept = sum(int(keras.ops.sum(layer.subnet_mask)) for layer in model.layers if isinstance(layer, MPTDense))
    assert report.cost["total_macs"] == kept and f"{kept:,} MACs" in str(report)


def test_a_wrong_threshold_is_found(path, monkeypatch):
    right = qonnx_graph.half_way
    monkeypatch.setattr(qonnx_graph, "half_way", lambda x: (right(x)[0], right(x)[1] + 2))
    model = chain(MPTDense(16, seed=0, **SIGN), kl.BatchNormalization(), MPTDense(4, seed=1, **SIGN), shape=(16,))
    with pytest.raises(ConversionError, match="differs from the model"):
        convert.to_qonnx(model, path)
    assert not path.exists()


def test_precision_of_inputs(path):
    model = chain(MPTDense(8, seed=0), kl.BatchNormalization(), MPTDense(4, seed=1, **SIGN), shape=(16,))
    samples = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    report = convert.to_qonnx(model, path, input_precision=(4, 2), samples=samples)
    rounded = np.clip(np.rint(samples * 4), -8, 7) / 4
    np.testing.assert_array_equal(convert.rounded(samples, (4, 2)), rounded)
    assert report.flips == 0 and report.max_error < 1e-5
    expected = keras.ops.convert_to_numpy(model(rounded))
    np.testing.assert_allclose(convert.run(path, "qonnx", samples), expected, atol=1e-5)
    assert not report.random and convert.to_qonnx(model, path, input_precision=tuple(np.array([4, 2]))).random


@pytest.mark.parametrize("data_format", FORMATS)
def test_precision_of_activations(data_format, path):
    first, second = MPTConv2D(4, 3, seed=0), MPTConv2D(6, 3, seed=1)
    model = chain(first, kl.BatchNormalization(), kl.ReLU(), second, kl.Flatten(), MPTDense(3, seed=2))
    samples = on_grid(20, 8, 8, 2)
    report = convert.to_qonnx(model, path, data_format=data_format, activation_precision=(4, 1), samples=samples)
    x = keras.ops.convert_to_numpy(model.layers[1](first(samples)))
    x = (np.clip(np.rint(x * 8), 0, 15) / 8).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model.layers[5](model.layers[4](second(x))))
    np.testing.assert_allclose(convert.run(path, "qonnx", samples), expected, atol=1e-5)
    assert report.max_error == pytest.approx(np.abs(expected - model(samples)).max(), rel=1e-3)


@pytest.mark.parametrize("data_format", FORMATS)
def test_names_are_those_of_the_model(data_format, path):
    """Also of an output that is given twice, and of signs, whichever models were converted before."""
    import onnx

    kl.Activation(quantizers.ApproxSign())(quantizers.ApproxSign()(keras.Input((2,))))  # others of the same class
    image = keras.Input((8, 8, 2), name="image")
    x = kl.BatchNormalization(name="norm")(MPTConv2D(4, 3, seed=0, padding="same", name="first")(image))
    x = MPTConv2D(4, 3, seed=1, padding="same", pad_values=1.0, name="second", **SIGN)(x)
    x = kl.BatchNormalization(name="norm2")(x)
    x = kl.Flatten(name="flat")(kl.Activation(quantizers.ApproxSign(), name="signs")(x))
    logits = MPTDense(3, seed=2, name="logits")(x)
    model = settled(keras.Model(image, {"a": logits, "b": logits, "c": x}))
    samples = on_grid(12, 8, 8, 2)
    report = convert.to_qonnx(model, path, data_format=data_format, samples=samples)
    assert [x.name for x in report.outputs] == ["a", "b", "c"]
    found, expected = convert.run(path, "qonnx", samples), model.predict(samples, verbose=0)
    for name in "abc":
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    graph = onnx.load(path).graph
    names = {x.name for x in (*graph.node, *graph.initializer)} | {name for node in graph.node for name in node.output}
    known = {"image", "first", "second", "norm", "norm2", "flat", "signs", "logits", *"abc"}
    assert not [name for name in names if not any(re.match(f"{each}(_|$)", name) for each in known)]


REFUSED = {
    "conv1d": (MPTConv1D(4, 3, seed=0, name="it"), (8, 2), "MPTConv1D is not one of"),
    "transposed": (MPTConv2DTranspose(4, 3, seed=0, name="it"), (8, 8, 2), "MPTConv2DTranspose is not one of"),
    "quantizer": (MPTDense(4, seed=0, input_quantizer="magnitude_aware_sign", name="it"), (8,), "does not give -1 or"),
    "softmax": (MPTDense(4, seed=0, activation="softmax", name="it"), (8,), "'softmax' is not relu"),
    "bounded relu": (kl.ReLU(6, name="it"), (8,), "a ReLU with a maximum"),
    "many axes": (MPTDense(4, seed=0, name="it"), (3, 8), "not one of features"),
    "another layer": (kl.LayerNormalization(name="it"), (8,), "LayerNormalization is not one of"),
    "another axis": (kl.BatchNormalization(axis=1, name="it"), (4, 4, 2), "axis 1, not the last"),
}


@pytest.mark.parametrize(
    "operation, message",
    [
        (lambda x: keras.ops.argmax(x, axis=-1), "'argmax.*' cannot be exported to QONNX: Argmax is not one of"),
        (lambda x: x + 1.0, "'add.*' cannot be exported to QONNX: it adds a constant"),
        (lambda x: keras.ops.add(np.ones(4, "float32"), x), "'add.*' cannot be exported to QONNX: it adds a constant"),
    ],
    ids=["argmax", "number", "array"],
)
def test_operations_without_a_form_are_refused(operation, message, path):
    features = keras.Input((8,))
    model = keras.Model(features, operation(MPTDense(4, seed=0)(features)))
    with pytest.raises(ConversionError, match=message):
        convert.to_qonnx(model, path)
    assert not path.exists()


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_form_is_refused_by_layer(case, path):
    layer, shape, message = REFUSED[case]
    model = keras.Sequential([keras.Input(shape), type(layer).from_config(layer.get_config())])
    with pytest.raises(ConversionError, match=f"'it' cannot be exported to QONNX: .*{message}"):
        convert.to_qonnx(model, path)
    assert not path.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data_format": "NCHW"}, "`data_format` must be one of"),
        ({"input_precision": 8}, "`input_precision` must be"),
        ({"input_precision": (8, 2.5)}, "`input_precision` must be"),
        ({"activation_precision": (0, 0)}, "`activation_precision` must be"),
        ({"activation_precision": (32, 8)}, "`activation_precision` must be"),
    ],
)
def test_other_arguments_are_refused(arguments, message, path):
    with pytest.raises(ValueError, match=message):
        convert.to_qonnx(chain(MPTDense(2, seed=0), shape=(4,)), path, **arguments)


def test_zeros_that_hls4ml_cannot_pad_with_are_refused(path):
    model = chain(MPTConv2D(4, 3, seed=0), kl.BatchNormalization(), MPTConv2D(4, 3, seed=1, padding="same", **SIGN))
    with pytest.raises(ConversionError, match="hls4ml cannot pad signs of floats with zeros"):
        convert.to_qonnx(model, path, data_format="channels_last")
    exported(model, path)


def test_inputs_of_unknown_size_are_refused(path):
    with pytest.raises(ValueError, match="known input size"):
        convert.to_qonnx(chain(MPTConv2D(2, 3, seed=0), shape=(None, None, 1)), path)


def test_another_file_is_no_onnx_model(path):
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not an ONNX model"):
        convert.run(path, "qonnx", np.zeros((1, 4)))


def test_command_line(tmp_path, capsys):
    ticket = tmp_path / "digits.mpt"
    keras_mpt.save_ticket(chain(MPTDense(8, seed=0), kl.BatchNormalization(), MPTDense(2, **SIGN), shape=(4,)), ticket)
    command = ["convert", str(ticket), str(tmp_path / "out.onnx"), "--target", "qonnx"]
    assert main([*command, "--data_format", "channels_last", "--input_precision", "5", "2"]) == 0
    assert "Conversion to qonnx" in capsys.readouterr().out


def emulated(path, folder, samples):
    """Return what hls4ml's C++ emulation of a file computes."""
    hls4ml = pytest.importorskip("hls4ml")
    import onnx

    model = onnx.load(path)
    config = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vitis", default_precision="ap_fixed<32,14>"
    )
    made = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(folder), backend="Vitis", hls_config=config, io_type="io_parallel"
    )
    made.compile()
    return made.predict(np.ascontiguousarray(samples))


# Of 1 bit, hls4ml has no zero to pad with, forgets a negative scale before a sign, and takes no sign of a sign.
EMULATED = {
    "dense": (
        (16,),
        (
            MPTDense(12, seed=0),
            kl.BatchNormalization(),
            MPTDense(12, seed=1, **SIGN),
            kl.BatchNormalization(),
            MPTDense(5, seed=2, **SIGN),
        ),
    ),
    "ones": (
        (6, 6, 2),
        (
            MPTConv2D(4, 3, padding="same", pad_values=1.0, seed=0),
            kl.BatchNormalization(),
            MPTConv2D(4, 3, padding="same", pad_values=1.0, seed=1, **SIGN),
            kl.MaxPooling2D(),
            kl.BatchNormalization(),
            MPTConv2D(4, 2, seed=2, **SIGN),
            kl.GlobalAveragePooling2D(),
            kl.BatchNormalization(),
            MPTDense(5, seed=3, **SIGN),
        ),
    ),
    "zeros": (
        (6, 6, 2),
        (
            MPTConv2D(4, 3, padding="same", seed=0),
            kl.BatchNormalization(),
            MPTConv2D(4, 3, padding="same", seed=1, **SIGN),
            kl.BatchNormalization(),
            kl.MaxPooling2D(),
            MPTConv2D(4, 2, seed=2, **SIGN),
            kl.BatchNormalization(),
            kl.Flatten(),
            MPTDense(5, seed=3, **SIGN),
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EMULATED)
def test_hls4ml_emulates_the_same(case, path, tmp_path):
    shape, body = EMULATED[case]
    model = chain(*(type(layer).from_config(layer.get_config()) for layer in body), shape=shape)
    samples = on_grid(100, *shape)
    exported(model, path, data_format="channels_last", input_precision=(5, 2), samples=samples)
    expected = keras.ops.convert_to_numpy(model(samples))
    found = emulated(path, tmp_path / "hls", samples)
    step = np.abs(expected[expected != 0]).min()  # the outputs are integers times this
    np.testing.assert_array_equal(np.rint(found / step), np.rint(expected / step))
