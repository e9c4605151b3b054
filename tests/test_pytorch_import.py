"""PyTorch checkpoints: imported networks compute what PyTorch does, and what is no such checkpoint is refused."""

import keras
import numpy as np
import pytest

from keras_mpt import load_ticket, quantizers, save_ticket
from keras_mpt.__main__ import main
from keras_mpt.convert import from_pytorch, to_pytorch_state_dict
from keras_mpt.models import mpt_layers
from support.layer_contract import numpy

torch = pytest.importorskip("torch")
from support import torch_networks as nets  # noqa: E402, which needs torch

pytestmark = pytest.mark.slow_with("jax", "torch")

LAYOUTS = {"biprop": "biprop", "global": "biprop", "edge_popup": "hidden_networks", "jackpots": "lottery_jackpots"}
SIGN = {"input_quantizer": "approx_sign"}


def images(shape, number=256):
    """Random images of multiples of 1/8, whose sums are exact."""
    pixels = np.random.default_rng(5).integers(-16, 17, (number, *shape)).astype(np.float32)
    return pixels / 8


# Function of the zoo, its arguments, the network in PyTorch, image shape, flavour, fraction kept, further settings.
IMAGE, LARGE = (32, 32, 3), (66, 71, 3)
R18, R34 = (2, 2, 2, 2), (3, 4, 6, 3)
SMALL, WIDE = (16, 32, 64), (64, 192, 384, 768)
FIXED = {"affine": False}
RESNET18, RESNET50 = nets.resnet(R18, 0.125), nets.resnet(R34, 0.0625, bottleneck=1, large=True)
RESNET18_11 = nets.resnet(R18, 0.0625, binary=True)
RESNET20 = nets.resnet((3, 3, 3), 0.5, SMALL, padded=True)
JACKPOT32 = nets.resnet((5, 5, 5), 0.5, SMALL, padded=True, bias=True)
JACKPOT50 = nets.resnet(R34, 0.0625, bottleneck=1, large=True, bias=True)
RESNET34 = nets.resnet(R34, 0.0625, large=True)
WIDE34 = nets.resnet(R34, 0.0625, WIDE, binary=True, large=True)
WIDE50 = nets.resnet(R34, 0.0625, bottleneck=2, large=True)
CASES = {
    "Conv-2": ("conv2_mpt", {}, nets.conv(2, 0.125, False), IMAGE, "biprop", 0.3, {}),
    "Conv-2 1/1": ("conv2_mpt", SIGN, nets.conv(2, 0.125, True), IMAGE, "biprop", 0.5, FIXED),
    "Conv-4 Edge-Popup": ("conv4_mpt", {}, nets.conv(4, 0.125, False), IMAGE, "edge_popup", 0.8, {}),
    "Conv-4 1/1": ("conv4_mpt", SIGN, nets.conv(4, 0.125, True), IMAGE, "biprop", 0.5, {}),
    "Conv-6 global": ("conv6_mpt", {}, nets.conv(6, 0.125, False), IMAGE, "global", 0.4, {}),
    "VGG-Small 1/1": ("vgg_small_mpt", SIGN, nets.vgg_small(0.0625, True), IMAGE, "biprop", 0.5, FIXED),
    "VGG-19 Jackpot": ("vgg19_mpt", {}, nets.vgg19(0.0625), IMAGE, "jackpots", 0.5, {}),
    "ResNet-18 1/1": ("resnet18_mpt", SIGN, RESNET18_11, IMAGE, "biprop", 0.5, FIXED),
}
LONG_CASES = {
    "Conv-8": ("conv8_mpt", {}, nets.conv(8, 0.0625, False), IMAGE, "biprop", 0.9, {}),
    "ResNet-18": ("resnet18_mpt", {}, RESNET18, IMAGE, "biprop", 0.2, {}),
    "VGG-Small": ("vgg_small_mpt", {}, nets.vgg_small(0.0625, False), IMAGE, "biprop", 0.2, {}),
    "ResNet-20 Edge-Popup": ("resnet20_mpt", {}, RESNET20, IMAGE, "edge_popup", 0.4, {}),
    "ResNet-34": ("resnet34_mpt", {}, RESNET34, LARGE, "biprop", 0.2, {}),
    "Conv-6 1/1": ("conv6_mpt", SIGN, nets.conv(6, 0.125, True), IMAGE, "biprop", 0.5, {}),
    "Conv-6 Edge-Popup": ("conv6_mpt", {}, nets.conv(6, 0.125, False), IMAGE, "edge_popup", 0.6, {}),
    "Conv-8 1/1": ("conv8_mpt", SIGN, nets.conv(8, 0.125, True), IMAGE, "biprop", 0.5, FIXED),
    "VGG-Small Edge-Popup": ("vgg_small_mpt", {}, nets.vgg_small(0.0625, False), IMAGE, "edge_popup", 0.2, {}),
    "ResNet-18 without affine": ("resnet18_mpt", {}, RESNET18, IMAGE, "biprop", 0.8, FIXED),
    "ResNet-18 global": ("resnet18_mpt", {}, RESNET18, IMAGE, "global", 0.3, {}),
    "ResNet-18 Edge-Popup": ("resnet18_mpt", {}, RESNET18, IMAGE, "edge_popup", 0.7, FIXED),
    "ResNet-32 Jackpot": ("resnet32_mpt", {}, JACKPOT32, IMAGE, "jackpots", 0.3, {}),
    "ResNet-34 Edge-Popup": ("resnet34_mpt", {}, RESNET34, LARGE, "edge_popup", 0.2, {}),
    "ResNet-50": ("resnet50_mpt", {}, RESNET50, LARGE, "biprop", 0.7, {}),
    "ResNet-50 Edge-Popup": ("resnet50_mpt", {}, RESNET50, LARGE, "edge_popup", 0.3, FIXED),
    "ResNet-50 Jackpot": ("resnet50_mpt", {}, JACKPOT50, LARGE, "jackpots", 0.4, {}),
    "Wide ResNet-34 1/1": ("wide_resnet34_mpt", SIGN, WIDE34, LARGE, "biprop", 0.5, {}),
    "Wide ResNet-50": ("wide_resnet50_mpt", {}, WIDE50, LARGE, "biprop", 0.2, {}),
    # The published sizes, of few images.
    "VGG-Small 1.25 1/1": ("vgg_small_mpt", SIGN, nets.vgg_small(1.25, True), IMAGE, "biprop", 0.25, {"images": 8}),
    "ResNet-18 of full width": ("resnet18_mpt", {}, nets.resnet(R18, 1.0), IMAGE, "biprop", 0.2, {"images": 8}),
}
QUICK = set(CASES)
if keras.backend.backend() == "jax":  # which compiles each operation of each shape
    QUICK = {"Conv-2", "Conv-4 Edge-Popup", "Conv-6 global"}
