"""Exact selection of the largest magnitudes, by counting passes over the bits of the scores."""

import functools
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor
from keras_mpt.ops.backend import (
    LONGEST_ROW,
    bitcast,
    count_true,
    cumsum_int32,
    max_int32,
    nan_where,
    sum_int32,
    traced_once,
)

INFINITY_BITS = 0x7F800000  # the bit pattern of +inf in float32; magnitudes above it are NaN
ALL_BITS = 0x7FFFFFFF  # without the sign
_TOP = INFINITY_BITS + 1  # above the magnitudes of all numbers
_GUIDED_PASSES = 9  # interpolating passes of the search; later ones bisect, 40 in all at most


def magnitude_bits(scores: Tensor, bits: Tensor | int = ALL_BITS) -> Tensor:
    """Return the bits of `|scores|` as int32, which are ordered like the magnitudes.

    Comparisons of integers are exact down to subnormals, which a backend may flush, and NaN comes after infinity.

    Args:
        scores: float32 tensor of any shape.
        bits: int32 scalar or tensor in that shape: mask of the bits to return.

    Raises:
        TypeError: `scores` is not float32. (In a narrower type, ties would change the mask.)
    """
    dtype = keras.backend.standardize_dtype(scores.dtype)
    if dtype != "float32":
        raise TypeError(f"`scores` must have dtype float32 for an exact selection. Received: dtype={dtype}")
    return ops.bitwise_and(bitcast(ops.convert_to_tensor(scores), "int32"), bits)


