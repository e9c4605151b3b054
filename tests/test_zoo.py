"""What all architectures share, and Conv-2, Conv-4, Conv-6, Conv-8: sizes by hand, order of the layers, seeds."""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_mpt
from keras_mpt import zoo
from keras_mpt.initializers import KaimingNormal, layer_seeds
from keras_mpt.models import mpt_layers
from support.layer_contract import inputs, numpy

CONV = {2: zoo.conv2_mpt, 4: zoo.conv4_mpt, 6: zoo.conv6_mpt, 8: zoo.conv8_mpt}
# Kernels of a network for 32x32x3 and 10 classes, as (fan_in, outputs). Each pool halves both sides.
CONVOLUTIONS = [(27, 64), (576, 64), (576, 128), (1152, 128), (1152, 256), (2304, 256), (2304, 512), (4608, 512)]
FLAT = {2: 16 * 16 * 64, 4: 8 * 8 * 128, 6: 4 * 4 * 256, 8: 2 * 2 * 512}
KERNELS = {n: [*CONVOLUTIONS[:n], (FLAT[n], 256), (256, 256), (256, 10)] for n in CONV}
SMALL = {"width": 0.125, "seed": 3}
made_of_the_same_on_all_backends = pytest.mark.slow_with("jax", "torch")


def test_sizes_of_the_papers():
    sizes = {n: sum(a * b for a, b in kernels) for n, kernels in KERNELS.items()}
    assert {n: round(size / 1e6, 1) for n, size in sizes.items()} == {2: 4.3, 4: 2.4, 6: 2.3, 8: 5.3}


@pytest.mark.parametrize("depth", CONV)
def test_kernels(depth):
    model = CONV[depth](sparsity=0.8, seed=0)
    assert model.input_shape == (None, 32, 32, 3) and model.output_shape == (None, 10)
    assert model.name == f"conv{depth}_mpt"
    built = mpt_layers(model)
    shapes = [layer.frozen_kernel.shape for layer in built]
    assert [(math.prod(shape[:-1]), shape[-1]) for shape in shapes] == KERNELS[depth]
    assert [int(layer.kept) for layer in built] == [a * b - a * b * 8 // 10 for a, b in KERNELS[depth]]
    assert sum(math.prod(v.shape) for v in model.trainable_weights) == sum(a * b for a, b in KERNELS[depth])
    assert all(layer.bias is None for layer in built)


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def test_order_of_mpt_1_32():
    block = ["MPTConv2D", "ReLU", "MPTConv2D", "ReLU", "MaxPooling2D"]
    top = ["Flatten", "MPTDense", "ReLU", "MPTDense", "ReLU", "MPTDense"]
    for depth, build in CONV.items():
        assert kinds(build(**SMALL)) == depth // 2 * block + top


@pytest.mark.parametrize("affine", [False, True])
def test_order_of_mpt_1_1(affine):
    norm = "BatchNormalization"
    block = ["MPTConv2D", norm, "MPTConv2D", "MaxPooling2D", norm]
    model = zoo.conv4_mpt(input_quantizer="approx_sign", batch_norm_affine=affine, pad_values=1.0, **SMALL)
    assert kinds(model) == 2 * block + ["Flatten", "MPTDense", norm, "MPTDense", norm, "MPTDense"]
    first, *others = mpt_layers(model)
    assert first.input_quantizer is None
    assert {type(layer.input_quantizer).__name__ for layer in others} == {"ApproxSign"}
    assert [layer.pad_values for layer in mpt_layers(model)[:4]] == [0.0, 1.0, 1.0, 1.0]  # the first sees the image
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert all((layer.gamma is not None, layer.beta is not None) == (affine, affine) for layer in norms)
    channels = [8, 8, 16, 16, 32, 32]
    assert sum(math.prod(v.shape) for layer in norms for v in layer.trainable_weights) == 2 * affine * sum(channels)


def test_seeds():
    model, again, other = (zoo.conv2_mpt(width=0.125, seed=seed) for seed in (3, 3, 4))
    built = mpt_layers(model)
    assert [layer.seed for layer in built] == list(itertools.islice(layer_seeds(3), 5))
    for layer in built:
        kernel = KaimingNormal().draw(tuple(layer.frozen_kernel.shape), layer.seed)
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), kernel)
    for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(built, mpt_layers(other), strict=True):
        assert (numpy(one.frozen_kernel) != numpy(two.frozen_kernel)).any()


