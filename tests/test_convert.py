"""Converted files compute what the model does, in the forms that the report names."""

import gzip
import itertools
import pathlib
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mpt
from keras_mpt import convert, quantizers, zoo
from keras_mpt.__main__ import main
from keras_mpt.convert import conversion
from keras_mpt.convert.flatbuffer import File, check_int8, sparse_size
from keras_mpt.convert.kernels import Kernel, border_excess, ternary
from keras_mpt.convert.lce import same_widths
from keras_mpt.convert.plan import Plan
from keras_mpt.convert.tensors import outputs_of
from keras_mpt.layers import MPTConv2D, MPTConv2DTranspose, MPTConv3D, MPTDense, MPTDepthwiseConv2D
from keras_mpt.models import mpt_layers
from support.layer_contract import numpy
from support.networks import nested_and_shared

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.tensorflow_only
SIGN = {"input_quantizer": "approx_sign"}
SLOW_TARGETS = [pytest.param(weights, marks=pytest.mark.slow) for weights in ("int8", "sparse_int8", "float32")]


@pytest.fixture(autouse=True)
def extras():
    pytest.importorskip("tensorflow")
    pytest.importorskip("larq_compute_engine")


def settled(model, seed=0):
    """Give batch normalization statistics and affine parameters as if trained, so that no activation is at zero."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                spread = random.normal(0.3, 0.2, variable.shape)
                variable.assign(np.abs(spread) + 0.5 if "variance" in variable.name else spread)
    return model


def norm():
    return keras.layers.BatchNormalization(epsilon=1e-3)


def chain(*layers, shape=(8, 8, 4), name=None):
    return settled(keras.Sequential([keras.Input(shape), *layers], name=name))


def to(target, model, path, **kwargs):
    if target == "lce":
        return convert.to_lce(model, path, **kwargs)
    return convert.to_tflite(model, path, weights=target, **kwargs)


def outputs_in(runtime, content, x):
    session = convert.tflite.TensorFlowLite().session(content, runtime)
    return outputs_of(session, [x], session.inputs[0].shape[0])[0]


def forms(report):
    return {layer.name: layer.form for layer in report.layers}


def binary_chain(**kwargs):
    return chain(
        MPTConv2D(8, 3, padding="same", name="stem", seed=1),
        norm(),
        MPTConv2D(8, 3, name="conv", seed=2, **SIGN, **kwargs),
        norm(),
        keras.layers.Flatten(),
        MPTDense(5, name="dense", seed=3, **SIGN),
    )


PADDINGS = {
    "valid": {"padding": "valid"},
    "same, ones": {"padding": "same", "pad_values": 1.0},
    "same, minus ones": {"padding": "same", "pad_values": -1.0},
    "same, zeros": {"padding": "same"},
    "same, half": {"padding": "same", "pad_values": 0.5},
    "strides, ones": {"padding": "same", "pad_values": 1.0, "strides": 2},
    "strides, symmetric ones": {"padding": 1, "pad_values": 1.0, "strides": 2},
    "strides, symmetric zeros": {"padding": 1, "strides": 2},
    "dilation": {"padding": "same", "dilation_rate": 2},
}


@pytest.mark.parametrize("target", ["lce", "exact_int8"])
def test_paddings_are_exact(target, tmp_path):
    """All in one model, which takes a ninth of the time; each on signs of its own, which no converter can merge."""
    image = keras.Input((8, 8, 4))
    x = MPTConv2D(8, 3, padding="same", name="stem", seed=1)(image)
    names = [f"conv{i}" for i in range(len(PADDINGS))]
    convs = [
        MPTConv2D(8, 3, name=name, seed=2, **SIGN, **how) for name, how in zip(names, PADDINGS.values(), strict=True)
    ]
    x = [keras.layers.Flatten()(norm()(conv(norm()(x)))) for conv in convs]
    x = MPTDense(5, name="dense", seed=3, **SIGN)(keras.layers.Concatenate()(x))
    report = to(target, settled(keras.Model(image, x)), tmp_path / "model.tflite")
    form = {"lce": "binary", "exact_int8": "exact int8"}[target]
    assert forms(report) == {"stem": "int8", **dict.fromkeys(names, form), "dense": form}
    assert report.flips == 0 and report.agreement == 1
    assert report.max_error < 1e-5 * report.scale and report.piece_error < 1e-5


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_kernels_of_any_sparsity(sparsity, tmp_path):
    report = convert.to_lce(binary_chain(sparsity=sparsity), tmp_path / "model.tflite")
    assert forms(report)["conv"] == "binary"
    assert report.operations["LceBconv2d"] == 2
    (layer,) = [layer for layer in report.layers if layer.name == "conv"]
    assert layer.bytes == 8 * 3 * 3 * 4 and layer.weights == 8 * 3 * 3 * 8  # 8 or 16 channels fit in one word
    assert layer.macs == layer.macs_1bit == 6 * 6 * layer.weights


@pytest.mark.slow
@pytest.mark.parametrize("target", ["lce", "auto", *SLOW_TARGETS])
@pytest.mark.parametrize("binary", [False, True])
def test_networks_of_the_zoo(target, binary, tmp_path):
    kwargs = {"seed": 0, "width": 0.25, "input_quantizer": "approx_sign" if binary else None}
    for model in (zoo.conv2_mpt(**kwargs), zoo.resnet20_mpt(sparsity=0.5, **kwargs)):
        report = to(target, settled(model), tmp_path / "model.tflite")
        assert [layer.name for layer in report.layers] == [layer.name for layer in mpt_layers(model)]
        assert report.bytes == (tmp_path / "model.tflite").stat().st_size
        assert report.gzip < report.bytes
        if binary and target == "lce":
            sign_layers = [layer.name for layer in mpt_layers(model) if layer.input_quantizer is not None]
            assert [name for name, form in forms(report).items() if form == "binary"] == sign_layers
            assert report.operations["LceBconv2d"] == len(sign_layers)


def test_shared_and_nested_layers(tmp_path):
    for target in ("lce", "auto"):
        report = to(target, settled(nested_and_shared()), tmp_path / "model.tflite")
        assert len(report.layers) == 4 and report.max_error < 1e-5 * max(report.scale, 1)


def test_a_shared_layer_on_signs_has_one_kernel_in_the_file(tmp_path):
    shared = MPTDense(8, seed=2, name="shared", **SIGN)
    inputs = keras.Input((8,))
    x = shared(shared(MPTDense(8, seed=1)(inputs)) + 0.3)
    report = convert.to_tflite(keras.Model(inputs, x), tmp_path / "model.tflite", weights="exact_int8")
    assert forms(report)["shared"] == "exact int8" and report.flips == 0
    file = File(report.path.read_bytes())
    kernels = [t for t in file.graph.tensors if t.type == file._schema.TensorType.INT8 and list(t.shape) == [8, 8]]
    assert len({tensor.buffer for tensor in kernels if file.model.buffers[tensor.buffer].data is not None}) == 2


@pytest.mark.parametrize("target", ["lce", "auto"])
def test_a_layer_called_twice_on_one_tensor_is_computed_once(target, tmp_path):
    twice = MPTDense(8, seed=2, name="twice", **SIGN)
    inputs = keras.Input((8,))
    x = MPTDense(8, seed=1)(inputs)
    report = to(target, keras.Model(inputs, twice(x) + 0.5 * twice(x)), tmp_path / "model.tflite")
    entry = next(layer for layer in report.layers if layer.name == "twice")
    assert entry.macs == entry.weights and report.flips == 0


def test_layers_on_zeros_and_ones_are_no_layers_on_signs(tmp_path):
    inputs = keras.Input((8, 8, 4))
    booleans = keras.ops.cast(inputs > 0, "float32")
    x = norm()(keras.layers.Conv2D(8, 3)(booleans))  # its kernel is not ternary
    step = {"padding": "same", "pad_values": 0.5, "input_quantizer": "ste_heaviside"}
    x = norm()(MPTConv2D(8, 3, name="step", seed=1, **step)(x))
    model = settled(keras.Model(inputs, MPTConv2D(4, 1, name="signs", seed=2, **SIGN)(x)))
    for weights, form in {"auto": "exact int8", "int8": "int8"}.items():
        report = convert.to_tflite(model, tmp_path / "model.tflite", weights=weights)
        assert forms(report)["step"] == "int8" and forms(report)["signs"] == form


def test_int8_has_the_bits_of_float32(tmp_path):
    model = chain(
        MPTConv2D(8, 3, padding="same", seed=1),
        norm(),
        keras.layers.ReLU(),
        MPTDepthwiseConv2D(3, seed=2, depth_multiplier=2),
        MPTConv2DTranspose(6, 3, strides=2, seed=3),
        keras.layers.Flatten(),
        MPTDense(5, seed=4, sparsity=0.9),
    )
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 4)).astype(np.float32)
    contents = {}
    for weights in ("float32", "int8", "sparse_int8", "auto"):
        convert.to_tflite(model, tmp_path / weights, weights=weights)
        contents[weights] = (tmp_path / weights).read_bytes()
    for runtime in convert.tflite.TensorFlowLite().runtimes():
        expected = outputs_in(runtime, contents["float32"], x)
        for weights in ("int8", "sparse_int8", "auto"):
            np.testing.assert_array_equal(outputs_in(runtime, contents[weights], x), expected)
    assert File(contents["int8"]).operations()["DEQUANTIZE"] == 4
    report = convert.to_tflite(model, tmp_path / "sparse", weights="sparse_int8")
    assert report.operations["DENSIFY"] == list(forms(report).values()).count("sparse int8") > 0
    saved = len(contents["int8"]) - report.bytes
    full = convert.to_tflite(model, tmp_path / "full", weights="int8")
    assert abs(sum(layer.bytes for layer in full.layers) - sum(layer.bytes for layer in report.layers) - saved) < 1500
    outputs = [8, 6, 16, 5]  # of the layers, each of which has a scale
    assert sorted(layer.bytes - layer.weights for layer in full.layers) == sorted(4 * n for n in outputs)
    assert "DENSIFY" in File(contents["sparse_int8"]).operations()
    assert len(gzip.compress(contents["int8"])) < len(gzip.compress(contents["float32"]))


@pytest.mark.parametrize("target", ["auto", "int8", "sparse_int8", "lce"])
def test_kernels_of_three_dimensions_are_int8_in_the_file(target, tmp_path):
    model = chain(MPTConv3D(8, 3, seed=1, sparsity=0.9), shape=(4, 4, 4, 8))
    report = to(target, model, tmp_path / "model.tflite")
    assert list(forms(report).values()) == ["int8"]
    assert report.operations["DEQUANTIZE"] == 1 and "DENSIFY" not in report.operations
    weights = 8 * 8 * 3**3
    assert report.layers[0].bytes == weights + 4 * 8 and report.bytes < 2 * weights
    if target == "int8":
        convert.to_tflite(model, tmp_path / "float.tflite", weights="float32")
        x = np.random.default_rng(1).normal(size=(2, 4, 4, 4, 8)).astype(np.float32)
        files = [(tmp_path / name).read_bytes() for name in ("model.tflite", "float.tflite")]
        for name in convert.tflite.TensorFlowLite().runtimes():
            found, expected = (outputs_in(name, content, x) for content in files)
            np.testing.assert_array_equal(found, expected)


def test_what_the_report_says_is_in_the_file(tmp_path, monkeypatch):
    monkeypatch.delitem(convert.flatbuffer._KERNEL_AXES, "FULLY_CONNECTED")
    model = chain(MPTConv2D(8, 3, seed=1), MPTDense(4, seed=2, name="dense"))
    for target in ("lce", "int8"):
        with pytest.raises(convert.ConversionError, match=r"kernels of .*'dense'.* Received: 1 int8 kernels"):
            to(target, model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_kernels_in_int8_have_the_sizes_of_their_layers():
    layer = MPTDense(4, seed=1, name="larger")
    layer.build((None, 4))
    kernel = Kernel(layer.subnets[0], "larger")
    kernel.format = convert.tflite.Int8()
    check_int8(types.SimpleNamespace(int8_kernels=lambda: [16]), [kernel])
    with pytest.raises(convert.ConversionError, match=r"'larger'.* \[16\] weights.* 1 int8 kernels with \[8\]"):
        check_int8(types.SimpleNamespace(int8_kernels=lambda: [8]), [kernel])


def test_operations_on_int8_have_a_version_that_knows_it(tmp_path):
    """Beside the same operation on floats, whose older version does not."""
    floats = {"kernel_quantizer": None, "kernel_initializer": "kaiming_normal", "sparsity": 0.1}
    model = chain(MPTConv2D(8, 3, seed=1, **floats), norm(), MPTConv2D(8, 3, seed=2, **SIGN))
    file = File(convert.to_tflite(model, tmp_path / "model.tflite").path.read_bytes())
    convolutions = [operator for operator in file.graph.operators if file.kind(operator) == "CONV_2D"]
    int8 = [op for op in convolutions if file.graph.tensors[op.inputs[1]].type == file._schema.TensorType.INT8]
    assert len(convolutions) == 2 and len(int8) == 1
    assert file.model.operatorCodes[int8[0].opcodeIndex].version >= 5


def test_signs_of_negative_scales_are_exact_int8(tmp_path):
    scale = norm()
    model = chain(MPTDense(8, seed=1), norm(), MPTDense(6, seed=2, name="signs", **SIGN), scale, shape=(6,))
    scale.gamma.assign(-np.abs(numpy(scale.gamma)))
    assert forms(convert.to_tflite(model, tmp_path / "model.tflite"))["signs"] == "exact int8"


def test_float_kernels_stay_float(tmp_path):
    model = chain(
        MPTConv2D(8, 3, kernel_quantizer=None, kernel_initializer="kaiming_normal", name="edge_popup", seed=1)
    )
    report = convert.to_tflite(model, tmp_path / "model.tflite")
    assert forms(report) == {"edge_popup": "float32"} and "magnitude" in report.layers[0].why
    for weights in ("int8", "sparse_int8", "exact_int8"):
        with pytest.raises(convert.ConversionError, match="edge_popup"):
            convert.to_tflite(model, tmp_path / "none.tflite", weights=weights)
    assert not (tmp_path / "none.tflite").exists()


def test_sparse_float_kernels_have_the_same_bits(tmp_path):
    edge_popup = {"kernel_quantizer": None, "kernel_initializer": "kaiming_normal", "sparsity": 0.9}
    model = chain(MPTConv2D(8, 3, seed=1, **edge_popup), keras.layers.Flatten(), MPTDense(300, seed=2, **edge_popup))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 4)).astype(np.float32)
    sparse, dense = (convert.to_tflite(model, tmp_path / kind, weights=kind) for kind in ("auto", "float32"))
    assert sparse.operations["DENSIFY"] == 2 and sparse.bytes < 0.3 * dense.bytes
    for report in (sparse, dense):
        assert 0.8 * report.bytes < sum(layer.bytes for layer in report.layers) < report.bytes
    for runtime in convert.tflite.TensorFlowLite().runtimes():
        found, expected = (outputs_in(runtime, report.path.read_bytes(), x) for report in (sparse, dense))
        np.testing.assert_array_equal(found, expected)


def test_sizes_of_what_is_stored_sparsely():
    """Values, their positions (a byte in rows of up to 256), ends of rows (two bytes for up to 65,535 values)."""
    assert sparse_size(np.ones((2, 256)), 4) == 512 * (4 + 1) + 2 * 2
    assert sparse_size(np.eye(2, 257), 1) == 2 * (1 + 2) + 2 * 2
    assert sparse_size(np.ones((2, 40_000)), 1) == 80_000 * (1 + 2) + 2 * 4


@pytest.mark.slow
def test_vgg_small_is_binary_but_for_stem_and_classifier(tmp_path):
    model = settled(zoo.vgg_small_mpt(sparsity=0.75, pad_values=1.0, seed=0, **SIGN))
    report = convert.to_lce(model, tmp_path / "model.tflite")
    taking_signs = [layer for layer in mpt_layers(model) if layer.input_quantizer is not None]
    assert report.operations["LceBconv2d"] == len(taking_signs) == 5
    binary, rest = ([x for x in report.layers if (x.form == "binary") == kind] for kind in (True, False))
    weights = sum(layer.weights for layer in binary)
    assert 8 * (report.bytes - sum(layer.bytes for layer in rest)) / weights < 2.2


@pytest.mark.parametrize("weights", ["float16", "dynamic_int8"])
def test_lossy_weights_say_how_lossy(weights, tmp_path):
    report = convert.to_tflite(settled(zoo.conv2_mpt(seed=0, width=0.25)), tmp_path / "model.tflite", weights=weights)
    assert 0 < report.max_error < 0.2 * report.scale
    assert 0.8 * report.bytes < sum(layer.bytes for layer in report.layers) < report.bytes


def test_what_cannot_be_binary_is_named(tmp_path):
    model = chain(
        MPTConv2D(32, 3, name="stem", seed=1),
        norm(),
        MPTConv2D(32, 3, groups=2, name="grouped", seed=2, **SIGN),
        norm(),
        MPTConv2D(8, 3, name="ternary_input", input_quantizer="ste_tern", seed=3),
        norm(),
        MPTConv2D(8, 1, name="good", seed=4, **SIGN),
    )
    report = convert.to_lce(model, tmp_path / "model.tflite")
    why = {layer.name: layer.why for layer in report.layers}
    assert why["stem"] == "float input" and "groups" in why["grouped"] and "SteTern" in why["ternary_input"]
    assert forms(report)["good"] == "binary" and why["good"] == ""
    for name in why:
        assert name in str(report)
    with pytest.raises(convert.ConversionError, match="grouped.*2 groups"):
        convert.to_lce(model, tmp_path / "none.tflite", require_binary=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.tflite"]


@pytest.mark.parametrize(
    "inputs, layers, message",
    [
        ((8, 4), [keras.layers.LSTM(3), MPTDense(2)], "TensorFlow Lite cannot convert this model: 'tf.TensorList"),
        ((5, 5, 5, 4), [MPTConv3D(2, 3, dilation_rate=2)], "TensorFlow Lite cannot convert .*: 'tf.SpaceToBatchND'"),
        ((3, 3, 3, 4), [MPTConv3D(2, 3, groups=2)], "cannot (run|convert) this model: .*(CONV_3D|Conv3D)"),
    ],
    ids=["loop", "dilated", "grouped"],
)
def test_what_an_engine_cannot_do_is_said(inputs, layers, message, tmp_path):
    with pytest.raises(convert.ConversionError, match=message):
        convert.to_tflite(keras.Sequential([keras.Input(inputs), *layers]), tmp_path / "model.tflite", batch=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unroll, batch", [(True, None), (False, 1)])
def test_loops_are_converted_where_they_are_unrolled_or_the_batch_is_known(unroll, batch, tmp_path):
    model = keras.Sequential([keras.Input((8, 4)), keras.layers.LSTM(3, unroll=unroll), MPTDense(2)])
    assert convert.to_tflite(model, tmp_path / "model.tflite", batch=batch).agreement == 1


def test_a_wrong_file_is_refused_and_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    right = convert.lce.binary
    monkeypatch.setattr(convert.lce, "binary", lambda kernel, x: 1.01 * right(kernel, x))
    with pytest.raises(convert.ConversionError, match="differs"):
        convert.to_lce(binary_chain(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_wrong_layer_is_found_where_the_outputs_hide_it(tmp_path, monkeypatch):
    model = binary_chain()
    monkeypatch.setattr(conversion.verify.Agreement, "add", lambda *args: None)
    right = convert.tflite.exact
    monkeypatch.setattr(convert.tflite, "exact", lambda kernel, x: right(kernel, x) + 1e-2 * (kernel.path == "conv"))
    with pytest.raises(
        convert.ConversionError, match="In tf.lite, the file differs from the model by .* before .*, given"
    ):
        convert.to_tflite(model, tmp_path / "model.tflite", weights="exact_int8")


def test_state_that_is_no_weight_is_converted(tmp_path):
    random = np.random.default_rng(0)
    adapted = keras.layers.Normalization()
    adapted.adapt(random.normal(5, 3, (100, 8, 8, 4)))
    model = chain(adapted, MPTConv2D(4, 3, seed=1), keras.layers.Flatten(), MPTDense(3, seed=2), shape=(8, 8, 4))
    samples = random.normal(5, 3, (5, 8, 8, 4)).astype(np.float32)
    convert.to_tflite(model, tmp_path / "model.tflite", samples=samples)
    found = convert.run(tmp_path / "model.tflite", "tflite", samples)
    np.testing.assert_allclose(found, model.predict(samples, verbose=0), rtol=1e-4, atol=1e-4)


def test_a_graph_that_is_not_the_models_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.plan, "bake", lambda source, target: None)
    layers = [keras.layers.Dense(8, bias_initializer="ones", name="plain"), MPTDense(4, seed=2)]
    with pytest.raises(convert.ConversionError, match="differs from the model"):
        convert.to_tflite(chain(*layers, shape=(4,)), tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_many_flips_are_warned_of_and_hide_no_wrong_piece(tmp_path, monkeypatch):
    """Without normalization sums are often exactly zero in the model: rounding decides in most samples."""
    layers = [MPTConv2D(1, 3, seed=1), norm(), MPTConv2D(32, 3, seed=2, **SIGN), keras.layers.Flatten()]
    model = chain(*layers, MPTDense(3, seed=3, **SIGN))
    with pytest.warns(UserWarning, match="differs from the model in .* of 16 samples.*exactly zero"):
        report = convert.to_tflite(model, tmp_path / "model.tflite")
    assert report.flips > 1 and report.piece_error < 1e-5
    right = convert.tflite.exact
    monkeypatch.setattr(convert.tflite, "exact", lambda kernel, x: 1.01 * right(kernel, x))
    with pytest.raises(convert.ConversionError, match="given the signs before"):
        convert.to_tflite(model, tmp_path / "model.tflite", weights="exact_int8")


def test_names_that_become_equal_when_nested_models_dissolve(tmp_path):
    stage = chain(keras.layers.Dense(4, name="norm"), shape=(4,), name="stage")
    model = chain(stage, keras.layers.Dense(4, name="stage_norm"), MPTDense(2, seed=1), shape=(4,))
    assert convert.to_tflite(model, tmp_path / "model.tflite").agreement == 1


@pytest.mark.parametrize("model", [None, keras.Sequential([MPTDense(2)])])
def test_what_is_no_built_model_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`model` must be a built functional or Sequential model to be converted"):
        convert.to_tflite(model, tmp_path / "model.tflite")


def test_a_file_does_not_replace_what_it_is_made_from(tmp_path):
    path = tmp_path / "model.mpt"
    ticket = keras_mpt.save_ticket(chain(MPTDense(3, seed=1), shape=(4,)), path)
    content = path.read_bytes()
    for source in (path, ticket, str(path)):
        with pytest.raises(ValueError, match="`path` must be another file than the one that is read"):
            convert.to_tflite(source, path)
    assert path.read_bytes() == content


def test_what_is_no_tflite_file_is_not_run(tmp_path):
    ticket = keras_mpt.save_ticket(chain(MPTDense(3, seed=1), shape=(4,)), tmp_path / "model.mpt")
    with pytest.raises(ValueError, match="The file is not a TensorFlow Lite file"):
        convert.run(ticket.path, "tflite", np.ones((1, 4), "float32"))


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="`path` must be that of a file"):
        convert.to_tflite(chain(MPTDense(3, seed=1), shape=(4,)), tmp_path)


def test_samples_must_be_finite(tmp_path):
    samples = np.zeros((3, 4), "float32")
    samples[1, 2] = np.nan
    with pytest.raises(ValueError, match="`samples` must be finite.*in sample 1"):
        convert.to_tflite(chain(MPTDense(3, seed=1), shape=(4,)), tmp_path / "model.tflite", samples=samples)


def test_the_report_says_what_runs_the_file(tmp_path):
    report = convert.to_tflite(chain(MPTDense(3, seed=1), shape=(4,)), tmp_path / "model.tflite")
    assert convert.run(report.path, report.target, np.ones((2, 4), "float32")).shape == (2, 3)


@pytest.mark.parametrize("target", ["auto", "lce"])
@pytest.mark.parametrize("between", [keras.layers.Identity, keras.layers.Dropout])
def test_a_dense_layer_behind_batch_normalization_stays_int8(target, between, tmp_path):
    """Converters merge a scale before a dense layer into its kernel where there is a bias."""
    if target == "lce":
        pytest.importorskip("larq_compute_engine")
    between = between(0.5) if between is keras.layers.Dropout else between()
    norms = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
    model = chain(MPTDense(6, seed=1), norms[0], between, MPTDense(5, seed=2), norms[1], shape=(8,))
    random = np.random.default_rng(0)
    for norm in norms:
        norm.set_weights([random.uniform(0.5, 1.5, w.shape) for w in norm.get_weights()])
    samples = random.normal(size=(10, 8)).astype(np.float32)
    report = to(target, model, tmp_path / "model.tflite", samples=samples)
    assert forms(report) == {layer.name: "int8" for layer in mpt_layers(model)}
    np.testing.assert_allclose(
        convert.run(report.path, report.target, samples), model.predict(samples, verbose=0), rtol=1e-4, atol=1e-5
    )


STRIDED = {"strides": 2, "seed": 1}


BEFORE_STRIDES = {
    "conv": lambda: [MPTConv2D(4, 3, padding=1, **STRIDED)],
    "grouped": lambda: [MPTConv2D(4, 3, padding=1, groups=2, **STRIDED)],
    "depthwise": lambda: [MPTDepthwiseConv2D(3, padding=1, **STRIDED)],
    "depthwise_ones": lambda: [
        MPTDepthwiseConv2D(3, padding=1, depth_multiplier=2, pad_values=1.0, use_bias=True, **STRIDED),
    ],
    "depthwise_signs": lambda: [MPTDepthwiseConv2D(3, padding=1, **STRIDED, **SIGN)],
    "before_plain": lambda: [
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(4, 3, strides=2),
        MPTConv2D(4, 1, seed=2),
    ],
    "before": lambda: [keras.layers.ZeroPadding2D(3), MPTConv2D(4, 7, **STRIDED)],
    "before_depthwise": lambda: [keras.layers.ZeroPadding2D(1), MPTDepthwiseConv2D(3, **STRIDED)],
}


@pytest.mark.parametrize("size", [8, 9])
def test_lce_reads_padding_with_strides(size, tmp_path):
    """Its converter takes explicit padding with strides for "SAME", which pads the other side. One model with an input
    for each case is converted in an eighth of the time."""
    pytest.importorskip("larq_compute_engine")
    images = {name: keras.Input((size, size, 4), name=f"{name}_image") for name in BEFORE_STRIDES}
    outputs = {name: keras.Sequential(layers())(images[name]) for name, layers in BEFORE_STRIDES.items()}
    model, random = settled(keras.Model(list(images.values()), outputs)), np.random.default_rng(0)
    samples = [random.normal(size=(4, size, size, 4)).astype(np.float32) for _ in images]
    report = convert.to_lce(model, tmp_path / "model.tflite", samples=samples)
    found, expected = convert.run(report.path, "lce", samples), model.predict(samples, verbose=0)
    assert found.keys() == expected.keys() == BEFORE_STRIDES.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_lce_reads_the_padding_of_channels_first(tmp_path):
    pytest.importorskip("larq_compute_engine")
    layer = MPTConv2D(4, 3, strides=2, padding=1, data_format="channels_first", seed=1)
    assert convert.to_lce(chain(layer, shape=(4, 8, 8)), tmp_path / "model.tflite").agreement == 1


@pytest.mark.parametrize("interactive", [True, False])
def test_logging_stays_as_it_was(interactive, tmp_path):
    set_logging = {True: keras.config.enable_interactive_logging, False: keras.config.disable_interactive_logging}
    before = keras.config.is_interactive_logging_enabled()
    set_logging[interactive]()
    try:
        convert.to_tflite(chain(MPTDense(3, seed=1), shape=(4,)), tmp_path / "model.tflite")
        assert keras.config.is_interactive_logging_enabled() == interactive
    finally:
        set_logging[before]()


def test_boolean_inputs(tmp_path):
    inputs = keras.Input((6,), dtype="bool")
    model = keras.Model(inputs, [MPTDense(4, seed=1, **SIGN)(inputs), inputs])
    assert convert.to_tflite(model, tmp_path / "model.tflite").max_error < 1e-5


def test_padded_pixels(tmp_path):
    inputs = keras.Input((6, 6, 2), dtype="uint8")
    model = keras.Model(inputs, MPTConv2D(4, 3, padding="same", pad_values=-1.0, seed=1)(inputs))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 2)).astype(np.uint8)
    kernel = keras.ops.convert_to_numpy(model.layers[1].kernel)
    padded = np.pad(pixels.astype(np.float32), [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-1)
    found = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(found[0, 0, 0], np.tensordot(padded[0, :3, :3], kernel, 3), rtol=1e-4)
    assert convert.to_tflite(model, tmp_path / "model.tflite").max_error < 1e-3


def test_a_file_that_gives_nan_is_refused(tmp_path):
    """float16 has no numbers as small as these weights."""
    inputs = keras.Input((4,))
    x = MPTDense(8, seed=1, kernel_quantizer=quantizers.ScaledSign(1e-9))(inputs)
    x = keras.ops.divide(x, keras.ops.sum(keras.ops.abs(x), axis=-1, keepdims=True))
    with pytest.raises(convert.ConversionError, match="gives NaN or infinity where the model gives numbers"):
        convert.to_tflite(keras.Model(inputs, MPTDense(3, seed=2)(x)), tmp_path / "model.tflite", weights="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "activation, message",
    [("gelu", "operation Erfc. Exact GELU needs it: .*approximate=True"), ("softsign", "operation Softsign. Use")],
)
def test_operations_that_an_engine_lacks_are_named(activation, message, tmp_path):
    pytest.importorskip("larq_compute_engine")
    model = chain(MPTDense(8, seed=1), keras.layers.Activation(activation), MPTDense(3, seed=2, **SIGN), shape=(6,))
    said = f"larq-compute-engine cannot run this model: it has no {message}.*`to_tflite`"
    with pytest.raises(convert.ConversionError, match=said):
        convert.to_lce(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["lce", "tflite"])
def test_custom_gradients_do_not_matter(target, tmp_path):
    if target == "lce":
        pytest.importorskip("larq_compute_engine")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, MPTDense(3, seed=2)(keras.activations.silu(MPTDense(8, seed=1)(inputs))))
    assert getattr(convert, f"to_{target}")(model, tmp_path / "model.tflite").max_error < 1e-5


def test_files_of_another_kind_are_no_files_of_a_target(tmp_path):
    """Runtimes raise errors of several classes, and some crash."""
    pytest.importorskip("larq_compute_engine")
    model, x = chain(MPTDense(32, seed=2, **SIGN), shape=(32,)), np.ones((2, 32), "float32")
    files = {name: tmp_path / f"{name}.tflite" for name in ("lce", "cut", "text", "empty", "missing")}
    convert.to_lce(model, files["lce"])
    files["cut"].write_bytes(files["lce"].read_bytes()[:900])
    files["text"].write_text("a text of some length")
    files["empty"].touch()
    wrong = {("lce", "tflite"): "`target` must be 'lce'"}
    wrong |= {("cut", target): "The file is damaged" for target in ("tflite", "lce")}
    wrong |= {(name, target): "lacks the identifier" for name in ("text", "empty") for target in ("tflite", "lce")}
    for (name, target), message in wrong.items():
        for fails in (lambda: convert.run(files[name], target, x), lambda: convert.latency(files[name], target)):  # noqa: B023
            with pytest.raises(ValueError, match=f"`path` must be .*{target!r}. Received: .*{name}.tflite.*{message}"):
                fails()
    for target in ("tflite", "lce"):
        with pytest.raises(FileNotFoundError, match="missing.tflite"):
            convert.run(files["missing"], target, x)
        with pytest.raises(IsADirectoryError):
            convert.run(tmp_path, target, x)
    with pytest.raises(ValueError, match="`path` must be .*cut.tflite. The file is damaged"):
        convert.metadata(files["cut"])


def test_a_sample_of_large_outputs_hides_no_wrong_one():
    """What is rounding for one sample is none for another."""
    expected, wrong = np.array([[1, 0.5], [100, 0]], "float32"), np.array([[1, 0.5005], [100, 0]], "float32")
    with pytest.raises(convert.ConversionError, match="differs from the model by 0.0005 .* in 1 of 2 samples"):
        conversion.verify.Agreement([]).add(expected, [], wrong)
    close = np.array([[1, 0.50005], [100.005, 0]], "float32")
    agreement = conversion.verify.Agreement([])
    agreement.add(expected, [], close)
    assert agreement.same == 2 and agreement.flips == 0


def test_differences_of_bytes_do_not_wrap_around():
    with pytest.raises(convert.ConversionError, match="differs from the model by 2 "):
        conversion.verify.Agreement([]).add(np.array([[0, 9]], "uint8"), [], np.array([[2, 9]], "uint8"))


def test_nan_agrees_with_nothing():
    nan = np.full((1, 2), np.nan, "float32")
    with pytest.raises(convert.ConversionError, match="differs from the model"):
        conversion.verify.Agreement([]).add(nan, [], nan)
    with pytest.raises(convert.ConversionError, match="the model gives NaN for 1 of 2 samples"):
        conversion.verify.Agreement([]).add(np.array([[np.nan, 1], [1, 1]], "float32"), [], np.ones((2, 2), "float32"))


def test_infinities_agree_with_the_same_ones_only():
    expected = np.array([[-np.inf, 2, 1], [np.inf, 0, 5]], "float32")  # such as logits of classes that cannot be
    agreement = conversion.verify.Agreement([])
    agreement.add(expected, [], expected)
    assert (agreement.same, agreement.flips, agreement.max_error, agreement.scale) == (2, 0, 0, 5)
    for found in (-expected, np.where(np.isinf(expected), 0, expected), expected + np.float32(0.1)):
        with pytest.raises(convert.ConversionError, match="differs from the model by (inf|0.1)"):
            conversion.verify.Agreement([]).add(expected, [], found)
    with pytest.raises(convert.ConversionError, match="NaN or infinity where the model gives numbers"):
        conversion.verify.Agreement([]).add(expected, [], np.where(expected == 1, np.inf, expected))


def test_flips_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.tensors, "BATCH", 3)
    model = chain(MPTDense(16, seed=1, name="first"), MPTDense(4, seed=2, **SIGN), shape=(4,))
    samples = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    samples[2] = 0  # every activation is at zero, where the sign is +1
    right = convert.tflite.exact
    monkeypatch.setattr(convert.tflite, "exact", lambda kernel, x: right(kernel, x - 1e-7))
    report = convert.to_tflite(model, tmp_path / "model.tflite", weights="exact_int8", samples=samples)
    assert report.flips == 1 and report.samples == 8 and report.max_error < 1e-5
    same = convert.run(report.path, "tflite", samples).argmax(-1) == model.predict(samples, verbose=0).argmax(-1)
    assert report.agreement == same.mean()


def test_tickets_and_paths(tmp_path):
    model = settled(zoo.conv2_mpt(seed=0, width=0.1))
    ticket = keras_mpt.save_ticket(model, tmp_path / "model.mpt")
    reports = [convert.to_tflite(source, tmp_path / "out.tflite") for source in (model, ticket, ticket.path)]
    assert len({str(report.operations) for report in reports}) == 1
    assert all(report.max_error < 1e-5 for report in reports)


def test_given_samples_and_bad_arguments(tmp_path):
    model, path = chain(MPTConv2D(2, 3, seed=1)), tmp_path / "model.tflite"
    assert convert.to_tflite(model, path, samples=np.ones((3, 8, 8, 4))).samples == 3
    with pytest.raises(ValueError, match=r"`samples` must have shape \(number, 8, 8, 4\)"):
        convert.to_tflite(model, path, samples=np.ones((3, 8, 8, 5)))
    with pytest.raises(ValueError, match="`samples` must be at least one"):
        convert.to_tflite(model, path, samples=np.ones((0, 8, 8, 4)))
    with pytest.raises(ValueError, match="`target` must be one of .*'tflite'.*Received: target='tfl'"):
        convert.latency(path, "tfl")
    with pytest.raises(ValueError, match="`target` must be one of .*'tflite'.*Received: target='tfl'"):
        convert.run(path, "tfl", np.ones((3, 8, 8, 4)))
    with pytest.raises(
        ValueError, match=r"`samples` must have shape \(number, 8, 8, 4\).*Received: shape \(3, 8, 8, 5"
    ):
        convert.run(path, "tflite", np.ones((3, 8, 8, 5)))
    with pytest.raises(ValueError, match="weights"):
        convert.to_tflite(model, path, weights="int7")


def test_images_of_any_size(tmp_path):
    path, pooled = tmp_path / "model.tflite", keras.layers.GlobalAveragePooling2D
    stem = {"padding": "same", "name": "stem", "seed": 1}
    model = chain(MPTConv2D(4, 3, **stem), pooled(), shape=(None, None, 3))
    report = convert.to_tflite(model, path)
    for size in (8, 12):
        samples = np.random.default_rng(0).normal(size=(2, size, 9, 3)).astype(np.float32)
        found, expected = convert.run(path, "tflite", samples), model.predict(samples, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-5 * report.scale)
    for shape in ((2, 8, 8, 4), (2, 8, 3)):
        with pytest.raises(ValueError, match=r"`samples` must have shape \(number, None, None, 3\)"):
            convert.run(path, "tflite", np.ones(shape))
    with pytest.raises(ValueError, match=r"`path` must be .* known input size.*shape \(None, None, None, 3\)"):
        convert.latency(path, "tflite")
    plain = chain(keras.layers.Conv2D(4, 3), pooled(), MPTDense(2, seed=1), shape=(None, None, 3))
    strided = chain(MPTConv2D(4, 3, strides=2, **stem), pooled(), shape=(None, None, 3))
    for refused, what in ((model, "layer 'stem'"), (strided, "layer 'stem'"), (plain, "inputs")):
        message = rf"`model` must have a known input size.*{what} of shape \(None, None, None, 3\)"
        with pytest.raises(ValueError, match=message):
            convert.to_lce(refused, tmp_path / "none.tflite")
    assert list(tmp_path.iterdir()) == [path]


def test_a_scale_of_the_whole_batch_is_that_of_one_sample_in_the_engine(tmp_path):
    model = chain(MPTConv2D(8, 3, seed=1), MPTConv2D(4, 3, seed=2, input_quantizer="magnitude_aware_sign"))
    samples = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    report = convert.to_lce(model, tmp_path / "model.tflite", samples=samples[:1])
    assert list(forms(report).values()) == ["int8", "int8"] and "MagnitudeAwareSign" in report.layers[1].why
    expected = np.concatenate([model.predict(sample[None], verbose=0) for sample in samples])
    np.testing.assert_allclose(convert.run(report.path, "lce", samples), expected, atol=1e-5 * report.scale)


TERN = quantizers.SteTern(ternary_weight_networks=True)


@pytest.mark.parametrize(
    ("second", "batch"),
    [
        (MPTConv2D(4, 3, seed=2, input_quantizer=TERN), 1),
        (keras.layers.Activation(TERN), None),
        (keras.layers.Activation(quantizers.MagnitudeAwareSign()), 1),
        (MPTConv2D(4, 3, seed=2, activation=quantizers.MagnitudeAwareSign()), 2),
        (keras.layers.TimeDistributed(MPTDense(4, seed=2, activation=TERN)), 1),
    ],
)
def test_a_quantizer_of_the_whole_batch_is_compared_on_batches_of_the_file(second, batch, tmp_path):
    model = chain(MPTConv2D(8, 3, seed=1), type(second).from_config(second.get_config()))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32) * np.float32([[[[1]]], [[[9]]]])
    report = convert.to_tflite(model, tmp_path / "model.tflite", weights="float32", samples=x, batch=batch)
    together, alone = model.predict(x, verbose=0), [model.predict(sample[None], verbose=0) for sample in x]
    expected, other = (np.concatenate(alone), together) if batch == 1 else (together, np.concatenate(alone))
    found = convert.run(report.path, "tflite", x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * report.scale)
    assert np.abs(found - other).max() > 1e-2 * report.scale


def test_mixed_precision_is_deployed_in_float32(tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = binary_chain(padding="same")
    finally:
        keras.config.set_dtype_policy(policy)
    assert convert.to_lce(model, tmp_path / "model.tflite").max_error < 1e-4


def test_report_prints_in_80_columns(tmp_path):
    report = convert.to_lce(binary_chain(), tmp_path / "model.tflite")
    assert all(len(line) <= 80 for line in str(report).splitlines()), str(report)
    assert "<table>" in report._repr_html_() and "LceBconv2d" in str(report)
    size = f"{report.bytes:,} bytes"
    assert repr(report) == f"<Report of 'model.tflite' for {report.engine}: {len(report.layers)} kernels, {size}>"
    args = [report.path, "qonnx", "QONNX", report.layers[:1], {}, 10, 5]
    assert repr(convert.QonnxReport(*args)) == "<QonnxReport of 'model.tflite' for QONNX: 1 kernel, 10 bytes>"


@pytest.mark.slow
def test_command_line(tmp_path):
    keras_mpt.save_ticket(binary_chain(), tmp_path / "model.mpt")
    np.save(tmp_path / "samples.npy", np.ones((2, 8, 8, 4), np.float32))
    command = [sys.executable, "-m", "keras_mpt", "convert", str(tmp_path / "model.mpt"), str(tmp_path / "out.tflite")]
    options = ["--target", "lce", "--samples", str(tmp_path / "samples.npy"), "--benchmark", "--gzip"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert gzip.decompress((tmp_path / "out.tflite.gz").read_bytes()) == (tmp_path / "out.tflite").read_bytes()
    assert "2 samples" in result.stdout and "ms for one sample here, 2 threads" in result.stdout
    result = subprocess.run([*command, "--weights", "int7"], capture_output=True, text=True)
    assert result.returncode == 1 and "int7" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--require_binary"], "--require_binary needs --target lce. Received: --target tflite"),
        (["--target", "lce", "--weights", "int8"], "--weights needs --target tflite or tflm. Received: --target lce"),
        (
            ["--samples", "complex.npy"],
            "`samples` must be a file of real numbers. Received: complex.npy with complex128",
        ),
        (["--samples", "x.txt"], "`samples` must be a file of numpy.save, or of numpy.savez with the inputs' names."),
    ],
    ids=str,
)
def test_options_that_the_command_line_cannot_follow(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("x.txt").write_text("1, 2")
    np.save("complex.npy", np.zeros(3, complex))
    assert main(["convert", "no.mpt", "no.tflite", *options]) == 1
    assert message in capsys.readouterr().err


def test_the_sample_for_the_raspberry_pi(tmp_path):
    pytest.importorskip("ai_edge_litert")
    preset = zoo.get_preset("conv4_mpt32_s50")
    shutil.copy(preset.published("tflite"), tmp_path / "conv4.tflite")
    pixels = preset.golden_images()[0]
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned to the right
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=turned)
    assert classified(tmp_path, "conv4.tflite", "noise.png").startswith(preset.classes[np.argmax(preset.golden[0])])
    assert classified(tmp_path, "conv4.tflite", "turned.png") == classified(tmp_path, "conv4.tflite", "noise.png")


def classified(folder, file, picture):
    """Return what the sample says of a picture: class and probability."""
    command = [sys.executable, str(EXAMPLES / "edge" / "classify.py"), file, picture]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name, found = result.stdout.split(": ")
    assert name == picture
    return found.partition(",")[0]


def test_the_sample_takes_files_that_normalize_pixels_themselves(tmp_path):
    pytest.importorskip("ai_edge_litert")
    preset = zoo.get_preset("conv4_mpt32_s50")
    layers = [MPTConv2D(4, 3, seed=1), keras.layers.Flatten(), MPTDense(10, seed=2)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    convert.to_tflite(model, tmp_path / "floats.tflite")
    convert.to_tflite(model, tmp_path / "pixels.tflite", preprocess=preset)
    Image.fromarray(preset.golden_images()[0]).save(tmp_path / "noise.png")
    assert classified(tmp_path, "pixels.tflite", "noise.png") == classified(tmp_path, "floats.tflite", "noise.png")


def test_no_folder_for_the_file_is_found_out_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be in a folder that exists.*nowhere"):
        convert.to_tflite(tmp_path / "no.mpt", tmp_path / "nowhere" / "x.tflite")
    with pytest.raises(FileNotFoundError, match="^`model` must be .*no.mpt. No such file"):
        convert.to_tflite(tmp_path / "no.mpt", tmp_path / "x.tflite")
    with pytest.raises(ValueError, match="^`model` must be of the form hf://"):
        convert.to_tflite("hf://no", tmp_path / "x.tflite")


def test_missing_engine(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)
    with pytest.raises(ImportError, match=r"larq-compute-engine needs an extra .*keras-mpt\[lce\]"):
        convert.to_lce(binary_chain(), tmp_path / "model.tflite")


@pytest.mark.parametrize("size, kernel, stride, rate", [*itertools.product([5, 8], [1, 3, 4], [1, 2, 3], [1, 2])])
def test_same_widths_are_tensorflows(size, kernel, stride, rate):
    if stride > 1 and rate > 1:
        pytest.skip("no convolution has both")
    x = np.random.default_rng(0).normal(size=(1, size, size, 1)).astype(np.float32)
    taps = np.ones((kernel, kernel, 1, 1), np.float32)
    how = {"strides": stride, "dilation_rate": rate}
    padded = np.pad(x, same_widths(x.shape, taps.shape, (stride, stride), (rate, rate)))
    expected = keras.ops.conv(x, taps, padding="same", **how)
    np.testing.assert_allclose(keras.ops.conv(padded, taps, padding="valid", **how), expected, rtol=1e-5, atol=1e-5)


def test_border_excess_is_what_zero_padding_lacks():
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 5, 5, 3)).astype(np.float32), random.normal(size=(3, 3, 3, 4))
    widths = [(0, 0), (1, 1), (2, 0), (0, 0)]
    one, zero = (np.pad(x, widths, constant_values=value) for value in (1, 0))
    expected = keras.ops.conv(one, kernel.astype(np.float32)) - keras.ops.conv(zero, kernel.astype(np.float32))
    found = border_excess(keras.ops.convert_to_tensor(x), widths, 1.0, kernel, padding="valid")
    np.testing.assert_allclose(numpy(found) * np.ones((2, 1, 1, 1)), numpy(expected), rtol=1e-4, atol=1e-5)


def test_ternary():
    kernel = np.array([[0.5, 0, 0.2], [-0.5, 0, 0.2]], np.float32)
    signs, scales = ternary(kernel)
    assert signs.tolist() == [[1, 0, 1], [-1, 0, 1]] and scales.tolist() == [0.5, 1.0, np.float32(0.2)]
    np.testing.assert_array_equal(signs * scales, kernel)
    assert ternary(np.array([[0.5], [0.25]], np.float32)) is None


def test_rebuilding_dissolves_nested_models():
    model = settled(nested_and_shared())
    plain = Plan(model).reference.model
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    np.testing.assert_allclose(numpy(plain(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)
    assert not any(isinstance(layer, (keras.Model, keras_mpt.layers.MPTLayer)) for layer in plain.layers)


def test_inputs_by_name_outputs_in_a_dict(tmp_path):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8)(inputs=MPTDense(8, seed=1)(inputs=inputs))
    model = keras.Model(inputs, {"logits": MPTDense(3, seed=2, **SIGN)(inputs=hidden)})
    report = convert.to_tflite(model, tmp_path / "model.tflite")
    assert report.agreement == 1


def test_a_model_that_takes_integers_is_checked_with_integers(tmp_path):
    inputs = keras.Input((6,), dtype="uint8")
    model = keras.Model(inputs, MPTDense(3, seed=1)(keras.layers.Rescaling(1 / 255)(inputs)))
    (samples,) = conversion.samples_for(Plan(model), None)
    assert samples.dtype == "uint8" and samples.max() > 1  # pixels
    assert convert.to_tflite(model, tmp_path / "model.tflite").agreement == 1
