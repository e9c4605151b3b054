"""VGG and ResNet architectures: sizes by hand and as published, what one can do with the models, seeds."""

import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_mpt
from keras_mpt import zoo
from keras_mpt.initializers import KaimingNormal, layer_seeds
from keras_mpt.models import dense_twin, mpt_layers, strip
from support.layer_contract import inputs, numpy

pytestmark = pytest.mark.slow_with("jax")


def vgg(blocks, flat, classes):
    total, channels = 0, 3
    for count, n in blocks:
        total += 9 * (channels * n + (count - 1) * n * n)
        channels = n
    return total + flat * channels * classes


def basic(stem, stages, classes, projections=1):
    """Weights of a ResNet of 3x3 convolutions; `stem` is (weights of one filter, filters)."""
    total, channels = stem[0] * stem[1], stem[1]
    for blocks, n in stages:
        total += 9 * (channels * n + (2 * blocks - 1) * n * n) + projections * (channels != n) * channels * n
        channels = n
    return total + channels * classes


def bottleneck(stem, stages, classes, inside=1):
    total, channels = stem[0] * stem[1], stem[1]
    for blocks, n in stages:
        inner, outer = inside * n, 4 * n
        total += channels * inner + (blocks - 1) * outer * inner + blocks * (9 * inner * inner + inner * outer)
        total += channels * outer  # the first block's shortcut
        channels = outer
    return total + channels * classes


def sizes(width, imagenet=True):
    """Weights of the architectures at a width, with ImageNet's or the small stem where there are two."""

    def stages(*pairs):
        return [(count, round(width * n)) for count, n in pairs]

    filter_size = 49 * 3 if imagenet else 9 * 3
    stem, small, narrow = (filter_size, round(64 * width)), (27, round(64 * width)), (27, round(16 * width))
    usual = {depth: stages(*zip(n, (64, 128, 256, 512), strict=True)) for depth, n in BLOCKS.items()}
    return {
        "vgg_small_mpt": vgg(stages((2, 128), (2, 256), (2, 512)), 16, 10),
        "vgg19_mpt": vgg(stages((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)), 1, 10),
        "resnet18_mpt": basic(small, usual[18], 10),
        "resnet20_mpt": basic(narrow, stages((3, 16), (3, 32), (3, 64)), 10, projections=0),
        "resnet32_mpt": basic(narrow, stages((5, 16), (5, 32), (5, 64)), 10, projections=0),
        "resnet34_mpt": basic(stem, usual[34], 1000),
        "resnet50_mpt": bottleneck(stem, usual[34], 1000),
        "wide_resnet34_mpt": basic(stem, stages((3, 64), (4, 192), (6, 384), (3, 768)), 1000),
        "wide_resnet50_mpt": bottleneck(stem, usual[34], 1000, inside=2),
    }


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# Parameters of torchvision's networks: minus 1000 biases and two for each channel of batch normalization.
TORCHVISION = {
    "resnet34_mpt": 21_797_672 - 1000 - 2 * 8_512,
    "resnet50_mpt": 25_557_032 - 1000 - 2 * 26_560,
    "wide_resnet50_mpt": 68_883_240 - 1000 - 2 * 34_112,
}
MILLIONS = {
    "vgg_small_mpt": 4.66,
    "vgg19_mpt": 20.02,
    "resnet18_mpt": 11.16,
    "resnet20_mpt": 0.27,
    "resnet32_mpt": 0.46,
    "wide_resnet34_mpt": 48.27,
}


def test_sizes_as_published():
    full = sizes(1.0)
    assert {name: full[name] for name in TORCHVISION} == TORCHVISION
    assert {name: round(full[name] / 1e6, 2) for name in MILLIONS} == MILLIONS
    assert full["resnet18_mpt"] == 11_164_352
    assert round(sizes(2.0)["resnet32_mpt"] / 1e6, 2) == 1.85
    assert basic((147, 64), [(2, 64), (2, 128), (2, 256), (2, 512)], 1000) == 11_689_512 - 1000 - 2 * 4_800


def size(model):
    return sum(math.prod(layer.frozen_kernel.shape) for layer in mpt_layers(model))


