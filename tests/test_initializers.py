"""Frozen values (what a seed stands for must never change), the generator, distributions, streams."""

import hashlib
import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import erfinv

from keras_mpt import initializers
from keras_mpt.initializers import KaimingNormal, KaimingUniform, SignedConstant, UnsignedConstant, layer_seeds
from keras_mpt.layers import MPTDense
from support import reference

BLOCK = 1 << 20
ALL = [SignedConstant, UnsignedConstant, KaimingNormal, KaimingUniform]
LAST_SEED = 2**64 - 1
# Class, seed, the bits of the first four values, start of the SHA-256 of all (little-endian float32, C order), for
# the shape (3, 3, 5, 7). Tickets in the field depend on them: if a test on them fails, the code is wrong.
GOLDEN = [
    (SignedConstant, 0, "3e57e0cf 3e57e0cf be57e0cf 3e57e0cf", "bf57af92c6957929"),
    (SignedConstant, 7, "be57e0cf be57e0cf 3e57e0cf be57e0cf", "72988bb13af7d55f"),
    (SignedConstant, LAST_SEED, "3e57e0cf 3e57e0cf be57e0cf 3e57e0cf", "c17ca00c585206bb"),
    (UnsignedConstant, 0, "3e57e0cf 3e57e0cf 3e57e0cf 3e57e0cf", "560058073ffbfa89"),
    (KaimingNormal, 0, "3ef22502 3e8e8a6e bda4d687 3e7908e5", "90ed6aad8329a9d3"),
    (KaimingNormal, 7, "be774f39 bea8f293 3de35984 bdcf6788", "b08ea36d16ddb759"),
    (KaimingNormal, LAST_SEED, "3df010ad 3e4bc9e2 be34648d 3e83beb6", "86498a3cfb326f02"),
    (KaimingUniform, 0, "3e14da11 3df850b2 bd35940c 3de5613d", "a419edbfba9958df"),
    (KaimingUniform, 7, "bde45fdb be06b525 3d75289c bd61554c", "80c2ded2b42bf4e6"),
    (KaimingUniform, LAST_SEED, "3d80c685 3dc7eb03 bdb62699 3ded717d", "59039e3cdb0092b6"),
]


