"""Errors for a missing backend or extra, with the command that installs it."""

import contextlib
import importlib.util
import os
import pathlib
import sys

from keras_mpt import terminal

_BACKENDS = ("tensorflow", "jax", "torch")


def _import_keras():
    """Import Keras, as `keras_mpt/__init__.py` does before all else.

    Raises:
        ImportError: Keras' backend is not installed; the message says which one Keras wants and what to do.
    """
    silenced = terminal.is_command() and "--verbose" not in sys.argv
    try:
        with terminal.quiet() if silenced else contextlib.nullcontext():
            import keras  # noqa: F401
    except KeyboardInterrupt:  # Keras takes most of the time before the command begins
        if not terminal.is_command():
            raise
        sys.exit(terminal.interrupted())
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _BACKENDS:
            raise
        raise ImportError(_no_backend(missing)) from error


def _no_backend(wanted):
    """Return the message about a backend that Keras wants and that is not installed."""
    if "KERAS_BACKEND" in os.environ:
        source = f"the environment variable KERAS_BACKEND={os.environ['KERAS_BACKEND']}"
    else:
        folder = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
        file = folder / "keras.json"
        source = f"the file {file}" if file.is_file() else "Keras' default"
    there = [name for name in _BACKENDS if name != wanted and is_installed(name)]
    lines = [
        f"Keras wants the backend {wanted!r}, which is not installed ({source}). Either install it:",
        f'    pip install "keras-mpt[{wanted}]"',
        "or choose another one before Python starts:",
        *(f"    export KERAS_BACKEND={name}" + " " * 8 + "(installed)" * (name in there) for name in there),
    ]
    if not there:
        others = [name for name in _BACKENDS if name != wanted]
        lines += [f'    pip install "keras-mpt[{name}]" && export KERAS_BACKEND={name}' for name in others]
    return "\n".join(line.rstrip() for line in lines)


def is_installed(name):
    """Return whether a package can be found, without importing it."""
    return importlib.util.find_spec(name) is not None


@contextlib.contextmanager
def extra(name, purpose):
    """Turn a failed import into an error with the command that installs the missing package.

    Args:
        name: Name of the extra in setup.py, such as `"lce"`.
        purpose: What needs it, as the subject of a sentence.

    Raises:
        ImportError: Something could not be imported.
    """
    try:
        yield
    except ImportError as error:
        missing = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        raise ImportError(f'{purpose} needs an extra ({missing}): pip install "keras-mpt[{name}]"') from error


_import_keras()
