"""Values and gradients against numpy formulas, dtypes, identifiers, serialization."""

import doctest
import json

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_mpt import quantizers
from keras_mpt.quantizers import activations, kernels
from support.backend import gradient

F32 = np.float32


def sign(x):
    return np.where(x >= 0, F32(1), F32(-1))


def clipped(x, clip_value):
    return np.ones_like(x) if clip_value is None else (np.abs(x) <= F32(clip_value)).astype(F32)


def ternary(x, t):
    return (x >= t).astype(F32) - (x <= -t).astype(F32)


def swish_slope(x, beta):
    z = beta * x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        slope = beta * (2 - z * np.tanh(z / 2)) / (1 + np.cosh(z))
    return np.where(np.isinf(z) | (np.abs(z) > 700), 0.0, slope).astype(F32)


# quantizer, value, slope; the last axis holds the channels
CASES = [
    (quantizers.SteSign(), sign, lambda x: clipped(x, 1)),
    (quantizers.SteSign(clip_value=0.5), sign, lambda x: clipped(x, 0.5)),
    (quantizers.SteSign(clip_value=None), sign, np.ones_like),
    (quantizers.ApproxSign(), sign, lambda x: clipped(x, 1) * (2 - 2 * np.minimum(np.abs(x), 1))),
    (quantizers.SwishSign(), sign, lambda x: swish_slope(x, 5.0)),
    (quantizers.SwishSign(beta=1.5), sign, lambda x: swish_slope(x, 1.5)),
    (quantizers.SteHeaviside(), lambda x: (x > 0).astype(F32), lambda x: clipped(x, 1)),
    (quantizers.SteHeaviside(clip_value=2.0), lambda x: (x > 0).astype(F32), lambda x: clipped(x, 2)),
    (quantizers.SteTern(), lambda x: ternary(x, F32(0.05)), lambda x: clipped(x, 1)),
    (quantizers.SteTern(threshold_value=0.0), lambda x: np.sign(x), lambda x: clipped(x, 1)),
    (quantizers.SteTern(threshold_value=0.5, clip_value=None), lambda x: ternary(x, F32(0.5)), np.ones_like),
    (
        quantizers.DoReFa(),
        lambda x: np.round(np.clip(x, 0, 1) * F32(3)) / F32(3),
        lambda x: ((x >= 0) & (x <= 1)).astype(F32),
    ),
    (
        quantizers.DoReFa(k_bit=5),
        lambda x: np.round(np.clip(x, 0, 1) * F32(31)) / F32(31),
        lambda x: ((x >= 0) & (x <= 1)).astype(F32),
    ),
]
IDS = [repr(case[0]) for case in CASES]
ALL = [case[0] for case in CASES] + [
    quantizers.SteTern(ternary_weight_networks=True),
    quantizers.MagnitudeAwareSign(),
    quantizers.MagnitudeAwareSign(clip_value=None),
]
EDGES = np.array(
    [0.0, -0.0, 1e-37, -1e-37, 0.05, -0.05, 0.3, -0.3, 0.5, -0.5, 1, -1, 1.0000001, -1.0000001, 2, -2]
    + [18, -18, 90, -90, 1e38, -1e38, np.inf, -np.inf],
    F32,
)
# Subnormal numbers are apart, since backends differ in whether they flush them to zero: see test_subnormal.
NUMBERS = st.one_of(
    st.sampled_from([float(x) for x in EDGES]),
    st.floats(width=32, allow_nan=False, allow_subnormal=False),
    st.floats(-2, 2, width=32, allow_subnormal=False),
)
ARRAYS = st.lists(NUMBERS, min_size=24, max_size=24).map(lambda xs: np.array(xs, F32).reshape(2, 4, 3))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))


def tensor(x, dtype="float32"):
    return ops.cast(ops.convert_to_tensor(x), dtype)


