"""Masks of rules that leave less to say than any mask: a part is decided by a seed, or each group has as many ones.

- `"searched"`: of the entries in the order of the seed's uniform numbers, the first `pruned` are zeros, the next
  `locked` are ones. The others, by their index, are coded as `of` says, which is `"bits"` or `"gaps"`.
- `"groups"`: n of each m entries are ones, `stride` apart. There are `C = binomial(m, n)` such groups. The number of
  one is the sum of `binomial(i, j)` over its ones, the j-th of which (from 1) is entry i. The numbers of
  as many groups as fit are the digits of a byte to the base C, the first one being the lowest. If `C > 256`, a number
  takes w bytes: its digits to the base B, the lowest first, w being the least with `256^w >= C`, B with `B^w >= C`.
"""

import math

import numpy as np

from keras_mpt.initializers import partition


def searched(size, pruned, locked, seed, stream, **_):
    """Return which entries are not decided by the seed, a boolean array.

    Raises:
        ValueError: There are not so many entries.
    """
    zeros, ones = _frozen(size, pruned, locked, seed, stream)
    return ~(zeros | ones)


def _frozen(size, pruned, locked, seed, stream):
    if pruned + locked > size:
        raise ValueError(f"{pruned} and {locked} entries of {size} are decided by the seed")
    return partition(size, (pruned, locked), seed, stream)


def searched_part(mask, pruned, locked, seed, stream):
    """Return the entries of a mask that are not decided by the seed.

    Raises:
        ValueError: The others are not as the seed says.
    """
    zeros, ones = _frozen(mask.size, pruned, locked, seed, stream)
    if mask[zeros].any() or not mask[ones].all():
        raise ValueError("the weights that are pruned or locked for good are not those of the layer's seed")
    return mask[~(zeros | ones)]


def with_frozen(decode, size, pruned, locked, seed, stream):
    """Return the mask of all entries; `decode(n)` returns that of the n which are not decided by the seed."""
    zeros, ones = _frozen(size, pruned, locked, seed, stream)
    part = decode(size - pruned - locked)
    mask = ones
    mask[~(zeros | ones)] = part
    return mask


def groups_to_bytes(mask, n, m, stride):
    """Return a mask as bytes.

    Raises:
        ValueError: A group has another number of ones.
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
    """Return the mask that `inflate(most)` holds, at most so many bytes.

    Raises:
        ValueError: It holds none.
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
    """Return how many groups there are, how many numbers of them an integer has, its base, and its digits, bytes."""
    patterns, digits, base, width = math.comb(m, n), 1, 256, 1
    while patterns ** (digits + 1) <= 256:
        digits += 1
    while 256**width < patterns:
        width += 1
    while width > 1 and (base - 1) ** width >= patterns:
        base -= 1
    return patterns, digits, base, width
