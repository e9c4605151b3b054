"""`keras-mpt convert`: a ticket as a file for phones."""

import gzip

from keras_mpt.commands import sources
from keras_mpt.files import replacing


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
        choices=("tflite", "lce"),
        default="tflite",
        help="tflite: LiteRT as it is; lce: larq-compute-engine, with binary convolutions (default: tflite)",
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
        help="of lce: refuse to leave a layer that has an input quantizer in floats",
    )
    parser.add_argument(
        "--samples",
        metavar="FILE",
        help="inputs to check with, a file of numpy.save, (number, ...) and normalized as in training; default: 16 of "
        "random numbers",
    )
    parser.add_argument("--gzip", action="store_true", help="write OUT.gz as well, as a store or a web server ships it")
    parser.add_argument("--benchmark", action="store_true", help="time the file on this machine, 1 and 2 threads")
    parser.set_defaults(run=run, backend="tensorflow")


def run(options):
    from keras_mpt import convert

    for target, name, given in (
        ("lce", "require_binary", options.require_binary),
        ("tflite", "weights", options.weights is not None),
    ):
        if given and options.target != target:
            raise ValueError(f"--{name} needs --target {target}. Received: --target {options.target}")
    samples = sources.array("--samples", options.samples) if options.samples else None
    path, _ = sources.find(options.ticket)
    if options.target == "lce":
        report = convert.to_lce(path, options.out, samples=samples, require_binary=options.require_binary)
    else:
        report = convert.to_tflite(path, options.out, samples=samples, weights=options.weights or "auto")
    print(report)
    print("Samples    " + (f"yours, {options.samples}" if options.samples else "random numbers: try --samples FILE"))
    if options.gzip:
        packed = report.path.with_name(f"{report.path.name}.gz")
        with replacing(packed) as unfinished:
            unfinished.write_bytes(gzip.compress(report.path.read_bytes(), 9, mtime=0))
        print(f"Compressed {packed}: {packed.stat().st_size:,} bytes")
    if options.benchmark:
        for threads in (1, 2):
            milliseconds = 1e3 * convert.latency(report.path, options.target, threads)
            print(f"Latency    {milliseconds:.2f} ms for one sample here, {threads} thread{'s' * (threads > 1)}")
