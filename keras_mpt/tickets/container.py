"""The file: a JSON header and named blobs of bytes, all with checksums.

    offset  bytes
    0       8      89 4B 4D 50 54 0D 0A 1A
    8       4      format version, little endian
    12      4      size h of the header as stored, little endian
    16      32     SHA-256 of bytes 0 to 15 and of the stored header
    48      h      header: UTF-8 JSON, as one zlib stream
    48 + h         the blobs, one after the other, to the end of the file

The header's entry "blobs" lists `[name, size in bytes, SHA-256 in hex]` of each, in the order of the file.
"""

import hashlib
import json
import math
import os
import re
import struct

from keras_mpt.arguments import check_path
from keras_mpt.files import FileError, replacing
from keras_mpt.tickets.coding import deflate, inflate
from keras_mpt.tickets.limits import LARGEST_HEADER, LARGEST_INTEGER

MAGIC = b"\x89KMPT\r\n\x1a"
VERSIONS = (1, 2)
_PREFIX = struct.Struct("<8sII32s")
_LARGEST_STORED = LARGEST_HEADER + (1 << 16)  # zlib adds a little to what it cannot compress


class TicketError(FileError):
    """A ticket file is damaged, of another version, or does not fit the model that it is loaded into.

    Attributes:
        layer: Path of the layer of the model whose shapes are not those of the file, None for other errors.
    """

    layer = None


def write(path, header, blobs, verify, version=1):
    """Write a file atomically: whatever happens, `path` has either its former content or all of the new one.

    Args:
        path: Path of the file.
        header: JSON-able dict; "blobs" is added.
        blobs: Bytes by name.
        verify: Called with the path of the finished file before it replaces `path`; may raise.
        version: Version of the format.

    Raises:
        ValueError: The header is larger than `read` accepts.
    """
    listed = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in blobs.items()]
    text = json.dumps({**header, "blobs": listed}, separators=(",", ":"), allow_nan=False)
    data = text.encode("utf-8")
    if len(data) > LARGEST_HEADER:
        raise ValueError(
            f"`model` and `provenance` must take at most {LARGEST_HEADER:,} bytes as JSON. Received: {len(data):,}"
        )
    stored = deflate(data)
    start = struct.pack("<8sII", MAGIC, version, len(stored))
    digest = hashlib.sha256(start + stored).digest()
    with replacing(path) as unfinished:
        with open(unfinished, "wb") as file:
            file.writelines([start, digest, stored, *blobs.values()])
        verify(unfinished)


def read(path, name=None):
    """Return `(version, header, blobs, size)` of a file after verifying its checksums; `blobs` are bytes by name.

    All sizes are compared with the size of the file before anything is read.

    Args:
        path: Path of the file.
        name: Name for the file in error messages; None: the path.

    Raises:
        TicketError: The file is not a ticket, of another version, or damaged. The message names the file and the blob.
        OSError: The file cannot be opened.
    """
    path = check_path("path", path)
    name = path if name is None else name
    with path.open("rb") as file:
        whole = os.fstat(file.fileno()).st_size
        begin = file.read(_PREFIX.size)
        if len(begin) < _PREFIX.size or not begin.startswith(MAGIC):
            raise TicketError(f"{name} is not a ticket file{_other_kind(begin)}.")
        _, version, size, digest = _PREFIX.unpack(begin)
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise TicketError(f"{name} has format version {version}; this version of keras_mpt reads {known}.")
        left = whole - _PREFIX.size - size
        if size > _LARGEST_STORED or left < 0:
            raise TicketError(f"{name}: the header is damaged or cut off ({size:,} bytes in a file of {whole:,}).")
        stored = file.read(size)
        if hashlib.sha256(begin[:16] + stored).digest() != digest:
            raise TicketError(f"{name}: the header is damaged (its checksum differs).")
        header, listed = _header(name, stored)
        wanted = sum(length for _, length, _ in listed)
        if wanted != left:
            what = "cut off" if wanted > left else "not a whole ticket file"
            raise TicketError(f"{name}: the blobs take {wanted:,} bytes, but {left:,} follow the header: it is {what}.")
        blobs = {}
        for blob, length, checksum in listed:
            blobs[blob] = file.read(length)
            if hashlib.sha256(blobs[blob]).hexdigest() != checksum:
                raise TicketError(f"{name}: blob {blob!r} is damaged (its checksum differs).")
    return version, header, blobs, whole


def _other_kind(begin):
    """Return the kind of a file with this beginning, for the end of an error message."""
    if begin and MAGIC.startswith(begin[: len(MAGIC)]):
        return ": it is cut off"
    if begin.startswith(b"PK"):
        return ", but a zip archive: `keras.models.load_model` reads the .keras files of Keras"
    if begin.startswith(b"\x89HDF"):
        return ", but an HDF5 file: `model.load_weights` reads the .weights.h5 files of Keras"
    if begin[4:8] == b"TFL3":
        return ", but a converted file: `keras_mpt.convert.run` runs it"
    return ": it does not begin as one" if begin else ": it is empty"


def _header(file, stored):
    try:
        header = parse(inflate(stored, LARGEST_HEADER).decode("utf-8"))
        listed = header.pop("blobs")
        well_formed = all(
            isinstance(name, str) and type(size) is int and size >= 0 and is_checksum(checksum)
            for name, size, checksum in listed
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TicketError(f"{file}: the header cannot be read ({type(error).__name__}: {error}).") from None
    if not well_formed or not isinstance(listed, list) or len({name for name, *_ in listed}) < len(listed):
        raise TicketError(f"{file}: the header's list of blobs is malformed.")
    return header, listed


def is_checksum(value):
    """Return whether a value is a SHA-256 in this format's notation."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def parse(text):
    """Return the value of a JSON text that all readers read alike.

    Raises:
        ValueError: It is not JSON, or has a duplicate key in an object, half of a surrogate pair in a string, an
            integer beyond 2^64 - 1 in magnitude, a number beyond the range of a float64, NaN or Infinity.
    """
    value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_int=_integer, parse_float=_float)
    if re.search(r"\\u[dD][89a-fA-F]", text):  # the parser lets half a pair pass
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refuse(name):
    raise ValueError(f"{name} is no JSON")


def _integer(digits):
    if len(digits) > 20 or abs(int(digits)) > LARGEST_INTEGER:
        raise ValueError("an integer is beyond 2^64 - 1")
    return int(digits)


def _float(digits):
    if not math.isfinite(float(digits)):
        raise ValueError("a number is beyond the range of a float64")
    return float(digits)
