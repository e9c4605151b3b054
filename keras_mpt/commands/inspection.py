"""`keras-mpt inspect`: show the content of a ticket, or the metadata of a converted file."""

import pathlib

from keras_mpt.commands import sources
from keras_mpt.convert import metadata
from keras_mpt.convert.flatbuffer import File
from keras_mpt.tickets import Ticket


def add(commands):
    parser = commands.add_parser(
        "inspect",
        help="show the content of a ticket or a converted file",
        description="Show the content of a ticket and the sizes of its parts, or the metadata of a converted file.",
    )
    parser.add_argument("file", nargs="+", metavar="TICKET", help=f"{sources.TICKET}; or a .tflite file")
    parser.set_defaults(run=run)


def run(options):
    for file in options.file:
        shown = _converted(file) if file.lower().endswith(".tflite") else Ticket.read(sources.find(file)[0])
        print(shown, end="\n\n" if len(options.file) > 1 else "\n")


def _converted(path):
    """Return lines about a converted file."""
    facts, content = metadata(path), pathlib.Path(path).read_bytes()
    file = File(content)
    lines = {
        "File": f"{path}: {len(content):,} bytes",
        "Inputs": "; ".join(map(str, file.inputs())),
        "Outputs": "; ".join(map(str, file.outputs())),
        "Operations": ", ".join(f"{count} {kind}" for kind, count in file.operations().items()),
    }
    if "ticket" in facts:
        lines["Ticket"] = "{name}, sha256 {sha256}".format(**facts["ticket"])
    if "preprocess" in facts:
        lines["Preprocess"] = "(pixels / 255 - {mean}) / {std}, in the file".format(**facts["preprocess"])
    if "labels" in facts:
        lines["Labels"] = ", ".join(facts["labels"])
    return "\n".join(f"{name:10} {text}" for name, text in lines.items())
