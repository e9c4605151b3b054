"""Files for microcontrollers, in TensorFlow Lite Micro's own interpreter."""

import os
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

from keras_mpt import convert
from keras_mpt.convert import tflm
from keras_mpt.convert.flatbuffer import File
from keras_mpt.layers import MPTConv1D, MPTConv2D, MPTDense

pytestmark = pytest.mark.tensorflow_only
SIGN = {"input_quantizer": "approx_sign"}


@pytest.fixture(autouse=True)
def extras():
    pytest.importorskip("tensorflow")
    pytest.importorskip("tflite_micro")


def settled(model):
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                spread = random.normal(0, 0.3, variable.shape)
                variable.assign(np.abs(spread) + 0.5 if "variance" in variable.name else spread)
    return model


def network(pad=1.0, **sign):
    """A stem, convolutions with and without strides, pooling, a residual sum, dense layers."""
    norm = keras.layers.BatchNormalization
    image = keras.Input((8, 8, 3), name="image")
    x = norm()(MPTConv2D(8, 3, padding="same", name="stem", seed=1)(image))
    y = norm()(MPTConv2D(8, 3, padding="same", pad_values=pad, name="conv1", seed=2, **sign)(x))
    y = norm()(MPTConv2D(8, 3, padding="same", pad_values=pad, name="conv2", seed=3, **sign)(y))
    x = keras.layers.Add()([x, y])
    x = keras.layers.MaxPooling2D()(MPTConv2D(8, 3, padding="same", pad_values=pad, name="conv3", seed=4, **sign)(x))
    x = keras.layers.Flatten()(norm()(x))
    x = norm()(MPTDense(16, name="dense", seed=5, **sign)(x))
    return settled(keras.Model(image, MPTDense(5, name="logits", seed=6, **sign)(x)))


def samples(shape=(8, 8, 3), number=8):
    return np.random.default_rng(1).normal(size=(number, *shape)).astype("float32")


def weight_bytes(path):
    """Return the bytes of all int8 kernels in a file, of their indices and tables if they are compressed."""
    file, buffers = File(path.read_bytes()), set()
    for op in file.graph.operators:
        inputs = {"CONV_2D": op.inputs[1:2], "FULLY_CONNECTED": op.inputs[1:2], "TFLM_DECODE": op.inputs}
        tensors = [file.graph.tensors[index] for index in inputs.get(file.kind(op), [])]
        buffers |= {tensor.buffer for tensor in tensors if tensor.type != 0}
    return sum(len(data) for index in buffers if (data := file.model.buffers[index].data) is not None)


