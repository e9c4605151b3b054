"""Code masks close to their entropy. Reading them takes numpy and the inflate algorithm (RFC 1951).

A mask of n entries is converted to bytes by one of several codings, `CODINGS`, and compressed by zlib. Two codings fit
any mask; the smaller result is used:

- `"bits"`: entry i is bit `i % 8` (the lowest is 0) of byte `i // 8`; the unused bits of the last byte are 0.
- `"gaps"`: for each one in turn, the number of zeros since the previous one (or the start): a byte 255 for every 255
  zeros, then a byte below 255 for the rest. Zeros after the last one are not coded.

If more than half of the entries are ones, the complement is coded. The bytes of a random mask are independent, so
Huffman codes without a search for repeats come closest to the entropy, `H(d) = -d log2(d) - (1 - d) log2(1 - d)` bits
per entry. A mask with repeats is smaller with a search.

Two more codings, `"searched"` and `"groups"`, are for masks with less information: see `rules`.
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from keras_mpt.tickets import rules
from keras_mpt.tickets.limits import LARGEST_INTEGER

_BLOCK = 1 << 20  # entries at a time, to take little memory


@dataclasses.dataclass(frozen=True)
class Coding:
    """A coding of masks as bytes.

    Attributes:
        pack: Function of a flat mask and the settings by name. Returns the bytes to compress.
        unpack: Function of the blob, the number of entries and the settings by name. Returns the flat mask, or raises
            ValueError if the blob is not such a mask. It limits the size of what it inflates.
        settings: Dict from the name of each setting, a key beside "coding" and "blob", to a function that tells
            whether a value is valid.
        version: First version of the format that has this coding.
    """

    pack: Callable
    unpack: Callable
    settings: dict
    version: int = 1


def encode(mask, way=None):
    """Return `(form, data)`: the coding of a mask and its bytes.

    Args:
        mask: Boolean array of any shape; entries count in C order.
        way: Name and settings of one of `CODINGS`, as a mask rule has it; None: the smaller of those that fit any mask.

    Returns:
        A dict with `coding` and its settings, and the bytes.

    Raises:
        ValueError: The mask does not fit the coding.
    """
    mask = np.ravel(mask)
    if way is None:
        forms = ways_of_any(mask)
    elif way[0] == "searched":  # the other entries have a coding that fits any mask
        rest = mask[rules.searched(mask.size, **way[1])]
        forms = [{**form, "of": form["coding"], "coding": "searched", **way[1]} for form in ways_of_any(rest)]
    else:
        forms = [{"coding": way[0], **way[1]}]
    raw = [CODINGS[form["coding"]].pack(mask, **check_form(form)) for form in forms]
    coded = [deflate(data, zlib.Z_HUFFMAN_ONLY) for data in raw]
    best = min(range(len(forms)), key=lambda i: len(coded[i]))
    return forms[best], min(coded[best], deflate(raw[best]), key=len)


def ways_of_any(mask):
    """Return the forms that fit any mask and may be the smallest for this one."""
    ones = np.count_nonzero(mask)
    inverted = bool(2 * ones > mask.size)
    forms = [{"coding": "bits", "inverted": inverted}]
    if 4 * min(ones, mask.size - ones) < mask.size:  # denser ones need a byte for less than four entries
        forms.append({"coding": "gaps", "inverted": inverted})
    return forms


def decode(form, data, size):
    """Return the mask that `encode` has coded, as a flat boolean array of `size` entries.

    Raises:
        ValueError: The bytes are not such a mask.
    """
    settings = check_form(form)
    return CODINGS[form["coding"]].unpack(data, size, **settings)


def check_form(form):
    """Return the settings of a coded mask.

    Raises:
        ValueError: There is no such coding, or a setting is missing, wrong or unknown.
    """
    known = CODINGS.get(form["coding"]) if isinstance(form["coding"], str) else None
    settings = {key: value for key, value in form.items() if key not in ("coding", "blob")}
    if known is None or set(settings) != set(known.settings):
        raise ValueError(f"masks are not coded as {form!r}")
    for key, value in settings.items():
        if not known.settings[key](value):
            raise ValueError(f"masks are not coded as {form!r}")
    return settings


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


def _to_bits(mask, inverted):
    return np.packbits(mask ^ inverted, bitorder="little").tobytes()


def _from_bits(data, size, inverted):
    packed = np.frombuffer(inflate(data, -(-size // 8)), np.uint8)
    if packed.size != -(-size // 8):
        raise ValueError(f"{packed.size} bytes of bits for {size} entries")
    if size % 8 and packed[-1] >> size % 8:
        raise ValueError("bits after the last entry")
    mask = np.unpackbits(packed, count=size, bitorder="little").view(bool)
    return np.logical_not(mask, out=mask) if inverted else mask


def _to_gaps(mask, inverted):
    ones = np.flatnonzero(mask ^ inverted)
    gaps = np.diff(ones, prepend=-1) - 1
    result = np.full(gaps.size + int(np.sum(gaps // 255)), 255, np.uint8)
    result[np.cumsum(gaps // 255 + 1) - 1] = gaps % 255
    return result.tobytes()


def _from_gaps(data, size, inverted):
    gaps = np.frombuffer(inflate(data, size), np.uint8)  # a one takes at least a byte, an escape stands for 255 entries
    if gaps.size and gaps[-1] == 255:
        raise ValueError("a gap without an end")
    mask, position = np.full(size, inverted), 0
    for begin in range(0, gaps.size, _BLOCK):
        part = gaps[begin : begin + _BLOCK]
        ends = position + np.cumsum(part + (part < 255), dtype=np.int64)
        position = int(ends[-1])
        if position > size:
            raise ValueError(f"gaps beyond the {size} entries")
        mask[ends[part < 255] - 1] = not inverted
    return mask


def _to_searched(mask, of, inverted, **frozen):
    return CODINGS[of].pack(rules.searched_part(mask, **frozen), inverted)


def _from_searched(data, size, of, inverted, **frozen):
    return rules.with_frozen(lambda count: CODINGS[of].unpack(data, count, inverted), size, **frozen)


def _from_groups(data, size, **groups):
    return rules.groups_from_bytes(lambda most: inflate(data, most), size, **groups)


def _is_bool(value):
    return type(value) is bool


def _is_integer(least, most):
    return lambda value: type(value) is int and least <= value <= most


_FROZEN = {"pruned": _is_integer(0, 2**63 - 1), "locked": _is_integer(0, 2**63 - 1)}
_FROZEN |= {"seed": _is_integer(0, LARGEST_INTEGER), "stream": _is_integer(0, LARGEST_INTEGER)}
_GROUPS = {"n": _is_integer(1, 31), "m": _is_integer(2, 32), "stride": _is_integer(1, 2**63 - 1)}
CODINGS = {
    "bits": Coding(_to_bits, _from_bits, {"inverted": _is_bool}),
    "gaps": Coding(_to_gaps, _from_gaps, {"inverted": _is_bool}),
    "searched": Coding(
        _to_searched,
        _from_searched,
        {"of": lambda value: value in ("bits", "gaps"), "inverted": _is_bool, **_FROZEN},
        version=2,
    ),
    "groups": Coding(rules.groups_to_bytes, _from_groups, _GROUPS, version=2),
}
