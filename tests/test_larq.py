"""Against larq itself, in processes of their own: larq needs TF_USE_LEGACY_KERAS=1 before TensorFlow is imported."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from support.ticket_files import opened

pytestmark = [
    pytest.mark.tensorflow_only,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("larq", "tensorflow", "tf_keras")),
        reason="larq, tensorflow and tf_keras are not installed",
    ),
]

HERE = pathlib.Path(__file__).resolve().parent
PREAMBLE = f"""
import sys
sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE)!r}]
import json
import numpy as np
import keras
from keras_mpt import quantizers
from keras_mpt.quantizers import larq_objects
assert "larq" not in sys.modules
"""


def run(code, backend="tensorflow", legacy=True):
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    environment.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    if legacy:
        environment["TF_USE_LEGACY_KERAS"] = "1"
    process = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code], env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stdout + process.stderr


EQUAL = """
import larq
import tensorflow as tf
from support.backend import gradient

q = larq.quantizers
objects = [
    q.SteSign(), q.SteSign(clip_value=0.5), q.SteSign(clip_value=None), q.ApproxSign(), q.SwishSign(),
    q.SwishSign(beta=1.0), q.SteHeaviside(), q.SteHeaviside(clip_value=None), q.SteTern(),
    q.SteTern(threshold_value=0.0), q.SteTern(threshold_value=0.5, clip_value=2.0),
    q.SteTern(ternary_weight_networks=True), q.MagnitudeAwareSign(), q.MagnitudeAwareSign(clip_value=None),
    q.DoReFa(), q.DoReFa(k_bit=1), q.DoReFa(k_bit=8),
]
edges = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 2e-38, -2e-38, 0.05, -0.05, np.nextafter(np.float32(0.05), 1), 0.5]
edges += [-0.5, 1 / 6, 0.25, 1, -1, 1.0000001, -1.0000001, 2, -2, 17.5, 18, 25, -25, 100, -100]
huge = [3e38, -3e38, np.inf, -np.inf, np.nan, 0.0, 0.0, 0.0]
finite = np.array([*edges, *np.linspace(-3, 3, 1000 - len(edges))], "float32")
everything = np.array([*finite, *huge], "float32")

for theirs in objects:
    ours = larq_objects.to_ours(theirs)
    assert isinstance(ours, quantizers.ActivationQuantizer), ours
    assert type(ours).__name__ == type(theirs).__name__ and ours.precision == theirs.precision, ours
    means = isinstance(theirs, q.MagnitudeAwareSign) or getattr(theirs, "ternary_weight_networks", False)
    grid = (finite if means else everything).reshape(2, -1, 2)
    # larq takes means of half precision numbers in half precision; ours are better than that
    theirs._autocast = False  # or it casts its input to float32
    for dtype in ("float32",) if means else ("float32", "float16", "bfloat16"):
        x = tf.cast(grid, dtype)
        a = np.asarray(tf.cast(theirs(x), "float32"))
        b = ours(x)
        assert b.dtype == x.dtype, (ours, dtype)
        b = np.asarray(tf.cast(b, "float32"))
        eps = {"float32": 1.2e-7, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
        np.testing.assert_allclose(b, a, rtol=4 * eps, err_msg=f"{ours} {dtype}")

        upstream = np.resize(np.array([1.0, -2.0, 0.5], "float32"), grid.shape)
        a = gradient(theirs, grid, upstream, dtype=dtype).astype("float32")
        b = gradient(ours, grid, upstream, dtype=dtype).astype("float32")
        if isinstance(theirs, q.SwishSign):
            # larq's slope is NaN where beta * x overflows; ours is its limit, 0
            overflow = np.abs(np.asarray(tf.cast(x, "float32"))) > 1e4
            assert (b[overflow] == 0).all(), (ours, dtype)
            a = np.where(overflow & np.isnan(a), 0, a)
        np.testing.assert_allclose(b, a, rtol=8 * eps, atol=20 * eps, err_msg=f"{ours} {dtype}")
        assert not (np.isnan(b) & ~np.isnan(a)).any()

for unknown in (q.NoOp(precision=1), q.DoReFa(mode="weights"), object()):
    try:
        larq_objects.to_ours(unknown)
    except ValueError as error:
        assert "must be" in str(error) and "Received: " in str(error), error
    else:
        raise AssertionError(unknown)
"""

TICKET = """
from keras_mpt.layers import MPTDense
from keras_mpt.tickets import load_ticket, save_ticket
layer = MPTDense(9, seed=1, input_quantizer=larq.quantizers.SwishSign(beta=2.0))
model = keras.Sequential([keras.Input((20,)), MPTDense(20, seed=2), layer])
save_ticket(model, FILE)
loaded = load_ticket(FILE)
quantizer = loaded.layers[1].input_quantizer
assert type(quantizer) is quantizers.SwishSign and quantizer.beta == 2.0
x = np.random.default_rng(0).normal(size=(9, 20)).astype("float32")
np.testing.assert_array_equal(model(x).numpy(), loaded(x).numpy())
"""


def test_ours_equal_larqs_and_are_what_tickets_store(tmp_path):
    """Two checks in one process, whose imports take most of the time."""
    file = tmp_path / "larq.mpt"
    run(f"FILE = {str(file)!r}" + EQUAL + TICKET)
    header, _ = opened(file.read_bytes())
    assert "larq" not in str(header["model"])


LAYER = """
@keras.saving.register_keras_serializable(package="test_larq")
class Quantized(keras.layers.Dense):
    def __init__(self, *args, input_quantizer=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.input_quantizer = quantizers.get_activation(input_quantizer)

    def call(self, inputs):
        return super().call(self.input_quantizer(inputs))

    def get_config(self):
        return {**super().get_config(), "input_quantizer": quantizers.serialize(self.input_quantizer)}

def build(first, second):
    keras.utils.set_random_seed(1)
    layers = [Quantized(7, input_quantizer=first), Quantized(2, input_quantizer=second)]
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model

rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 5)).astype("float32"), rng.normal(size=(32, 2)).astype("float32")
"""


@pytest.mark.slow
def test_larq_objects_in_keras_3_layers(tmp_path):
    run(f"""