@pytest.mark.parametrize("name", sizes(1.0))
def test_sizes(name):
    imagenet = {"input_shape": (72, 80, 3)} if name in TORCHVISION or name == "wide_resnet34_mpt" else {}
    model = getattr(zoo, name)(width=0.125, seed=0, **imagenet)
    assert size(model) == sizes(0.125)[name]
    assert sum(math.prod(v.shape) for v in model.trainable_weights) == size(model)
    if imagenet:
        small = getattr(zoo, name)(width=0.125, seed=0, input_shape=(64, 48, 3))
        assert size(small) == sizes(0.125, imagenet=False)[name]
        assert small.get_layer("stage1_block1_conv1").output.shape[1:3] == (64, 48)
        assert model.get_layer("stage1_block1_conv1").output.shape[1:3] == (18, 20)
    last = model.get_layer("flatten" if name.startswith("vgg") else "pool").input
    features = getattr(zoo, name)(width=0.125, seed=0, include_top=False, **imagenet)
    assert features.output_shape == tuple(last.shape) and len(mpt_layers(features)) == len(mpt_layers(model)) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sizes(1.0))
def test_full_size(name):
    model = getattr(zoo, name)(seed=0)
    assert size(model) == sizes(1.0)[name]
    image = inputs(model.input_shape[1:])[:1]
    assert numpy(model(image)).shape == (1, *model.output_shape[1:])
    keras.backend.clear_session()


