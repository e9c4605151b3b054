"""`keras-mpt convert`: a ticket as a file for phones, microcontrollers or FPGAs."""

import gzip
import pathlib

from keras_mpt import convert
from keras_mpt.commands import sources
from keras_mpt.files import check_folder, replacing

_TARGETS = {
    "tflite": "LiteRT as it is",
    "tflm": "TensorFlow Lite Micro, for microcontrollers",
    "lce": "larq-compute-engine, with binary convolutions",
    "qonnx": "QONNX, for FPGAs",
}
_OPTIONS = {  # arguments of some functions only
    "weights": ("tflite", "tflm"),
    "compress": ("tflm",),
    "require_binary": ("lce",),
    "preprocess": ("tflite", "tflm", "lce"),
    "data_format": ("qonnx",),
    "input_precision": ("qonnx",),
    "activation_precision": ("qonnx",),
}


def add(commands):
    parser = commands.add_parser(
        "convert",
        help="convert a ticket for phones, microcontrollers or FPGAs, and check the file",
        description="Convert a ticket for phones, microcontrollers or FPGAs. The file is written only if its outputs "
        "are those of the Keras model. With --weights float16 or dynamic_int8, or with --activation_precision, the "
        "error is only reported. Conversion runs on TensorFlow, with any backend of Keras.",
    )
    parser.add_argument("ticket", metavar="TICKET", help=sources.TICKET)
    parser.add_argument(
        "out",
        metavar="OUT",
        help="path of the new file: .tflite; with tflm, .cc for a C++ array; with qonnx, .onnx",
    )
    parser.add_argument(
        "--target",
        choices=tuple(_TARGETS),
        default="tflite",
        help=f"{'; '.join(f'{name}: {what}' for name, what in _TARGETS.items())} (default: tflite)",
    )
    parser.add_argument(
        "--weights",
        metavar="FORM",
        help="of tflite, format of the kernels: auto (the default), int8, sparse_int8, integer, integer2_dense, "
        "integer2, exact_int8, float32, float16, dynamic_int8; of tflm: integer (the default), float32, int8; see "
        "keras_mpt.convert.to_tflite and to_tflm",
    )
    parser.add_argument(
        "--compress",
        action="store_true",
        default=None,
        help="of tflm: store integer kernels as look-up tables of one or two bits",
    )
    parser.add_argument(
        "--preprocess",
        nargs="+",
        metavar="HOW",
        help="make a file that takes uint8 images of 0 .. 255 and normalizes them itself: preset, as for the preset "
        "TICKET; two numbers MEAN STD of images / 255, or two lists such as 0.49,0.48,0.45 0.25,0.24,0.26; or tf or "
        "torch, as in keras.applications",
    )
    parser.add_argument(
        "--require_binary",
        action="store_true",
        default=None,
        help="of lce: refuse a model if a layer with an input quantizer would stay float",
    )
    _add_qonnx(parser)
    parser.add_argument(
        "--samples",
        metavar="FILE",
        help="inputs for the comparison: a file from numpy.save, (number, ...), or from numpy.savez with the names of "
        "the inputs. For a preset, and with --preprocess, they are pixels from 0 to 255, which are normalized; other "
        "tickets get them as they are. Default: 16 random ones",
    )
    parser.add_argument("--gzip", action="store_true", help="also write OUT.gz, as stores and web servers ship it")
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
    for name, targets in _OPTIONS.items():
        value = getattr(options, name, None)
        if value is not None and options.target not in targets:
            raise ValueError(f"--{name} needs --target {' or '.join(targets)}. Received: --target {options.target}")
        if value is not None:
            given[name] = tuple(value) if isinstance(value, list) else value
    read = [options.samples] if options.samples else []
    sources.check_out(options.out, *read)
    if options.gzip:
        check_folder(f"{options.out}.gz")
        sources.check_out(f"{options.out}.gz", options.ticket, *read)
    if options.benchmark and options.target == "tflm" and pathlib.Path(options.out).suffix.lower() != ".tflite":
        raise ValueError(f"--benchmark needs an OUT that runs here, not C++. Received: {options.out}")
    samples = convert.tensors.from_file(options.samples) if options.samples else None
    path, preset = sources.find(options.ticket)
    if "preprocess" in given:
        given["preprocess"] = _preprocess(given["preprocess"], preset)
    elif preset is not None and samples is not None:
        samples = _normalized(samples, preset)
    if preset is not None and options.target != "qonnx":
        given["labels"] = preset.classes
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


def _normalized(samples, preset):
    if isinstance(samples, dict):
        return {name: preset.preprocess(images) for name, images in samples.items()}
    return preset.preprocess(samples)


def _preprocess(words, preset):
    """Return the argument `preprocess` of a conversion for the words behind --preprocess."""
    if words == ("preset",):
        if preset is None:
            raise ValueError("--preprocess preset needs the name of a preset as TICKET: see `keras-mpt list`")
        return preset
    if len(words) == 1:
        return words[0]
    try:
        return tuple([float(number) for number in word.split(",")] for word in words)
    except ValueError as error:
        raise ValueError(
            f"--preprocess must be a word, or MEAN STD: numbers with commas between. Received: {' '.join(words)}"
        ) from error
