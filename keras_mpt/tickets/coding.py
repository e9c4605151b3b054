"""Coding of masks close to their entropy, with nothing but numpy and the inflate algorithm (RFC 1951) to read them.

A mask of n entries is turned into bytes in one of two ways, whichever ends up smaller, and these go through zlib:

- `"bits"`: entry i is bit `i % 8` (the lowest is 0) of byte `i // 8`; the unused bits of the last byte are 0.
- `"gaps"`: for each one in turn, the number of zeros since the one before (or the start): a byte 255 for every 255 of
  them, then a byte below 255 for the rest. Zeros after the last one are not coded.

If more than half of the entries are ones, the complement is coded. Bytes of a random mask are independent, so Huffman
codes without a search for repeats come closest to the entropy, `H(d) = -d log2(d) - (1 - d) log2(1 - d)` bits for an
entry; a mask with repeats is smaller with it.
"""

import zlib

import numpy as np


def encode(mask):
    """Return `(form, data)` of a mask: how it is coded, and the bytes.

    Args:
        mask: Boolean array of any shape; entries count in C order.

    Returns:
        A dict of `coding` ("bits" or "gaps") and `inverted` (whether the complement is coded), and bytes.
    """
    mask = np.ravel(mask)
    inverted = bool(2 * np.count_nonzero(mask) > mask.size)
    mask = mask ^ inverted
    raw = {"bits": np.packbits(mask, bitorder="little").tobytes()}
    if 4 * np.count_nonzero(mask) < mask.size:  # denser ones need a byte for less than four entries
        raw["gaps"] = _gaps(mask).tobytes()
    coded = {coding: deflate(data, zlib.Z_HUFFMAN_ONLY) for coding, data in raw.items()}
    coding = min(coded, key=lambda coding: len(coded[coding]))
    with_repeats = deflate(raw[coding])
    return {"coding": coding, "inverted": inverted}, min(coded[coding], with_repeats, key=len)


def decode(form, data, size):
    """Return the mask that `encode` was given, as a flat boolean array of `size` entries.

    Raises:
        ValueError: The bytes are not such a mask.
    """
    coding, inverted = form["coding"], form["inverted"]
    if coding not in ("bits", "gaps") or type(inverted) is not bool:
        raise ValueError(f"masks are not coded as {coding!r}, inverted {inverted!r}")
    return (_from_bits if coding == "bits" else _from_gaps)(data, size) ^ inverted


def deflate(data, strategy=zlib.Z_DEFAULT_STRATEGY):
    """Return the bytes as a zlib stream."""
    compressor = zlib.compressobj(level=9, memLevel=9, strategy=strategy)
    return compressor.compress(data) + compressor.flush()


def inflate(data, limit):
    """Return the bytes of a whole zlib stream, at most `limit`.

    Raises:
        ValueError: `data` is not one complete stream, or it holds more.
    """
    decompressor = zlib.decompressobj()
    try:
        result = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"no zlib stream: {error}") from error
    if len(result) > limit or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"not one zlib stream of at most {limit} bytes")
    return result


def _gaps(mask):
    ones = np.flatnonzero(mask)
    gaps = np.diff(ones, prepend=-1) - 1
    result = np.full(gaps.size + int(np.sum(gaps // 255)), 255, np.uint8)
    result[np.cumsum(gaps // 255 + 1) - 1] = gaps % 255
    return result


def _from_bits(data, size):
    packed = np.frombuffer(inflate(data, -(-size // 8)), np.uint8)
    if packed.size != -(-size // 8):
        raise ValueError(f"{packed.size} bytes of bits for {size} entries")
    bits = np.unpackbits(packed, bitorder="little").astype(bool)
    if bits[size:].any():
        raise ValueError("bits after the last entry")
    return bits[:size]


def _from_gaps(data, size):
    gaps = np.frombuffer(inflate(data, size), np.uint8)  # a one takes at least a byte, an escape stands for 255 entries
    ends = np.cumsum(gaps + (gaps < 255), dtype=np.int64)
    if gaps.size and (gaps[-1] == 255 or ends[-1] > size):
        raise ValueError(f"gaps beyond the {size} entries")
    mask = np.zeros(size, bool)
    mask[ends[gaps < 255] - 1] = True
    return mask