@pytest.mark.slow
@pytest.mark.parametrize("input_quantizer", [None, "approx_sign"])
@pytest.mark.parametrize("name", [name for name in sizes(1.0) if "resnet" in name])
def test_images_of_any_size(name, input_quantizer, tmp_path):
    def make(*shape):
        settings = {"classes": 3, "width": 0.0625, "sparsity": 0.5, "seed": 2, "batch_norm_affine": True}
        return getattr(zoo, name)(input_shape=shape, input_quantizer=input_quantizer, **settings)

    large = name not in ("resnet18_mpt", "resnet20_mpt", "resnet32_mpt")  # of ImageNet's stem
    models = [make(None, None, 3)] if large else [make(None, None, 3), make(None, 32, 3)]
    keras_mpt.save_ticket(models[0], tmp_path / "any.mpt")
    models.append(keras_mpt.load_ticket(tmp_path / "any.mpt"))
    assert {model.output_shape for model in models} == {(None, 3)}
    for shape in [(80, 65, 3), (65, 96, 3)] if large else [(32, 32, 3), (19, 32, 3)]:
        x = inputs(shape)
        expected = numpy(make(*shape)(x))
        assert expected.std() > 0
        for model in models:
            np.testing.assert_allclose(numpy(model(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_stem_for_images_of_any_size():
    """It is that of the default size, or of the size that is known."""
    for name, shape, size in [
        ("resnet18_mpt", (None, None, 3), 3),
        ("resnet18_mpt", (None, 65, 3), 7),
        ("resnet34_mpt", (64, None, 3), 3),
        ("resnet34_mpt", (None, None, 3), 7),
    ]:
        model = getattr(zoo, name)(input_shape=shape, width=0.02, include_top=False)
        assert model.get_layer("conv1").kernel_size == (size, size), (name, shape)


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


CONV, NORM, POOL, RELU = "MPTConv2D", "BatchNormalization", "MaxPooling2D", "ReLU"


def test_order_of_vgg_small():
    block = [CONV, NORM, RELU, CONV, POOL, NORM, RELU]
    assert kinds(zoo.vgg_small_mpt(width=0.1)) == 3 * block + ["Flatten", "MPTDense"]
    binary = [CONV, NORM, CONV, POOL, NORM]
    model = zoo.vgg_small_mpt(width=0.1, input_quantizer="approx_sign")
    assert kinds(model) == 3 * binary + [RELU, "Flatten", "MPTDense"]


def test_order_of_vgg19():
    step, binary = [CONV, NORM, RELU], [CONV, NORM]
    counts = (2, 2, 4, 4, 4)
    assert kinds(zoo.vgg19_mpt(width=0.1)) == [k for n in counts for k in [*n * step, POOL]] + ["Flatten", "MPTDense"]
    expected = [k for n in counts for k in [*(n - 1) * binary, CONV, POOL, NORM]]
    model = zoo.vgg19_mpt(width=0.1, input_quantizer="approx_sign")
    assert kinds(model) == [*expected, RELU, "Flatten", "MPTDense"]


def test_seeds_in_construction_order():
    names = ["conv1"]
    for stage in range(1, 5):
        for block in (1, 2):
            names += [f"stage{stage}_block{block}_conv{i}" for i in (1, 2)]
            names += [f"stage{stage}_block{block}_shortcut"] if stage > 1 and block == 1 else []
    expected = dict(zip([*names, "logits"], layer_seeds(3), strict=False))
    for settings in ({}, {"input_quantizer": "approx_sign"}, {"input_shape": (72, 72, 3), "batch_norm_affine": True}):
        model = zoo.resnet18_mpt(width=0.0625, seed=3, **settings)
        assert {layer.name: layer.seed for layer in mpt_layers(model)} == expected


# Networks that hold every kind of piece: both stems, all kinds of blocks and shortcuts, both orders of pooling.
KINDS = {
    "ImageNet's stem": (zoo.resnet18_mpt, {"input_shape": (66, 70, 3), "classes": 4, "width": 0.0625}),
    "zero channels": (zoo.resnet20_mpt, {"input_shape": (12, 12, 3), "classes": 4, "width": 0.25}),
    "VGG": (zoo.vgg_small_mpt, {"input_shape": (16, 16, 3), "classes": 4, "width": 0.0625, "float_stem": True}),
    "VGG-19": (zoo.vgg19_mpt, {"input_shape": (32, 32, 3), "classes": 4, "width": 0.0625}),
    "bottlenecks": (zoo.resnet50_mpt, {"input_shape": (16, 16, 3), "classes": 4, "width": 0.0625}),
}
FLOAT, BINARY = {}, {"input_quantizer": "approx_sign", "pad_values": 1.0}


def cases(*fast):
    """Both variants of all kinds; all but these are slow tests."""
    return [
        pytest.param(kind, variant, id=f"{kind} {name}", marks=[] if (kind, name) in fast else [pytest.mark.slow])
        for kind in KINDS
        for name, variant in (("1/32", FLOAT), ("1/1", BINARY))
    ]


FAST = [
    ("ImageNet's stem", "1/1"),
    ("zero channels", "1/32"),
    ("zero channels", "1/1"),
    ("VGG", "1/32"),
    ("VGG", "1/1"),
]


@pytest.mark.parametrize("kind, variant", cases(*FAST))
def test_saved_and_stripped(kind, variant, tmp_path):
    build, settings = KINDS[kind]
    settings = {**settings, **variant, "kernel_initializer": KaimingNormal(scale_fan=True)}  # or deep ones give zero
    model = build(**settings, sparsity=0.5, batch_norm_affine=True, seed=1)
    image = inputs(settings["input_shape"])
    expected = numpy(model(image))
    assert expected.std() > 0.01
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.to_json() == model.to_json()
    np.testing.assert_array_equal(numpy(loaded(image)), expected)
    stripped = strip(model)
    assert "keras_mpt" not in stripped.to_json()
    np.testing.assert_allclose(numpy(stripped(image)), expected, rtol=1e-4, atol=1e-4)

    rows = {row["name"]: row for row in keras_mpt.summary(model, print_fn=lambda text: None).rows}
    assert None not in {value for row in rows.values() for key, value in row.items() if key.startswith("macs")}
    bits = {name: row["input_bits"] for name, row in rows.items() if row["type"] in (CONV, "Conv2D", "MPTDense")}
    assert {name for name, value in bits.items() if value == 32} == ({"conv1", "logits"} if variant else set(bits))
    if variant:
        with pytest.raises(ValueError, match="float activations"):
            dense_twin(model)
    else:
        twin = dense_twin(model)
        assert twin.count_params() == stripped.count_params() and mpt_layers(twin) == []
        assert numpy(twin(image)).shape == expected.shape


@pytest.mark.slow_with("tensorflow")  # which compiles the step for seconds
@pytest.mark.parametrize("kind, variant", cases(("ImageNet's stem", "1/1"), ("VGG", "1/1")))
def test_training_step(kind, variant):
    build, settings = KINDS[kind]
    model = build(**settings, **variant, sparsity=0.5, seed=1)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    variables = [*model.trainable_variables, *(v for layer in norms for v in layer.weights)]
    before = [numpy(v) for v in variables]
    loss = model.train_on_batch(inputs(settings["input_shape"]), np.array([1, 3]))
    assert np.isfinite(loss)
    for variable, value in zip(variables, before, strict=True):
        assert (numpy(variable) != value).any(), variable.path
