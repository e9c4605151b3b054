"""Whitened Conv-6: its stem against the definition of whitening, its shape against the source, its variants."""

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.layers import MPTLayer
from keras_mpt.models import dense_twin, mpt_layers, strip
from keras_mpt.zoo import whitened_conv6_mpt, whitening_kernel
from support.layer_contract import numpy

IMAGES = np.random.default_rng(0).normal(size=(60, 1, 1, 3)) + np.random.default_rng(1).normal(size=(60, 9, 8, 3))
IMAGES = IMAGES.astype("float32")  # pixels near each other are alike


def small(**arguments):
    return whitened_conv6_mpt(width=0.0625, input_shape=(16, 16, 3), seed=0, **arguments)


def test_outputs_are_uncorrelated():
    kernel = whitening_kernel(IMAGES, epsilon=1e-9)
    assert kernel.shape == (2, 2, 3, 24) and kernel.dtype == np.float32
    outputs = numpy(keras.ops.conv(IMAGES, kernel)).reshape(-1, 24)
    np.testing.assert_allclose(np.cov(outputs[:, :12].T), np.eye(12), atol=1e-3)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    spread = np.linalg.norm(kernel[..., :12].reshape(-1, 12), axis=0)
    assert np.all(np.diff(spread) >= 0), "the directions of most variance come first, so their filters are the smallest"


def test_filters_of_a_single_pixel():
    pixels = IMAGES[..., :1]
    np.testing.assert_allclose(np.abs(whitening_kernel(pixels, size=1)) * np.sqrt(pixels.var() + 5e-4), 1, rtol=1e-3)


def test_epsilon_bounds_directions_without_variance():
    flat = np.repeat(IMAGES[..., :1], 3, axis=-1)
    assert np.abs(whitening_kernel(flat, epsilon=0.01)).max() <= 10
    assert np.abs(whitening_kernel(flat, epsilon=1e-18)).max() <= 1e9  # rounding makes some variances negative
    assert np.isfinite(whitening_kernel(flat, epsilon=1e-30)).all(), "rounding may give variances below 0"


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"images": IMAGES[0]}, "images"),
        ({"images": IMAGES.astype("uint8")}, "images"),
        ({"images": IMAGES * np.nan}, "images"),
        ({"images": IMAGES, "size": 9}, "images"),
        ({"images": IMAGES[:1, :2, :2]}, "images"),
        ({"images": IMAGES[..., :0]}, "images"),
        ({"images": IMAGES, "size": 0}, "size"),
        ({"images": IMAGES, "epsilon": -1}, "epsilon"),
    ],
)
def test_bad_images(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        whitening_kernel(**arguments)


@pytest.mark.parametrize("binary", [False, True])
def test_size(binary):
    model = whitened_conv6_mpt(input_quantizer="approx_sign" if binary else None, seed=0)
    weights = sum(int(np.prod(layer.scores.shape)) for layer in mpt_layers(model))
    inputs = 4 * 24 if binary else 24  # of the first convolution: each output of the stem has four thresholds
    assert weights == 9 * (inputs * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2560
    assert model.input_shape == (None, 32, 32, 3) and model.output_shape == (None, 10)
    assert not any("stem" in variable.path or "gamma" in variable.path for variable in model.trainable_variables)
    assert sum("beta" in variable.path for variable in model.trainable_variables) == (7 if binary else 6)


def test_signs_are_a_thermometer_code_of_the_stem():
    model = small(input_quantizer="approx_sign")
    model.get_layer("stem").set_weights([whitening_kernel(IMAGES)])
    images = IMAGES[:3].repeat(2, axis=1).repeat(2, axis=2)[:, :16]
    inner = keras.Model(model.inputs, [model.get_layer("stem").output, model.get_layer("conv1").input])
    stem, code = (numpy(output) for output in inner(images))
    normalized = stem / np.sqrt(1 + 1e-5)  # an untrained normalization
    expected = [normalized >= level for level in (1, 1 / 3, -1 / 3, -1)]
    np.testing.assert_array_equal(code >= 0, np.concatenate(expected, axis=-1))


@pytest.mark.parametrize("binary", [False, True])
def test_images_of_any_size(binary):
    quantizer = "approx_sign" if binary else None
    fixed = small(input_quantizer=quantizer)
    free = whitened_conv6_mpt(width=0.0625, input_shape=(None, None, 3), seed=0, input_quantizer=quantizer)
    images = IMAGES[:2].repeat(2, axis=1).repeat(2, axis=2)[:, :16]
    np.testing.assert_allclose(numpy(free(images)), numpy(fixed(images)), atol=1e-5)
    assert free(images.repeat(2, axis=1)).shape == (2, 10)


def test_ticket_holds_the_stem(tmp_path):
    model = small()
    model.get_layer("stem").set_weights([whitening_kernel(IMAGES)])
    images = IMAGES[:3].repeat(2, axis=1).repeat(2, axis=2)[:, :16]
    keras_mpt.save_ticket(model, tmp_path / "a.mpt")
    loaded = keras_mpt.load_ticket(tmp_path / "a.mpt")
    np.testing.assert_array_equal(loaded.get_layer("stem").get_weights()[0], whitening_kernel(IMAGES))
    for other in (loaded, strip(loaded)):
        np.testing.assert_allclose(numpy(other(images)), numpy(model(images)), atol=1e-5)


def test_dense_twin_has_the_same_stem():
    model = small()
    model.get_layer("stem").set_weights([whitening_kernel(IMAGES)])
    twin = dense_twin(model)
    np.testing.assert_array_equal(twin.get_layer("stem").get_weights()[0], whitening_kernel(IMAGES))
    assert not any(isinstance(layer, MPTLayer) for layer in twin.layers)


def test_the_stem_is_no_ticket():
    with pytest.raises(ValueError, match="`float_stem` must be True"):
        small(float_stem=False)


@pytest.mark.tensorflow_only
@pytest.mark.slow
def test_binary_convolutions(tmp_path):
    model = whitened_conv6_mpt(
        width=0.5, input_shape=(16, 16, 3), seed=0, input_quantizer="approx_sign", pad_values=1.0
    )
    model.get_layer("stem").set_weights([whitening_kernel(IMAGES)])
    report = keras_mpt.convert.to_lce(model, tmp_path / "a.tflite")
    assert report.operations["LceBconv2d"] == 6