CASES |= LONG_CASES


def published(name, seed=0):
    _, arguments, network, shape, flavour, kept, settings = CASES[name]
    settings = {key: value for key, value in settings.items() if key != "images"}
    return nets.Published(network, shape, flavour, kept, constant=bool(arguments), seed=seed, **settings)


def imported(name, net, **changes):
    build, arguments, _, shape, flavour, kept, _ = CASES[name]
    sparsity = {"sparsity": round(1 - kept, 9)} if flavour == "edge_popup" else {}
    settings = {"layout": LAYOUTS[flavour], **sparsity, **arguments, "input_shape": shape, **changes}
    return from_pytorch(nets.checkpoint(net), build, **settings)


def outputs(model, x):
    """The outputs in the way that takes each backend least time to prepare."""
    if keras.backend.backend() == "jax":
        return model.predict(x, batch_size=len(x), verbose=0)
    return numpy(model(x, training=False))


def assert_same_outputs(model, net, x):
    expected, found = net.forward(x), outputs(model, x)
    assert expected.std() > 1e-3
    error = np.abs(found - expected).max()
    assert error <= 1e-4 * np.abs(expected).max()
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > 2 * error  # the others may change places within that error
    assert clear.mean() > 0.5  # binary activations make exact ties frequent
    np.testing.assert_array_equal(found.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


def assert_same_state(found, expected):
    """Equal bit for bit, but for the counters of batches, which the Keras model does not have."""
    assert sorted(found) == sorted(expected)
    for key, value in found.items():
        assert value.dtype == expected[key].dtype and value.shape == expected[key].shape, key
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), expected[key].numpy(), err_msg=key)