def top_k_mask(
    keys: Tensor,
    kept: Tensor,
    start: Tensor,
    select: Callable,
    frozen: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the 0/1 mask of the `kept` largest keys; ties keep the lower flat index.

    If `start` is still a right threshold, as with scores that do not change, one pass over the keys is enough.

    Args:
        keys: int32 tensor of any shape, see `magnitude_bits`.
        kept: int32 scalar, the number of ones among the searched keys, from 1 to all of these.
        start: int32 scalar, the threshold of the last step. It affects the work, not the result.
        select: `search_threshold` or `sort_threshold`.
        frozen: int32 tensor in the shape of `keys`: > 0 for searched keys; 0 where the mask is 0, and < 0 where it is
            1, with keys <= 0. None: all are searched.
        size: Number of searched keys; None: all.

    Returns:
        `(mask, threshold, invalid)`: a float32 tensor in the shape of `keys` with exactly `kept` ones among the
        searched keys; an int32 scalar; and a boolean scalar: whether a score is NaN. Then the mask is all NaN, because
        a compiled step cannot raise an error, and a NaN loss is noticed at once.
    """
    size = math.prod(keys.shape) if size is None else size
    more = () if frozen is None else (_rows(frozen),)
    kept, start, size = _integers(kept, start, size)
    if keras.backend.backend() == "tensorflow":
        size = ops.maximum(size, kept)  # for a constant, it would optimize the function again in each call
    mask, threshold, invalid = _top_k(select, frozen is not None)(_rows(keys), kept, start, size, *more)
    return ops.reshape(mask, keys.shape), threshold, invalid


def _rows(x):
    """Return a matrix with rows short enough for `count_true`: one trace serves all shapes, which it does not know."""
    width = x.shape[-1]
    if width is not None and width > LONGEST_ROW:
        return ops.reshape(x, (-1, 1))
    return x if len(x.shape) == 2 else ops.reshape(x, (-1, width))


@functools.cache
def _top_k(select, has_frozen):
    """Return the traced part of `top_k_mask`: a single function, after which TensorFlow frees its memory.

    With frozen keys it is another one, because a trace has a fixed number of arguments.
    """

    @traced_once
    def top_k(rows, kept, start, size, *frozen):
        start = _within_keys(start)
        count_at_start, invalid = count_true(ops.greater_equal(rows, start)), has_nan(rows)
        threshold, count = ops.cond(
            ops.logical_or(invalid, ops.equal(count_at_start, kept)),
            lambda: (start, kept),
            lambda: select(rows, kept, start, size, count_at_start),
        )
        return _masked_rows(rows, kept, threshold, count, invalid, *frozen), threshold, invalid

    return top_k


def _within_keys(threshold):
    return ops.clip(threshold, 1, INFINITY_BITS)


def search_threshold(
    keys: Tensor, kept: Tensor, start: Tensor, size: Tensor | None = None, count_at_start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the threshold that keeps the `kept` largest keys, by counting passes guided by the last threshold.

    The search encloses the wanted count between two thresholds, interpolates between them and stops at the right
    count. From the last step's threshold it takes 3 to 7 passes over the keys, 1 if that is still right, at most 41.

    Args:
        keys: int32 tensor of any shape, or a list of such tensors to search together, with fewer than 2**31 entries,
            see `magnitude_bits`.
        kept: int32 scalar, the number of keys to keep, from 1 to all.
        start: int32 scalar, the first threshold to try. It affects the number of passes, not the result.
        size: int32 scalar, the number of keys >= 0, others being ignored; None: all.
        count_at_start: int32 scalar, the number of keys >= `start`; None: they are counted.

    Returns:
        `(threshold, count)`, int32 scalars: `count` keys are >= `threshold`. Either `count == kept`, or keys at the cut
        are equal: then `threshold` is the smallest kept key and `count > kept`.
    """
    keys, (start,) = _flat(keys), _integers(start)
    start = _within_keys(start)
    count_at_start = _counted(keys, start) if count_at_start is None else count_at_start
    size = sum(math.prod(part.shape) for part in keys) if size is None else size
    return _search(keys, *_integers(kept, start, count_at_start, size))


def _flat(keys):
    """Return a list of flat tensors: one trace serves all lengths."""
    return [ops.reshape(part, (-1,)) for part in (keys if isinstance(keys, (list, tuple)) else [keys])]


def _integers(*numbers):
    return [ops.convert_to_tensor(number, dtype="int32") for number in numbers]


@traced_once
def _counted(parts, threshold):
    return sum(count_true(ops.greater_equal(part, threshold)) for part in parts)


@traced_once
def _search(parts, kept, start, count_at_start, size):
    xp, number, while_loop = _scalar_arithmetic()
    cast = np.asarray if xp is np else ops.cast
    kept, start, count_at_start, size = (number(n) for n in (kept, start, count_at_start, size))

    def counted(threshold):
        (threshold,) = _integers(threshold)
        return number(sum(count_true(ops.greater_equal(part, threshold)) for part in parts))

    def enclose(threshold, count, low, low_count, high, high_count, passes):
        """Move one end of the bracket to `threshold`: count(low) >= kept > count(high)."""
        enough = xp.greater_equal(count, kept)
        return (
            xp.where(enough, threshold, low),
            xp.where(enough, count, low_count),
            xp.where(enough, high, threshold),
            xp.where(enough, high_count, count),
            xp.minimum(passes + 1, _GUIDED_PASSES),
        )

    def unfinished(low, low_count, high, high_count, passes):
        return xp.logical_and(xp.not_equal(low_count, kept), xp.greater(high - low, 1))

    def narrow(low, low_count, high, high_count, passes):
        width = cast(high - low, "float32")
        surplus = cast(low_count - kept, "float32")
        interpolated = low + cast(width * surplus / cast(low_count - high_count, "float32"), "int32")

        # While one end is unknown, step from the other as if the magnitudes below it were spread evenly, with growing
        # steps to enclose the wanted count soon. The mantissa converts from magnitudes to bits.
        lower_known = xp.greater(low, 0)
        known, count = xp.where(lower_known, low, high), xp.where(lower_known, low_count, high_count)
        mantissa = cast(xp.bitwise_or(xp.bitwise_and(known, 0x7FFFFF), 0x800000), "float32")
        density = cast(xp.maximum(size - count, 1), "float32") / mantissa
        step = 1.25 * cast(passes, "float32") * cast(count - kept, "float32") / density
        step = cast(xp.clip(step, -1e9, 1e9), "int32")
        extrapolated = known + xp.clip(step, low + 1 - known, high - 1 - known)

        enclosed = xp.logical_and(lower_known, xp.less(high, _TOP))
        threshold = xp.where(enclosed, interpolated, extrapolated)
        threshold = xp.where(xp.less(passes, _GUIDED_PASSES), threshold, low + xp.right_shift(high - low, 1))
        threshold = xp.clip(threshold, low + 1, high - 1)
        return enclose(threshold, counted(threshold), low, low_count, high, high_count, passes)

    zero, top = number(0), number(_TOP)
    bracket = enclose(start, count_at_start, zero, size, top, zero, zero)
    low, low_count, *_ = while_loop(unfinished, narrow, bracket)
    return tuple(_integers(low, low_count))


def _scalar_arithmetic():
    """Return a module, a function that converts a number for it, and a loop: PyTorch is slow with single numbers."""
    if keras.backend.backend() == "torch":
        return np, lambda n: np.int32(int(n)), _while_loop
    return ops, lambda n: _integers(n)[0], ops.while_loop


def _while_loop(unfinished, narrow, bracket):
    while unfinished(*bracket):
        bracket = narrow(*bracket)
    return bracket


def sort_threshold(
    keys: Tensor, kept: Tensor, start: Tensor, size: Tensor | None = None, count_at_start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the same threshold by sorting all keys: meant for devices on which launches dominate (GPUs).

    Arguments and result are those of `search_threshold`; `start`, `size` and `count_at_start` have no effect.
    """
    return _sort(_flat(keys), *_integers(kept))


@traced_once
def _sort(parts, kept):
    ordered = ops.sort(ops.concatenate(parts))
    threshold = ops.take(ordered, ops.shape(ordered)[0] - kept)
    return threshold, count_true(ops.greater_equal(ordered, threshold))


def split_kept(keys: list[Tensor], kept: Tensor, threshold: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Split the number of kept keys over several tensors; ties keep those of earlier tensors.

    Args:
        keys: List of int32 tensors.
        kept, threshold, count: See `mask_at`, for all tensors together.

    Returns:
        `(kept, count)`, int32 vectors with an entry for each tensor, for its own `mask_at`.
    """
    return _split(_flat(keys), *_integers(kept, threshold, count))


@traced_once
def _split(keys, kept, threshold, count):
    counts = ops.stack([count_true(ops.greater_equal(part, threshold)) for part in keys])

    def clear_cut():
        return counts

    def tied():
        above = ops.stack([count_true(ops.greater(part, threshold)) for part in keys])
        ties = counts - above
        room = kept - sum_int32(above) - (cumsum_int32(ties) - ties)  # left by earlier ties
        return above + ops.clip(room, 0, ties)

    return ops.cond(ops.equal(count, kept), clear_cut, tied), counts


def mask_at(keys: Tensor, kept: Tensor, threshold: Tensor, count: Tensor) -> Tensor:
    """Return the mask of the `kept` largest keys for a known threshold; see `top_k_mask`.

    Args:
        keys: int32 tensor of any shape.
        kept: int32 scalar, the number of ones.
        threshold: int32 scalar from `search_threshold` or `sort_threshold`.
        count: int32 scalar, the number of keys >= `threshold`.

    Returns:
        A float32 tensor in the shape of `keys` with exactly `kept` ones; all NaN if a score is NaN.
    """
    rows = _rows(keys)
    return ops.reshape(_mask_of_rows(rows, *_integers(kept, threshold, count), has_nan(rows)), ops.shape(keys))


def _masked_rows(rows, kept, threshold, count, invalid, frozen=None):
    """Return the mask: keys >= the threshold, except for ties that do not fit, and for frozen keys.

    Without frozen keys, no conditional returns a tensor in the shape of the kernel: XLA would give it another memory
    layout, and transpose it before each use.
    """
    searched = rows
    if frozen is not None:  # their keys are <= 0: above 0, the threshold excludes them
        outside = ops.greater(threshold, 0)
        searched = ops.cond(outside, lambda: rows, lambda: ops.where(ops.greater(frozen, 0), rows, -1))
    # PyTorch knows the case, and skips passes over the keys that XLA fuses.
    known = keras.backend.backend() == "torch"
    if known and (invalid or count == kept):
        stay = ops.greater_equal(searched, threshold)
    else:
        end = _end_of_ties(searched, kept, threshold, ops.where(invalid, kept, count))
        stay = _before(searched, threshold, end)
    if frozen is not None:
        stay = ops.logical_or(stay, ops.less(frozen, 0))
    mask = ops.cast(stay, "float32")
    return mask if known and not invalid else mask + nan_where(invalid)


def _before(rows, threshold, end):
    """Return where keys are above the threshold, or equal to it with a flat index below `end`."""
    height, width = ops.shape(rows)
    row = ops.expand_dims(ops.arange(height, dtype="int32"), 1)
    column = ops.expand_dims(ops.arange(width, dtype="int32"), 0)
    outside = ops.cast(ops.greater_equal(column, end - row * width), "int32")
    return ops.greater_equal(rows, threshold + outside)


def _end_of_ties(rows, kept, threshold, count):
    """Return the flat index before which ties stay: with few of them, it is found in few passes, at most 31."""
    xp, number, while_loop = _scalar_arithmetic()
    kept, count, zero, size = (number(n) for n in (kept, count, 0, math.prod(ops.shape(rows))))

    def unfinished(low, high, end, count):
        return xp.logical_and(xp.not_equal(count, kept), xp.less(low, high))

    def halve(low, high, end, count):
        end = low + xp.right_shift(high - low, 1)
        count = number(count_true(_before(rows, threshold, *_integers(end))))
        few = xp.less(count, kept)
        # `end + 1`: the loop also ends if there are fewer keys than `kept`.
        return xp.where(few, end + 1, low), xp.where(few, high, end), end, count

    return _integers(while_loop(unfinished, halve, (zero, size, size, count))[2])[0]


_mask_of_rows = traced_once(_masked_rows)


def mask_of_largest(x: Tensor, among: Tensor, kept: Tensor, select: Callable, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mask of the `kept` largest of some entries, by value, not by magnitude.

    Args:
        x: float32 tensor of any shape.
        among: Boolean tensor in that shape: the entries to choose from.
        kept: int32 scalar, the number of entries to choose, from 0 to all of these.
        select: `search_threshold` or `sort_threshold`.
        start: int32 scalar, the first threshold of a search.

    Returns:
        `(mask, threshold)`: a float32 tensor of zeros and ones (ties choose the lower flat index; all NaN if an entry
        is NaN), and an int32 scalar, the next `start`.
    """
    mask, threshold = _largest(select)(_rows(x), _rows(among), *_integers(kept, start))
    return ops.reshape(mask, ops.shape(x)), threshold


@functools.cache
def _largest(select):
    """Return the traced part of `mask_of_largest`."""

    @traced_once
    def largest(x, among, kept, start):
        magnitude = magnitude_bits(x)
        negative = ops.logical_and(ops.less(bitcast(x, "int32"), 0), ops.greater(magnitude, 0))
        positive = ops.logical_and(among, ops.logical_not(negative))
        # Ordering all values needs 32 bits, and keys have 31: use them for the values on the side of the cut.
        above_zero = ops.less_equal(kept, count_true(positive))
        above, below = ops.where(negative, -1, magnitude), ops.where(negative, INFINITY_BITS - magnitude, INFINITY_BITS)
        keys = ops.where(ops.greater(magnitude, INFINITY_BITS), magnitude, ops.where(above_zero, above, below))
        keys = ops.where(among, keys, -1)

        def some():
            threshold, count = select(keys, kept, start, count_true(ops.greater_equal(keys, 0)))
            return mask_at(keys, kept, threshold, count), threshold

        return ops.cond(ops.greater(kept, 0), some, lambda: (ops.zeros_like(x), start))

    return largest


def has_nan(keys: Tensor) -> Tensor:
    """Return whether a score is NaN, as a boolean scalar.

    Args:
        keys: int32 tensor of any shape, see `magnitude_bits`.
    """
    return ops.greater(max_int32(keys), INFINITY_BITS)
