"""The published PyTorch networks, from the papers and the names in their state dicts, in plain functions.

A `Published` makes the tensors of its state dict when a network first asks for them, and computes with them afterwards:
`forward(x)` runs the network.
"""

import math

import numpy as np
import torch
from torch.nn import functional

TYPES = {"biprop": "SubnetConv", "global": "GlobalSubnetConv"}


class Published:
    """A network of one of the papers, with its state dict.

    Args:
        network: Function of a `Published` and images `(batch, channels, height, width)`.
        shape: Of an image, channels last.
        flavour: "biprop", "global", "edge_popup" or "jackpots".
        kept: Fraction of the weights kept.
        affine: Whether batch normalization has weight and bias.
        constant: Whether the weights are plus or minus a power of two, so that sums are exact.
        dense: Modules that are ordinary layers.
    """

    def __init__(self, network, shape, flavour, kept, affine=True, constant=False, dense=(), seed=0):
        self.network, self.flavour, self.kept, self.affine = network, flavour, kept, affine
        self.constant, self.dense = constant, dense
        self.state, self.masks = {}, {}
        self._rng = np.random.default_rng(seed)
        with torch.no_grad():
            network(self, torch.zeros((2, shape[-1], *shape[:-1])))  # makes the tensors
            self._select()

    def forward(self, images):
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            return self.network(self, x).numpy()

    def conv(self, x, name, filters, size, stride=1, bias=False):
        if f"{name}.weight" not in self.state:
            self._make_kernel(name, (filters, x.shape[1], size, size), bias)
        bias = self.state.get(f"{name}.bias")
        return functional.conv2d(x, self._kernel(name), bias, stride=stride, padding=size // 2)

    def norm(self, x, name):
        if f"{name}.running_mean" not in self.state:
            self._make_norm(name, x.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(self.state.get(f"{name}.{part}") for part in names), eps=1e-5)

    def _random(self, low, high, shape):
        return torch.from_numpy(self._rng.uniform(low, high, shape).astype(np.float32))

    def _make_kernel(self, name, shape, bias):
        std = math.sqrt(2 / (shape[1] * shape[2] * shape[3]) / (1 if name in self.dense else self.kept))
        weights = torch.from_numpy(self._rng.normal(0, std, shape).astype(np.float32))
        if self.constant:
            weights = torch.sign(weights) * 2.0 ** round(math.log2(std))
        self.state[f"{name}.weight"] = weights
        scores = self._random(-1, 1, shape)
        if name in self.dense:
            self.state[f"{name}.bias"] = self._random(-0.1, 0.1, shape[0])
        elif self.flavour == "jackpots":
            self.state[f"{name}.mask"] = scores.abs() + 0.5
            kept = 1.0 if bias else self.kept * self._rng.uniform(0.5, 1.0)  # classifiers are not pruned
            scores = self.state[f"{name}.mask"]
            self.state[f"{name}.b_mask"] = _top(scores, int((1 - kept) * scores.numel()))
        else:
            self.state[f"{name}.scores"] = scores
        if bias:
            self.state[f"{name}.bias"] = self._random(-0.1, 0.1, shape[0])

    def _make_norm(self, name, channels):
        if self.affine:
            sign = torch.where(self._random(0, 1, channels) < 0.2, -1.0, 1.0)
            self.state[f"{name}.weight"] = sign * self._random(0.5, 1.0, channels)
            self.state[f"{name}.bias"] = self._random(-0.3, 0.3, channels)
        self.state[f"{name}.running_mean"] = self._random(-0.3, 0.3, channels)
        self.state[f"{name}.running_var"] = self._random(0.5, 2.0, channels)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(100)

    def _select(self):
        """Make the masks of the published rules."""
        names = [key.removesuffix(".scores") for key in self.state if key.endswith(".scores")]
        if self.flavour == "global":
            every = torch.cat([self.state[f"{name}.scores"].abs().flatten() for name in names]).sort().values
            threshold = every[int((1 - self.kept) * every.numel()) - 1]
            for name in names:
                self.masks[name] = (self.state[f"{name}.scores"].abs() > threshold).float()
        elif self.flavour == "jackpots":
            ending = ".b_mask"
            self.masks = {key.removesuffix(ending): m for key, m in self.state.items() if key.endswith(ending)}
        else:
            for name in names:
                scores = self.state[f"{name}.scores"].abs()
                self.masks[name] = _top(scores, int((1 - self.kept) * scores.numel()))

    def _kernel(self, name):
        weights, mask = self.state[f"{name}.weight"], self.masks.get(name)
        if mask is None:
            return weights
        if self.flavour in ("edge_popup", "jackpots"):
            return weights * mask
        number = mask.sum() if self.flavour == "global" else int(self.kept * mask.numel())
        return torch.sign(weights) * ((weights.abs() * mask).sum() / number) * mask


def checkpoint(net, arch=None, wrapped=False):
    """What the published training code saves: the state dict, fields beside it, and the state of an optimizer."""
    state = {f"module.{key}" if wrapped else key: value for key, value in net.state.items()}
    groups = [{"lr": 0.1, "momentum": 0.9, "params": [0]}]
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": groups}
    fields = {"state_dict": state, "optimizer": optimizer, "epoch": 3, "best_acc1": 0.5}
    if net.flavour in TYPES:
        fields |= {"prune_rate": net.kept, "conv_type": TYPES[net.flavour]}
    return fields | ({"arch": arch} if arch else {})


def _top(scores, removed):
    mask = torch.ones(scores.numel())
    mask[scores.flatten().sort(stable=True).indices[:removed]] = 0
    return mask.reshape(scores.shape)


def scaled(numbers, width):
    return [round(width * number) for number in numbers]


def conv(depth, width, binary, classes=7):
    """Conv-2/4/6/8: `convs` and `linear` are `Sequential`s, whose ReLUs, signs and pools count."""

    def network(net, x):
        place = 0
        for index, filters in enumerate(scaled([64, 64, 128, 128, 256, 256, 512, 512][:depth], width), start=1):
            x = net.conv(x, f"convs.{place}", filters, 3)
            pool = index % 2 == 0
            if binary:
                x = functional.max_pool2d(x, 2) if pool else x
                place += 2 if pool else 1
                x = torch.sign(net.norm(x, f"convs.{place}"))
                place += 2
            else:
                x = torch.relu(x)
                x = functional.max_pool2d(x, 2) if pool else x
                place += 3 if pool else 2
        x = x.flatten(1)[:, :, None, None]
        for place, units in zip((0, 3) if binary else (0, 2), scaled([256, 256], width), strict=True):
            x = net.conv(x, f"linear.{place}", units, 1)
            x = torch.sign(net.norm(x, f"linear.{place + 1}")) if binary else torch.relu(x)
        return net.conv(x, "linear.6" if binary else "linear.4", classes, 1).flatten(1)

    return network


def vgg_small(width, binary, classes=7):
    """Convolution, [pool], batch normalization, ReLU or sign; ReLU before the classifier."""

    def network(net, x):
        names = ["convs.0", "convs.3", "convs.7", "convs.10", "convs.14", "convs.17"]
        norms = ["convs.1", "convs.5", "convs.8", "convs.12", "convs.15", "convs.19"]
        for index, filters in enumerate(scaled([128, 128, 256, 256, 512, 512], width)):
            x = net.conv(x, names[index], filters, 3)
            x = functional.max_pool2d(x, 2) if index % 2 else x
            x = net.norm(x, norms[index])
            x = torch.sign(x) if binary and index < 5 else torch.relu(x)
        return net.conv(x.flatten(1)[:, :, None, None], "linear.0", classes, 1).flatten(1)

    return network


def vgg19(width, classes=7):
    """The Jackpots' VGG-19, whose classifier has a bias."""

    def network(net, x):
        place = 0
        for count, filters in zip((2, 2, 4, 4, 4), scaled([64, 128, 256, 512, 512], width), strict=True):
            for _ in range(count):
                x = torch.relu(net.norm(net.conv(x, f"features.{place}", filters, 3), f"features.{place + 1}"))
                place += 3
            x = functional.max_pool2d(x, 2)
            place += 1
        return net.conv(x, "classifier", classes, 1, bias=True).flatten(1)

    return network


def resnet(
    blocks,
    width,
    planes=(64, 128, 256, 512),
    bottleneck=0,
    binary=False,
    large=False,
    padded=False,
    bias=False,
    classes=7,
):
    """ResNets. `bottleneck`: factor of the inner filters, 0 for basic blocks. `padded`: shortcuts have no weights."""

    def network(net, x):
        act = torch.sign if binary else torch.relu
        first, *_ = scaled([planes[0]], width)
        if large:
            x = net.norm(net.conv(x, "conv1", first, 7, 2), "bn1")
            x = act(functional.max_pool2d(x, 3, 2, 1))  # the sign and ReLU rise, so they may follow the pool
        else:
            x = act(net.norm(net.conv(x, "conv1", first, 3), "bn1"))
        for stage, (count, filters) in enumerate(zip(blocks, planes, strict=True), start=1):
            for block in range(count):
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                sizes = [(filters, 3, stride), (filters, 3, 1)]
                if bottleneck:
                    sizes = [(bottleneck * filters, 1, 1), (bottleneck * filters, 3, stride), (4 * filters, 1, 1)]
                y = x
                for index, (wide, size, step) in enumerate(sizes, start=1):
                    y = net.conv(y, f"{name}.conv{index}", round(width * wide), size, step)
                    y = net.norm(y, f"{name}.bn{index}")
                    y = y if index == len(sizes) else act(y)
                if x.shape != y.shape and padded:
                    more = y.shape[1] - x.shape[1]
                    x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more // 2, more - more // 2))
                elif x.shape != y.shape:
                    shortcut = f"{name}.downsample" if large else f"{name}.shortcut"
                    x = net.norm(net.conv(x, f"{shortcut}.0", y.shape[1], 1, stride), f"{shortcut}.1")
                x = act(y + x)
        return net.conv(x.mean(dim=(2, 3), keepdim=True), "fc", classes, 1, bias=bias).flatten(1)

    return network