def masks_in_torch(model, net):
    """The masks of an imported network by what PyTorch calls them, exported with the format that stores them."""
    stored = to_pytorch_state_dict(model, "lottery_jackpots")
    return {name: stored[f"{name}.b_mask"] for name in net.masks}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_imported_networks_equal_pytorchs(name):
    net = published(name)
    model = imported(name, net)
    assert_same_outputs(model, net, images(CASES[name][3], CASES[name][-1].get("images", 256)))
    for key, mask in masks_in_torch(model, net).items():
        np.testing.assert_array_equal(mask.numpy(), net.masks[key].numpy(), err_msg=key)
    assert_same_state(to_pytorch_state_dict(model, LAYOUTS[net.flavour]), net.state)


def test_masks_are_those_of_the_layers():
    """The layers' own masks, of an order of entries that is written down here once more."""
    net = published("Conv-6 global")
    model = imported("Conv-6 global", net)
    names = dict(zip([layer.name for layer in mpt_layers(model)], net.masks, strict=True))
    for layer in mpt_layers(model):
        mask = net.masks[names[layer.name]].numpy()
        if layer.name == "dense7":  # flattened channels first there, last here
            mask = mask.reshape(-1, 32, 4, 4).transpose(0, 2, 3, 1).reshape(mask.shape)
        found = numpy(layer.subnet_mask)
        np.testing.assert_array_equal(found, mask[:, :, 0, 0].T if found.ndim == 2 else mask.transpose(2, 3, 1, 0))


def small(flavour="biprop", kept=0.8, seed=0, **settings):
    return nets.Published(nets.conv(2, 0.125, False, classes=5), (8, 8, 3), flavour, kept, seed=seed, **settings)


def import_small(net, layout=None, **settings):
    source = {"input_shape": (8, 8, 3), "layout": layout or LAYOUTS[net.flavour], **settings}
    return from_pytorch(nets.checkpoint(net), "conv2_mpt", **source)


def refreshed(net):
    """The network after changes of its state dict."""
    net.masks = {}
    net._select()
    return net


def test_alphas_divisor():
    """int(0.8 * n) is not n - int((1 - 0.8) * n) where 5 divides n: alpha is not the mean magnitude then."""
    net = small()
    model = import_small(net)
    mask, weights = net.masks["linear.4"], net.state["linear.4.weight"]
    assert (mask.sum(), int(0.8 * mask.numel())) == (129, 128)
    alpha = float((weights.abs() * mask).sum() / 128)
    kernel = numpy(model.get_layer("logits").kernel)
    np.testing.assert_allclose(np.unique(np.abs(kernel[kernel != 0])), [alpha], rtol=1e-6)
    assert_same_outputs(model, net, images((8, 8, 3)))
    # Searched on, the layer computes alpha itself: it comes out the same.
    model = import_small(net, trainable=True)
    layer = model.get_layer("logits")
    assert layer.trainable and layer.kernel_quantizer.scale is None
    np.testing.assert_allclose(numpy(layer.kernel), kernel, rtol=1e-6)