@pytest.mark.parametrize("quantizer, value, slope", CASES, ids=IDS)
def test_value_and_gradient_at_the_edges(quantizer, value, slope):
    upstream = np.linspace(-3, 3, EDGES.size, dtype=F32)
    np.testing.assert_array_equal(numpy(quantizer(tensor(EDGES))), value(EDGES))
    np.testing.assert_array_equal(numpy(quantizer.forward(tensor(EDGES))), value(EDGES))
    np.testing.assert_allclose(gradient(quantizer, EDGES, upstream), slope(EDGES) * upstream, rtol=3e-6, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(x=ARRAYS, case=st.sampled_from(CASES))
def test_value_and_gradient_anywhere(x, case):
    quantizer, value, slope = case
    np.testing.assert_allclose(numpy(quantizer(tensor(x))), value(x), rtol=1e-6, atol=0)
    np.testing.assert_allclose(gradient(quantizer, x), slope(x), rtol=2e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(x=ARRAYS, clip_value=st.sampled_from([None, 1.0, 2.0]))
def test_magnitude_aware_sign(x, clip_value):
    x = np.clip(x, -1e30, 1e30)  # a sum beyond float32's range is tested below
    quantizer = quantizers.MagnitudeAwareSign(clip_value=clip_value)
    scale = np.abs(x).mean(axis=(0, 1), dtype=np.float64).astype(F32)
    np.testing.assert_allclose(numpy(quantizer(tensor(x))), scale * sign(x), rtol=1e-6, atol=1e-37)
    expected = scale * clipped(x, clip_value)
    np.testing.assert_allclose(gradient(quantizer, x), expected, rtol=1e-6, atol=1e-37)


def test_magnitude_aware_sign_of_infinities_clips_without_nan():
    x = np.array([[0.5, np.inf], [2.0, -np.inf]], F32)
    np.testing.assert_array_equal(numpy(quantizers.MagnitudeAwareSign()(tensor(x))), [[1.25, np.inf], [1.25, -np.inf]])
    np.testing.assert_array_equal(gradient(quantizers.MagnitudeAwareSign(), x), [[1.25, 0], [0, 0]])


@settings(deadline=None, max_examples=40)
@given(x=ARRAYS)
@example(x=np.random.default_rng(0).normal(size=(30, 4, 5)).astype(F32))
def test_ternary_weight_networks_threshold(x):
    x = np.clip(x, -1e30, 1e30)
    threshold = 0.7 * np.abs(x).mean(dtype=np.float64)
    clear = np.abs(np.abs(x) - threshold) > 1e-5 * threshold  # rounding decides the others
    result = numpy(quantizers.SteTern(ternary_weight_networks=True)(tensor(x)))
    np.testing.assert_array_equal(result[clear], ternary(x, threshold)[clear])
    np.testing.assert_array_equal(gradient(quantizers.SteTern(ternary_weight_networks=True), x), clipped(x, 1))


@pytest.mark.parametrize("quantizer", ALL, ids=repr)
def test_nan_stays_visible(quantizer):
    x = np.array([[np.nan, 1.0], [0.5, -1.0]], F32)
    assert np.isnan(numpy(quantizer(tensor(x)))[0, 0])
    assert not np.isnan(numpy(quantizer(tensor(x)))[:, 1]).any()


TINY = float(np.finfo(F32).tiny)
SUBNORMAL = st.floats(-TINY, TINY, width=32, exclude_min=True, exclude_max=True)


@settings(deadline=None, max_examples=25)
@given(x=st.lists(SUBNORMAL, min_size=4, max_size=4))
def test_subnormal(x):
    x = np.array(x, F32)
    result = numpy(quantizers.ApproxSign()(tensor(x)))
    assert np.all((result == sign(x)) | (result == 1))  # as itself, or as zero
    result = numpy(quantizers.SteHeaviside()(tensor(x)))
    assert np.all((result == (x > 0)) | (result == 0))
    np.testing.assert_array_equal(gradient(quantizers.ApproxSign(), x), np.full(4, 2, F32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("quantizer", ALL, ids=repr)
def test_dtype_is_kept(quantizer, dtype):
    x = np.array([[0.0, 0.25, -0.25], [1.0, -1.0, 3.0], [-3.0, 0.125, np.inf], [-np.inf, 20.0, 65000.0]], F32).T
    if isinstance(quantizer, quantizers.MagnitudeAwareSign) or getattr(quantizer, "ternary_weight_networks", False):
        x = x[:, :2]  # finite means
    low = tensor(x, dtype)
    x = numpy(low)
    result = quantizer(low)
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    assert keras.backend.standardize_dtype(quantizer.slope(low).dtype) == dtype
    tolerance = {"float16": 3e-3, "bfloat16": 2e-2, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(numpy(result), numpy(quantizer(tensor(x))), rtol=tolerance)
    # the slopes of SwishSign subtract numbers of its own size
    np.testing.assert_allclose(
        gradient(quantizer, x, dtype=dtype), gradient(quantizer, x), rtol=tolerance, atol=5 * tolerance
    )


def test_low_precision_means_do_not_overflow():
    x = tensor(np.full((64, 64, 2), 100.0), "float16")
    np.testing.assert_array_equal(numpy(quantizers.MagnitudeAwareSign()(x)), np.full((64, 64, 2), 100.0))
    np.testing.assert_array_equal(numpy(quantizers.SteTern(ternary_weight_networks=True)(x)), np.ones((64, 64, 2)))


def test_precision():
    precisions = [quantizers.get_activation(name).precision for name in ("ste_sign", "ste_heaviside", "ste_tern")]
    assert precisions == [1, 1, 2]
    assert quantizers.DoReFa(k_bit=3).precision == 3
    assert quantizers.ScaledSign().precision == 1
    assert quantizers.Identity().precision == 32


@pytest.mark.parametrize("quantizer", ALL, ids=repr)
def test_in_a_functional_model(quantizer, tmp_path):
    inputs = keras.Input((4, 2))
    called = keras.Model(inputs, quantizer(inputs))
    plain = keras.Model(inputs, quantizer.forward(inputs))
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(F32)
    expected = numpy(quantizer(tensor(x)))
    for model in (called, plain):
        model.save(tmp_path / "model.keras")
        restored = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(numpy(restored(x)), expected, rtol=1e-6)
        np.testing.assert_allclose(restored.predict(x, verbose=0), expected, rtol=1e-6)
    np.testing.assert_allclose(gradient(called, x), gradient(quantizer, x), rtol=1e-6)


def test_plain():
    quantizer = quantizers.ApproxSign()
    assert quantizers.plain(quantizer) == quantizer.forward
    assert quantizers.plain(None) is None
    assert quantizers.plain(registered_activation) is registered_activation


@pytest.mark.parametrize("name", ["approx_sign", "magnitude_aware_sign"])
def test_trains_inside_a_compiled_step(name):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8), keras.layers.Activation(quantizers.get_activation(name))]
    )
    model.compile("sgd", "mse")
    before = model.get_weights()[0]
    model.fit(np.ones((8, 6), F32), np.zeros((8, 8), F32), verbose=0)
    assert np.isfinite(model.get_weights()[0]).all()
    assert (model.get_weights()[0] != before).any()


# Kernels


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), kept=st.integers(0, 18))
def test_kernel_quantizers(seed, kept):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 2, 3)).astype(F32)
    mask = rng.permutation(np.arange(18) < kept).reshape(kernel.shape).astype(F32)
    alpha = np.abs(kernel[mask == 1]).mean(dtype=np.float64) if kept else 0.0
    arguments = tensor(kernel), tensor(mask), tensor(kept, "int32")
    np.testing.assert_allclose(numpy(quantizers.ScaledSign().alpha(*arguments)), alpha, rtol=1e-6)
    np.testing.assert_allclose(numpy(quantizers.ScaledSign()(*arguments)), alpha * np.sign(kernel) * mask, rtol=1e-6)
    np.testing.assert_array_equal(numpy(quantizers.Identity()(*arguments)), kernel * mask)
    assert keras.backend.standardize_dtype(quantizers.ScaledSign()(*arguments).dtype) == "float32"