import larq
{LAYER}
theirs = larq.quantizers.ApproxSign(), larq.quantizers.DoReFa(k_bit=3)
model, reference = build(*theirs), build("approx_sign", quantizers.DoReFa(k_bit=3))
assert model.layers[1].input_quantizer is theirs[0]
history = model.fit(x, y, epochs=3, verbose=0).history["loss"]
assert history[-1] < history[0]
np.testing.assert_allclose(history, reference.fit(x, y, epochs=3, verbose=0).history["loss"], rtol=1e-5)
assert len(model.weights) == len(reference.weights)
assert len(model.layers[1].weights) == 2

model.save({str(tmp_path / "model.keras")!r})
model.save_weights({str(tmp_path / "model.weights.h5")!r})
restored = keras.saving.load_model({str(tmp_path / "model.keras")!r})
assert type(restored.layers[1].input_quantizer) is larq.quantizers.ApproxSign
assert restored.layers[2].input_quantizer.get_config()["k_bit"] == 3
np.testing.assert_array_equal(restored.predict(x, verbose=0), model.predict(x, verbose=0))
reference.load_weights({str(tmp_path / "model.weights.h5")!r})
np.testing.assert_allclose(reference.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
restored.fit(x, y, verbose=0)
inputs = keras.Input((5,))
plain = keras.Model(inputs, quantizers.plain(theirs[1])(inputs))
np.testing.assert_allclose(plain.predict(x, verbose=0), theirs[1](x), rtol=1e-6)
keras.models.clone_model(model).predict(x, verbose=0)

model.export({str(tmp_path / "exported")!r}, verbose=False)
import tensorflow as tf
exported = tf.saved_model.load({str(tmp_path / "exported")!r})
np.testing.assert_allclose(exported.serve(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)

# every serialized form
for described in (
    quantizers.serialize(theirs[1]),
    larq.quantizers.serialize(theirs[1]),
    keras.saving.serialize_keras_object(theirs[1]),
):
    again = quantizers.get_activation(json.loads(json.dumps(described)))
    assert type(again) is larq.quantizers.DoReFa and again.precision == 3, described
legacy = larq.quantizers.serialize(theirs[1], use_legacy_format=True)
assert quantizers.get_activation(legacy).get_config() == quantizers.DoReFa(k_bit=3).get_config()

for wrong, message in (
    (lambda: quantizers.get_kernel(theirs[0]), "pass it as input_quantizer"),
    (lambda: quantizers.get_activation(larq.math.sign), "register_keras_serializable"),
    (lambda: quantizers.get_activation(larq.quantizers.SteSign), "pass an instance"),
    (lambda: quantizers.get_activation(larq.constraints.WeightClip()), "must be a quantizer"),
    (lambda: quantizers.get_activation({{"module": "larq.quantizers", "class_name": "tf"}}), "of larq.quantizers"),
):
    try:
        wrong()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
""")


@pytest.mark.parametrize("backend, expected", [("tensorflow", "TF_USE_LEGACY_KERAS=1"), ("jax", "jax backend")])
def test_without_legacy_keras_the_error_helps(backend, expected):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    run(
        f"""
config = {{"module": "larq.quantizers", "class_name": "SteSign", "config": {{"name": "ste_sign", "clip_value": 1.0}}}}
try:
    quantizers.get_activation(config)
except (ImportError, ValueError) as error:
    assert "input_quantizer" in str(error) and {expected!r} in str(error) and "SteSign" in str(error), error
else:
    raise AssertionError("no error")
assert isinstance(quantizers.get_activation("ste_sign"), quantizers.SteSign)
""",
        backend=backend,
        legacy=False,
    )


@pytest.mark.slow
def test_straight_through_convolution():
    """The baseline of the recipes is larq's QuantConv2D: outputs, gradients and clipped weights."""
    run("""
sys.path.insert(0, str(__import__("pathlib").Path(sys.path[0]) / "examples" / "recipes"))
import larq
import tensorflow as tf
from straight_through import BinaryConv2D, Clip

images = np.random.default_rng(0).normal(size=(4, 7, 6, 5)).astype("float32")
for size in (1, 2, 3):
    ours = BinaryConv2D.from_config(BinaryConv2D(8, size).get_config())  # as a checkpoint does
    ours.build(images.shape)
    theirs = larq.layers.QuantConv2D(
        8, size, padding="same", pad_values=1.0, use_bias=False, input_quantizer="approx_sign",
        kernel_quantizer="ste_sign", kernel_constraint="weight_clip")
    theirs.build(images.shape)
    kernel = np.random.default_rng(1).normal(size=(size, size, 5, 8)).astype("float32")
    weights = tf.constant(np.random.default_rng(2).normal(size=(4, 7, 6, 8)).astype("float32"))
    ours.kernel.assign(kernel)
    theirs.set_weights([kernel])
    results = []
    for layer, variable in ((ours, ours.kernel.value), (theirs, theirs.kernel.latent_variable)):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
            loss = tf.reduce_sum(weights * outputs)
        results.append([outputs, *tape.gradient(loss, [variable, x])])
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(Clip()(kernel), larq.constraints.WeightClip()(tf.constant(kernel)))
""")
