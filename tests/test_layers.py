"""The contract of every layer class; padding, dtype policies, errors, NaN."""

import copy
import inspect
import json
import math
import pickle
import subprocess
import sys
import threading
import warnings

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import keras_mpt
from keras_mpt.callbacks import CheckScores
from keras_mpt.layers import (
    MPTConv1D,
    MPTConv1DTranspose,
    MPTConv2D,
    MPTConv2DTranspose,
    MPTConv3D,
    MPTConv3DTranspose,
    MPTDense,
    MPTDepthwiseConv1D,
    MPTDepthwiseConv2D,
    MPTEinsumDense,
    MPTEmbedding,
)
from keras_mpt.masks import GlobalTopK, NofM, PartiallyFrozen, Restricted, TopK
from support import reference
from support.backend import gradient
from support.layer_contract import assert_reference_kernel, check_layer, inputs, numpy, plain_twin, randomize_scores

slow_on_jax = pytest.mark.slow_with("jax")

# Class, arguments, shape of the inputs, expected fan_in.
CASES = [
    (MPTDense, {"units": 5}, (7,), 7),
    (MPTDense, {"units": 5, "use_bias": True, "bias_initializer": "ones", "activation": "relu"}, (3, 7), 7),
    (MPTConv1D, {"filters": 4, "kernel_size": 3, "strides": 2}, (8, 3), 9),
    (MPTConv1D, {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}, (8, 3), 9),
    (MPTConv2D, {"filters": 4, "kernel_size": 3, "padding": "same", "strides": 2}, (5, 6, 3), 27),
    (MPTConv2D, {"filters": 4, "kernel_size": (3, 2), "dilation_rate": 2, "use_bias": True}, (6, 6, 3), 18),
    (MPTConv2D, {"filters": 4, "kernel_size": 3, "groups": 2}, (5, 5, 6), 27),
    (MPTConv2D, {"filters": 4, "kernel_size": 3, "data_format": "channels_first"}, (3, 5, 6), 27),
    (MPTConv3D, {"filters": 3, "kernel_size": 2, "padding": "same"}, (3, 3, 3, 2), 16),
    (MPTDepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"}, (5, 5, 3), 9),
    (MPTDepthwiseConv2D, {"kernel_size": 3, "strides": 2, "use_bias": True}, (5, 5, 3), 9),
    (MPTConv2DTranspose, {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"}, (3, 4, 2), 18),
    (MPTConv2D, {"filters": 4, "kernel_size": 3, "padding": "same", "pad_values": 1.0, "strides": 2}, (5, 6, 3), 27),
    (MPTConv1D, {"filters": 4, "kernel_size": 3, "padding": 2, "strides": 2}, (6, 3), 9),
    (MPTConv2D, {"filters": 4, "kernel_size": 3, "padding": (1, 0), "pad_values": -1.0}, (5, 6, 3), 27),
    (MPTDepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2, "padding": "same", "pad_values": 1.0}, (6, 3), 3),
    (MPTConv1DTranspose, {"filters": 4, "kernel_size": 3, "strides": 2}, (4, 2), 6),
    (MPTConv3DTranspose, {"filters": 3, "kernel_size": 2, "use_bias": True}, (2, 3, 2, 2), 16),
    (MPTEinsumDense, {"equation": "abc,cde->abde", "output_shape": (3, 3, 4), "bias_axes": "e"}, (3, 6), 6),
    (MPTEinsumDense, {"equation": "...bc,bcd->...d", "output_shape": 4, "activation": "relu"}, (3, 2), 6),
]


def others_slow_on_jax(cases):
    """Return the cases; of each class all but the first are slow tests on JAX, which compiles them for seconds."""
    seen, params = set(), []
    for case in cases:
        params.append(pytest.param(*case, id=names(case), marks=[slow_on_jax] * (case[0] in seen)))
        seen.add(case[0])
    return params


def names(case):
    return ",".join([case[0].__name__, *(f"{name}={value}" for name, value in case[1].items())])


@pytest.mark.parametrize("cls, settings, shape, fan_in", others_slow_on_jax(CASES))
def test_contract(cls, settings, shape, fan_in, tmp_path):
    check_layer(cls, settings, shape, tmp_path)
    layer = cls(**settings)
    layer.build((None, *shape))
    magnitudes = np.abs(numpy(layer.frozen_kernel))
    np.testing.assert_array_equal(magnitudes, np.full_like(magnitudes, math.sqrt(2 / fan_in)))
    assert 0.6 / math.sqrt(fan_in) < np.abs(numpy(layer.scores)).max() < 1 / math.sqrt(fan_in)


@pytest.mark.parametrize("input_quantizer, value", [("approx_sign", np.sign), ("ste_heaviside", lambda x: x > 0)])
def test_input_quantizer(input_quantizer, value):
    x = inputs((6,))
    layer = MPTDense(4, input_quantizer=input_quantizer, seed=0)
    y = numpy(layer(x))
    np.testing.assert_allclose(y, value(x) @ assert_reference_kernel(layer), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(numpy(plain_twin(layer, x)(layer.prepare_plain(x))), y, rtol=1e-5, atol=1e-6)
    slope = {"approx_sign": 2 * np.maximum(1 - np.abs(x), 0), "ste_heaviside": np.abs(x) <= 1}[input_quantizer]
    expected = slope * numpy(layer.kernel).sum(axis=1)
    np.testing.assert_allclose(gradient(layer, x), expected, rtol=1e-5, atol=1e-6)


PADDED = [
    (MPTConv1D, {"filters": 3, "kernel_size": 3}, (7, 2)),
    (MPTConv1D, {"filters": 3, "kernel_size": 4, "strides": 3}, (8, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 3}, (5, 6, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": (2, 5)}, (5, 7, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 3, "strides": 2}, (5, 6, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 1, "strides": 2}, (4, 5, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 3, "dilation_rate": (2, 1)}, (5, 6, 2)),
    (MPTConv3D, {"filters": 3, "kernel_size": 2, "strides": 2}, (3, 4, 5, 2)),
    (MPTDepthwiseConv2D, {"kernel_size": 3, "strides": 2}, (6, 6, 2)),
]


@pytest.mark.parametrize("cls, settings, shape", others_slow_on_jax(PADDED))
def test_pad_values(cls, settings, shape):
    x = inputs(shape)
    layer = cls(**settings, padding="same", pad_values=1.0, seed=0)
    y = numpy(layer(x))
    assert layer.compute_output_shape((None, *shape)) == (None, *y.shape[1:])

    window = zip(shape, layer.kernel_size, layer.strides, layer.dilation_rate, strict=False)
    widths = [(0, 0), *(reference.same_padding(*axis) for axis in window), (0, 0)]
    padded = np.pad(x, widths, constant_values=1.0)
    valid = type(plain_twin(layer, x)).from_config({**layer.plain().get_config(), "padding": "valid"})
    valid.build(padded.shape)
    valid.set_weights([numpy(layer.kernel)])
    np.testing.assert_allclose(y, numpy(valid(padded)), rtol=1e-5, atol=1e-6)

    # Linear: the convolution of x padded with ones is that of x - 1 padded with zeros, plus that of ones everywhere.
    zeros = cls(**settings, padding="same", seed=0)
    kernel = numpy(layer.kernel)
    ones = kernel.sum(axis=(0, 1) if cls is MPTDepthwiseConv2D else tuple(range(kernel.ndim - 1))).reshape(-1)
    np.testing.assert_allclose(y, numpy(zeros(x - 1)) + ones, rtol=1e-5, atol=1e-5)


def test_pad_values_with_channels_first():
    settings = {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same", "pad_values": 1.0, "seed": 0}
    last, first = MPTConv2D(**settings), MPTConv2D(**settings, data_format="channels_first")
    x = inputs((5, 6, 2))
    y = numpy(first(x.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, numpy(last(x)), rtol=1e-5, atol=1e-6)


def test_pad_values_with_unknown_sizes():
    x = inputs((5, 6, 2))
    layer = MPTConv2D(3, 3, padding="same", pad_values=-1.0, seed=0)
    model = keras.Sequential([keras.Input((None, None, 2)), layer])
    assert model.output_shape == (None, None, None, 3)
    np.testing.assert_array_equal(numpy(model(x)), numpy(layer(x)))
    point = MPTConv2D(3, 1, strides=2, padding="same", pad_values=1.0, seed=0)  # which pads nothing
    model, plain = keras.Sequential([keras.Input((None, None, 2)), point]), keras.layers.Conv2D(3, 1, 2, "same")
    plain(x)
    plain.set_weights([numpy(point.kernel), np.zeros(3)])
    np.testing.assert_allclose(numpy(model(x)), numpy(plain(x)), rtol=1e-6)
    with pytest.raises(ValueError, match="`pad_values` with strides needs a known input size"):
        MPTConv2D(3, 3, strides=2, padding="same", pad_values=1.0)(keras.Input((None, None, 2)))


EXPLICIT = [
    (MPTConv1D, {"filters": 3, "kernel_size": 3, "strides": 2, "padding": 1}, (8, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 3, "strides": 2, "padding": 1}, (6, 8, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 7, "strides": 2, "padding": (3, 3)}, (8, 9, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": (3, 5), "strides": (2, 1), "padding": [1, 2]}, (6, 8, 2)),
    (MPTConv2D, {"filters": 4, "kernel_size": 3, "groups": 2, "padding": (2, 0)}, (5, 6, 2)),
    (MPTConv2D, {"filters": 3, "kernel_size": 1, "strides": 2, "padding": 0}, (4, 5, 2)),
    (MPTConv3D, {"filters": 3, "kernel_size": 2, "strides": 2, "padding": (1, 0, 1)}, (4, 4, 6, 2)),
    (MPTDepthwiseConv2D, {"kernel_size": 3, "strides": 2, "padding": 1}, (6, 6, 2)),
]


@pytest.mark.parametrize("cls, settings, shape", others_slow_on_jax(EXPLICIT))
def test_explicit_padding_is_that_of_pytorch(cls, settings, shape):
    torch = pytest.importorskip("torch")
    x = inputs(shape)
    layer = cls(**settings, seed=0)
    y, kernel = numpy(layer(x)), numpy(layer.kernel)
    assert layer.compute_output_shape((None, *shape)) == (None, *y.shape[1:])
    depthwise = cls is MPTDepthwiseConv2D
    axes = (-2, -1, *range(kernel.ndim - 2)) if depthwise else (-1, -2, *range(kernel.ndim - 2))
    convolve = getattr(torch.nn.functional, f"conv{len(shape) - 1}d")
    wanted = convolve(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
        torch.from_numpy(kernel.transpose(axes).copy()),
        stride=layer.strides,
        padding=tuple(settings["padding"]) if isinstance(settings["padding"], list) else settings["padding"],
        groups=shape[-1] if depthwise else settings.get("groups", 1),
    )
    np.testing.assert_allclose(y, np.moveaxis(wanted.numpy(), 1, -1), rtol=1e-5, atol=1e-5)


def test_explicit_padding_comes_after_the_quantizer():
    settings = {"padding": 1, "input_quantizer": "approx_sign", "seed": 0}
    x = inputs((5, 6, 2))
    for pad_values, padded_input in ((0.0, None), (1.0, 1.0), (-1.0, -1.0)):
        layer = MPTConv2D(3, 3, strides=2, pad_values=pad_values, **settings)
        widths = ((0, 0), (1, 1), (1, 1), (0, 0))
        prepared = np.pad(np.where(x >= 0, 1.0, -1.0), widths, constant_values=padded_input or 0.0)
        y = numpy(layer(x))
        np.testing.assert_array_equal(numpy(layer.prepare_plain(ops.convert_to_tensor(x))), prepared)
        np.testing.assert_allclose(y, numpy(plain_twin(layer, x)(prepared)), rtol=1e-5, atol=1e-5)


def test_explicit_padding_needs_no_input_size():
    layer = MPTConv2D(3, 3, strides=2, padding=1, pad_values=1.0, seed=0)
    model = keras.Sequential([keras.Input((None, None, 2)), layer])
    assert model.output_shape == (None, None, None, 3)
    assert numpy(model(inputs((5, 8, 2)))).shape == (2, 3, 4, 3)


def test_padding_with_channels_first():
    last, first = (MPTConv2D(3, 3, padding=(1, 2), seed=0, data_format=f"channels_{end}") for end in ("last", "first"))
    x = inputs((5, 6, 2))
    y = numpy(first(x.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, numpy(last(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding, config", [("SAME", "same"), ("valid", "valid"), (2, (2, 2)), ([1, 0], (1, 0))])
def test_padding_by_position(padding, config):
    assert MPTConv2D(3, 5, 1, padding).get_config()["padding"] == config
    assert MPTDepthwiseConv2D(5, 1, padding).get_config()["padding"] == config
    with pytest.raises(TypeError, match="multiple values.*padding"):
        MPTConv2D(3, 5, 1, padding, padding=padding)


def test_numbers_of_numpy_are_saved():
    number = np.float32(0.25)
    quantizer, rule = keras_mpt.quantizers.DoReFa(np.int64(2)), PartiallyFrozen(number, number, number)
    settings = {"padding": np.int64(1), "pad_values": number, "input_quantizer": quantizer, "seed": np.uint64(5)}
    layer = MPTConv2D(np.int64(3), np.int64(2), mask=rule, **settings)
    kaiming = keras_mpt.initializers.KaimingUniform(number)
    for each in (layer, TopK(number), NofM(np.int64(2), np.int64(4)), kaiming):
        json.dumps(each.get_config())


POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float64"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "cls, settings, shape", [(MPTDense, {"units": 40}, (50,)), (MPTConv2D, CASES[4][1], (5, 6, 3))]
)
def test_dtype_policies(cls, settings, shape, policy, rng):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless jax_enable_x64 is set")
    settings = {**settings, "use_bias": True, "seed": 0, "sparsity": 0.6}
    layer, exact = cls(**settings, dtype=policy), cls(**settings, dtype="float32")
    x = inputs(shape)
    exact.build(x.shape)
    scores = (1 + rng.uniform(size=exact.scores.shape) / 1000).astype(np.float32)  # equal in bfloat16
    layer.build(x.shape)
    for each in (layer, exact):
        each.scores.assign(scores)
    y = layer(x)
    assert {layer.scores.dtype, layer.frozen_kernel.dtype} == {"float32"}
    assert {keras.backend.standardize_dtype(t.dtype) for t in (y, layer.kernel)} == {layer.compute_dtype}
    np.testing.assert_array_equal(numpy(layer.subnet_mask), reference.mask(scores, int(exact.kept)))
    np.testing.assert_array_equal(numpy(layer.kernel), numpy(ops.cast(exact.kernel, layer.compute_dtype)))
    np.testing.assert_allclose(numpy(y), numpy(exact(x)), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("attribute", ["frozen_kernel", "subnet_mask"])
def test_unbuilt(attribute):
    with pytest.raises(ValueError, match=f"`{attribute}` of MPTDense 'fresh' exists once .* built"):
        getattr(MPTDense(3, name="fresh"), attribute)


@pytest.mark.parametrize("quantize", ["enable_lora", "quantize"])
def test_other_ways_to_change_a_kernel_are_refused(quantize):
    layer = MPTDense(3)
    layer.build((None, 3))
    with pytest.raises(NotImplementedError, match="MPTDense"):
        getattr(layer, quantize)("int8")


CONV = {"filters": 2, "kernel_size": 3}
BAD = [
    *[(MPTDense, {"units": 2, "sparsity": s}, "`sparsity` must be") for s in (-0.1, 1.0, 1.5, math.nan, "0.5", True)],
    (MPTDense, {"units": 2, "kernel_quantizer": "scaled_sing"}, "`kernel_quantizer` .*Did you mean 'scaled_sign'"),
    (MPTDense, {"units": 2, "kernel_quantizer": "approx_sign"}, "`kernel_quantizer` .*pass it as input_quantizer"),
    (MPTDense, {"units": 2, "input_quantizer": "aprox_sign"}, "`input_quantizer` .*Did you mean 'approx_sign'"),
    (MPTDense, {"units": 2, "kernel_regularizer": "l2"}, "`kernel_regularizer`.*`scores_regularizer`"),
    (MPTDense, {"units": 2, "kernel_constraint": "non_neg"}, "`kernel_constraint`"),
    (MPTDepthwiseConv2D, {"kernel_size": 3, "depthwise_regularizer": "l2"}, "`depthwise_regularizer`"),
    (MPTDense, {"units": 2, "lora_rank": 2}, "`lora_rank`"),
    (MPTConv2D, {**CONV, "lora_rank": 2}, "`lora_rank`"),
    (MPTDense, {"units": 2, "mask": TopK(0.5), "sparsity": 0.6}, "`sparsity` must be left out or that of `mask`"),
    (MPTDense, {"units": 2, "mask": "top_k"}, "`mask` must be a rule"),
    (MPTConv2D, {**CONV, "pad_values": 1.0}, '`pad_values` needs padding="same"'),
    *[(MPTConv2D, {**CONV, "padding": "same", "pad_values": p}, "`pad_values` must") for p in (True, "1", math.inf)],
    *[
        (MPTConv2D, {**CONV, "padding": p}, "`padding` must.*2 such")
        for p in (-1, 0.5, True, None, (1,), (1, -1), (1, 2, 3))
    ],
    (MPTConv2D, {**CONV, "padding": "sane"}, "`padding`"),
    *[(MPTDense, {"units": 2, "seed": seed}, "`seed` must be") for seed in (-1, 2**64, 0.5, "a", True)],
]


@pytest.mark.parametrize("cls, settings, message", BAD, ids=[str(case[1]) for case in BAD])
def test_bad_arguments(cls, settings, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        cls(**settings)


@pytest.mark.parametrize("selector", ["quick", ["search"], None])
def test_bad_selector(selector):
    with pytest.raises(ValueError, match="`selector` must be one of"):
        TopK(0.5, selector=selector)


def test_no_initializer_is_the_default():
    first, second, none = MPTDense(3, seed=1), MPTDense(3, seed=1), MPTDense(3, seed=1, scores_initializer=None)
    for layer in (first, second, none):
        layer.build((None, 4))
        np.testing.assert_array_equal(numpy(layer.scores), numpy(first.scores))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="what is done in TensorFlow's graphs")
def test_a_trace_does_not_take_the_kernel_of_another_thread():
    """While one thread is within a call, another traces the layer: it must not see the first one's kernel."""
    import tensorflow as tf

    traced = []

    layer = MPTDense(3, seed=1)
    layer.build((None, 4))
    x = tf.ones((2, 4))

    @tf.function
    def graph(x):
        return layer(x)

    with layer._fixed_kernels(False):  # where a call is
        thread = threading.Thread(target=lambda: traced.append(graph(x)))
        thread.start()
        thread.join()
    layer.frozen_kernel.assign(5 * layer.frozen_kernel)
    np.testing.assert_allclose(numpy(graph(x)), numpy(layer(x)), rtol=1e-6)
    assert not np.allclose(numpy(graph(x)), numpy(traced[0]))


def test_a_call_that_fails_leaves_no_kernel_behind():
    def activation(x):
        if layer.built:
            raise RuntimeError("of the activation")
        return x

    layer = MPTDense(3, activation=activation, seed=1)
    layer.build((None, 4))
    with pytest.raises(RuntimeError, match="of the activation"):
        layer(np.ones((2, 4), "float32"))
    layer.frozen_kernel.assign(-numpy(layer.frozen_kernel))
    assert_reference_kernel(layer)


def test_padding_that_calls_make():
    layer = MPTConv1D(4, 3, padding="causal", dilation_rate=2)
    assert layer.pad_widths((None, 8, 3)) == [(0, 0), (4, 0), (0, 0)]


def test_settings_that_mean_nothing_may_be_none():
    layer = MPTDense(3, kernel_regularizer=None, kernel_constraint=None, mask=TopK(0.7, "sort"), sparsity=0.7)
    assert layer.sparsity == 0.7 and layer.mask.selector == "sort"
    assert "kernel_regularizer" not in layer.get_config()


@pytest.mark.parametrize("attribute", ["kernel", "kept"])
def test_unbuilt_attributes_that_frameworks_probe_for(attribute):
    assert not hasattr(MPTDense(3), attribute)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_dtype_policies_that_quantize_are_refused(mode):
    with pytest.raises(ValueError, match=f"`dtype` must not quantize.*Received: a policy of '{mode}' for layer 'one'"):
        MPTDense(3, dtype=f"{mode}_from_float32", name="one")
    by_path = keras.dtype_policies.DTypePolicyMap()
    by_path["one"] = keras.dtype_policies.get(f"{mode}_from_float32")
    layer = MPTDense(3, dtype=by_path, name="one")
    with pytest.raises(ValueError, match=f"`dtype` must not quantize.*Received: a policy of '{mode}' for layer 'one'"):
        layer.build((None, 4))
    MPTDense(3, dtype=by_path, name="other").build((None, 4))


LOOKING_FOR_NAN = """
import keras, numpy as np, tensorflow as tf
from keras_mpt import layers, masks
tf.debugging.enable_check_numerics()
x, y = np.ones((2, 4), "float32"), np.zeros((2, 3), "float32")
for rule in (masks.TopK, masks.GlobalTopK, masks.Restricted):
    model = keras.Sequential([keras.Input((4,)), layers.MPTDense(3, mask=rule(0.5), seed=0)])
    model.compile("sgd", "mse")
    model.train_on_batch(x, y)
    model.layers[0].scores.assign(np.full((4, 3), np.nan, "float32"))
    try:
        model.train_on_batch(x, y)
    except tf.errors.InvalidArgumentError:
        print("found", rule.__name__)
"""


@pytest.mark.tensorflow_only
def test_what_looks_for_nan_finds_them_only():  # in a process of its own: traces keep the checks
    done = subprocess.run([sys.executable, "-c", LOOKING_FOR_NAN], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == "found TopK found GlobalTopK found Restricted".split(), done.stderr


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="a setting of JAX")
@pytest.mark.parametrize("selector", ["search", "sort"])
@pytest.mark.parametrize("rule", [TopK, GlobalTopK, Restricted])
def test_masks_are_the_same_with_64_bits_enabled(rule, selector, rng):
    import jax
    import jax.experimental

    where = jax if hasattr(jax, "enable_x64") else jax.experimental  # JAX 0.8 and older
    layer = MPTDense(4, mask=rule(0.6, selector), seed=0)
    layer.build((None, 8))
    layer.scores.assign(np.round(2 * rng.normal(size=(8, 4))).astype("float32"))  # ties, at the cut too
    expected = numpy(layer.subnet_mask)
    with where.enable_x64(True):
        layer(np.ones((2, 8), "float32"), training=True)
        np.testing.assert_array_equal(numpy(layer.subnet_mask), expected)
        assert layer.kept.dtype == "int32" and expected.sum() == layer.kept == 13


@pytest.mark.parametrize("rule", [TopK(0.25, "sort"), GlobalTopK(0.25), Restricted(0.25)], ids=repr)
def test_rules_can_be_pickled(rule):
    for twin in (pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule)):
        assert type(twin) is type(rule) and twin.get_config() == rule.get_config()
        layer = MPTDense(3, mask=twin, seed=1)
        layer(np.ones((2, 4), "float32"))
        assert numpy(layer.subnet_mask).sum() == 9


def test_rule_and_sparsity_are_not_assigned_to():
    layer = MPTDense(3, sparsity=0.5, name="fixed")
    with pytest.raises(ValueError, match="`mask` must be a rule of keras_mpt.masks.*Received: mask=3"):
        layer.mask = 3
    layer.mask = TopK(0.25)  # as long as it is not built
    assert layer.sparsity == 0.25
    layer.build((None, 4))
    for attribute, value in {"mask": TopK(0.9), "sparsity": 0.9}.items():
        with pytest.raises(AttributeError, match=f"`{attribute}` of layer 'fixed' .*set_sparsity"):
            setattr(layer, attribute, value)
    layer.set_sparsity(0.75)
    assert int(layer.kept) == 3
    assert int(MPTDense.from_config(layer.get_config()).mask.sparsity * 4) == 1


def test_a_layer_without_weights_is_refused():
    with pytest.raises(ValueError, match="'empty' must have weights. Received: a kernel of shape .*0, 4"):
        MPTDense(4, name="empty")(np.zeros((2, 0), "float32"))


def test_boolean_inputs_are_quantized():
    layer, x = MPTDense(4, seed=0, input_quantizer="ste_sign"), np.array([[True, False, True]])
    np.testing.assert_array_equal(numpy(layer(x)), numpy(layer(x.astype("float32"))))


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_inputs_are_quantized_as_floats(dtype):
    x = np.array([[0, 1, 2, 3], [0, 1, 1, 12]], dtype)
    quantizers = ["ste_sign", "dorefa_quantizer", "magnitude_aware_sign"]
    for quantizer in [*quantizers, keras_mpt.quantizers.SteTern(ternary_weight_networks=True)]:
        layer = MPTDense(3, input_quantizer=quantizer, seed=0)
        np.testing.assert_array_equal(numpy(layer(x)), numpy(layer(x.astype("float32"))))
        prepared = layer.prepare_plain(ops.convert_to_tensor(x))
        np.testing.assert_array_equal(numpy(prepared), numpy(layer.input_quantizer(x.astype("float32"))))
    padded, x = MPTConv1D(3, 2, padding=1, pad_values=-1.0, seed=0), x[..., None]  # which no uint8 is
    np.testing.assert_allclose(numpy(padded(x)), numpy(padded(x.astype("float32"))), rtol=1e-6)


def test_quantizers_that_are_assigned_after_compiling():
    layers = [MPTDense(8, kernel_initializer="kaiming_normal", seed=0), keras_mpt.layers.MPTSimpleRNN(3, seed=1)]
    model = keras.Sequential([keras.Input((6, 4)), *layers])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    y = np.ones((2, 3), np.float32)
    for layer, name, quantizer in [
        (layers[0], "kernel_quantizer", None),
        (layers[1].cell, "input_quantizer", "ste_sign"),
        (layers[1].cell.subnets[0], "kernel_quantizer", keras_mpt.quantizers.ScaledSign(0.3)),
    ]:
        before = model.evaluate(x, y, verbose=0)  # JAX compiles this step once for all functions that are made of it
        setattr(layer, name, quantizer)
        after = model.evaluate(x, y, verbose=0)
        np.testing.assert_allclose(after, np.mean((numpy(model(x)) - y) ** 2), rtol=1e-5)
        assert abs(after - before) > 1e-3


def test_a_quantizer_that_a_callback_assigns_between_batches(tmp_path):
    class Assign(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.layers[0].kernel_quantizer = None if batch else "scaled_sign"

    first = MPTDense(8, kernel_initializer="kaiming_normal", seed=0)
    layers = [keras.Input((4,)), first, keras.layers.BatchNormalization(), MPTDense(3, seed=1)]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    model.fit(x, x[:, :3], batch_size=4, epochs=2, verbose=0, callbacks=[Assign()])
    kernel, norm = numpy(model.layers[0].kernel), model.layers[1]
    assert len(np.unique(np.abs(kernel))) > 2  # its own values
    assert norm.moving_mean.shape == (8,) and np.abs(numpy(norm.moving_mean)).min() > 0
    keras_mpt.save_ticket(model, tmp_path / "assigned.mpt")
    loaded = keras_mpt.load_ticket(tmp_path / "assigned.mpt")
    np.testing.assert_array_equal(numpy(loaded.layers[0].kernel), kernel)
    keras_mpt.tickets.restore(model, tmp_path / "assigned.mpt")
    np.testing.assert_array_equal(numpy(model.layers[0].kernel), kernel)


class Scaled(keras.layers.Layer):
    def __init__(me, units, kernel_initializer="ones", **kwargs):  # noqa: N805
        super().__init__(**kwargs)
        me.units, me.kernel_initializer = units, kernel_initializer

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.units), initializer=self.kernel_initializer)

    def call(self, x, training=False):
        return ops.matmul(x, self.kernel) * (2.0 if training else 1.0)


def test_layers_of_ones_own_get_training():
    class MPTScaled(keras_mpt.layers.MPTLayer, Scaled):
        pass

    layer, x = MPTScaled(3, seed=0), np.ones((2, 4), "float32")
    np.testing.assert_array_equal(numpy(layer(x, training=True)), 2 * numpy(layer(x)))

    for settings, message in [
        ({"name": "w"}, "`build` of Other must add"),
        ({"constraint": "non_neg"}, "`constraint`"),
    ]:

        class Other(Scaled):
            def build(self, shape, settings=settings):
                self.add_weight(**{"shape": (4, 3), "name": "kernel", **settings})

        class MPTOther(keras_mpt.layers.MPTLayer, Other):
            pass

        with pytest.raises(ValueError, match=message):
            MPTOther(3)(x)

    class Half:  # another class whose `call` comes before the layer's
        def call(self, x):
            return super().call(x) / 2

    class MPTHalf(keras_mpt.layers.MPTLayer, Half, Scaled):
        pass

    half = MPTHalf(3, seed=0)
    np.testing.assert_array_equal(numpy(half(x, training=True)), numpy(layer(x)) / 2)

    class Masked(Scaled):
        def call(self, x, mask=None, training=False):
            return super().call(x, training)

    with pytest.raises(TypeError, match="`call` of Masked must take the inputs only, and `training`. Received: mask"):

        class MPTMasked(keras_mpt.layers.MPTLayer, Masked):
            pass


def test_a_layer_is_built_once():
    layer = MPTDense(3, seed=0)
    layer.build((None, 4))
    before = [numpy(weight) for weight in layer.weights]
    with pytest.raises(ValueError, match="is built already. Received: input_shape=\\(None, 5\\)"):
        layer.build((None, 5))
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)


def test_scales_for_channels_need_channels_last():
    with pytest.raises(ValueError, match="`input_quantizer` with a scale for each channel needs channels last"):
        MPTConv2D(4, 3, input_quantizer="magnitude_aware_sign", data_format="channels_first")


def test_a_frozen_layer_keeps_its_state():
    layer = MPTDense(3, seed=0, trainable=False)
    layer.build((None, 8))
    layer.threshold.assign(5)
    layer(np.ones((1, 8), "float32"), training=True)
    assert int(layer.threshold) == 5


def test_selectors_agree():
    search, sort = (MPTConv2D(4, 3, mask=TopK(0.7, selector), seed=0) for selector in ("search", "sort"))
    for layer in (search, sort):
        layer.build((None, 5, 5, 3))
        randomize_scores(layer)
    np.testing.assert_array_equal(numpy(search.kernel), numpy(sort.kernel))


@pytest.mark.parametrize(
    "cls, units, argument",
    [
        (MPTDense, 3, "kernel_initializer"),
        (MPTDense, 3, "scores_initializer"),
        (MPTDepthwiseConv2D, 3, "depthwise_initializer"),
    ],
)
def test_unknown_initializers_are_refused(cls, units, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be one of 'signed_constant'.*Received: 'kaiming_norml'"):
        cls(units, **{argument: "kaiming_norml"})


def test_scores_regularizer_and_initializer():
    layer = MPTDense(3, scores_initializer="ones", scores_regularizer=keras.regularizers.L2(0.5))
    layer(np.ones((1, 4), "float32"))
    np.testing.assert_array_equal(numpy(layer.scores), np.ones((4, 3)))
    np.testing.assert_allclose([numpy(loss) for loss in layer.losses], [0.5 * 12])
    kept = np.r_[np.ones(6), np.zeros(6)].reshape(4, 3)  # all scores equal: the first half stays
    np.testing.assert_array_equal(numpy(layer.subnet_mask), kept)


def test_no_seed_draws_one_from_kerass_seed():
    first, second = MPTDense(3), MPTDense(3)
    assert first.seed != second.seed and 0 <= first.seed < 2**64
    keras.utils.set_random_seed(0)
    assert MPTDense(3).seed == first.seed
    assert MPTDense.from_config(first.get_config()).seed == first.seed


def test_nan_scores_are_refused_when_saving(tmp_path):
    layer = MPTDense(3, name="diverged", seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    scores = numpy(layer.scores)
    scores[1, 1] = np.nan
    layer.scores.assign(scores)
    assert np.isnan(numpy(layer.kernel)).all()
    assert np.isnan(numpy(model(np.ones((2, 4), "float32")))).all()
    with pytest.raises(ValueError, match="'diverged'"):
        model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="'diverged'"):
        model.save_weights(tmp_path / "model.weights.h5")
    scores[1, 1] = 0
    layer.scores.assign(scores)
    model.save(tmp_path / "model.keras")


def test_models_with_layers_that_are_not_built_are_saved(tmp_path):
    class WithSpare(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.spare = MPTDense(2, seed=1), MPTDense(2, seed=2)

        def build(self, shape):
            self.used.build(shape)

        def call(self, x):
            return self.used(x)

    model, copy, x = WithSpare(), WithSpare(), np.ones((2, 4), "float32")
    model(x)
    randomize_scores(model.used)
    model.save_weights(tmp_path / "model.weights.h5")
    copy(x)
    copy.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(numpy(copy(x)), numpy(model(x)))


def test_check_scores_names_where_it_began():
    model = keras.Sequential([keras.Input((4,)), MPTDense(3, name="one", seed=0), MPTDense(2, name="two", seed=1)])
    model.compile("sgd", "mse")
    x, y = np.ones((6, 4), "float32"), np.ones((6, 2), "float32")
    fit = {"batch_size": 2, "verbose": 0, "callbacks": [CheckScores()]}
    model.fit(x, y, **fit)
    model.layers[1].scores.assign(model.layers[1].scores * math.nan)
    with pytest.raises(FloatingPointError, match=r"epoch 1, in layers 'two' \(3 steps\), 'one' \(2 steps\)"):
        model.fit(x, y, **fit)


def test_check_scores_sees_what_the_last_step_made():
    model = keras.Sequential([keras.Input((4,)), MPTDense(3, name="one", seed=0), MPTDense(2, name="two", seed=1)])
    model.compile("sgd", "mse")
    x = np.full((6, 4), math.nan, "float32")
    with pytest.raises(FloatingPointError, match=r"in layers 'one' \(the last step\), 'two' \(the last step\)\.$"):
        model.fit(x, np.ones((6, 2), "float32"), verbose=0, callbacks=[CheckScores()])


def test_check_scores_tells_layers_of_one_name_apart():
    inputs = keras.Input((4,))
    first, second = (
        keras.Sequential([keras.Input((4,)), MPTDense(4, name="dense", seed=0)], name=name) for name in "ab"
    )
    model = keras.Model(inputs, second(first(inputs)))
    first.layers[0].nan_steps.assign(3)
    callback = CheckScores()
    callback.set_model(model)
    with pytest.raises(FloatingPointError, match=r"in layers 'a/dense' \(3 steps\)\.$"):
        callback.on_epoch_end(0)


def test_positional_arguments():
    dense = MPTDense(4, "relu", True, seed=1)
    assert (dense.units, dense.activation, dense.use_bias) == (4, keras.activations.relu, True)
    transpose = MPTConv2DTranspose(4, 3, 2, "same", None, None, (1, 1), "relu", True)
    assert (transpose.strides, transpose.padding, transpose.use_bias) == ((2, 2), "same", True)
    with pytest.raises(TypeError, match="MPTDense\\(\\) got multiple values for argument 'units'"):
        MPTDense(4, units=3)


@pytest.mark.parametrize("initializer", ["he_normal", keras.initializers.RandomUniform()])
def test_the_seed_determines_what_initializers_of_keras_draw(initializer):
    def drawn(seed, **settings):
        layer = MPTDense(5, seed=seed, kernel_initializer=initializer, scores_initializer=initializer, **settings)
        layer.build((None, 7))
        return layer

    first, again, other = drawn(0), drawn(0), drawn(1)
    np.testing.assert_array_equal(numpy(first.frozen_kernel), numpy(again.frozen_kernel))
    np.testing.assert_array_equal(numpy(first.scores), numpy(again.scores))
    assert not np.isclose(numpy(first.frozen_kernel), numpy(other.frozen_kernel)).any()
    assert not np.isclose(numpy(first.frozen_kernel), numpy(first.scores)).any()
    copy = MPTDense.from_config(first.get_config())
    copy.build((None, 7))
    np.testing.assert_array_equal(numpy(copy.frozen_kernel), numpy(first.frozen_kernel))


def test_an_initializer_of_keras_keeps_its_own_seed():
    own = keras.initializers.HeNormal(seed=3)
    layer = MPTDense(5, seed=0, kernel_initializer=own)
    layer.build((None, 7))
    np.testing.assert_array_equal(numpy(layer.frozen_kernel), numpy(own((7, 5))))


def test_signatures_show_the_arguments_of_keras():
    names = list(inspect.signature(MPTConv2D).parameters)
    assert names[:3] == ["filters", "kernel_size", "strides"]
    assert {"padding", "groups", "pad_values", "sparsity", "mask", "input_quantizer", "seed", "name"} <= set(names)
    assert "args" not in names and "kernel_regularizer" not in names and len(names) == len(set(names))
    for cls, settings, _, _ in CASES:
        assert set(cls(**settings).get_config()) - set(inspect.signature(cls).parameters) <= {"activity_regularizer"}


@pytest.mark.parametrize(
    "cls, arguments, settings, message",
    [
        (MPTDense, (True,), {}, "`units` must be an integer > 0. Received: units=True"),
        (MPTDense, ("8",), {}, "`units` must be an integer > 0. Received: units='8'"),
        (MPTConv2D, (None, 3), {}, "`filters` must be an integer > 0. Received: filters=None"),
        (MPTConv2D, ("8", 3), {}, "`filters` must be an integer > 0. Received: filters='8'"),
        (MPTConv2D, (8, "3"), {}, "`kernel_size` must be an integer > 0"),
        (MPTConv2D, (8, 3), {"strides": (1, 0)}, "`strides` must be an integer > 0"),
        (MPTDense, (3,), {"trainable": "no"}, "`trainable` must be True or False. Received: trainable='no'"),
        (MPTDense, (3,), {"use_bias": "no"}, "`use_bias` must be True or False. Received: use_bias='no'"),
    ],
)
def test_sizes_and_switches_of_another_kind_are_refused(cls, arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(*arguments, **settings)


@pytest.mark.parametrize("act", [lambda x: x.set_sparsity(0.5), lambda x: x.assign_mask(np.ones((4, 3)))])
def test_unbuilt_layers_have_no_mask_to_change(act):
    with pytest.raises(ValueError, match="of MPTDense 'fresh' exists once the layer is built"):
        act(MPTDense(3, name="fresh"))


def test_masks_that_cannot_be_are_refused():
    layer = MPTDense(3, seed=0, name="one")
    layer.build((None, 4))
    before, mask = [numpy(w) for w in layer.weights], np.arange(12).reshape(4, 3) < 5
    with pytest.raises(ValueError, match="`mask` must keep a weight of layer 'one'. Received: zeros only"):
        layer.assign_mask(np.zeros((4, 3)))
    for other in ("x", None, np.zeros((3, 4))):
        with pytest.raises(ValueError, match=r"`mask` must be zeros and ones of shape \(4, 3\) for layer 'one'"):
            layer.assign_mask(other)
    with pytest.raises(ValueError, match="`scores` must make the mask: .* differs in 10 of 12 weights"):
        layer.assign_mask(mask, np.arange(12).reshape(4, 3))
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), value)
    for given in (mask, mask.astype(ml_dtypes.bfloat16)):
        layer.assign_mask(given, -np.arange(12)[::-1].reshape(4, 3))
        np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)


def test_embeddings_are_rows_of_the_masked_table(tmp_path):
    ids = np.array([[1, 2, 8], [2, 0, 2]])
    layer = MPTEmbedding(9, 4, sparsity=0.6, seed=1)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layer])
    randomize_scores(layer)
    table = reference.KERNELS["scaled_sign"](numpy(layer.frozen_kernel), reference.mask(numpy(layer.scores), 15))
    np.testing.assert_allclose(numpy(model(ids)), table[ids], rtol=1e-6)
    np.testing.assert_allclose(np.abs(numpy(layer.frozen_kernel)), np.sqrt(2 / 4), rtol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.models.load_model(tmp_path / "model.keras")(ids)), numpy(model(ids)))
    twin = layer.plain()
    twin(ids)
    layer.fill_plain(twin)
    np.testing.assert_allclose(numpy(twin(ids)), table[ids], rtol=1e-6)

    scores, frozen = numpy(layer.scores), numpy(layer.frozen_kernel)
    model.compile(keras.optimizers.SGD(1.0), keras.losses.MeanSquaredError("sum"))
    target = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    model.train_on_batch(ids, target)
    upstream = np.zeros((9, 4), np.float32)
    np.add.at(upstream, ids, 2 * (table[ids] - target) / 4)  # Keras averages over the last axis
    np.testing.assert_allclose(scores - numpy(layer.scores), upstream * frozen * np.sign(scores), atol=1e-5)


def suspicious(change=None, rate=0.1, epochs=1, accumulated=None, wrap=lambda optimizer: optimizer, **settings):
    """What CheckScores warns of in a network of two layers, after a change to it."""
    layers = [MPTDense(4, seed=1, name="one"), MPTDense(4, name="two", **{"seed": 2, **settings})]
    model = keras.Sequential([keras.Input((4,)), *layers])
    if change is not None:
        change(*layers)
    model.compile(wrap(keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulated)), "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
        model.fit(x, x, verbose=0, epochs=epochs, callbacks=[CheckScores()])
    return [str(w.message) for w in caught if "After epoch" in str(w.message)]


def test_check_scores_tells_what_is_suspicious():
    def infinite(one, two):
        scores = numpy(one.scores)
        scores[0, 0] = np.inf
        one.scores.assign(scores)

    assert suspicious() == []
    assert suspicious(rate=0.0) == []
    assert suspicious(lambda one, two: setattr(one.scores, "trainable", False)) == []
    assert suspicious(lambda one, two: one.scores.assign(np.zeros((4, 4))), epochs=2) == [
        "After epoch 1 all scores have the same magnitude in layers 'one'.",
        "After epoch 1 the scores did not change in an epoch in layers 'one'.",
    ]
    assert suspicious(infinite) == ["After epoch 1 the scores are infinite in layers 'one'."]
    flat = suspicious(lambda one, two: two.scores.assign(np.ones((4, 4))), rate=0.0)
    assert flat[0] == "After epoch 1 all scores have the same magnitude in layers 'two'."
    assert suspicious(seed=1) == [
        "After epoch 1 the kernel is that of another layer, of the same seed in layers 'two'."
    ]


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer])
def test_gradients_that_accumulate_over_epochs_change_scores_later(wrap):
    assert suspicious(epochs=2, accumulated=3, wrap=wrap) == []
    told = suspicious(lambda one, two: two.frozen_kernel.assign(np.zeros((4, 4))), 0.1, 4, 3, wrap)
    assert told == ["After epoch 3 the scores did not change in an epoch in layers 'one', 'two'."]


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras is older")
@pytest.mark.parametrize("scale", [False, True])
def test_each_layer_may_have_its_optimizer(scale):
    def several(rate, accumulated=None):
        def wrap(first):
            second = keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulated)
            together = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(first, {"two/.*": second}))
            return keras.optimizers.LossScaleOptimizer(together) if scale else together

        return wrap

    def zeros(one, two):
        one.scores.assign(np.eye(4))
        two.frozen_kernel.assign(np.zeros((4, 4)))

    still = "After epoch 1 the scores did not change in an epoch in layers 'one', 'two'."
    assert suspicious(wrap=several(0.1)) == suspicious(zeros, wrap=several(0.0)) == []
    assert suspicious(zeros, wrap=several(0.1)) == [still] and suspicious(zeros, wrap=several(0.1, 2)) == []


def test_kernels_that_are_not_finite_are_not_saved(tmp_path):
    layer = MPTDense(4, seed=1, name="huge")
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.frozen_kernel.assign(np.full((4, 4), 3e38, "float32"))  # whose sum is beyond float32
    callback = CheckScores()
    callback.set_model(model)
    with pytest.warns(UserWarning, match="After epoch 1 the kernel is not finite in layers 'huge'"):
        callback.on_epoch_end(0)
    with pytest.raises(ValueError, match="The kernel of layer 'huge' must be finite to be saved. Received: infinity"):
        model.save(tmp_path / "model.keras")
