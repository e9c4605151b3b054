"""The examples of docs/from-pytorch.md run, one after the other, on files like those that they speak of."""

import pathlib
import re

import numpy as np
import pytest

from support.layer_contract import numpy

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from support import torch_networks as nets  # noqa: E402, which needs torch

pytestmark = pytest.mark.slow_with("jax", "tensorflow")

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "from-pytorch.md"
SHAPE = (32, 32, 3)


def published_vgg_small(net, x):
    """VGG-Small as it was published for MPT-1/32: without batch normalization after every other convolution."""
    for index, (filters, place) in enumerate(zip((128, 128, 256, 256, 512, 512), (0, 2, 5, 6, 9, 10), strict=True)):
        x = net.conv(x, f"convs.{place}", filters, 3)
        x = torch.relu(x) if index == 0 else x
        if index % 2:
            x = net.norm(functional.max_pool2d(x, 2), f"convs.{place + 2}")
    return net.conv(torch.relu(x).flatten(1)[:, :, None, None], "linear.0", 10, 1).flatten(1)


def test_examples(tmp_path, monkeypatch):
    jackpot = nets.resnet((5, 5, 5), 0.5, (16, 32, 64), padded=True, bias=True, classes=10)
    resnet = nets.Published(nets.resnet((2, 2, 2, 2), 0.125), SHAPE, "biprop", 0.2)
    shared = nets.Published(nets.resnet((2, 2, 2, 2), 0.125), SHAPE, "global", 0.2)
    vgg_small = nets.Published(published_vgg_small, SHAPE, "biprop", 0.05, affine=False)
    edge_popup = nets.Published(nets.conv(4, 0.125, False), SHAPE, "edge_popup", 0.5)
    files = {
        "biprop.pth": nets.checkpoint(nets.Published(nets.conv(2, 0.125, False), SHAPE, "biprop", 0.5), "Conv2"),
        "old.pth": {"state_dict": resnet.state},
        "old_global.pth": {"state_dict": shared.state},
        "edge_popup.pth": nets.checkpoint(edge_popup, "Conv4"),
        "jackpot.pt": nets.checkpoint(nets.Published(jackpot, SHAPE, "jackpots", 0.2)),
        "vgg_small.pth": nets.checkpoint(vgg_small, "VGG_Small"),
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) == 4 and (tmp_path / "biprop.mpt").stat().st_size
    x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    expected = vgg_small.forward(x)
    assert np.abs(numpy(namespace["vgg_small"](x)) - expected).max() <= 1e-4 * np.abs(expected).max()
    for key, value in namespace["state"].items():  # of the last model, before that with the mapping
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), shared.state[key].numpy(), err_msg=key)
