"""Exact selection against numpy, eagerly and compiled; counting passes; straight-through gradients."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_mpt.ops import (
    entropy_bits,
    kept_count,
    magnitude_bits,
    search_threshold,
    sort_threshold,
    sparsity_of,
    straight_through,
    to_numpy,
    top_k_mask,
)
from keras_mpt.ops.selection import INFINITY_BITS
from support import reference
from support.backend import gradient

SELECTORS = {"search": search_threshold, "sort": sort_threshold}
MODES = {"tensorflow": ["eager", "graph", "xla"], "jax": ["eager", "jit"], "torch": ["eager"]}[keras.backend.backend()]
SHAPES = [(1,), (9,), (3, 5), (4, 1, 6)]  # few, since each is compiled
TINY = np.float32(1e-45)
HUGE = np.finfo(np.float32).max
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1 + 2.0**-23, 2 * TINY, -TINY, 1.2e-38, HUGE, -HUGE, np.inf, -np.inf]


def compiled(function, mode):
    if mode == "eager":
        return function
    if mode == "jit":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=mode == "xla")


def select(scores, kept, start, selector):
    return top_k_mask(magnitude_bits(scores), kept, start, SELECTORS[selector])[0]


@functools.cache
def selection(mode, selector="search"):
    """`(scores, kept, start) -> mask`, all numpy, compiled once for each shape."""
    run = compiled(functools.partial(select, selector=selector), mode)

    def in_numpy(scores, kept, start=0):
        integers = (ops.convert_to_tensor(n, dtype="int32") for n in (kept, start))
        return ops.convert_to_numpy(run(ops.convert_to_tensor(scores), *integers))

    return in_numpy


@st.composite
def problems(draw):
    """Scores with many ties, or anything; how many are kept; any hint."""
    shape = draw(st.sampled_from(SHAPES))
    special, anything = st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False)
    entry = draw(st.sampled_from([special, anything, st.one_of(special, anything), st.sampled_from([0.5, -0.5])]))
    size = int(np.prod(shape))
    scores = np.array(draw(st.lists(entry, min_size=size, max_size=size)), np.float32).reshape(shape)
    hint = st.one_of(st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 1, INFINITY_BITS, INFINITY_BITS + 1]))
    return scores, draw(st.integers(1, size)), draw(hint)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=60)
@given(problem=problems())
@example(problem=(np.zeros((3, 5), np.float32), 7, 0))
@example(problem=(np.full((4, 1, 6), -np.inf, np.float32), 11, INFINITY_BITS))
@example(problem=(np.full((9,), TINY), 9, 1))
def test_mask_is_that_of_a_stable_sort(mode, selector, problem):
    scores, kept, start = problem
    np.testing.assert_array_equal(selection(mode, selector)(scores, kept, start), reference.mask(scores, kept))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decimals", [8, 1, 0], ids="rounded to {} decimals".format)
def test_larger_layer(mode, decimals, rng):
    scores = rng.normal(size=(3, 3, 8, 32)).round(decimals).astype(np.float32)
    hint = 0
    for kept in [1, 2, 231, 1152, 2303, 2304]:
        expected = reference.mask(scores, kept)
        np.testing.assert_array_equal(selection(mode)(scores, kept, hint), expected)
        np.testing.assert_array_equal(selection(mode, "sort")(scores, kept), expected)
        hint = np.abs(scores[expected == 1]).min().view(np.int32)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("mode", MODES)
def test_nan_score_makes_the_mask_nan(mode, selector, rng):
    scores = rng.normal(size=(3, 5)).astype(np.float32)
    for nan in (np.nan, -np.nan):
        scores[1, 2] = nan
        for kept in (1, 7, 15):
            assert np.isnan(selection(mode, selector)(scores, kept)).all()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "eager"])
def test_another_count_needs_no_recompilation(mode):
    traces = []

    def traced(scores, kept, start):
        traces.append(mode)
        return select(scores, kept, start, "search")

    run, scores = compiled(traced, mode), ops.arange(12, dtype="float32")
    for kept in (3, 5, 12):
        mask = run(scores, *(ops.convert_to_tensor(n, dtype="int32") for n in (kept, kept)))
        assert ops.convert_to_numpy(mask).tolist() == [0.0] * (12 - kept) + [1.0] * kept
    assert len(traces) == 1


@contextlib.contextmanager
def interpreted():
    """Run traced functions step by step."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)
    elif keras.backend.backend() == "jax":
        import jax

        with jax.disable_jit():
            yield
    else:
        yield


def passes(scores, kept, start, monkeypatch):
    """Return (number of counting passes, found threshold)."""
    counted = []
    whole = scores.size
    compare = ops.greater_equal

    def counting(x, threshold):
        counted.extend([1] if int(np.prod(x.shape)) == whole else [])
        return compare(x, threshold)

    with monkeypatch.context() as patch, interpreted():
        patch.setattr(ops, "greater_equal", counting)
        keys = magnitude_bits(ops.convert_to_tensor(scores))
        threshold, _ = search_threshold(keys, ops.convert_to_tensor(kept), ops.convert_to_tensor(start))
    return len(counted), int(threshold)


