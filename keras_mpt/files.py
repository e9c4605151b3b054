"""Files that are there as a whole, or as they were before."""

import contextlib
import os
import pathlib
import secrets


@contextlib.contextmanager
def replacing(path):
    """Yield the path of a new file, which takes the place of `path` if all goes well, and vanishes otherwise."""
    path = pathlib.Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