def test_no_seed_draws_one():
    seeds = [[layer.seed for layer in mpt_layers(zoo.conv2_mpt(width=0.125))] for _ in range(2)]
    assert seeds[0] != seeds[1]
    keras.utils.set_random_seed(0)
    assert [layer.seed for layer in mpt_layers(zoo.conv2_mpt(width=0.125))] == seeds[0]


def test_other_arguments():
    model = zoo.conv4_mpt(
        input_shape=(12, 8, 1),
        classes=7,
        sparsity=0.9,
        kernel_quantizer=None,
        kernel_initializer="signed_constant",
        **SMALL,
    )
    assert model.output_shape == (None, 7)
    filters = [layer.frozen_kernel.shape[-1] for layer in mpt_layers(model)]
    assert filters == [8, 8, 16, 16, 32, 32, 7]
    assert mpt_layers(model)[4].frozen_kernel.shape[0] == 3 * 2 * 16
    for layer in mpt_layers(model):
        assert layer.sparsity == 0.9 and type(layer.kernel_quantizer).__name__ == "Identity"
        assert np.unique(np.abs(numpy(layer.frozen_kernel))).size == 1
    assert numpy(model(inputs((12, 8, 1)))).shape == (2, 7)


@pytest.mark.parametrize("input_quantizer", [None, "approx_sign"])
def test_without_top(input_quantizer):
    model = zoo.conv4_mpt(include_top=False, input_quantizer=input_quantizer, **SMALL)
    assert model.output_shape == (None, 8, 8, 16)
    assert len(mpt_layers(model)) == 4
    assert numpy(model(inputs((32, 32, 3)))).std() > 0


@pytest.mark.parametrize("name", [*(f"conv{n}_mpt" for n in CONV), "vgg_small_mpt", "vgg19_mpt"])
def test_what_flattens_needs_a_size(name):
    for shape in [(None, None, 3), (None, 32, 3), (32, None, 3)]:
        with pytest.raises(
            ValueError, match=rf"`input_shape` must have a height .*input_shape={re.escape(str(shape))}"
        ):
            getattr(zoo, name)(input_shape=shape, **SMALL)


@made_of_the_same_on_all_backends
def test_features_of_images_of_any_size():
    make = functools.partial(zoo.conv2_mpt, include_top=False, input_quantizer="approx_sign", **SMALL)
    model, x = make(input_shape=(None, None, 3)), inputs((9, 14, 3))
    assert model.output_shape == (None, None, None, 8)
    assert make(input_shape=(None, 14, 3)).output_shape == (None, None, 7, 8)
    expected = numpy(make(input_shape=(9, 14, 3))(x))
    np.testing.assert_allclose(numpy(model(x)), expected, rtol=1e-5, atol=1e-6)


