"""The command line: `keras-mpt` or `python -m keras_mpt`. Each subcommand is a file in `keras_mpt/commands`."""

import argparse
import contextlib
import os
import subprocess
import sys

import keras

import keras_mpt
from keras_mpt import requirements, terminal
from keras_mpt.commands import conversion, evaluation, importing, inspection, listing


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
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        print(f"keras-mpt: error: {error}", file=sys.stderr)
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
    return subprocess.run([sys.executable, "-m", "keras_mpt", *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
