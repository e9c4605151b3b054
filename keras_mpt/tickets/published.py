"""Find published tickets by name."""

import os
import pathlib

from keras_mpt import remote
from keras_mpt.arguments import check_path, did_you_mean

ENDING = ".mpt"


def folder():
    """Return the folder of the published tickets: in the installed package, or `zoo/` of a checkout."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / "zoo" / "tickets"
    return installed if installed.is_dir() else package.parent / "zoo"


def find(source, argument="path"):
    """Return the path of a ticket. A name without folder or suffix means a published ticket, unless a file has it.

    Args:
        source: Path, name of a preset of `keras_mpt.zoo`, such as `"conv4_mpt32_s50"`, or address: see
            `keras_mpt.remote.locate`.
        argument: Name of the argument that it was given as, for errors.

    Raises:
        TypeError: It is not a path.
        FileNotFoundError: There is neither a file nor a preset with this name.
        IsADirectoryError: It is a folder without a `ticket.mpt`.
    """
    source = remote.locate(source, argument)
    path = check_path(argument, source)
    if path.is_dir():
        raise IsADirectoryError(f"`{argument}` must be a ticket file, or a folder with a ticket.mpt. Received: {path}")
    if path.exists():
        return path
    if not isinstance(source, str) or os.path.basename(source) != source or path.suffix:
        raise FileNotFoundError(f"`{argument}` must be a ticket file. Received: {path}. No such file")
    known = {file.stem: file for file in folder().glob(f"*{ENDING}")}
    if source not in known:
        raise FileNotFoundError(
            f"`{argument}` must be the path of a ticket, or the name of a preset.{did_you_mean(source, known)} "
            f"Received: {source!r}, and there is no such file"
        )
    return known[source]
