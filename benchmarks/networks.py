"""The networks that are timed, for 32x32 images: tickets of the zoo, and the same in plain PyTorch.

The PyTorch layers follow the published description: frozen weights, a mask from the scores at each forward pass,
straight-through gradient to the scores.
"""

from functools import partial

import numpy as np

import keras_mpt
from keras_mpt.models import mpt_layers

NETWORKS = {
    "resnet18": ("ResNet-18, 80 %", partial(keras_mpt.zoo.resnet18_mpt, sparsity=0.8, seed=0)),
    "vgg_small": (
        "VGG-Small, 95 %",
        partial(keras_mpt.zoo.vgg_small_mpt, sparsity=0.95, seed=0),
    ),
    "conv4": ("Conv-4, 50 %", partial(keras_mpt.zoo.conv4_mpt, sparsity=0.5, seed=0)),
}
_RESNET18 = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]  # filters, stride


def ticket(name, selector="search", dtype=None):
    """Return a network of the zoo, its selector and dtype policy changed."""
    model = NETWORKS[name][1](dtype=dtype)
    for layer in mpt_layers(model):
        layer.mask.selector = selector
    return model


def data(batch):
    """Return random images and labels."""
    random = np.random.default_rng(0)
    return random.normal(size=(batch, 32, 32, 3)).astype("float32"), random.integers(0, 10, batch)


def in_torch(name, select):
    """Return the network in plain PyTorch.

    Args:
        name: Of NETWORKS.
        select: Function of (|scores|, fraction kept) that returns a mask; None trains the weights.
    """
    from torch import nn

    conv = _conv_class(select, kept=1 - NETWORKS[name][1]().layers[-1].sparsity)

    def norm(filters):
        return nn.BatchNorm2d(filters, affine=False)

    class Block(nn.Module):
        def __init__(self, inputs, filters, stride):
            super().__init__()
            self.first = nn.Sequential(conv(inputs, filters, 3, stride, 1), norm(filters), nn.ReLU())
            self.second = nn.Sequential(conv(filters, filters, 3, 1, 1), norm(filters))
            self.shortcut = nn.Identity()
            if stride > 1:
                self.shortcut = nn.Sequential(conv(inputs, filters, 1, stride), norm(filters))

        def forward(self, x):
            return nn.functional.relu(self.second(self.first(x)) + self.shortcut(x))

    layers, inputs = [], 3
    if name == "resnet18":
        layers, inputs = [conv(3, 64, 3, 1, 1), norm(64), nn.ReLU()], 64
        for filters, stride in _RESNET18:
            layers.append(Block(inputs, filters, stride))
            inputs = filters
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), conv(512, 10, 1), nn.Flatten())
    widths, normed = ([128, 256, 512], True) if name == "vgg_small" else ([64, 128], False)
    for filters in widths:
        for pooled in (False, True):
            layers.append(conv(inputs, filters, 3, 1, 1))
            layers += [nn.MaxPool2d(2)] if pooled and normed else []
            layers += [norm(filters)] if normed else []
            layers.append(nn.ReLU())
            layers += [nn.MaxPool2d(2)] if pooled and not normed else []
            inputs = filters
    inputs *= (32 // 2 ** len(widths)) ** 2
    layers += [nn.Flatten(), nn.Unflatten(1, (inputs, 1, 1))]
    for units in [] if normed else [256, 256]:
        layers += [conv(inputs, units, 1), nn.ReLU()]
        inputs = units
    return nn.Sequential(*layers, conv(inputs, 10, 1), nn.Flatten())


def _conv_class(select, kept):
    import torch
    from torch import nn

    class Biprop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores, weight):
            mask = select(scores.abs(), kept)
            ctx.save_for_backward(scores, weight)
            pruned = weight * mask
            return pruned.sign() * (pruned.abs().sum() / mask.sum())

        @staticmethod
        def backward(ctx, gradient):
            scores, weight = ctx.saved_tensors
            return gradient * weight * scores.sign(), None

    class Conv(nn.Conv2d):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, bias=False, **kwargs)
            if select is not None:
                self.scores = nn.Parameter(torch.empty_like(self.weight))
                nn.init.kaiming_uniform_(self.scores, a=5**0.5)
                nn.init.kaiming_normal_(self.weight)
                self.weight.requires_grad = False

        def forward(self, x):
            weight = self.weight if select is None else Biprop.apply(self.scores, self.weight)
            return nn.functional.conv2d(x, weight, None, self.stride, self.padding)

    return Conv


def mask_by_sort(magnitudes, kept):
    """The published way: a full sort of each layer's scores at every step."""
    import torch

    mask = torch.zeros_like(magnitudes)
    order = magnitudes.flatten().sort()[1]
    mask.view(-1)[order[int((1 - kept) * order.numel()) :]] = 1
    return mask


def mask_by_kth_value(magnitudes, kept):
    """A faster way that a PyTorch user may pick: the k-th value as threshold (ties may keep more)."""
    flat = magnitudes.flatten()
    threshold = flat.kthvalue(int((1 - kept) * flat.numel()) + 1)[0]
    return (magnitudes >= threshold).to(magnitudes.dtype)