@pytest.mark.parametrize(("pad", "compress"), [(1.0, True), pytest.param(0.0, False, marks=pytest.mark.slow)])
def test_integers_run_there_and_give_what_keras_gives(tmp_path, pad, compress):
    model, x = network(pad, **SIGN), samples()
    report = convert.to_tflm(model, tmp_path / "model.tflite", compress=compress, samples=x)
    forms = {layer.name: layer.form for layer in report.layers}
    if compress:
        with pytest.raises(ValueError, match="`path` must be .*model.tflite. `target` must be 'tflm'"):
            convert.run(report.path, "tflite", x)
    assert forms == {
        "stem": "float32",
        "conv1": "integer",
        "conv2": "exact int16",
        "conv3": "integer",
        "dense": "integer",
        "logits": "exact int16",
    }
    assert report.runtimes == ["TensorFlow Lite Micro"] and report.flips == 0
    kernels, biases = weight_bytes(report.path), 4 * (3 * 8 + 16 + 5)
    assert sum(layer.bytes for layer in report.layers if layer.name != "stem") == kernels + biases
    sizes = {layer.name: layer.bytes for layer in report.layers}
    assert sizes["dense"] == (2048 // 4 + 16 * 3 + 16 if compress else 2048) + 4 * 16  # tables of 3 values, and a head
    notes = dict(report.notes)
    assert int(re.match(r"[\d,]+", notes["Arena"]).group().replace(",", "")) > 8 * 8 * 8 * 4
    assert "AddConv2D();" in notes["Register"]
    found = convert.run(tmp_path / "model.tflite", "tflm", x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.slow
def test_sequences_run_there(tmp_path):
    model = settled(
        keras.Sequential(
            [
                keras.Input((16, 4)),
                MPTConv1D(8, 3, seed=1),
                keras.layers.BatchNormalization(),
                MPTConv1D(8, 3, seed=2, **SIGN),
                keras.layers.MaxPooling1D(2),
                keras.layers.BatchNormalization(),
                MPTConv1D(4, 3, seed=3, **SIGN),
            ]
        )
    )
    x = samples((16, 4))
    convert.to_tflm(model, tmp_path / "model.tflite", samples=x)
    found = convert.run(tmp_path / "model.tflite", "tflm", x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize("weights", [pytest.param("float32", marks=pytest.mark.slow), "int8"])
def test_float_activations(tmp_path, weights):
    model, x = network(), samples()
    report = convert.to_tflm(model, tmp_path / "model.tflite", weights=weights, samples=x)
    assert {layer.form for layer in report.layers} == {weights}
    file = File((tmp_path / "model.tflite").read_bytes())
    quantized = [tensor.quantization for tensor in file.graph.tensors if tensor.quantization is not None]
    scales = [len(entry.scale) for entry in quantized if entry.scale is not None]
    assert scales == ([] if weights == "float32" else [1] * 6)
    found = convert.run(tmp_path / "model.tflite", "tflm", x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-4)


def test_what_cannot_be_integers_is_refused_by_name(tmp_path):
    with pytest.raises(convert.ConversionError, match="'stem': float input"):
        convert.to_tflm(network(), tmp_path / "model.tflite")
    model = keras.Sequential(
        [keras.Input((4,)), MPTDense(3, kernel_quantizer=None, kernel_initializer="he_normal", name="values")]
    )
    with pytest.raises(convert.ConversionError, match="'values'.*magnitude"):
        convert.to_tflm(model, tmp_path / "model.tflite", weights="int8")
    with pytest.raises(ValueError, match="`compress` must be False for weights='float32'"):
        convert.to_tflm(model, tmp_path / "model.tflite", weights="float32", compress=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (lambda y: keras.ops.cast(keras.ops.argmax(y, axis=-1), "int64"), "Output type INT64 .* CAST"),
        (lambda y: keras.ops.cast(y, "uint8"), "Output type UINT8 .* CAST"),
        (keras.layers.Activation("gelu"), "Didn't find op for builtin opcode 'GELU'"),
    ],
    ids=["int64", "uint8", "gelu"],
)
def test_an_error_has_the_reason_of_the_runtime(ending, reason, tmp_path, capfd):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, ending(MPTDense(3, seed=1)(inputs)))
    with pytest.raises(convert.ConversionError, match=f"TensorFlow Lite Micro cannot run this model: .*{reason}"):
        convert.to_tflm(model, tmp_path / "model.tflite", weights="float32")
    assert not list(tmp_path.iterdir())
    os.write(2, b"still there")
    assert capfd.readouterr().err.endswith("still there")


def test_the_files_of_to_tflite_say_that_they_must_not_go_there(tmp_path):
    model = keras.Sequential([keras.Input((4,)), MPTDense(3, seed=1)])
    report = convert.to_tflite(model, tmp_path / "model.tflite", weights="int8")
    assert "to_tflm" in dict(report.notes)["Not for"]
    assert convert.metadata(report.path) == {}


def test_a_file_is_written_once_and_whole(tmp_path, monkeypatch):
    model, path = keras.Sequential([keras.Input((4,)), MPTDense(3, seed=1)]), tmp_path / "model.cc"
    report = convert.to_tflm(model, path, weights="float32")
    values = re.search(r"model\[\] = \{([^}]*)\}", path.read_text()).group(1).split(",")
    assert len(values) == report.bytes and "Arena" in dict(report.notes)
    assert File(bytes(int(value, 16) for value in values)).operations() == report.operations
    for suffix in (".cpp", ".CPP"):
        convert.to_tflm(model, path.with_suffix(suffix), weights="float32")
        assert path.with_suffix(suffix).read_bytes() == path.read_bytes()
        path.with_suffix(suffix).unlink()
    with pytest.raises(ValueError, match=r"`path` must end in \.cc or \.cpp .*Received: '.*model\.c'"):
        convert.to_tflm(model, path.with_suffix(".c"), weights="float32")
    monkeypatch.setattr(tflm, "arena_bytes", lambda content: 1 / 0)
    before = path.read_bytes()
    for name in ("model.cc", "other.cc"):
        with pytest.raises(ZeroDivisionError):
            convert.to_tflm(model, tmp_path / name, weights="float32")
    assert [other.name for other in tmp_path.iterdir()] == ["model.cc"] and path.read_bytes() == before


def test_names_of_operations_and_arrays_are_those_of_cpp():
    operations = {"PADV2": 2, "CONV_2D": 1, "FULLY_CONNECTED": 1, "BATCH_MATMUL": 1, "TFLM_DECODE": 2, "SELECT_V2": 1}
    found = re.findall(r"resolver\.(\w+)\(\);", tflm.resolver(operations))
    assert found == ["AddBatchMatMul", "AddConv2D", "AddFullyConnected", "AddPadV2", "AddSelectV2", "AddDecode"]
    names = {
        "digits": "digits",
        "my-model": "my_model",
        "8x8": "model_8x8",
        "switch": "model_switch",
        "nullptr": "model_nullptr",
    }
    assert {stem: tflm._identifier(stem) for stem in names} == names


def test_scales_of_channels_are_refused_which_the_runtime_would_not_read(tmp_path):
    layers = [MPTDense(8, seed=1), keras.layers.BatchNormalization()]
    model, x = settled(keras.Sequential([keras.Input((16,)), *layers])), samples((16,))
    convert.to_tflite(model, tmp_path / "model.tflite", weights="int8")
    np.testing.assert_allclose(convert.run(tmp_path / "model.tflite", "tflite", x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="`path` must be .*'tflm'.*a scale for each channel"):
        convert.run(tmp_path / "model.tflite", "tflm", x)


def test_look_up_tables_only_where_they_are_right_and_smaller():
    """Tables of different lengths are read wrongly by the runtime."""
    ternary = np.resize(np.array([-1, 0, 1], np.int8), (8, 300))
    assert tflm._table_bits(ternary) == 2 and tflm._table_bits(ternary[:, :8]) is None
    assert tflm._table_bits(np.where(ternary == 0, np.int8(1), ternary)) == 1
    ternary[0] = np.abs(ternary[0])
    assert tflm._table_bits(ternary) is None


@pytest.mark.slow
def test_a_kernel_that_is_not_compressed_is_named(tmp_path):
    model = keras.Sequential([keras.Input((64,)), MPTDense(32, seed=1, sparsity=0.9, name="pruned", **SIGN)])
    report = convert.to_tflm(model, tmp_path / "model.tflite", compress=True, samples=samples((64,)))
    assert dict(report.notes)["8 bits"].startswith("pruned: ")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_the_c_array_holds_the_file(tmp_path):
    content = bytes(range(256))
    source = "#include <cstdio>\nint main() { for (unsigned i = 0; i < model_len; i++) putchar(model[i]); }\n"
    (tmp_path / "main.cc").write_text(tflm.c_array(content, "model") + source)
    subprocess.run(["g++", "-o", tmp_path / "main", tmp_path / "main.cc"], check=True)
    assert subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout == content
