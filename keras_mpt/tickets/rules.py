"""Codings for masks of special rules: a seed determines a part of the mask, or all groups have as many ones.

- `"searched"`: in the order of the seed's uniform numbers, the first `pruned` entries are zeros and the next `locked`
  are ones. The others, in the order of their indices, are coded by `of`, which is `"bits"` or `"gaps"`.
- `"groups"`: n of each m entries, `stride` apart, are ones. There are `C = binomial(m, n)` such groups. The number of a
  group is the sum of `binomial(i, j)` over its ones, where the j-th one (from 1) is entry i. A byte holds the numbers
  of as many groups as fit, as digits to the base C, the lowest first. If `C > 256`, a number takes w bytes: its digits
  to the base B, the lowest first, with the smallest w with `256^w >= C` and the smallest B with `B^w >= C`.
"""

import math

import numpy as np

from keras_mpt.random import partition


def searched(size, pruned, locked, seed, stream, **_):
    """Return a boolean array of the entries that the seed does not determine.

    Raises:
        ValueError: There are fewer entries than the seed determines.
    """
    zeros, ones = _frozen(size, pruned, locked, seed, stream)
    return ~(zeros | ones)


def _frozen(size, pruned, locked, seed, stream):
    if pruned + locked > size:
        raise ValueError(f"{pruned} and {locked} entries of {size} are decided by the seed")
    return partition(size, (pruned, locked), seed, stream)


def searched_part(mask, pruned, locked, seed, stream):
    """Return the entries of a mask that the seed does not determine.

    Raises:
        ValueError: The others do not agree with the seed.
    """
    zeros, ones = _frozen(mask.size, pruned, locked, seed, stream)
    if mask[zeros].any() or not mask[ones].all():
        raise ValueError("the weights that are pruned or locked for good are not those of the layer's seed")
    return mask[~(zeros | ones)]


def with_frozen(decode, size, pruned, locked, seed, stream):
    """Return the whole mask; `decode(n)` returns the n entries that the seed does not determine."""
    zeros, ones = _frozen(size, pruned, locked, seed, stream)
    part = decode(size - pruned - locked)
    mask = ones
    mask[~(zeros | ones)] = part
    return mask


def groups_to_bytes(mask, n, m, stride):
    """Return a mask as bytes.

    Raises:
        ValueError: A group has a different number of ones.
    """
    groups = _groups(mask, m, stride)
    place = np.cumsum(groups, axis=1)
    if (place[:, -1] != n).any():
        raise ValueError(f"not each group has {n} of {m} entries")
    table = _binomials(n, m)
    numbers = sum(np.where(groups[:, i], table[i, place[:, i]], 0) for i in range(m)).ravel()
    patterns, digits, base, width = _packing(n, m)
    padded = np.zeros(-(-numbers.size // digits) * digits, np.int64)
    padded[: numbers.size] = numbers
    integers = padded.reshape(-1, digits) @ patterns ** np.arange(digits)
    return (integers[:, None] // base ** np.arange(width) % base).astype(np.uint8).tobytes()


def groups_from_bytes(inflate, size, n, m, stride):
    """Return the mask in the bytes of `inflate(most)`, which returns at most `most` bytes.

    Raises:
        ValueError: The bytes are not such a mask.
    """
    if not n < m or m * stride > size or size % (m * stride):
        raise ValueError(f"no {n} of {m} entries {stride} apart in {size}")
    patterns, digits, base, width = _packing(n, m)
    count = size // m
    data = np.frombuffer(inflate(-(-count // digits) * width), np.uint8)
    if data.size != -(-count // digits) * width:
        raise ValueError(f"{data.size} bytes for {count} groups")
    integers = data.reshape(-1, width).astype(np.int64) @ base ** np.arange(width)
    numbers = integers[:, None] // patterns ** np.arange(digits) % patterns
    if (data >= base).any() or (integers >= patterns**digits).any() or numbers.ravel()[count:].any():
        raise ValueError("a number of no group")
    numbers = numbers.ravel()[:count].reshape(-1, stride)
    mask, left, table = np.zeros((len(numbers), m, stride), bool), np.full(numbers.shape, n), _binomials(n, m)
    for i in reversed(range(m)):
        mask[:, i] = (left > 0) & (numbers >= table[i, left])
        numbers = numbers - np.where(mask[:, i], table[i, left], 0)
        left = left - mask[:, i]
    return mask.ravel()


def _groups(mask, m, stride):
    if mask.size % (m * stride):
        raise ValueError(f"no groups of {m} entries {stride} apart in {mask.size}")
    return mask.reshape(-1, m, stride)


def _binomials(n, m):
    """Return binomial(i, j) as a table by i < m and j <= n."""
    return np.array([[math.comb(i, j) for j in range(n + 1)] for i in range(m)], np.int64)


def _packing(n, m):
    """Return the number of groups, the numbers per integer, and the base and number of its digits, which are bytes."""
    patterns, digits, base, width = math.comb(m, n), 1, 256, 1
    while patterns ** (digits + 1) <= 256:
        digits += 1
    while 256**width < patterns:
        width += 1
    while width > 1 and (base - 1) ** width >= patterns:
        base -= 1
    return patterns, digits, base, width
