"""The process as a command on a terminal: whether it is one, and compiled libraries kept quiet."""

import contextlib
import os
import pathlib
import signal
import sys
import tempfile


def is_command():
    """Return whether this process is `keras-mpt …` or `python -m keras_mpt …`.

    Of the latter, `sys.argv[0]` is "-m" as long as the package itself is imported.
    """
    name = pathlib.Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    return name == "keras-mpt" or name == "-m" and "keras_mpt" in sys.orig_argv


def interrupted():
    """Say that Ctrl-C ended the command; return its exit status."""
    print("keras-mpt: interrupted", file=sys.stderr)
    return 128 + signal.SIGINT


@contextlib.contextmanager
def quiet():
    """Hide messages of compiled libraries on the standard error; those of Python stay.

    TensorFlow writes there while it is imported, whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    try:
        terminal = os.dup(2)
    except OSError:  # there is none
        yield
        return
    before = sys.stderr
    with tempfile.TemporaryFile() as dump, os.fdopen(terminal, "w", errors="backslashreplace") as stderr:
        before.flush()
        if before is sys.__stderr__:  # else somebody catches it already
            sys.stderr = stderr
        os.dup2(dump.fileno(), 2)
        try:
            yield
        finally:
            stderr.flush()
            os.dup2(terminal, 2)
            sys.stderr = before
