"""Files that are there as a whole, or as they were before."""

import contextlib
import os
import pathlib
import secrets


def check_folder(path):
    """Raise OSError where a file cannot be, for want of a folder or for one of its name, before the work it holds."""
    folder = pathlib.Path(path).parent
    if pathlib.Path(path).is_dir():
        raise IsADirectoryError(f"`path` must be that of a file. Received: {str(path)!r}, a folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"`path` must be in a folder that exists. Received: {str(path)!r}, no folder {folder}")


def check_another(path, source):
    """Raise ValueError if a file would take the place of the one that it is made from."""
    if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise ValueError(f"`path` must be another file than the one that is read. Received: {str(path)!r} for both")


@contextlib.contextmanager
def replacing(path):
    """Yield the path of a new file, which takes the place of `path` if all goes well, and vanishes otherwise."""
    path = pathlib.Path(path)
    check_folder(path)
    unfinished = path.with_name(f".{path.name[:64]}.{secrets.token_hex(4)}.unfinished")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
