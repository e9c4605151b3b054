"""The file itself: a JSON header and named blobs of bytes, every one of them checksummed.

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
import pathlib
import struct

from keras_mpt.files import replacing
from keras_mpt.tickets.coding import deflate, inflate

MAGIC = b"\x89KMPT\r\n\x1a"
VERSION = 1
_PREFIX = struct.Struct("<8sII32s")
_LARGEST_HEADER = 1 << 23  # a thousand layers take an eighth of it, and parsed JSON twenty times as much memory


class TicketError(ValueError):
    """A ticket file cannot be read: damaged, of another version, or not fitting what it is loaded into."""


def write(path, header, blobs, verify):
    """Write a file in one go: whatever happens, `path` holds either what it held before or all of this.

    Args:
        path: Where to.
        header: JSON-able dict; "blobs" is added.
        blobs: Dict of name to bytes.
        verify: Called with the path of the finished file before it takes the place of `path`; may raise.

    Raises:
        ValueError: The header is larger than what is read.
    """
    listed = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in blobs.items()]
    text = json.dumps({**header, "blobs": listed}, separators=(",", ":"), allow_nan=False)
    data = text.encode("utf-8")
    if len(data) > _LARGEST_HEADER:
        raise ValueError(
            f"`model` and `provenance` must take at most {_LARGEST_HEADER:,} bytes as JSON. Received: {len(data):,}"
        )
    stored = deflate(data)
    start = struct.pack("<8sII", MAGIC, VERSION, len(stored))
    digest = hashlib.sha256(start + stored).digest()
    with replacing(path) as unfinished:
        with open(unfinished, "wb") as file:
            file.writelines([start, digest, stored, *blobs.values()])
        verify(unfinished)


def read(path):
    """Return `(header, blobs)` of a file, checksums verified; `blobs` is a dict of name to memoryview.

    Raises:
        TicketError: It is no ticket, of another version, or damaged. The message names the file and the blob.
        OSError: It cannot be opened.
    """
    with pathlib.Path(path).open("rb") as file:
        begin = file.read(_PREFIX.size)
        if len(begin) < _PREFIX.size or not begin.startswith(MAGIC):
            raise TicketError(f"{path} is not a ticket file: it does not begin as one.")
        file.seek(0)
        content = memoryview(file.read())
    _, version, size, digest = _PREFIX.unpack_from(content)
    if version != VERSION:
        raise TicketError(f"{path} has format version {version}; this version of keras_mpt reads {VERSION}.")
    stored, rest = content[_PREFIX.size :][:size], content[_PREFIX.size + size :]
    if hashlib.sha256(bytes(content[:16]) + stored).digest() != digest:
        raise TicketError(f"{path}: the header is damaged (its checksum differs).")
    header = _parse(path, stored)
    blobs = {}
    for name, length, checksum in header.pop("blobs"):
        blobs[name], rest = rest[:length], rest[length:]
        if hashlib.sha256(blobs[name]).hexdigest() != checksum:
            raise TicketError(f"{path}: blob {name!r} is damaged (its checksum differs).")
    if rest:
        raise TicketError(f"{path}: {len(rest)} bytes follow the last blob.")
    return header, blobs


def _parse(path, stored):
    try:
        header = json.loads(inflate(stored, _LARGEST_HEADER).decode("utf-8"), parse_constant=_refuse_constant)
        blobs = header["blobs"]
        well_formed = all(
            isinstance(name, str) and type(size) is int and size >= 0 and isinstance(checksum, str)
            for name, size, checksum in blobs
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TicketError(f"{path}: the header cannot be read ({type(error).__name__}: {error}).") from error
    if not well_formed or len({name for name, *_ in blobs}) < len(blobs):
        raise TicketError(f"{path}: the header's list of blobs is malformed.")
    return header


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")
