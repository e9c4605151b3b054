"""What an installation lacks: Keras' backend or an extra, and the line that installs it."""

import contextlib
import os
import pathlib
import sys

_BACKENDS = ("tensorflow", "jax", "torch")


def _import_keras():
    """Import Keras, as `keras_mpt/__init__.py` does before all else.

    Raises:
        ImportError: Keras' backend is not installed; the message says which one Keras wants and what to do.
    """
    if _is_command():  # TensorFlow reads it when it is imported
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import keras  # noqa: F401
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
    there = [name for name in _BACKENDS if name != wanted and _installed(name)]
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


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _is_command():
    """Return whether this process is `keras-mpt …` or `python -m keras_mpt …`.

    Of the latter, `sys.argv[0]` is "-m" as long as the package itself is imported.
    """
    name = pathlib.Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    return name == "keras-mpt" or name == "-m" and "keras_mpt" in sys.orig_argv


@contextlib.contextmanager
def extra(name, purpose):
    """Turn a failed import inside into an error with the line that installs what is missing.

    Args:
        name: Of the extra in setup.py, such as `"lce"`.
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
