"""Command line: `python -m keras_mpt inspect FILE`, `python -m keras_mpt convert TICKET OUT` and
`python -m keras_mpt import CHECKPOINT OUT`."""

import argparse
import gzip
import hashlib
import pathlib
import sys

from keras_mpt.convert.pytorch.layouts import LAYOUTS
from keras_mpt.files import check_another, replacing
from keras_mpt.tickets import Ticket, save_ticket


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
    convert.add_argument("--weights", help="of tflite, default auto: see keras_mpt.convert.to_tflite")
    convert.add_argument(
        "--require_binary",
        action="store_true",
        help="of lce: refuse to leave a layer that has an input quantizer in floats",
    )
    convert.add_argument(
        "--samples",
        help="file of numpy.save with inputs to check with, or of numpy.savez; default: random",
    )
    convert.add_argument("--gzip", action="store_true", help="write OUT.gz, too, as a store or a web server ships it")
    convert.add_argument("--benchmark", action="store_true", help="time it on this machine")
    convert.set_defaults(run=_convert)
    importing = commands.add_parser("import", help="make a ticket of a PyTorch checkpoint")
    importing.add_argument("checkpoint")
    importing.add_argument("out")
    importing.add_argument("--model", help="network of the zoo, such as resnet18_mpt; default: what the file says")
    importing.add_argument("--sparsity", type=float, help="fraction removed; default: what the file says")
    importing.add_argument("--layout", choices=["auto", *LAYOUTS], default="auto", help="default: auto")
    importing.add_argument("--global_threshold", action="store_true", help="one threshold for the scores of all layers")
    importing.add_argument("--input_quantizer", help="approx_sign for binary activations; default: what the file says")
    importing.add_argument("--input_shape", type=int, nargs=3, metavar=("HEIGHT", "WIDTH", "CHANNELS"))
    importing.add_argument("--scores", action="store_true", help="store scores and whole kernels, too")
    importing.set_defaults(run=_import)
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
    from keras_mpt import convert

    for target, name, given in (
        ("lce", "require_binary", options.require_binary),
        ("tflite", "weights", options.weights is not None),
    ):
        if given and options.target != target:
            raise ValueError(f"--{name} needs --target {target}. Received: --target {options.target}")
    samples = convert.tensors.from_file(options.samples) if options.samples else None
    if options.target == "lce":
        report = convert.to_lce(options.ticket, options.out, samples=samples, require_binary=options.require_binary)
    else:
        report = convert.to_tflite(options.ticket, options.out, samples=samples, weights=options.weights or "auto")
    print(report)
    if options.gzip:
        packed = report.path.with_name(f"{report.path.name}.gz")
        with replacing(packed) as unfinished:
            unfinished.write_bytes(gzip.compress(report.path.read_bytes(), 9, mtime=0))
        print(f"Compressed {packed}: {packed.stat().st_size:,} bytes")
    if options.benchmark:
        for threads in (1, 2):
            milliseconds = 1e3 * convert.latency(report.path, options.target, threads)
            print(f"Latency    {milliseconds:.2f} ms for one sample here, {threads} thread{'s' * (threads > 1)}")


def _import(options):
    from keras_mpt import convert, masks

    check_another(options.out, options.checkpoint)
    sparsity = options.sparsity
    if options.global_threshold:
        if sparsity is None:
            raise ValueError("--global_threshold needs --sparsity.")
        sparsity = masks.GlobalTopK(sparsity)
    given = {"input_quantizer": options.input_quantizer, "input_shape": options.input_shape}
    arguments = {name: value for name, value in given.items() if value is not None}
    model = convert.from_pytorch(options.checkpoint, options.model, sparsity, options.layout, **arguments)
    path = pathlib.Path(options.checkpoint)
    source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    print(save_ticket(model, options.out, scores=options.scores, provenance={"imported from PyTorch": source}))


if __name__ == "__main__":
    sys.exit(main())
