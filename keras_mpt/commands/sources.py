"""Find the TICKET and the numpy data of a command line."""

import os

import numpy as np

from keras_mpt import zoo
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
    return published.find(ticket), None


def array(option, file):
    """Return the array in a file of `numpy.save`.

    Raises:
        ValueError: It is not such a file.
        OSError: The file cannot be opened.
    """
    try:
        found = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{option} must be a file of numpy.save. Received: {file}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{option} must be a file of numpy.save, one array. Received: {file}, an archive")
    return found
