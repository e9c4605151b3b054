"""`keras-mpt convert`: a ticket as a file for phones."""

import gzip

from keras_mpt import convert
from keras_mpt.commands import sources
from keras_mpt.files import replacing

_TARGETS = {
    "tflite": "LiteRT as it is",
    "lce": "larq-compute-engine, with binary convolutions",
    "qonnx": "QONNX, for FPGAs",
}
_TARGETS = {name: what for name, what in _TARGETS.items() if hasattr(convert, f"to_{name}")}
_OPTIONS = {  # of one target each: arguments of its function
    "tflite": ("weights",),
    "lce": ("require_binary",),
    "qonnx": ("data_format", "input_precision", "activation_precision"),
}


def add(commands):
    parser = commands.add_parser(
        "convert",
        help="convert a ticket to a file for phones, and check that file",
        description="Convert a ticket to a file for phones. It is run beside the Keras model before it is written, "
        "and must compute the same. Conversion runs on TensorFlow, whatever Keras' backend is.",
    )
    parser.add_argument("ticket", metavar="TICKET", help=sources.TICKET)
    parser.add_argument("out", metavar="OUT", help="path of the new file; .tflite is the usual ending")
    parser.add_argument(
        "--target",
        choices=tuple(_TARGETS),
        default="tflite",
        help=f"{'; '.join(f'{name}: {what}' for name, what in _TARGETS.items())} (default: tflite)",
    )
    parser.add_argument(
        "--weights",
        metavar="FORM",
        help="of tflite, how kernels are stored: auto (the default), int8, sparse_int8, exact_int8, float32, float16, "
        "dynamic_int8; see keras_mpt.convert.to_tflite",
    )
    parser.add_argument(
        "--require_binary",
        action="store_true",
        default=None,
        help="of lce: refuse to leave a layer that has an input quantizer in floats",
    )
    if "qonnx" in _TARGETS:
        _add_qonnx(parser)
    parser.add_argument(
        "--samples",
        metavar="FILE",
        help="inputs to check with, normalized as in training: a file of numpy.save, (number, ...), or of numpy.savez "
        "with the inputs' names; default: 16 of random numbers",
    )
    parser.add_argument("--gzip", action="store_true", help="write OUT.gz as well, as a store or a web server ships it")
    parser.add_argument("--benchmark", action="store_true", help="time the file on this machine, 1 and 2 threads")
    parser.set_defaults(run=run, backend="tensorflow")


def _add_qonnx(parser):
    parser.add_argument(
        "--data_format",
        choices=("channels_first", "channels_last"),
        help="of qonnx, the order of axes (default: channels_first)",
    )
    for name, what in (("input", "inputs"), ("activation", "activations without a sign")):
        parser.add_argument(
            f"--{name}_precision",
            type=int,
            nargs=2,
            metavar=("BITS", "INTEGER_BITS"),
            help=f"of qonnx, fixed-point numbers for {what} (default: floats)",
        )


def run(options):
    given = {}
    for target, names in _OPTIONS.items():
        for name in names:
            value = getattr(options, name, None)
            if value is not None and options.target != target:
                raise ValueError(f"--{name} needs --target {target}. Received: --target {options.target}")
            if value is not None:
                given[name] = tuple(value) if isinstance(value, list) else value
    samples = convert.tensors.from_file(options.samples) if options.samples else None
    path, _ = sources.find(options.ticket)
    report = getattr(convert, f"to_{options.target}")(path, options.out, samples=samples, **given)
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
