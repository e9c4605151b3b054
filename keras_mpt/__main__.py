"""Command line: `python -m keras_mpt inspect FILE`."""

import argparse
import sys

from keras_mpt.tickets import Ticket, TicketError


def main(arguments=None):
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m keras_mpt", description="Work with ticket files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="show what a ticket holds and where its bytes go")
    inspect.add_argument("file", nargs="+")
    inspect.set_defaults(run=_inspect)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, TicketError) as error:
        print(f"keras_mpt: {error}", file=sys.stderr)
        return 1
    return 0


def _inspect(options):
    for file in options.file:
        print(Ticket.read(file), end="\n\n" if len(options.file) > 1 else "\n")


if __name__ == "__main__":
    sys.exit(main())
