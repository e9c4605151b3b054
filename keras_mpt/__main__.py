"""Command line: `python -m keras_mpt inspect FILE` and `python -m keras_mpt convert TICKET OUT`."""

import argparse
import gzip
import sys

from keras_mpt.tickets import Ticket


def main(arguments=None):
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m keras_mpt", description="Work with ticket files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="show what a ticket holds and where its bytes go")
    inspect.add_argument("file", nargs="+")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", help="convert a ticket to a file for phones, and check that")
    convert.add_argument("ticket")
    convert.add_argument("out")
    convert.add_argument("--target", choices=("tflite", "lce"), default="tflite", help="default: tflite")
    convert.add_argument("--weights", default="auto", help="of tflite: see keras_mpt.convert.to_tflite")
    convert.add_argument("--require_binary", action="store_true", help="of lce: refuse layers that would stay float")
    convert.add_argument("--samples", help="file of numpy.save with inputs to check with; default: random ones")
    convert.add_argument("--gzip", action="store_true", help="write OUT.gz, too, as a store or a web server ships it")
    convert.add_argument("--benchmark", action="store_true", help="time it on this machine")
    convert.set_defaults(run=_convert)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        print(f"keras_mpt: {error}", file=sys.stderr)
        return 1
    return 0


def _inspect(options):
    for file in options.file:
        print(Ticket.read(file), end="\n\n" if len(options.file) > 1 else "\n")


def _convert(options):
    import numpy as np

    from keras_mpt import convert

    samples = options.samples and np.load(options.samples, allow_pickle=False)
    if options.target == "lce":
        report = convert.to_lce(options.ticket, options.out, samples=samples, require_binary=options.require_binary)
    else:
        report = convert.to_tflite(options.ticket, options.out, samples=samples, weights=options.weights)
    print(report)
    if options.gzip:
        packed = report.path.with_name(f"{report.path.name}.gz")
        packed.write_bytes(gzip.compress(report.path.read_bytes(), 9, mtime=0))
        print(f"Compressed {packed}: {packed.stat().st_size:,} bytes")
    if options.benchmark:
        for threads in (1, 2):
            milliseconds = 1e3 * convert.latency(report.path, options.target, threads)
            print(f"Latency    {milliseconds:.2f} ms for one sample here, {threads} thread{'s' * (threads > 1)}")


if __name__ == "__main__":
    sys.exit(main())