def test_a_good_hint_saves_passes(rng, monkeypatch):
    scores = rng.normal(size=2000).astype(np.float32)
    cold, threshold = passes(scores, 600, 0, monkeypatch)
    assert 1 < cold <= 41
    assert passes(scores, 600, threshold, monkeypatch) == (1, threshold)
    moved = scores + rng.normal(scale=1e-3, size=scores.shape).astype(np.float32)
    assert passes(moved, 600, threshold, monkeypatch)[0] <= 7


@pytest.mark.parametrize("kept", [1, 32, 63])
def test_the_worst_case_is_bounded(kept, monkeypatch):
    steps = np.float32(2.0) ** np.arange(-149, 128, 277 / 64)
    for scores in (steps, np.r_[np.full(63, TINY), np.inf], np.r_[np.zeros(32), np.full(32, HUGE)]):
        for start in (0, INFINITY_BITS):
            assert passes(scores.astype(np.float32), kept, start, monkeypatch)[0] <= 41


@pytest.mark.parametrize("select", SELECTORS.values(), ids=SELECTORS)
def test_while_scores_stand_still_no_threshold_is_searched(select, rng, monkeypatch):
    keys = magnitude_bits(ops.convert_to_tensor(rng.normal(size=(40, 50)).astype(np.float32)))
    mask, threshold, _ = top_k_mask(keys, 600, 0, select)
    selections = []
    with interpreted():
        again, *_ = top_k_mask(keys, 600, threshold, lambda *args: selections.append(args))
    assert not selections
    np.testing.assert_array_equal(ops.convert_to_numpy(again), ops.convert_to_numpy(mask))


def test_counts_beyond_those_of_float32():
    kept = 2**24 + 32
    keys = np.arange(1, kept + 33, dtype=np.int32)  # one row
    hint = len(keys) - kept  # that keeps one more, which float32 rounds to `kept`
    mask, threshold, _ = top_k_mask(ops.convert_to_tensor(keys), kept, hint, SELECTORS["search"])
    assert np.count_nonzero(ops.convert_to_numpy(mask)) == kept and int(threshold) == hint + 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_scores_must_be_float32(dtype):
    with pytest.raises(TypeError, match=f"scores.*dtype={dtype}"):
        magnitude_bits(ops.ones((3,), dtype))


@example(size=102_760_448, share=0.5438)
@given(size=st.integers(1, 2**31), share=st.floats(0, 1))
def test_sparsity_of_a_count_gives_that_count(size, share):
    kept = max(1, round(share * size))
    assert kept_count(size, sparsity_of(kept, size)) == kept


def test_entropy_takes_the_sum_of_a_mask():
    assert entropy_bits(10, np.float32([1, 0, 1, 1]).sum()) == pytest.approx(8.8129, abs=1e-4)


def test_entropy_is_a_float_and_never_negative_zero():
    whole = [entropy_bits(0, 0), entropy_bits(10, 0), entropy_bits(10, 10)]
    assert [str(bits) for bits in whole] == ["0.0"] * 3
    of_a_sum = entropy_bits(10, np.float32(3))
    assert type(of_a_sum) is float and of_a_sum == entropy_bits(10, 3)


@settings(deadline=None)
@given(size=st.integers(1, 10**7), percent=st.integers(0, 99))
@example(size=100, percent=29)  # 0.29 * 100 = 28.999999999999996
def test_kept_count(size, percent):
    assert kept_count(size, percent / 100) == size - size * percent // 100


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf"), "0.5", True, None])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match="`sparsity` must be a number in"):
        kept_count(10, sparsity)


def test_nothing_left():
    with pytest.raises(ValueError, match="`sparsity` must leave at least one weight.*none of 3"):
        kept_count(3, 1 - 1e-12)


def test_straight_through():
    x = np.array([0.0, -0.0, np.inf, -np.inf, 1.5, -2.0, 3e38], np.float32)
    w = np.array([2.0, 3.0, -0.5, 0.1, -7.0, 0.3, 1.0], np.float32)
    upstream = np.array([1.0, -1.0, 0.7, 5.0, 0.0, -0.1, 0.3], np.float32)

    def estimator(x, w):
        return straight_through(lambda x, w: ops.sign(x) * w, lambda x, w: w * w, x, ops.convert_to_tensor(w))

    np.testing.assert_array_equal(ops.convert_to_numpy(estimator(ops.convert_to_tensor(x), w)), np.sign(x) * w)
    np.testing.assert_array_equal(gradient(lambda x: estimator(x, w), x, upstream), upstream * (w * w))
    np.testing.assert_array_equal(gradient(lambda w: estimator(ops.convert_to_tensor(x), w), w), np.zeros(7))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_arrays_are_copies_and_narrow_floats_float32(dtype):
    variable = keras.Variable([1, 2, 3], dtype=dtype, trainable=False)
    array = to_numpy(variable)
    variable.assign([4, 5, 6])
    np.testing.assert_array_equal(array, [1, 2, 3])
    assert array.dtype == ("int32" if dtype == "int32" else "float32")
    assert to_numpy(variable, "float32").dtype == "float32"
