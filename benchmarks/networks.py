"""The networks that are timed: ResNet-18 for 32x32 images, in Keras and in plain PyTorch."""

import keras

import keras_mpt

BLOCKS = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]  # filters, stride


def keras_resnet18(sparsity=0.8, selector="search", seed=0):
    """Return ResNet-18-CIFAR as MPT-1/32: 11.2 M weights, batch normalization without trainable parameters."""
    mask = keras_mpt.masks.TopK(sparsity, selector)
    seeds = keras_mpt.initializers.layer_seeds(seed)

    def settings():
        return {"seed": next(seeds), "mask": mask}

    def conv(x, filters, size, stride):
        x = keras_mpt.layers.MPTConv2D(filters, size, strides=stride, padding="same", **settings())(x)
        return keras.layers.BatchNormalization(center=False, scale=False)(x)

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.ReLU()(conv(inputs, 64, 3, 1))
    for filters, stride in BLOCKS:
        shortcut = conv(x, filters, 1, stride) if stride > 1 else x
        x = keras.layers.ReLU()(conv(x, filters, 3, stride))
        x = keras.layers.ReLU()(keras.layers.Add()([conv(x, filters, 3, 1), shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras_mpt.layers.MPTDense(10, **settings())(x))


def torch_resnet18(select):
    """Return the same network in plain PyTorch; `select` None trains the weights, else a mask function of |scores|.

    The layers follow the published description: frozen signed weights, a mask from the scores at each forward pass,
    straight-through gradient to the scores.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Biprop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores, weight):
            mask = select(scores.abs(), 0.2)
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
            return functional.conv2d(x, weight, None, self.stride, self.padding)

    class Block(nn.Module):
        def __init__(self, inputs, filters, stride):
            super().__init__()
            self.first = nn.Sequential(Conv(inputs, filters, 3, stride, 1), nn.BatchNorm2d(filters, affine=False))
            self.second = nn.Sequential(Conv(filters, filters, 3, 1, 1), nn.BatchNorm2d(filters, affine=False))
            self.shortcut = nn.Identity()
            if stride > 1:
                self.shortcut = nn.Sequential(Conv(inputs, filters, 1, stride), nn.BatchNorm2d(filters, affine=False))

        def forward(self, x):
            return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))

    inputs, blocks = 64, []
    for filters, stride in BLOCKS:
        blocks.append(Block(inputs, filters, stride))
        inputs = filters
    return nn.Sequential(
        Conv(3, 64, 3, 1, 1),
        nn.BatchNorm2d(64, affine=False),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        Conv(512, 10, 1),
        nn.Flatten(),
    )


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
