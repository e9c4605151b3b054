"""Find the TICKET and the numpy data of a command line."""

import os
import zipfile

import numpy as np

from keras_mpt import zoo
from keras_mpt.files import check_another
from keras_mpt.tickets import published

TICKET = (
    "a ticket file, the name of a preset (see `keras-mpt list`), an address such as hf://owner/name or "
    "https://host/x.mpt, or a folder with a ticket.mpt"
)


def find(ticket):
    """Return the path of a ticket, and its `Preset` if it is the name of one. A file with that name has precedence.

    Raises:
        FileNotFoundError: There is neither a file nor a preset with this name.
        TicketError: The file of a preset differs from the published one.
    """
    preset = {preset.name: preset for preset in zoo.list_presets()}.get(ticket)
    if preset is not None and not os.path.exists(ticket):
        return preset.published(), preset
    return published.find(ticket, "TICKET"), None


def check_out(out, *read):
    """Raise ValueError if a new file would hide a preset, or replace one of the files that are `read`."""
    if out in {preset.name for preset in zoo.list_presets()}:
        raise ValueError(f"OUT must not be the name of a preset, which the file would hide. Received: {out}")
    for file in read:
        check_another(out, file)


def array(option, file):
    """Return the array in a file of `numpy.save`, with an axis at least.

    Raises:
        ValueError: It is not such a file.
        OSError: The file cannot be opened.
    """
    try:
        with open(file, "rb") as opened:
            found = np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{option} must be a file of numpy.save. Received: {file}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{option} must be a file of numpy.save, one array. Received: {file}, an archive")
    if found.dtype.kind not in "buif" or not found.ndim:
        raise ValueError(f"{option} must be numbers of shape (number, ...). Received: {found.dtype} {found.shape}")
    return found
