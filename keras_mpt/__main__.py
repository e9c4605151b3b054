"""The command line: `keras-mpt` or `python -m keras_mpt`. Each subcommand is a file in `keras_mpt/commands`."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys

import keras

import keras_mpt
from keras_mpt import requirements, terminal
from keras_mpt.commands import conversion, evaluation, importing, inspection, listing

_SIGPIPE = 13  # which `signal` lacks on Windows


def main(arguments=None):
    """Run a command; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    wanted = getattr(options, "backend", None)
    if wanted not in (None, keras.backend.backend()):
        return _restarted(wanted, arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be beyond the terminal's encoding
    try:
        with contextlib.nullcontext() if options.verbose else terminal.quiet():
            options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return terminal.interrupted()
    except BrokenPipeError:  # `keras-mpt list | head -1`: nobody reads on, nor what is left in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + _SIGPIPE
    except (OSError, ImportError, MemoryError, RuntimeError, ValueError) as error:
        print(f"keras-mpt: error: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-mpt",
        description="Work with tickets: neural networks found by selecting random weights instead of training them.",
        epilog="`keras-mpt COMMAND --help` explains the arguments of a command.",
    )
    version = f"keras_mpt {keras_mpt.__version__}, keras {keras.__version__}, backend {keras.backend.backend()}"
    parser.add_argument("--version", action="version", version=version, help="show the versions and Keras' backend")
    parser.add_argument("--verbose", action="store_true", help="show the messages of TensorFlow and LiteRT")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (listing, inspection, conversion, importing, evaluation):
        command.add(commands)
    return parser


def _restarted(backend, arguments):
    """Run the same command in a process with another backend; return its exit status."""
    if not requirements.is_installed(backend):
        print(f'keras-mpt: error: this command needs {backend}: pip install "keras-mpt[{backend}]"', file=sys.stderr)
        return 1
    environment = {**os.environ, "KERAS_BACKEND": backend}
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the process gets Ctrl-C as well: wait until it is done
    try:
        status = subprocess.run([sys.executable, "-m", "keras_mpt", *arguments], env=environment).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status  # as a shell numbers signals


if __name__ == "__main__":
    sys.exit(main())
