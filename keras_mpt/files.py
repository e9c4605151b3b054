"""Write files atomically."""

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
import stat

from keras_mpt.arguments import check_path, printable, received, shown

try:
    import fcntl
except ImportError:  # Windows: files of killed processes are not removed
    fcntl = None

_ENDINGS = {".mpt", ".keras", ".h5", ".json", ".tflite", ".onnx", ".pt", ".pth", ".npy", ".npz", ".zip"}
_ENDINGS |= {".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp"}
_LONGEST_MESSAGE = 1500
_LONGEST_HEAD = 64  # bytes of the name in the name of the unfinished file, which may have 255


class FileError(ValueError):
    """A file cannot be used. The message may quote the file, with limited length and without control characters."""

    def __init__(self, message=""):
        super().__init__(printable(str(message), _LONGEST_MESSAGE))


def check_folder(path):
    """Raise an error if a file cannot be written to this path.

    Raises:
        TypeError, ValueError: `path` is not a path.
        FileNotFoundError: The folder does not exist.
        IsADirectoryError: The path is a folder.
        PermissionError: The folder cannot be written to.
        FileExistsError: The path is neither a file nor a link to one, but a device or pipe, for example.
    """
    path = check_path("path", path)
    folder = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be that of a file. Received: {shown(str(path))}, a folder")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that exists. Received: {shown(str(path))}, no folder {shown(str(folder))}"
        )
    target = pathlib.Path(os.path.realpath(path)).parent  # see `replacing`
    if target.is_dir() and not os.access(target, os.W_OK):
        raise PermissionError(f"`path` must be in a folder that you may write to. Received: {shown(str(path))}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"`path` must be a regular file or none yet. Received: {shown(str(path))}")


def check_ending(path, *endings):
    """Raise ValueError if a path has the ending of another kind of file than `endings`, such as `.keras`."""
    if pathlib.Path(path).suffix.lower() in _ENDINGS - {*endings}:
        raise ValueError(f"`path` must end in {' or '.join(endings)}. {received('path', str(path))}")


def sha256_of(path):
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def check_another(path, source):
    """Raise ValueError if a file would replace its own source."""
    if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise ValueError(f"`path` must be another file than the one that is read. Received: {str(path)!r} for both")


@contextlib.contextmanager
def replacing(path):
    """Yield the path of a new, empty file, which replaces `path` on success and is deleted otherwise.

    A symbolic link is followed: its target is replaced. The new file has the permissions of the old one. Unfinished
    files of killed processes with the same name are removed; files that another process is writing are locked.
    """
    check_folder(path)
    path = pathlib.Path(os.path.realpath(path))
    check_folder(path)  # a link may point anywhere
    head = os.fsencode(path.name)[:_LONGEST_HEAD].decode("utf-8", "ignore")
    _remove_unfinished(path.parent, head)
    unfinished = path.with_name(f".{head}.{secrets.token_hex(4)}.unfinished")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    with _locked(unfinished, mode):
        try:
            yield unfinished
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(unfinished, mode)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path, mode):
    """Create an empty file with these permissions, and lock it until it is renamed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    try:
        if mode is not None:
            os.chmod(path, mode | stat.S_IWUSR)
        if fcntl is None:
            os.close(descriptor)
            descriptor = None
        else:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove_unfinished(folder, head):
    if fcntl is None:
        return
    ours = re.compile(re.escape(f".{head}.") + r"[0-9a-f]{8}\.unfinished")
    for name in filter(ours.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):  # another process uses it, or has just finished
            descriptor = os.open(folder / name, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
            finally:
                os.close(descriptor)
