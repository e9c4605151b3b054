"""Tickets of format version 1, saved on TensorFlow, load on every backend, now and in later versions."""

import pathlib

import numpy as np
import pytest

from keras_mpt.models import mpt_layers
from keras_mpt.tickets import Ticket, load_ticket, save_ticket
from support.layer_contract import numpy

DATA = pathlib.Path(__file__).resolve().parent / "data"
EXPECTED = dict(np.load(DATA / "version1.npz"))
LAYERS = ["seeded", "recycled", "binary", "edge_popup", "foreign", "with_zeros"]


def assert_as_saved(model):
    assert [layer.name for layer in mpt_layers(model)] == LAYERS
    for layer in mpt_layers(model):
        np.testing.assert_array_equal(numpy(layer.kernel), EXPECTED[f"kernel/{layer.name}"])
        np.testing.assert_array_equal(numpy(layer.subnet_mask), EXPECTED[f"mask/{layer.name}"])
    for i, y in enumerate(model(EXPECTED["inputs"])):
        assert np.ptp(EXPECTED[f"output{i}"]) > 0.3
        np.testing.assert_allclose(numpy(y), EXPECTED[f"output{i}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file", ["version1.mpt", "version1_scores.mpt"])
def test_loads(file):
    assert_as_saved(load_ticket(DATA / file))


def test_is_saved_the_same_again(tmp_path):
    old = Ticket.read(DATA / "version1.mpt")
    new = save_ticket(load_ticket(DATA / "version1.mpt"), tmp_path / "new.mpt")
    assert_as_saved(load_ticket(tmp_path / "new.mpt"))
    for name in LAYERS:
        path = f"block/{name}" if name == "recycled" else name
        np.testing.assert_array_equal(new.kernel(path).effective, old.kernel(path).effective)


def test_the_search_goes_on():
    model = load_ticket(DATA / "version1_scores.mpt", trainable=True)
    for layer in mpt_layers(model):
        np.testing.assert_array_equal(numpy(layer.scores), EXPECTED[f"scores/{layer.name}"])
        np.testing.assert_array_equal(numpy(layer.subnet_mask), EXPECTED[f"mask/{layer.name}"])
        np.testing.assert_allclose(numpy(layer.kernel), EXPECTED[f"kernel/{layer.name}"], rtol=1e-6)
    assert len(model.trainable_variables) == len(LAYERS) + 1 + 2 + 2  # scores; a bias, gamma and beta, the plain layer


def test_holds_every_source():
    """The files are worth keeping for what is in them."""
    entries = [Ticket.read(DATA / file).layers for file in ("version1.mpt", "version1_scores.mpt")]
    kernels = [entry["kernel"] for layers in entries for entry in layers.values() if entry["kernel"]]
    found = {(kernel["source"]["from"], kernel["over"], kernel["by"], kernel["changes"] is None) for kernel in kernels}
    assert found >= {
        ("seed", "kept", "signs", True),
        ("seed", "kept", "signs", False),
        ("seed", "all", "values", False),
    }
    assert found >= {("nothing", "kept", "signs", False), ("seed", "kept", "values", False)}
    assert {kernel["source"].get("initializer") for kernel in kernels} >= {"SignedConstant", "KaimingNormal", None}
    assert sum(file.stat().st_size for file in DATA.glob("version1*")) < 60_000