def sha256(values):
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("cls, seed, first, digest", GOLDEN)
def test_values_are_frozen(cls, seed, first, digest):
    drawn = cls().draw((3, 3, 5, 7), seed)
    assert drawn.dtype == np.float32
    assert " ".join(f"{bits:08x}" for bits in drawn.reshape(-1)[:4].view(np.uint32)) == first
    assert sha256(drawn).startswith(digest)
    called = cls(seed=seed)((3, 3, 5, 7), dtype="float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(called), drawn)


def test_values_beyond_one_block_are_frozen():
    drawn = KaimingNormal().draw((1025, 1024), seed=5)
    assert sha256(drawn) == "6423cb5c62e177ca5b0675721b03db3e6a37a3af2ede44514f1b3451411b7c51"


@pytest.mark.parametrize("seed", [0, 7, LAST_SEED])
@pytest.mark.parametrize("stream", [0, 3])
def test_generator_is_philox(seed, stream):
    words = reference.philox(seed, stream, 5)
    bits = [2.0 * (word >> i & 1) - 1 for word in words for i in range(64)]
    np.testing.assert_array_equal(initializers.random_signs(300, seed, stream), bits[:300])
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    uniform = [(half + 0.5) / 2**32 for half in halves]
    np.testing.assert_array_equal(initializers.random_uniform(9, seed, stream), uniform[:9])


def test_layer_seeds():
    frozen = {
        0: [3886193282, 1843212466, 3719588980, 2767608498],
        7: [929470681, 2369925712, 3049021918, 89750935],
        LAST_SEED: [3933951499, 473296532, 4061281042, 1538831480],
    }
    for seed, expected in frozen.items():
        words = reference.philox(seed, 4, 2)
        assert expected == [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
        assert list(itertools.islice(layer_seeds(seed), 4)) == expected


def test_seeds_of_initializers_of_keras():
    frozen = {(1, 0): 865519474, (1, 1): 9057476, (LAST_SEED, 0): 1465798824}  # seed of the layer, stream
    for (seed, stream), expected in frozen.items():
        assert initializers.seeded(keras.initializers.HeNormal(), seed, stream).seed == expected


@pytest.mark.parametrize("size", [1, 63, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(size):
    for random in (initializers.random_signs, initializers.random_uniform):
        np.testing.assert_array_equal(random(size, 3), random(BLOCK + 70, 3)[:size])
    for cls in (SignedConstant, KaimingNormal, KaimingUniform):
        longer = cls().draw((BLOCK + 70,), 3, fan_in=9)
        np.testing.assert_array_equal(cls().draw((size,), 3, fan_in=9), longer[:size])


def test_half_normal_against_scipy():
    uniform = np.r_[2.0**-33, np.linspace(1e-6, 1 - 1e-6, 20001), 1 - 2.0 ** -np.arange(20, 25)]
    np.testing.assert_allclose(initializers.half_normal(uniform), math.sqrt(2) * erfinv(uniform), rtol=4e-7)
    tail = 1 - 2.0 ** -np.arange(
        25, 34
    )  # one number in 10 million lies here, beyond what Giles' polynomial is made for
    np.testing.assert_allclose(initializers.half_normal(tail), math.sqrt(2) * erfinv(tail), rtol=1e-3)


def test_statistics():
    shape, std = (3, 3, 64, 256), math.sqrt(2 / (9 * 64))
    normal, uniform = KaimingNormal().draw(shape, 1), KaimingUniform().draw(shape, 1)
    tolerance = 4 / math.sqrt(normal.size)  # four standard errors of a mean of unit variance
    assert abs(normal.mean()) < tolerance * std
    assert abs((normal.astype(np.float64) ** 2).mean() / std**2 - 1) < tolerance * math.sqrt(2)
    assert abs((np.abs(normal) < std).mean() - 0.6827) < tolerance / 2
    for a, bound in ((math.sqrt(5), 1 / 24), (0, math.sqrt(6 / 576))):
        uniform = KaimingUniform(a=a).draw(shape, 1)
        assert 0.9999 * bound < uniform.max() < bound and -bound < uniform.min() < -0.9999 * bound
        assert abs(uniform.mean()) < tolerance * bound
        assert abs(np.abs(uniform).mean() - bound / 2) < tolerance * bound / 2


def test_constants():
    std = np.float32(math.sqrt(2 / 50))
    assert set(np.unique(SignedConstant().draw((5, 10, 4), 0))) == {-std, std}
    np.testing.assert_array_equal(UnsignedConstant().draw((5, 10, 4), 0), np.full((5, 10, 4), std))


def test_normal_has_the_signs_of_the_constant():
    shape = (7, 11)
    for seed in (0, 1):
        signs = np.sign(SignedConstant().draw(shape, seed))
        np.testing.assert_array_equal(np.sign(KaimingNormal().draw(shape, seed)), signs)
    assert (signs != np.sign(SignedConstant().draw(shape, 0))).any()


@pytest.mark.parametrize("cls", [SignedConstant, UnsignedConstant, KaimingNormal])
def test_scale_fan(cls):
    plain, scaled = cls().draw((16, 4), 1, kept=0.2), cls(scale_fan=True).draw((16, 4), 1, kept=0.2)
    np.testing.assert_allclose(scaled, plain / math.sqrt(0.2), rtol=2e-7)
    layer = MPTDense(4, sparsity=0.8, kernel_initializer=cls(scale_fan=True), seed=1)
    layer.build((None, 16))
    np.testing.assert_allclose(layer.frozen_kernel.numpy(), scaled, rtol=2e-7)


def test_kernel_and_scores_are_independent():
    layer = MPTDense(64, kernel_initializer="kaiming_uniform", seed=1)
    layer.build((None, 64))
    kernel, scores = layer.frozen_kernel.numpy().reshape(-1), layer.scores.numpy().reshape(-1)
    np.testing.assert_array_equal(scores, KaimingUniform().draw((64 * 64,), 1, stream=2, fan_in=64))
    for a, b in ((kernel, scores), (np.abs(kernel), np.abs(scores)), (np.sign(kernel), np.sign(scores))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / 64


@pytest.mark.parametrize("cls", [SignedConstant, KaimingNormal, KaimingUniform])
def test_seeds(cls):
    assert not np.array_equal(cls().draw((50,), 1, fan_in=1), cls().draw((50,), 2, fan_in=1))
    own, layers = cls(seed=1), cls()
    np.testing.assert_array_equal(
        *(ops.convert_to_numpy(i((50, 2), "float32", seed=s)) for i, s in [(own, 9), (layers, 1)])
    )
    keras.utils.set_random_seed(4)
    drawn = ops.convert_to_numpy(cls()((50, 2)))
    assert not np.array_equal(drawn, ops.convert_to_numpy(cls()((50, 2))))
    keras.utils.set_random_seed(4)
    np.testing.assert_array_equal(ops.convert_to_numpy(cls()((50, 2))), drawn)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", True, [1]])
@pytest.mark.parametrize("make", [*ALL, lambda seed: next(layer_seeds(seed))])
def test_bad_seeds(make, seed):
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        make(seed=seed)


def test_bad_arguments():
    for a in ("x", None, True, float("nan")):
        with pytest.raises(ValueError, match="`a` must be a finite number"):
            KaimingUniform(a=a)
    with pytest.raises(ValueError, match="`scale_fan` must be True or False. Received: scale_fan='no'"):
        KaimingNormal(scale_fan="no")


@pytest.mark.parametrize("cls", ALL)
def test_config(cls):
    settings = {"seed": 3} | ({"a": 0.5} if cls is KaimingUniform else {"scale_fan": True})
    initializer = cls(**settings)
    assert initializer.get_config() == settings
    restored = keras.initializers.deserialize(keras.initializers.serialize(initializer))
    assert type(restored) is cls and restored.get_config() == settings
    assert eval(repr(initializer)).get_config() == settings


def test_names():
    names = ["signed_constant", "unsigned_constant", "kaiming_normal", "kaiming_uniform"]
    assert [type(initializers.get(name)) for name in names] == ALL
    assert isinstance(initializers.get("he_normal"), keras.initializers.HeNormal)
    with pytest.raises(ValueError, match="`identifier` must be one of 'signed_constant'.*Received: 'kaiming_norml'"):
        initializers.get("kaiming_norml")
