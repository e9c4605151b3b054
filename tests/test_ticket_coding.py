"""The coding of masks: complete, close to the entropy; and so are whole files."""

import zlib

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import keras_mpt
from keras_mpt.layers import MPTDense
from keras_mpt.models import mpt_layers
from keras_mpt.tickets import coding, load_ticket, save_ticket
from support.layer_contract import numpy

pytestmark = pytest.mark.slow_with("jax", "torch")


def entropy_bytes(density, size):
    shares = np.array([density, 1 - density])
    shares = shares[shares > 0]
    return -size * float(np.sum(shares * np.log2(shares))) / 8


DENSITIES = [0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.24, 0.26, 0.35, 0.5, 0.6, 0.9, 0.95, 0.995, 1.0]


@pytest.mark.parametrize("density", DENSITIES)
def test_masks_are_coded_close_to_their_entropy(density, rng):
    mask = rng.random((3, 3, 512, 512)) < density
    form, data = coding.encode(mask)
    assert len(data) <= 1.03 * entropy_bytes(mask.mean(), mask.size) + 64
    np.testing.assert_array_equal(coding.decode(form, data, mask.size), mask.ravel())


def runs(lengths):
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


run_lengths = st.lists(st.sampled_from([0, 1, 2, 7, 8, 9, 254, 255, 256, 509, 510, 511, 765]) | st.integers(0, 2000))
masks = arrays.arrays(bool, st.integers(0, 100)) | run_lengths.map(runs)


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine


@patient
@given(masks)
@example(np.zeros(0, bool))
@example(np.ones(1, bool))
@example(np.zeros(1, bool))
@example(np.ones(77, bool))
@example(np.zeros(255, bool))
@example(runs([255, 1]))
@example(runs([254, 1, 255, 1, 256, 1, 510, 1, 511, 1, 3]))
def test_every_mask_comes_back(mask):
    form, data = coding.encode(mask)
    decoded = coding.decode(form, data, mask.size)
    assert decoded.dtype == bool and decoded.shape == mask.shape
    np.testing.assert_array_equal(decoded, mask)


@patient
@given(masks, st.sampled_from(["bits", "gaps"]), st.booleans())
def test_both_ways_are_as_described(mask, way, inverted):
    """A writer that follows the description, one entry after the other."""
    coded = mask ^ inverted
    raw, zeros = bytearray(-(-mask.size // 8) if way == "bits" else 0), 0
    for i, entry in enumerate(coded):
        if way == "bits":
            raw[i // 8] |= int(entry) << i % 8
        elif entry:
            raw += b"\xff" * (zeros // 255) + bytes([zeros % 255])
        zeros = 0 if entry else zeros + 1
    decoded = coding.decode({"coding": way, "inverted": inverted}, zlib.compress(bytes(raw)), mask.size)
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(("ones", "inverted"), [(4, False), (5, False), (6, True)])
def test_the_complement_is_coded_where_ones_are_more_than_half(ones, inverted):
    form, _ = coding.encode(np.arange(10) < ones)
    assert form["inverted"] is inverted


@pytest.mark.parametrize(
    ("way", "raw", "size"),
    [
        ("bits", b"\x00", 9),
        ("bits", b"\x00\x00", 8),
        ("bits", b"\x08", 3),
        ("bits", b"", 1),
        ("gaps", b"\x00\x00\x00", 2),
        ("gaps", b"\x03", 3),
        ("gaps", b"\xff", 300),
        ("gaps", b"\xff\xff\x00", 510),
    ],
)
def test_bytes_that_are_no_mask_are_refused(way, raw, size):
    with pytest.raises(ValueError):
        coding.decode({"coding": way, "inverted": False}, zlib.compress(raw), size)


@patient
@given(masks, st.data())
def test_changed_bytes_are_refused_or_make_another_mask(mask, data):
    form, coded = coding.encode(mask)
    changed = bytearray(coded)
    changed[data.draw(st.integers(0, len(coded) - 1))] ^= data.draw(st.integers(1, 255))
    for other in (bytes(changed), coded[:-1], coded + b"\0", coded[1:]):
        try:
            decoded = coding.decode(form, other, mask.size)
        except ValueError:
            continue
        assert other == bytes(changed) and decoded.shape == mask.shape  # zlib's own checksum saw nothing


def test_a_short_stream_cannot_take_much_memory():
    bomb = zlib.compress(bytes(1 << 28), 9)
    for way in ("bits", "gaps"):
        with pytest.raises(ValueError, match="at most"):
            coding.decode({"coding": way, "inverted": False}, bomb, 1000)


def files_size_without_headers(model):
    masks = sum(
        entropy_bytes(numpy(layer.subnet_mask).mean(), numpy(layer.subnet_mask).size) for layer in mpt_layers(model)
    )
    of_masks = {"scores", "frozen_kernel", "kernel_epoch", "quota", "threshold", "nan_steps"}
    other = sum(4 * int(np.prod(v.shape)) for v in model.variables if v.name not in of_masks)
    return 1.03 * masks + other


def test_a_file_is_masks_and_other_variables(tmp_path):
    layers = [
        MPTDense(600, sparsity=sparsity, use_bias=True, seed=i) for i, sparsity in enumerate((0.5, 0.8, 0.95, 0.1))
    ]
    model = keras.Sequential([keras.Input((600,)), *layers, keras.layers.BatchNormalization()])
    ticket = save_ticket(model, tmp_path / "wide.mpt")
    assert ticket.size == (tmp_path / "wide.mpt").stat().st_size
    assert ticket.size <= files_size_without_headers(model) + 20_000


@pytest.mark.slow
@pytest.mark.parametrize(("affine", "most"), [(False, 1_080_000), (True, 1_120_000)])
def test_resnet18_as_a_file(affine, most, tmp_path):
    model = keras_mpt.zoo.resnet18_mpt(sparsity=0.8, seed=0, batch_norm_affine=affine)
    rng = np.random.default_rng(0)
    for layer in mpt_layers(model):
        layer.scores.assign(rng.normal(size=layer.scores.shape))
    assert sum(int(np.prod(layer.frozen_kernel.shape)) for layer in mpt_layers(model)) == 11_164_352
    ticket = save_ticket(model, tmp_path / "resnet18.mpt")
    assert ticket.size <= min(most, files_size_without_headers(model) + 20_000)
    loaded = load_ticket(tmp_path / "resnet18.mpt")
    for ours, theirs in zip(mpt_layers(model), mpt_layers(loaded), strict=True):
        np.testing.assert_array_equal(numpy(theirs.kernel), numpy(ours.kernel))