def test_zero_weights_and_equal_scores():
    """sign(0) is 0 in a kernel; of equal scores PyTorch's sort drops the first in its own order of axes."""
    net = small(kept=0.5)
    for name in ("convs.0", "linear.0"):
        net.state[f"{name}.weight"][:, 1] = 0
        net.state[f"{name}.scores"] = torch.round(2 * net.state[f"{name}.scores"]) / 2
    refreshed(net)
    model = import_small(net)
    for key, mask in masks_in_torch(model, net).items():
        np.testing.assert_array_equal(mask.numpy(), net.masks[key].numpy(), err_msg=key)
    kernel, mask = numpy(model.get_layer("conv1").kernel), numpy(model.get_layer("conv1").subnet_mask)
    assert np.count_nonzero(mask[:, :, 1]) > 0 and not kernel[:, :, 1].any()
    assert_same_outputs(model, net, images((8, 8, 3)))
    assert set(np.unique(numpy(model.get_layer("conv1").scores))) == {np.float32(0.99), np.float32(1)}
    np.testing.assert_array_equal(numpy(model.get_layer("conv2").scores), in_keras(net.state["convs.2.scores"]))


def in_keras(tensor):
    return tensor.numpy().transpose(2, 3, 1, 0)


def test_stored_masks_that_scores_do_not_make():
    net = small("jackpots", 0.5)
    net.state["convs.0.b_mask"] = 1 - net.state["convs.0.b_mask"]
    net.state["convs.2.b_mask"][:] = 0
    net.state["convs.2.b_mask"][:, :, 0, 1] = 1
    refreshed(net)
    model = import_small(net, "auto")
    assert_same_state(masks_in_torch(model, net), net.masks)
    assert_same_outputs(model, net, images((8, 8, 3)))
    net.state["convs.2.b_mask"][:] = 0  # a layer without a weight
    model = import_small(refreshed(net))
    assert_same_state(masks_in_torch(model, net), net.masks)
    assert not numpy(model(images((8, 8, 3), 2))).any()


@pytest.mark.parametrize("flavour", LAYOUTS)
def test_tickets_of_imported_networks(flavour, tmp_path):
    net = small(flavour, 0.4)
    model = import_small(net, sparsity=0.6 if flavour == "edge_popup" else None)
    save_ticket(model, tmp_path / "ticket.mpt")
    assert_same_outputs(load_ticket(tmp_path / "ticket.mpt"), net, images((8, 8, 3)))
    save_ticket(model, tmp_path / "whole.mpt", scores=True)
    assert_same_state(to_pytorch_state_dict(load_ticket(tmp_path / "whole.mpt"), LAYOUTS[flavour]), net.state)


def test_files_of_training_runs(tmp_path):
    """DataParallel, an optimizer, the later files' fields, a network that the file names: nothing needs to be said."""
    net = nets.Published(nets.conv(2, 0.0625, True), (32, 32, 3), "biprop", 0.5, affine=False, constant=True)
    torch.save(nets.checkpoint(net, "Conv2_BinAct", wrapped=True), tmp_path / "model_best.pth")
    model = from_pytorch(tmp_path / "model_best.pth")
    assert model.name == "conv2_mpt" and model.output_shape == (None, 7)
    assert type(model.get_layer("conv2").input_quantizer) is quantizers.ApproxSign
    assert_same_outputs(model, net, images((32, 32, 3)))
    legacy = tmp_path / "old.pth"
    torch.save(nets.checkpoint(net, "Conv2_BinAct"), legacy, _use_new_zipfile_serialization=False)
    assert_same_outputs(from_pytorch(legacy), net, images((32, 32, 3), 8))
    arrays = {key: value.numpy() for key, value in net.state.items()}
    assert_same_outputs(from_pytorch(arrays, "conv2_mpt", 0.5, "biprop", **SIGN), net, images((32, 32, 3), 8))

    command = ["import", str(tmp_path / "model_best.pth"), str(tmp_path / "out.mpt")]
    assert main(command) == 0
    assert_same_outputs(load_ticket(tmp_path / "out.mpt"), net, images((32, 32, 3), 8))