# Identifiers and serialization

NAMES = ["ste_sign", "approx_sign", "swish_sign", "ste_heaviside", "ste_tern", "magnitude_aware_sign"]
NAMES += ["dorefa_quantizer"]


@keras.saving.register_keras_serializable(package="test_quantizers")
def registered_activation(x):
    return ops.tanh(x)


@keras.saving.register_keras_serializable(package="test_quantizers")
class Identity:  # bears the name of a kernel quantizer
    def __call__(self, x):
        return x

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize("quantizer", ALL + [quantizers.ScaledSign(), quantizers.Identity()], ids=repr)
def test_round_trip(quantizer):
    get = quantizers.get_kernel if isinstance(quantizer, quantizers.KernelQuantizer) else quantizers.get_activation
    assert get(quantizer) is quantizer
    config = quantizer.get_config()
    class_name = type(quantizer).__name__
    plain = {"class_name": class_name, "config": config}
    for described in (quantizers.serialize(quantizer), keras.saving.serialize_keras_object(quantizer), plain):
        restored = get(json.loads(json.dumps(described)))
        assert type(restored) is type(quantizer)
        assert restored.get_config() == config
    evaluated = eval(repr(quantizer), vars(quantizers))
    assert type(evaluated) is type(quantizer) and evaluated.get_config() == config
    assert keras.saving.get_registered_name(type(quantizer)) == f"keras_mpt>{class_name}"


@pytest.mark.parametrize("name", NAMES)
def test_names_of_activations(name):
    quantizer = quantizers.get_activation(name)
    assert isinstance(quantizer, quantizers.ActivationQuantizer)
    assert type(quantizers.get_activation(type(quantizer).__name__)) is type(quantizer)


def test_names_of_kernels_and_none():
    assert isinstance(quantizers.get_kernel("scaled_sign"), quantizers.ScaledSign)
    assert isinstance(quantizers.get_kernel("ScaledSign"), quantizers.ScaledSign)
    assert isinstance(quantizers.get_kernel("identity"), quantizers.Identity)
    assert isinstance(quantizers.get_kernel(None), quantizers.Identity)
    assert quantizers.get_activation(None) is None
    assert quantizers.serialize(None) is None


