"""`keras-mpt inspect`: what a ticket holds."""

from keras_mpt.commands import sources
from keras_mpt.tickets import Ticket


def add(commands):
    parser = commands.add_parser(
        "inspect",
        help="show what a ticket holds and where its bytes go",
        description="Show what a ticket holds and where its bytes go.",
    )
    parser.add_argument("file", nargs="+", metavar="TICKET", help=sources.TICKET)
    parser.set_defaults(run=run)


def run(options):
    for file in options.file:
        path, _ = sources.find(file)
        print(Ticket.read(path), end="\n\n" if len(options.file) > 1 else "\n")