@made_of_the_same_on_all_backends
@pytest.mark.parametrize(
    ("name", "least"),
    [("conv2_mpt", 2), ("vgg_small_mpt", 8), ("whitened_conv6_mpt", 9)]
    + [pytest.param(f"conv{n}_mpt", 2 ** (n // 2), marks=pytest.mark.slow) for n in (4, 6, 8)]
    + [pytest.param("vgg19_mpt", 32, marks=pytest.mark.slow)],
)
def test_smallest_images(name, least):
    make = functools.partial(getattr(zoo, name), width=0.0625, include_top=False)
    assert make(input_shape=(least, least, 1)).output_shape[1:3] == (1, 1)
    for shape in [(least - 1, least, 1), (least, least - 1, 1), (None, 1, 1)]:
        with pytest.raises(
            ValueError, match=rf"`input_shape` must have at least {least}x{least} pixels. Received: inp"
        ):
            make(input_shape=shape)


ARCHITECTURES = {name: getattr(zoo, name) for name in zoo.__all__ if name.endswith("_mpt")}
COMMON = {
    "input_shape": (32, 32, 3),
    "classes": 10,
    "mask": None,
    "input_quantizer": None,
    "kernel_quantizer": "scaled_sign",
    "kernel_initializer": "kaiming_normal",
    "batch_norm_affine": False,
    "float_stem": False,
    "pad_values": 0.0,
    "width": 1.0,
    "seed": None,
    "include_top": True,
    "dtype": None,
    "weights": None,
}
IMAGENET = {"input_shape": (224, 224, 3), "classes": 1000}
DEFAULTS = {
    **{f"conv{n}_mpt": {"sparsity": 0.5} for n in (2, 4, 6, 8)},
    "vgg_small_mpt": {"sparsity": 0.95},
    "vgg19_mpt": {"sparsity": 0.9},
    "resnet18_mpt": {"sparsity": 0.8},
    "resnet20_mpt": {"sparsity": 0.9},
    "resnet32_mpt": {"sparsity": 0.9},
    "resnet34_mpt": {"sparsity": 0.8, **IMAGENET},
    "resnet50_mpt": {"sparsity": 0.8, **IMAGENET},
    "wide_resnet34_mpt": {"sparsity": 0.6, **IMAGENET},
    "wide_resnet50_mpt": {"sparsity": 0.8, **IMAGENET},
    "whitened_conv6_mpt": {
        "sparsity": 0.5,
        "kernel_initializer": "signed_constant",
        "batch_norm_affine": True,
        "float_stem": True,
    },
}


def test_one_signature():
    assert set(ARCHITECTURES) == set(DEFAULTS)
    for name, build in ARCHITECTURES.items():
        parameters = inspect.signature(build).parameters
        assert {key: value.default for key, value in parameters.items()} == {**COMMON, **DEFAULTS[name]}
        assert {value.kind for value in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
        assert build.__name__ == name and "Source: " in build.__doc__


def test_signatures_are_those_of_the_source():
    """Tools that don't run code see the same as `help`."""
    for name, build in ARCHITECTURES.items():
        (function,) = ast.parse(inspect.getsource(build)).body
        assert function.name == name and not function.args.args and function.args.kwarg is None
        names = [argument.arg for argument in function.args.kwonlyargs]
        defaults = [ast.literal_eval(default) for default in function.args.kw_defaults]
        assert dict(zip(names, defaults, strict=True)) == {**COMMON, **DEFAULTS[name]}


def test_every_argument_is_explained():
    explained = zoo.Settings.__doc__ + zoo.__doc__
    for argument in inspect.signature(zoo.conv4_mpt).parameters:
        assert f"\n        {argument}: " in explained or f"\n    {argument}: " in explained


def test_every_argument_becomes_the_setting_of_its_name():
    for build in ARCHITECTURES.values():
        calls = [node for node in ast.walk(ast.parse(inspect.getsource(build))) if isinstance(node, ast.Call)]
        (settings,) = (call for call in calls if ast.unparse(call.func) == "Settings")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in settings.keywords}
        default = inspect.signature(build).parameters["sparsity"].default
        assert ast.literal_eval(given.pop("default_sparsity")) == default and not settings.args
        assert given == {name: name for name in inspect.signature(build).parameters if name not in ("dtype", "weights")}


@made_of_the_same_on_all_backends
@pytest.mark.parametrize("name", ["conv2_mpt", "vgg_small_mpt", "resnet18_mpt", "resnet20_mpt"])
def test_settings_reach_the_layers(name):
    shape = (68, 72, 2) if name == "resnet18_mpt" else (40, 48, 2)
    rule = keras_mpt.masks.TopK(0.3, selector="sort")
    settings = {"input_shape": shape, "classes": 7, "width": 0.05, "mask": rule, "seed": 3}
    settings |= {"kernel_quantizer": None, "kernel_initializer": "signed_constant", "batch_norm_affine": True}
    model = ARCHITECTURES[name](
        **settings, float_stem=True, input_quantizer="ste_sign", pad_values=1.0, dtype="float16"
    )
    assert model.input_shape == (None, *shape) and model.output_shape == (None, 7)
    built = mpt_layers(model)
    assert built[0].name != "conv1" and type(model.get_layer("conv1")) is layers.Conv2D
    seeds = list(itertools.islice(layer_seeds(3), 1, len(built) + 1))
    assert [layer.seed for layer in built] == seeds
    for layer in built:
        assert layer.mask is rule and type(layer.kernel_quantizer).__name__ == "Identity"
        assert type(layer.kernel_initializer).__name__ == "SignedConstant"
        assert layer.dtype_policy.name == "float16" and getattr(layer, "pad_values", 1.0) == 1.0
    assert {type(layer.input_quantizer).__name__ for layer in built if layer.input_quantizer} == {"SteSign"}
    assert all(layer.scale and layer.center for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    part = mpt_layers(ARCHITECTURES[name](width=0.05, input_shape=shape, include_top=False, sparsity={"conv1": 0.25}))
    assert part[-1].name != "logits" and part[0].sparsity == 0.25
    assert {layer.sparsity for layer in part[1:]} == {DEFAULTS[name]["sparsity"]}  # of those that the dict leaves out


def test_masks():
    shared = keras_mpt.masks.GlobalTopK(0.8, group="all")
    first, second = (zoo.conv2_mpt(mask=shared, **{**SMALL, "seed": seed}) for seed in (1, 2))
    for model in (first, second):  # of which neither knows the other
        built = mpt_layers(model)
        scores = np.concatenate([np.abs(numpy(layer.scores)).ravel() for layer in built])
        mask = np.concatenate([numpy(layer.subnet_mask).ravel() for layer in built])
        assert mask.sum() == mask.size - mask.size * 8 // 10
        assert scores[mask == 1].min() >= scores[mask == 0].max()
        assert {layer.mask.group for layer in built} == {"all"}
    made = mpt_layers(zoo.conv2_mpt(mask=keras_mpt.masks.Restricted, sparsity={"logits": 0.0}, **SMALL))
    assert {type(layer.mask) for layer in made} == {keras_mpt.masks.Restricted}
    assert [layer.sparsity for layer in made] == [0.5, 0.5, 0.5, 0.5, 0.0]
    plain = keras.saving.serialize_keras_object(keras_mpt.masks.TopK(0.7))  # as a ticket's provenance holds it
    assert {layer.sparsity for layer in mpt_layers(zoo.conv2_mpt(mask=plain, **SMALL))} == {0.7}
    with pytest.raises(ValueError, match=r"pass a rule as `mask`. Received: sparsity=GlobalTopK\(0.8"):
        zoo.conv2_mpt(sparsity=shared)
    with pytest.raises(ValueError, match="`sparsity` must be left out where `mask` is a rule. Received: sparsity=0.6"):
        zoo.conv2_mpt(mask=shared, sparsity=0.6)
    with pytest.raises(ValueError, match="`mask` must return a rule of keras_mpt.masks. Received: None for 'conv1'"):
        zoo.conv2_mpt(mask=lambda sparsity: None)
    for wrong in ("global", keras_mpt.masks.GlobalTopK, keras_mpt.masks.NofM, lambda: None):
        with pytest.raises(ValueError, match="`mask` must be None, a rule of keras_mpt.masks .*Received: mask="):
            zoo.conv2_mpt(mask=wrong)


def test_settings_check_themselves():
    settings = zoo.Settings(input_shape=[8, 8, 3], classes=3, sparsity={"conv1": 0.2}, default_sparsity=0.5)
    assert settings.input_shape == (8, 8, 3) and not settings.binary
    assert [settings.rule(name).sparsity for name in ("conv1", "conv2")] == [0.2, 0.5]
    with pytest.raises(ValueError, match="`classes` must be .*Received: classes=0"):
        dataclasses.replace(settings, classes=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.classes = 4


@made_of_the_same_on_all_backends
@pytest.mark.parametrize("name", ["conv2_mpt", "resnet18_mpt", "resnet20_mpt", "vgg_small_mpt"])
def test_global_settings_change_nothing(name, keras_settings):
    shape = (68, 72, 3) if name == "resnet18_mpt" else (16, 16, 3)
    make = functools.partial(ARCHITECTURES[name], width=0.05, input_shape=shape, seed=1, float_stem=True)

    def config(**given):
        return re.sub(r"pad_\d+", "pad", make(**given).to_json())  # which Keras numbers

    expected = config()
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float64")
    assert config() == expected
    assert keras.config.image_data_format() == "channels_first"
    keras.config.set_dtype_policy("mixed_bfloat16")
    with pytest.raises(ValueError, match="`dtype` must be given .*with the global policy 'mixed_bfloat16'"):
        make()
    assert config(dtype="float32") == expected
    assert make(dtype="mixed_float16").get_layer("logits").dtype_policy.name == "mixed_float16"
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_arguments_are_keywords():
    with pytest.raises(TypeError):
        zoo.conv4_mpt((32, 32, 3))
    with pytest.raises(TypeError, match=r"conv4_mpt\(\) got .* 'sparcity'. Did you mean 'sparsity'\?"):
        zoo.conv4_mpt(sparcity=0.5)
    with pytest.raises(TypeError, match=r"'xyz'\.$"):
        zoo.conv4_mpt(xyz=0.5)


BAD = {
    "input_shape": [(32, 32), (32, 32, None), (0, 32, 3), 32, (32.0, 32, 3)],
    "classes": [0, 2.5, True, None],
    "sparsity": [1.0, -0.1, "0.5", {"conv2": 1.5}],
    "input_quantizer": ["aprox_sign", "scaled_sign"],
    "kernel_quantizer": ["approx_sign"],
    "batch_norm_affine": [1, None],
    "float_stem": ["yes"],
    "pad_values": ["1", math.inf, True],
    "width": [0, -1.0, math.nan, "2"],
    "seed": [-1, 0.5],
    "dtype": ["half", "int32", 5],
    "weights": [[], 5],
    "include_top": [0],
}


@pytest.mark.parametrize("argument, value", [(name, value) for name, values in BAD.items() for value in values])
def test_bad_arguments(argument, value):
    received = value["conv2"] if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=f"`?{argument}`? must be .*(?s:.*)") as error:
        zoo.conv4_mpt(**{argument: value})
    assert str(received) in str(error.value)


def test_numbers_of_numpy(tmp_path):
    plain = {"classes": 3, "pad_values": 1.0, "width": 0.0625, "input_shape": (8, 8, 1)}
    numpys = {"classes": np.int64(3), "pad_values": np.float32(1), "width": np.float32(0.0625)}
    model, same = (zoo.conv2_mpt(**{**plain, **given}, seed=0) for given in ({}, numpys))
    assert model.get_config() == same.get_config()
    keras_mpt.save_ticket(same, tmp_path / "ticket.mpt")  # which takes plain data only


def test_a_width_that_leaves_a_layer_nothing():
    with pytest.raises(ValueError, match="`width` must .*Received: width=0.001, which leaves none of 64"):
        zoo.conv2_mpt(width=0.001)
    with pytest.raises(ValueError, match=r"`width` must .*Received: width=1000000000.0, which makes 6.4e\+10 of 64"):
        zoo.conv2_mpt(width=1e9)


def test_sparsity_by_layer():
    model = zoo.vgg_small_mpt(sparsity={"conv2": 0.25, "logits": 0.0}, **SMALL)
    found = {layer.name: layer.sparsity for layer in mpt_layers(model)}
    assert found == {**{f"conv{i}": 0.95 for i in range(1, 7)}, "conv2": 0.25, "logits": 0.0}
    for name in ("cnov2", "relu2"):
        with pytest.raises(ValueError, match=rf"(?s)`sparsity` must name .*Received: sparsity\['{name}'\]"):
            zoo.conv2_mpt(sparsity={name: 0.5}, **SMALL)
    with pytest.raises(ValueError, match="Did you mean 'conv2'"):
        zoo.conv2_mpt(sparsity={"cnov2": 0.5}, **SMALL)


@made_of_the_same_on_all_backends
@pytest.mark.parametrize("shape", [(32, 32, 3), (72, 72, 3)], ids=["small stem", "ImageNet's stem"])
def test_float_stem(shape):
    settings = {"input_shape": shape, "width": 0.0625, "seed": 3, "input_quantizer": "approx_sign", "pad_values": 1.0}
    model, again, other = (zoo.resnet18_mpt(**{**settings, "seed": seed}, float_stem=True) for seed in (3, 3, 4))
    stem, pruned = model.get_layer("conv1"), zoo.resnet18_mpt(**settings)
    assert type(stem) is layers.Conv2D and stem.bias is None and stem.trainable_variables
    kernel = numpy(stem.kernel)
    assert kernel.shape == tuple(pruned.get_layer("conv1").frozen_kernel.shape)
    assert kernel.std() == pytest.approx(math.sqrt(2 / math.prod(kernel.shape[:-1])), rel=0.3)
    np.testing.assert_array_equal(kernel, numpy(again.get_layer("conv1").kernel))
    assert (kernel != numpy(other.get_layer("conv1").kernel)).any()
    assert model.output_shape == pruned.output_shape
    assert model.get_layer("stage1_block1_conv1").output.shape == pruned.get_layer("stage1_block1_conv1").output.shape
    seeds = {layer.name: layer.seed for layer in mpt_layers(pruned)}
    del seeds["conv1"]
    assert {layer.name: layer.seed for layer in mpt_layers(model)} == seeds
    with pytest.raises(ValueError, match=r"Received: sparsity\['conv1'\]"):
        zoo.resnet18_mpt(**settings, float_stem=True, sparsity={"conv1": 0.5})


def test_weights_bring_their_arguments(monkeypatch):
    calls = []

    def resolve(*arguments):
        calls.append(arguments)
        return "ticket", {"classes": 7, "sparsity": 0.75, "width": 0.25}, True

    def restore(model, ticket, part):
        assert ticket == "ticket" and not part
        calls.append(model)

    monkeypatch.setattr(zoo.weights, "resolve", resolve)
    monkeypatch.setattr(zoo.weights, "check_wiring", lambda *arguments: None)
    monkeypatch.setattr(zoo.weights.tickets, "restore", restore)
    model = zoo.conv2_mpt(weights="mine", width=0.25, seed=1)
    assert calls[0] == ("conv2_mpt", "mine") and calls[1] is model
    assert model.output_shape == (None, 7)
    assert [(layer.sparsity, layer.frozen_kernel.shape[-1]) for layer in mpt_layers(model)][:2] == 2 * [(0.75, 16)]
    with pytest.raises(ValueError, match="`width` must be .*that of the ticket: 0.25 in 'mine'. Received: width=0.5"):
        zoo.conv2_mpt(weights="mine", width=0.5)
    zoo.conv2_mpt(weights=None, width=0.125)
    assert len(calls) == 3


@made_of_the_same_on_all_backends
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_but_the_stem_have_binary_inputs(name):
    settings = {"width": 0.0625, "input_shape": (32, 32, 3), "input_quantizer": "approx_sign", "pad_values": 1.0}
    model = ARCHITECTURES[name](**settings)
    assert model.name == name
    *found, classifier = mpt_layers(model)
    whitened = name.startswith("whitened")
    assert classifier.name == "logits"
    assert (classifier.input_quantizer is None) == ("conv" not in name or whitened)
    stem = set() if whitened else {"conv1"}
    assert {layer.name for layer in found if layer.input_quantizer is None} == stem
    assert {layer.name for layer in found if getattr(layer, "pad_values", 1.0) != 1.0} == stem
    assert all(layer.bias is None for layer in found)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon, layer.scale) == (0.9, 1e-5, False)
            assert layer.center == name.startswith("whitened")
