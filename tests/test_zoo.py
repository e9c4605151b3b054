"""Conv-2, Conv-4, Conv-6, Conv-8: sizes by hand, order of the layers, seeds."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import layers
from layer_contract import inputs, numpy

from keras_mpt import zoo
from keras_mpt.initializers import KaimingNormal, layer_seeds
from keras_mpt.models import mpt_layers

CONV = {2: zoo.conv2_mpt, 4: zoo.conv4_mpt, 6: zoo.conv6_mpt, 8: zoo.conv8_mpt}
# Kernels of a network for 32x32x3 and 10 classes, as (fan_in, outputs). Each pool halves both sides.
CONVOLUTIONS = [(27, 64), (576, 64), (576, 128), (1152, 128), (1152, 256), (2304, 256), (2304, 512), (4608, 512)]
FLAT = {2: 16 * 16 * 64, 4: 8 * 8 * 128, 6: 4 * 4 * 256, 8: 2 * 2 * 512}
KERNELS = {n: [*CONVOLUTIONS[:n], (FLAT[n], 256), (256, 256), (256, 10)] for n in CONV}
SMALL = {"width": 0.125, "seed": 3}


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
    assert {layer.pad_values for layer in mpt_layers(model)[:4]} == {1.0}
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


def test_arguments_are_keywords():
    with pytest.raises(TypeError):
        zoo.conv4_mpt((32, 32, 3))
