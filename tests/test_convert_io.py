"""Converted files: several inputs and outputs, names, types, batches, samples of all kinds."""

import hashlib
import itertools
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt import convert
from keras_mpt.convert.tensors import Tensor, arrays_for
from keras_mpt.layers import MPTConv2D, MPTDense
from keras_mpt.models import to_mpt

pytestmark = pytest.mark.tensorflow_only
ROOT = pathlib.Path(__file__).resolve().parent.parent
SIGN = {"input_quantizer": "approx_sign"}
L = keras.layers


@pytest.fixture(autouse=True)
def extras():
    pytest.importorskip("tensorflow")
    pytest.importorskip("larq_compute_engine")


def to(target, model, path, **kwargs):
    return convert.to_lce(model, path, **kwargs) if target == "lce" else convert.to_tflite(model, path, **kwargs)


def settled(model):
    """Give batch normalization statistics as if trained, so that no activation is at zero."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def residual():
    """Both kinds of residual blocks of MLPerf Tiny's image classification, with the names that Keras gives layers."""
    x = inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization()(L.Conv2D(8, 3, padding="same", use_bias=False)(x))
    for filters, stride in ((8, 1), (16, 2)):
        y = L.BatchNormalization()(L.Conv2D(filters, 3, stride, "same", use_bias=False)(x))
        y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        x = x if stride == 1 else L.BatchNormalization()(L.Conv2D(filters, 1, stride, use_bias=False)(x))
        x = L.Add()([x, y])
    x = L.Concatenate()([L.GlobalAveragePooling2D()(x), L.GlobalMaxPooling2D()(x)])
    return settled(to_mpt(keras.Model(inputs, L.Dense(10)(L.Reshape((32,))(x))), seed=1, **SIGN))


NEW_PROCESS = """
import sys
import keras, numpy as np
from keras_mpt import convert, load_ticket
from keras_mpt.__main__ import main
from keras_mpt.models import strip

x = np.load("x.npy")
expected = load_ticket("model.mpt")(x)
np.testing.assert_allclose(strip(load_ticket("model.mpt"))(x), expected, rtol=1e-4, atol=1e-4)
for target, function in {"tflite": convert.to_tflite, "lce": convert.to_lce}.items():
    keras.backend.clear_session()
    report = function("model.mpt", f"{target}.tflite", samples=x)
    assert report.flips <= 1, report
keras.backend.clear_session()
assert main(["convert", "model.mpt", "again.tflite", "--samples", "x.npy"]) == 0
"""


