"""Outputs (and gradients of the inputs) equal those of a PyTorch implementation that holds the same weights."""

import keras
import numpy as np
import pytest

from keras_mpt import zoo
from keras_mpt.models import mpt_layers
from support import reference
from support.backend import gradient
from support.layer_contract import inputs, numpy

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow_with("jax", "torch")
functional = torch.nn.functional


class Sign(torch.autograd.Function):
    """Sign with the derivative of Bi-Real Net; zero counts as positive."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * 2 * (1 - x.abs()).clamp(min=0)


def reference_kernel(layer):
    mask = reference.mask(numpy(layer.scores), int(layer.kept))
    return reference.biprop_kernel(numpy(layer.frozen_kernel), mask)


class Weights:
    """The weights of a Keras model under their layers' names, and the operations that use them."""

    def __init__(self, model, pad_values):
        self.binary = any(layer.input_quantizer is not None for layer in mpt_layers(model))
        self.pad_values = pad_values
        self.kernels = {layer.name: torch.from_numpy(reference_kernel(layer)) for layer in mpt_layers(model)}
        self.norms = {
            layer.name: [torch.from_numpy(numpy(v)) for v in layer.weights]
            for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        }

    def conv(self, x, name, stride=1):
        kernel = self.kernels[name].permute(3, 2, 0, 1)
        width = kernel.shape[-1] // 2
        value = 0.0 if name == "conv1" else self.pad_values
        return functional.conv2d(functional.pad(x, 4 * [width], value=value), kernel, stride=stride)

    def norm(self, x, name):
        gamma, beta, mean, variance = self.norms[name]
        return functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-5)

    def conv_norm(self, x, name, index, stride=1):
        return self.norm(self.conv(x, f"{name}conv{index}", stride), f"{name}norm{index}")

    def activation(self, x):
        return Sign.apply(x) if self.binary else torch.relu(x)

    def logits(self, x):
        return x.flatten(1) @ self.kernels["logits"]


def resnet(weights, x, depth, imagenet=False):
    if imagenet:
        x = weights.conv_norm(x, "", 1, stride=2)
        x = functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    else:
        x = weights.conv_norm(x, "", 1)
    x = weights.activation(x)
    blocks = {18: (2, 2, 2, 2), 20: (3, 3, 3), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            name = f"stage{stage}_block{block}_"
            stride = 2 if stage > 1 and block == 1 else 1
            if depth == 50:
                y = weights.activation(weights.conv_norm(x, name, 1))
                y = weights.activation(weights.conv_norm(y, name, 2, stride))
                y = weights.conv_norm(y, name, 3)
            else:
                y = weights.activation(weights.conv_norm(x, name, 1, stride))
                y = weights.conv_norm(y, name, 2)
            if stride == 1 and not (depth == 50 and block == 1):
                shortcut = x
            elif depth == 20:
                missing = y.shape[1] - x.shape[1]
                shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))
            else:
                shortcut = weights.norm(weights.conv(x, f"{name}shortcut", stride), f"{name}shortcut_norm")
            x = weights.activation(y + shortcut)
    return weights.logits(x.mean(dim=(2, 3)))


def vgg(weights, x, counts, pool_first):
    index = 0
    for count in counts:
        for position in range(count):
            index += 1
            x = weights.conv(x, f"conv{index}")
            if pool_first and position == count - 1:
                x = functional.max_pool2d(x, 2)
            x = weights.norm(x, f"norm{index}")
            x = torch.relu(x) if index == sum(counts) else weights.activation(x)
            if not pool_first and position == count - 1:
                x = functional.max_pool2d(x, 2)
    return weights.logits(x.permute(0, 2, 3, 1))  # flattened as Keras does, channels last


VGG19 = [2, 2, 4, 4, 4]
SMALL = {"sparsity": 0.5, "classes": 5, "batch_norm_affine": True, "seed": 7}
VARIANTS = {
    "1/32": {},
    "1/1": {"input_quantizer": "approx_sign"},
    "1/1 ones": {"input_quantizer": "approx_sign", "pad_values": 1.0},
}
# Builder, input shape, width, the same in PyTorch, variants ("+": input gradients are compared as well; not of VGG's
# binary variants, whose max-pools have ties, which each framework breaks in its own way).
CASES = {
    "ResNet-18": (zoo.resnet18_mpt, (12, 9, 3), 0.125, lambda w, x: resnet(w, x, 18), ["1/32", "1/1+"]),
    "ResNet-18 large": (zoo.resnet18_mpt, (66, 71, 3), 0.0625, lambda w, x: resnet(w, x, 18, True), ["1/32+"]),
    "ResNet-20": (zoo.resnet20_mpt, (10, 9, 3), 0.25, lambda w, x: resnet(w, x, 20), ["1/32", "1/1 ones+"]),
    "ResNet-34 large": (zoo.resnet34_mpt, (66, 71, 3), 0.0625, lambda w, x: resnet(w, x, 34, True), ["1/1 ones"]),
    "ResNet-50": (zoo.resnet50_mpt, (8, 8, 3), 0.0625, lambda w, x: resnet(w, x, 50), ["1/32"]),
    "VGG-Small": (
        zoo.vgg_small_mpt,
        (16, 16, 3),
        0.0625,
        lambda w, x: vgg(w, x, [2, 2, 2], True),
        ["1/32", "1/1 ones"],
    ),
    "VGG-19": (zoo.vgg19_mpt, (32, 32, 3), 0.0625, lambda w, x: vgg(w, x, VGG19, w.binary), ["1/32", "1/1"]),
}


def randomize_norms(model, rng):
    """Statistics and parameters that show every mistake, negative gammas too."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, *_ = shapes = [w.shape for w in layer.get_weights()]
            sign = rng.choice([-1.0, 1.0], gamma, p=[0.2, 0.8])
            ranges = [(0.5, 1.0), (-0.3, 0.3), (-0.3, 0.3), (0.5, 2.0)]
            values = [rng.uniform(*limits, shape) for limits, shape in zip(ranges, shapes, strict=True)]
            layer.set_weights([sign * values[0], *values[1:]])


@pytest.mark.parametrize("name, variant", [(name, variant) for name in CASES for variant in CASES[name][-1]])
def test_equals_pytorch(name, variant, rng):
    build, shape, width, twin, _ = CASES[name]
    settings = VARIANTS[variant.removesuffix("+")]
    model = build(input_shape=shape, width=width, **SMALL, **settings)
    randomize_norms(model, rng)
    image, upstream = inputs(shape), rng.normal(size=(2, SMALL["classes"])).astype(np.float32)

    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    outputs = twin(Weights(model, settings.get("pad_values", 0.0)), pixels)
    expected = outputs.detach().numpy()
    scale = expected.std()
    assert scale > 1e-3
    np.testing.assert_allclose(numpy(model(image)), expected, rtol=1e-3, atol=1e-4 * scale)

    if variant.endswith("+"):
        outputs.backward(torch.from_numpy(upstream))
        expected = pixels.grad.numpy().transpose(0, 2, 3, 1)
        scale = np.abs(expected).max()
        assert scale > 0
        found = gradient(lambda x: model(x, training=False), image, upstream)
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4 * scale)