@pytest.mark.parametrize(
    "function",
    [registered_activation, Identity(), keras.activations.tanh, keras.layers.ReLU(6.0), keras.layers.Identity()],
    ids=["function", "object", "built-in", "layer", "layer of a name of ours"],
)
def test_callables_that_keras_can_restore(function):
    assert quantizers.get_activation(function) is function
    restored = quantizers.get_activation(json.loads(json.dumps(quantizers.serialize(function))))
    assert restored is function or type(restored) is type(function)


@pytest.mark.parametrize(
    "get, identifier, message",
    [
        (quantizers.get_activation, "aprox_sign", "`input_quantizer` must be .*'aprox_sign'.*mean 'approx_sign'"),
        (quantizers.get_activation, "APROX_SIGN", "`input_quantizer` must be .*'APROX_SIGN'.*mean 'approx_sign'"),
        (quantizers.get_activation, "zzz", "`input_quantizer` must be None, one of 'approx_sign'.*. Received: 'zzz'.$"),
        (quantizers.get_activation, "scaled_sign", "Received: 'scaled_sign'.*pass it as kernel_quantizer"),
        (quantizers.get_activation, kernels.Identity(), "pass it as kernel_quantizer"),
        (quantizers.get_activation, quantizers.SteSign, r"pass an instance, SteSign\(\)"),
        (quantizers.get_activation, lambda x: x, "`input_quantizer` must be .*register_keras_serializable"),
        (quantizers.get_activation, ops.tanh, "`input_quantizer` must be .*register_keras_serializable"),
        (quantizers.get_activation, quantizers.SteSign().forward, "`input_quantizer` must be .*register_keras_serial"),
        (quantizers.get_activation, 3, "`input_quantizer` must be .*Received: 3"),
        (quantizers.get_activation, {"class_name": "Nothing", "config": {}}, "`input_quantizer` must be .*Nothing"),
        (quantizers.get_activation, {"class_name": ["list"], "config": {}}, "`input_quantizer` must be"),
        (quantizers.get_activation, {"name": "ste_sign"}, "`input_quantizer` must be .*ste_sign"),
        (quantizers.get_activation, {"class_name": "SteSign", "config": {"clip": 1}}, "`input_quantizer` .*'clip'"),
        (quantizers.get_activation, quantizers.serialize(kernels.Identity()), "pass it as kernel_quantizer"),
        (quantizers.get_kernel, "scaled_sgn", "`kernel_quantizer` must be .*mean 'scaled_sign'"),
        (quantizers.get_kernel, "approx_sign", "Received: 'approx_sign'.*pass it as input_quantizer"),
        (quantizers.get_kernel, quantizers.SteSign(), "pass it as input_quantizer"),
        (quantizers.get_kernel, quantizers.serialize(quantizers.SteSign()), "pass it as input_quantizer"),
        (quantizers.get_kernel, {"module": "larq.quantizers", "class_name": "SteSign", "config": {}}, "input_quanti"),
    ],
)
def test_wrong_identifiers(get, identifier, message):
    with pytest.raises(ValueError, match=message):
        get(identifier)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: quantizers.SteSign(clip_value=-1), "`clip_value` must be None or a number >= 0. Received: -1"),
        (lambda: quantizers.SteSign(clip_value="x"), "`clip_value` must be None or a number >= 0. Received: 'x'"),
        (lambda: quantizers.SteSign(clip_value="2"), "`clip_value` must be None or a number >= 0. Received: '2'"),
        (lambda: quantizers.SwishSign(beta=True), "`beta` must be a number > 0. Received: True"),
        (lambda: quantizers.SwishSign(beta=float("inf")), "`beta` must be a number > 0. Received: inf"),
        (lambda: quantizers.DoReFa(k_bit=200), "`k_bit` must be at most 32. Received: k_bit=200"),
        (lambda: quantizers.SwishSign(beta=0), "`beta` must be a number > 0. Received: 0"),
        (lambda: quantizers.SteTern(threshold_value=None), "`threshold_value` must be a number >= 0. Received: None"),
        (lambda: quantizers.DoReFa(k_bit=0), "`k_bit` must be an integer > 0. Received: k_bit=0"),
        (lambda: quantizers.DoReFa(k_bit=True), "`k_bit` must be an integer > 0. Received: k_bit=True"),
        (lambda: quantizers.DoReFa(k_bit=1.5), "`k_bit` must be an integer > 0. Received: k_bit=1.5"),
        (lambda: quantizers.DoReFa(mode="weights"), "`mode` must be 'activations'.*Received: 'weights'"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("module", [quantizers, activations, kernels])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.failed == 0 < result.attempted


def test_do_re_fa_with_more_levels_than_float16_has():
    x = np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0], np.float16)
    y = ops.convert_to_numpy(quantizers.DoReFa(16)(ops.convert_to_tensor(x)))
    wanted = np.round(np.clip(x.astype(np.float32), 0, 1) * 65535) / 65535
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, wanted.astype(np.float16))