@pytest.mark.parametrize("new_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_with_default_names(new_process, tmp_path, monkeypatch):
    """What conversion adds must not meet them, though Keras counts names from the beginning, as in a new process."""
    keras.backend.clear_session()
    model, x = residual(), np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    keras_mpt.save_ticket(model, tmp_path / "model.mpt")
    assert "add_1" in [layer.name for layer in model.layers]
    np.save(tmp_path / "x.npy", x)
    monkeypatch.chdir(tmp_path)
    if not new_process:
        keras.backend.clear_session()
        exec(NEW_PROCESS, {})
        return
    command = [sys.executable, "-c", NEW_PROCESS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]


def two_and_two():
    images, numbers = keras.Input((8, 8, 3), name="images"), keras.Input((6,), name="numbers")
    x = L.BatchNormalization()(MPTConv2D(8, 3, seed=1)(images))
    x = L.BatchNormalization()(MPTConv2D(8, 3, seed=2, **SIGN)(x))
    y = L.BatchNormalization()(MPTDense(16, seed=3)(numbers))
    joined = L.Concatenate()([L.GlobalAveragePooling2D()(x), MPTDense(8, seed=4, **SIGN)(y)])
    outputs = {"label": MPTDense(5, seed=5)(joined), "box": L.Dense(2)(joined)}
    return settled(keras.Model({"numbers": numbers, "images": images}, outputs))


@pytest.mark.parametrize("target", ["tflite", "lce"])
def test_several_inputs_and_outputs(target, tmp_path):
    model, random = two_and_two(), np.random.default_rng(0)
    x = {"images": random.normal(size=(5, 8, 8, 3)), "numbers": random.normal(size=(5, 6))}
    x = {name: array.astype(np.float32) for name, array in x.items()}
    report = to(target, model, tmp_path / "model.tflite", samples=x)
    assert [layer.form for layer in report.layers if layer.type.startswith("MPT")].count("int8") == 3
    assert [tensor.name for tensor in report.inputs] == [tensor.name for tensor in model.inputs]
    assert [tensor.name for tensor in report.outputs] == ["box", "label"] and report.flips == 0
    assert [tensor.shape for tensor in report.inputs] == [(1, 8, 8, 3), (1, 6)]
    expected = model(x)
    for samples in (x, [x["images"], x["numbers"]]):
        found = convert.run(report.path, target, samples)
        assert sorted(found) == ["box", "label"]
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)
    assert convert.latency(report.path, target) > 0
    for samples, message in (
        (x["images"], r"`samples` must be a list or dict .* \['images', 'numbers'\].*Received: an array of shape"),
        ([x["images"]], "Received: 1 arrays"),
        ({"images": x["images"]}, r"must be a dict with the inputs \['images', 'numbers'\]"),
        ({**x, "images": x["images"][:2]}, r"as many for each input. Received: \[2, 5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.run(report.path, target, samples)


def deciding(sign):
    """A model that gives logits, the class, and the smallest logit's index with its axis kept."""
    image = keras.Input((6, 6, 2), name="image")
    x = L.BatchNormalization()(MPTConv2D(8, 3, seed=1)(image))
    x = L.Flatten()(L.BatchNormalization()(MPTConv2D(8, 3, seed=2, **sign)(x)))
    logits = L.BatchNormalization(name="logits")(MPTDense(5, seed=3, **sign)(x))
    least = keras.ops.argmin(logits, axis=1, keepdims=True)
    return settled(keras.Model(image, [logits, keras.ops.argmax(logits, axis=-1), least]))


@pytest.mark.parametrize("sign", [{}, SIGN], ids=["float", "sign"])
@pytest.mark.parametrize("target", ["tflite", "lce", "tflm"])
def test_models_that_decide_on_a_class(target, sign, tmp_path):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    model, x = deciding(sign), np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype(np.float32)
    chosen = {"weights": "integer" if sign else "int8"} if target == "tflm" else {}
    report = getattr(convert, f"to_{target}")(model, tmp_path / "model.tflite", samples=x, **chosen)
    assert [(y.shape, y.dtype) for y in report.outputs[1:]] == [((1,), "int32"), ((1, 1), "int32")]
    assert report.flips == 0 and report.agreement == 1
    logits, largest, least = convert.run(report.path, target, x).values()
    np.testing.assert_allclose(logits, model(x)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(largest, np.argmax(model(x)[0], axis=1))
    np.testing.assert_array_equal(least[:, 0], np.argmin(model(x)[0], axis=1))


class Argmax(keras.Operation):
    """An operation of one's own, which is not that of Keras."""

    def call(self, x):
        return keras.ops.sum(x, axis=1)


@pytest.mark.parametrize("weights", ["integer", "float32"])
def test_rounding_may_choose_among_equal_classes(weights, tmp_path):
    """Sums of signs are often equal, times a scale only up to rounding: such a sample counts as flipped."""
    x, signs = np.random.default_rng(0).normal(size=(200, 63)).astype("float32"), keras.Input((63,), name="image")
    logits = MPTDense(40, seed=1, **SIGN)(L.BatchNormalization()(MPTDense(255, seed=0)(signs)))
    model = keras.Model(signs, [logits, keras.ops.argmax(logits, axis=-1), Argmax()(logits)])
    report = convert.to_tflite(model, tmp_path / "model.tflite", weights=weights, samples=x)
    expected = [np.asarray(y) for y in model(x)]
    found = list(convert.run(report.path, "tflite", x).values())
    other = found[1] != expected[1]
    leads = np.diff(np.sort(expected[0])[:, -2:])[:, 0] / np.abs(expected[0]).max(axis=1)
    assert 0 < other.sum() <= report.flips and leads[other].max() < 1e-5
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-3)


def test_a_wrong_class_is_found(tmp_path, monkeypatch):
    right = convert.kernels.Argmax.call
    monkeypatch.setattr(convert.kernels.Argmax, "call", lambda self, x: right(self, x[:, :4]))
    image = keras.Input((64,))
    model = keras.Model(image, keras.ops.argmax(MPTDense(5, seed=1)(image), axis=-1))
    with pytest.raises(convert.ConversionError, match="The graph to convert differs from the model"):
        convert.to_tflite(model, tmp_path / "model.tflite")


def test_a_class_is_compared_exactly(tmp_path):
    """A neighbour of a large number is another class, and a lossy file keeps only equal ones."""
    ours, theirs = np.array([20_000, 3]), np.array([20_001, 3])
    with pytest.raises(convert.ConversionError, match="differs from the model by 1 .* in 1 of 2 samples"):
        convert.conversion.verify.Agreement([]).add(ours, [], theirs)
    agreement = convert.conversion.verify.Agreement([])
    agreement.add(ours, [], theirs, lossy=True)
    assert agreement.same == 1
    image = keras.Input((64,), name="image")
    model = keras.Model(image, keras.ops.argmax(MPTDense(50, seed=1)(image), axis=-1))
    x = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    report = convert.to_tflite(model, tmp_path / "model.tflite", weights="dynamic_int8", samples=x)
    same = convert.run(report.path, "tflite", x) == model.predict(x, verbose=0)
    assert report.agreement == same.mean() < 1


def test_a_wrong_output_of_two_is_found(tmp_path, monkeypatch):
    right = convert.tflite.ExactInt8.call
    monkeypatch.setattr(convert.tflite.ExactInt8, "call", lambda self, kernel, x: 1.01 * right(self, kernel, x))
    with pytest.raises(convert.ConversionError, match="differs from the model"):
        convert.to_tflite(two_and_two(), tmp_path / "model.tflite", weights="exact_int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["tflite", "lce"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_that_the_model_fixes(target, size, tmp_path):
    inputs = keras.Input((6, 6, 2), batch_size=size)
    x = L.Flatten()(L.BatchNormalization()(MPTConv2D(4, 3, seed=1)(inputs)))
    model = settled(keras.Model(inputs, MPTDense(3, seed=2, **SIGN)(x)))
    if target == "lce" and size == 3:
        with pytest.raises(ValueError, match="batches of one.*batch size 3"):
            to(target, model, tmp_path / "model.tflite")
        return
    samples = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype(np.float32)
    report = to(target, model, tmp_path / "model.tflite", samples=samples)
    assert report.inputs[0].shape[0] == size and report.samples == 4
    found = convert.run(report.path, target, samples)
    whole = np.concatenate([samples, samples[:2]])[:, None] if size == 1 else np.stack([samples[:3], samples[1:]])
    expected = np.concatenate([model(batch) for batch in whole])
    expected = expected[:4] if size == 1 else np.concatenate([expected[:3], expected[-1:]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_first_batch_is_not_that_of_the_file(tmp_path):
    """Keras makes it a part of the input's shape, for Sequential models without `keras.Input`."""
    model = keras.Sequential([MPTDense(3, seed=1)])
    expected = model(samples := np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32))
    assert model.inputs[0].shape[0] == 5
    report = convert.to_tflite(model, tmp_path / "model.tflite", samples=samples)
    assert report.inputs[0].shape == (1, 6) and report.samples == 5
    np.testing.assert_allclose(convert.run(report.path, "tflite", samples), expected, rtol=1e-5)


def test_a_model_without_weights(tmp_path):
    report = convert.to_tflite(keras.Sequential([keras.Input((6,)), L.Rescaling(2.0)]), tmp_path / "model.tflite")
    assert report.layers == [] and "Total" in str(report)


def test_inputs_of_half_precision(tmp_path):
    """The model rounds its inputs, the file does not."""
    inputs = keras.Input((6,), dtype="float16")
    report = convert.to_tflite(keras.Model(inputs, MPTDense(3, seed=1)(inputs)), tmp_path / "model.tflite")
    assert report.inputs[0].dtype == "float32" and report.max_error < 1e-5
    assert "the model computes in float16; the file" in dict(report.notes)["Precision"]


def test_the_batch_of_the_file(tmp_path):
    model = keras.Sequential([keras.Input((6,), name="x"), MPTDense(3, seed=1, name="logits")])
    samples = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    for batch in (1, 2, None):
        report = convert.to_tflite(model, tmp_path / "model.tflite", batch=batch)
        assert report.inputs == [Tensor("x", (batch, 6), "float32")]
        assert report.outputs == [Tensor("logits", (batch, 3), "float32")]
        assert "x (" in str(report) and "float32" in str(report)
        np.testing.assert_allclose(convert.run(report.path, "tflite", samples), model(samples), rtol=1e-5)
    with pytest.raises(ValueError, match="`batch` must be an integer > 0. Received: batch=0"):
        convert.to_tflite(model, tmp_path / "model.tflite", batch=0)
    with pytest.raises(FileNotFoundError, match="`model` must be a ticket file. Received: missing.mpt"):
        convert.to_tflite("missing.mpt", tmp_path / "model.tflite")


@pytest.mark.parametrize("target", ["tflite", "lce"])
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_types_of_inputs_are_kept(target, dtype, tmp_path):
    inputs = keras.Input((6, 6, 2), dtype=dtype, name="pixels")
    x = L.BatchNormalization()(MPTConv2D(4, 3, seed=1)(L.Rescaling(1 / 255)(inputs)))
    model = settled(keras.Model(inputs, MPTConv2D(3, 1, seed=2, **SIGN)(x)))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 2)).astype(dtype)
    report = to(target, model, tmp_path / "model.tflite", samples=pixels)
    assert report.inputs == [Tensor("pixels", (1, 6, 6, 2), dtype)]
    np.testing.assert_allclose(convert.run(report.path, target, pixels), model(pixels), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"`samples` must be {dtype} for input 'pixels'. Received: float64 from 0.5"):
        convert.run(report.path, target, np.full((1, 6, 6, 2), 0.5))


def test_strings_are_refused(tmp_path):
    words = keras.Input((1,), dtype="string", name="words")
    lookup = L.StringLookup(vocabulary=["a", "b"])(words)
    model = keras.Model(words, MPTDense(2, seed=1)(L.Flatten()(L.Embedding(4, 3)(lookup))))
    with pytest.raises(ValueError, match="`model` must take numbers .*Received: input 'words' of strings"):
        convert.to_tflite(model, tmp_path / "model.tflite")


@pytest.mark.parametrize(
    ("end", "shape"),
    [(keras.ops.argmax, r"\(\)"), (lambda y: keras.ops.sum(y, axis=0), r"\(3,\)"), (keras.ops.max, r"\(\)")],
)
def test_outputs_of_all_samples_together_are_refused(end, shape, tmp_path):
    x = keras.Input((4,))
    y = MPTDense(3, seed=1)(x)
    model = keras.Model(x, {"logits": y, "whole": end(y)})
    with pytest.raises(ValueError, match=f"`model` must have outputs with an entry .*output 'whole' of shape {shape}"):
        convert.to_tflite(model, tmp_path / "model.tflite")


INPUTS = [Tensor("a", (1, 3), "float32"), Tensor("b", (1, 2), "uint8")]
ARRAYS = [np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(8, dtype=np.uint8).reshape(4, 2)]


def kinds_of_samples():
    import tensorflow as tf

    a, b = ARRAYS
    named = {"a": a, "b": b}
    yield [a, b]
    yield {"b": b.astype(np.float64), "a": a.tolist()}
    yield tf.data.Dataset.from_tensor_slices(named).batch(3)
    yield tf.data.Dataset.from_tensor_slices((named, np.zeros(4))).batch(2)
    yield lambda: ([a[i : i + 1], b[i : i + 1]] for i in range(4))
    yield ([[a[i : i + 2], b[i : i + 2]], np.zeros(2)] for i in (0, 2))
    yield Halves()


class Halves(keras.utils.PyDataset):
    """Behind its end, it has empty batches."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return [array[2 * index : 2 * index + 2] for array in ARRAYS], np.zeros(2)


def test_samples_of_all_kinds():
    for samples in kinds_of_samples():
        for found, expected in zip(arrays_for(INPUTS, samples), ARRAYS, strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    for batches in (
        (ARRAYS[0][i : i + 1] for i in range(4)),
        ([ARRAYS[0][i : i + 1], np.zeros(1)] for i in range(4)),  # as PyTorch's loaders have them
    ):
        np.testing.assert_array_equal(arrays_for(INPUTS[:1], batches)[0], ARRAYS[0])
    assert len(arrays_for(INPUTS[:1], itertools.repeat(ARRAYS[0]))[0]) == 100
    for samples, message in {
        "x.npy": "read the file, with numpy.load.*Received: 'x.npy'",
        (1, 2): "must be inputs only.*Received: a tuple of 2",
        3: "must be an array, a list or dict .*Received: int",
        lambda: [ARRAYS[0], [[1, 2], [3]]]: "must be an array for input 'b'. Received: list",
        iter(()): "must be at least one",
    }.items():
        with pytest.raises(ValueError, match=message):
            arrays_for(INPUTS, samples)


def test_samples_in_a_tuple_are_those_of_a_model_whose_inputs_are_one(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model, x = keras.Model((a, b), MPTDense(2, seed=1)(a - b)), np.random.default_rng(0).normal(size=(2, 5, 3))
    report = convert.to_tflite(model, tmp_path / "model.tflite", samples=tuple(x))
    assert report.samples == 5
    found = convert.run(report.path, "tflite", {"a": x[0], "b": x[1]})
    np.testing.assert_allclose(found, model(tuple(x)), rtol=1e-5)
    with pytest.raises(ValueError, match="`samples` must be inputs only.*Received: a tuple of 2"):
        convert.to_tflite(keras.Model([a, b], model((a, b))), tmp_path / "model.tflite", samples=tuple(x))


def test_a_small_network_is_converted_fast(tmp_path):
    """7,526 weights took 14 seconds of processor time."""
    convert.to_tflite(keras.Sequential([keras.Input((4,)), MPTDense(2, seed=1)]), tmp_path / "warm.tflite")
    layers = [MPTConv2D(8, 3, padding="same", seed=1), L.BatchNormalization(), L.MaxPooling2D()]
    layers += [MPTConv2D(16, 3, padding="same", seed=2, **SIGN), L.BatchNormalization(), L.MaxPooling2D(), L.Flatten()]
    layers += [MPTDense(22, seed=3, **SIGN), L.BatchNormalization(), MPTDense(10, seed=4, **SIGN)]
    model = settled(keras.Sequential([keras.Input((16, 16, 1)), *layers]))
    start = time.process_time()
    convert.to_tflite(model, tmp_path / "model.tflite")
    assert time.process_time() - start < 7


def test_the_report_lists_all_matrices(tmp_path):
    inputs = keras.Input((5, 8))
    x = L.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    report = convert.to_tflite(keras.Model(inputs, MPTDense(3, seed=1)(x)), tmp_path / "model.tflite")
    attention = next(layer for layer in report.layers if layer.name == "attention")
    assert (
        attention.weights == 4 * 8 * 8 + 3 * 8
        and attention.bytes == 4 * attention.weights
        and attention.form == "float32"
    )


class Pixels:
    """A small network of images, and its normalization in numpy."""

    mean, std = (0.5, 0.25, 0.4), (0.25, 0.5, 0.2)

    def __init__(self, **sign):
        image = keras.Input((8, 8, 3), name="image")
        x = L.BatchNormalization()(MPTConv2D(8, 3, padding="same", seed=1)(image))
        x = L.BatchNormalization()(MPTConv2D(8, 3, padding="same", pad_values=1.0, seed=2, **sign)(x))
        self.model = settled(keras.Model(image, MPTDense(5, name="logits", seed=3)(L.Flatten()(x))))
        self.images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)

    def expected(self):
        return self.model.predict((self.images / 255 - self.mean) / self.std, verbose=0)


SLOW = [pytest.param(target, marks=pytest.mark.slow) for target in ("lce", "tflm")]


@pytest.mark.parametrize("target", ["integer2", *SLOW])
def test_a_file_that_normalizes_pixels_and_says_what_it_is(target, tmp_path):
    network, path = Pixels(**SIGN), tmp_path / "model.tflite"
    keras_mpt.save_ticket(network.model, tmp_path / "model.mpt")
    how = {"preprocess": (Pixels.mean, Pixels.std), "labels": list("abcde"), "samples": network.images}
    if target == "tflm":
        pytest.importorskip("tflite_micro")
        report = convert.to_tflm(tmp_path / "model.mpt", path, **how)
    elif target == "lce":
        report = convert.to_lce(tmp_path / "model.mpt", path, **how)
    else:
        report = convert.to_tflite(tmp_path / "model.mpt", path, weights=target, **how)
    assert report.inputs == [Tensor("image", (1, 8, 8, 3), "uint8")] and report.outputs[0].name == "logits"
    assert "(pixels / 255 - [0.5, 0.25, 0.4]) / [0.25, 0.5, 0.2]" in dict(report.notes)["Preprocess"]
    found = convert.run(path, "lce" if target == "lce" else report.target, network.images)
    np.testing.assert_allclose(found, network.expected(), rtol=1e-4, atol=1e-4)
    facts = convert.metadata(path)
    assert facts["labels"] == list("abcde")
    assert facts["preprocess"] == {"mean": [0.5, 0.25, 0.4], "std": [0.25, 0.5, 0.2]}
    assert facts["ticket"]["sha256"] == hashlib.sha256((tmp_path / "model.mpt").read_bytes()).hexdigest()


def test_what_normalizes_and_what_is_said_of_it_must_fit(tmp_path):
    model, path = keras.Sequential([keras.Input((4, 4, 3), name="image"), MPTConv2D(2, 3, seed=1)]), tmp_path / "x"
    two = keras.Model([a := keras.Input((3,), name="a"), b := keras.Input((3,), name="b")], L.Add()([a, b]))
    whole = keras.Sequential([keras.Input((3,), name="number", dtype="int32"), L.Embedding(9, 2)])
    decided = keras.Model(x := keras.Input((3,), 2), keras.ops.argmax(MPTDense(5, seed=1)(x), axis=-1))
    for which, how, message in (
        (model, {"preprocess": "torhc"}, "`preprocess` must be None, a pair .*Did you mean 'torch'"),
        (model, {"preprocess": (0.5,)}, "`preprocess` must be None, a pair .*Received: preprocess=\\(0.5,\\)"),
        (model, {"preprocess": (0.5, 0)}, "std > 0"),
        (model, {"preprocess": ((0.5, 0.5), 1)}, "each channel of input 'image', the last axis .*Received: 2"),
        (two, {"preprocess": (0.5, 1)}, "`preprocess` must be None for a model with 2 inputs"),
        (whole, {"preprocess": (0.5, 1)}, "`preprocess` must be None for a model of integers: input 'number'"),
        (model, {"labels": ["a"]}, "`labels` must be 2 strings, one for each class"),
        (decided, {"labels": ["a", "b"]}, "`labels` must be None for a model without one output of all classes"),
        (model, {"preprocess": (0.5, 1), "samples": np.ones((1, 4, 4, 3)) / 2}, "`samples` must be uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.to_tflite(which, path, **how)
    assert not path.exists()
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a TensorFlow Lite file"):
        convert.metadata(path)


@pytest.mark.parametrize("target", ["tflite", "lce"])
def test_names_that_tensorflow_does_not_take(target, tmp_path):
    """On other backends, layers may have any name; TensorFlow wants letters of English, digits and a few signs."""
    image, other = keras.Input((6, 6, 2), name="Bild (größe)"), keras.Input((4,), name="éa")
    x = L.BatchNormalization(name="Ü 1")(MPTConv2D(4, 3, seed=1, name="erste Schicht")(image))
    x = keras.Sequential(
        [MPTConv2D(4, 3, seed=2, name="ß", **SIGN), L.GlobalAveragePooling2D(name="_")], name="in ihr"
    )(x)
    y = MPTDense(3, seed=3, name="weiß:schwarz")(L.Concatenate(name="#")([x, other]))
    model = settled(keras.Model([image, other], y, name="ein Modell"))
    random = np.random.default_rng(0)
    samples = [random.normal(size=(3, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    report = to(target, model, tmp_path / "model.tflite", samples=samples)
    assert [x.name for x in report.inputs] == ["Bild__gr__e_", "n_a"]
    expected = keras.ops.convert_to_numpy(model(samples))
    np.testing.assert_allclose(convert.run(report.path, target, samples), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["lce", "integer", "exact_int8", "float32"])
@pytest.mark.parametrize("floatx", ["float16", "float64"])
def test_global_settings_of_keras_do_not_matter(target, floatx, keras_settings, tmp_path):
    layers = [MPTConv2D(4, 3, padding="same", seed=1), L.BatchNormalization()]
    layers += [MPTConv2D(8, 3, padding="same", seed=2, **SIGN), L.BatchNormalization()]
    layers += [MPTConv2D(8, 3, strides=2, seed=3, **SIGN), L.Flatten(), MPTDense(3, seed=4)]
    model = settled(keras.Sequential([keras.Input((6, 6, 2)), *layers]))
    samples = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(samples))
    keras.config.set_floatx(floatx)
    keras.config.set_image_data_format("channels_first")
    how = {} if target == "lce" else {"weights": target}
    report = to(target, model, tmp_path / "model.tflite", samples=samples, **how)
    assert {x.dtype for x in (*report.inputs, *report.outputs)} == {"float32"}
    found = convert.run(report.path, report.target, samples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
