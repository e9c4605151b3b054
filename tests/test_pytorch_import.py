"""PyTorch checkpoints: imported networks compute what PyTorch does, and what is no such checkpoint is refused."""

import keras
import numpy as np
import pytest
from layer_contract import numpy

from keras_mpt import zoo
from keras_mpt.convert import from_pytorch, to_pytorch_state_dict
from keras_mpt.models import mpt_layers

torch = pytest.importorskip("torch")
import torch_networks as nets  # noqa: E402, which needs torch

LAYOUTS = {"biprop": "biprop", "global": "biprop", "edge_popup": "hidden_networks", "jackpots": "lottery_jackpots"}
TYPES = {"biprop": "SubnetConv", "global": "GlobalSubnetConv"}
SIGN = {"input_quantizer": "approx_sign"}
SMALL = {"width": 0.125}


def images(shape, number=256):
    """Random images of multiples of 1/8, whose sums are exact."""
    pixels = np.random.default_rng(5).integers(-16, 17, (number, *shape)).astype(np.float32)
    return pixels / 8


def checkpoint(net, arch=None, wrapped=False):
    """What the published training code saves: the state dict, fields beside it, and the state of an optimizer."""
    state = {f"module.{key}" if wrapped else key: value for key, value in net.state.items()}
    groups = [{"lr": 0.1, "momentum": 0.9, "params": [0]}]
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": groups}
    fields = {"state_dict": state, "optimizer": optimizer, "epoch": 3, "best_acc1": 0.5}
    if net.flavour in TYPES:
        fields |= {"prune_rate": net.kept, "conv_type": TYPES[net.flavour]}
    return fields | ({"arch": arch} if arch else {})


# Function of the zoo, its arguments, the network in PyTorch, image shape, flavour, fraction kept, further settings.
IMAGE, LARGE = (32, 32, 3), (66, 71, 3)
R18 = nets.resnet((2, 2, 2, 2), 0.125)
CASES = {
    "Conv-2": ("conv2_mpt", {}, nets.conv(2, 0.125, False), IMAGE, "biprop", 0.3, {}),
    "Conv-2 1/1": ("conv2_mpt", SIGN, nets.conv(2, 0.125, True), IMAGE, "biprop", 0.5, {"affine": False}),
    "Conv-4 Edge-Popup": ("conv4_mpt", {}, nets.conv(4, 0.25, False), IMAGE, "edge_popup", 0.8, {}),
    "Conv-4 1/1": ("conv4_mpt", SIGN, nets.conv(4, 0.25, True), IMAGE, "biprop", 0.5, {}),
    "Conv-6 global": ("conv6_mpt", {}, nets.conv(6, 0.125, False), IMAGE, "global", 0.4, {}),
    "Conv-8": ("conv8_mpt", {}, nets.conv(8, 0.125, False), IMAGE, "biprop", 0.9, {}),
    "Conv-8 1/1": ("conv8_mpt", SIGN, nets.conv(8, 0.125, True), IMAGE, "biprop", 0.5, {"affine": False}),
    "VGG-Small": ("vgg_small_mpt", {}, nets.vgg_small(0.125, False), IMAGE, "biprop", 0.2, {}),
    "VGG-Small 1/1": ("vgg_small_mpt", SIGN, nets.vgg_small(0.0625, True), IMAGE, "biprop", 0.5, {"affine": False}),
    "VGG-19 Jackpot": ("vgg19_mpt", {}, nets.vgg19(0.125), IMAGE, "jackpots", 0.5, {}),
    "ResNet-18": ("resnet18_mpt", {}, R18, IMAGE, "biprop", 0.2, {}),
    "ResNet-18 without affine": ("resnet18_mpt", {}, R18, IMAGE, "biprop", 0.8, {"affine": False}),
    "ResNet-18 global": ("resnet18_mpt", {}, R18, IMAGE, "global", 0.3, {}),
    "ResNet-18 Edge-Popup": ("resnet18_mpt", {}, R18, IMAGE, "edge_popup", 0.7, {"affine": False}),
    "ResNet-18 dense ends": ("resnet18_mpt", {}, R18, IMAGE, "biprop", 0.5, {"dense": ("fc",)}),
    "ResNet-18 1/1": (
        "resnet18_mpt",
        SIGN,
        nets.resnet((2, 2, 2, 2), 0.125, binary=True),
        IMAGE,
        "biprop",
        0.5,
        {"affine": False},
    ),
    "ResNet-20 Edge-Popup": (
        "resnet20_mpt",
        {},
        nets.resnet((3, 3, 3), 1.0, (16, 32, 64), padded=True),
        IMAGE,
        "edge_popup",
        0.4,
        {},
    ),
    "ResNet-32 Jackpot": (
        "resnet32_mpt",
        {},
        nets.resnet((5, 5, 5), 0.5, (16, 32, 64), padded=True, bias=True),
        IMAGE,
        "jackpots",
        0.3,
        {},
    ),
    "ResNet-34": ("resnet34_mpt", {}, nets.resnet((3, 4, 6, 3), 0.0625, large=True), LARGE, "biprop", 0.2, {}),
    "ResNet-50": (
        "resnet50_mpt",
        {},
        nets.resnet((3, 4, 6, 3), 0.0625, bottleneck=1, large=True),
        LARGE,
        "global",
        0.5,
        {},
    ),
    "ResNet-50 Jackpot": (
        "resnet50_mpt",
        {},
        nets.resnet((3, 4, 6, 3), 0.0625, bottleneck=1, large=True, bias=True),
        LARGE,
        "jackpots",
        0.4,
        {},
    ),
    "Wide ResNet-34 1/1": (
        "wide_resnet34_mpt",
        SIGN,
        nets.resnet((3, 4, 6, 3), 0.0625, (64, 192, 384, 768), binary=True, large=True),
        LARGE,
        "biprop",
        0.5,
        {},
    ),
    "Wide ResNet-50": (
        "wide_resnet50_mpt",
        {},
        nets.resnet((3, 4, 6, 3), 0.0625, bottleneck=2, large=True),
        LARGE,
        "biprop",
        0.2,
        {},
    ),
}


def published(name, seed=0):
    _, arguments, network, shape, flavour, kept, settings = CASES[name]
    return nets.Published(network, shape, flavour, kept, constant=bool(arguments), seed=seed, **settings)


def imported(name, net, **changes):
    build, arguments, _, shape, flavour, kept, _ = CASES[name]
    sparsity = {"sparsity": round(1 - kept, 9)} if flavour == "edge_popup" else {}
    settings = {"layout": LAYOUTS[flavour], **sparsity, **arguments, "input_shape": shape, **changes}
    return from_pytorch(checkpoint(net), build, **settings)


def in_torch(layer, array):
    """A kernel here as PyTorch has it, without the order of flattened inputs."""
    return array.T[:, :, None, None] if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def assert_same_outputs(model, net, x):
    expected, found = net.forward(x), numpy(model(x, training=False))
    assert expected.std() > 1e-3
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("name", CASES)
def test_imported_networks_equal_pytorchs(name):
    net = published(name)
    model = imported(name, net)
    assert_same_outputs(model, net, images(CASES[name][3]))

    assert sum(int(layer.kept) for layer in mpt_layers(model)) == sum(int(mask.sum()) for mask in net.masks.values())
    # The state dict that comes back is the one that went in, masks and all, but for the counters.
    back = to_pytorch_state_dict(model, LAYOUTS[net.flavour])
    assert list(sorted(back)) == sorted(net.state)
    for key, value in back.items():
        assert value.dtype == net.state[key].dtype, key
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), net.state[key].numpy(), err_msg=key)
