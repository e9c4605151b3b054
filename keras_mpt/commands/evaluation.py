"""`keras-mpt evaluate`: measure the accuracy of a ticket or of a converted file."""

import pathlib

import keras
import numpy as np

from keras_mpt import zoo
from keras_mpt.commands import sources
from keras_mpt.tickets import Ticket, load_ticket

_RUNTIMES = ("keras", "tflite", "lce")


def add(commands):
    parser = commands.add_parser(
        "evaluate",
        help="measure the accuracy of a ticket or of a converted file",
        description="Measure the accuracy of a classifier on your own images and labels. Images for a preset are "
        "pixels from 0 to 255, which are normalized; other tickets get them as they are.",
    )
    parser.add_argument("ticket", metavar="TICKET", help=f"{sources.TICKET}; or, with --runtime, a .tflite file")
    parser.add_argument("images", metavar="IMAGES", help="file of numpy.save: (number, ...), the model's inputs")
    parser.add_argument("labels", metavar="LABELS", help="file of numpy.save: (number,), integers from 0")
    parser.add_argument(
        "--runtime",
        choices=_RUNTIMES,
        default="keras",
        help="runtime of the file; tflite and lce run .tflite files (default: keras)",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="preset that a .tflite file was converted from, for the normalization",
    )
    parser.set_defaults(run=run)


def run(options):
    from keras_mpt import convert

    images, labels = sources.array("IMAGES", options.images), sources.array("LABELS", options.labels)
    with np.errstate(over="ignore"):
        finite = np.isfinite(images.astype(np.float32)).all()
    if not len(images) or not finite:
        what = "NaN or infinity as float32" if len(images) else f"shape {images.shape}"
        raise ValueError(f"IMAGES must be one or more, of finite numbers. Received: {what}")
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"LABELS must be {len(images)} integers, one for each image. Received: {labels.dtype} {labels.shape}"
        )
    path, preset = _file(options)
    if preset is not None:
        images = preset.preprocess(images)
    if options.runtime == "keras":
        logits = _predicted(load_ticket(Ticket.read(path)), images)
    else:
        logits = convert.run(path, options.runtime, images)
        if isinstance(logits, dict):
            raise ValueError(f"TICKET must be a file with one output. Received: {path} with {', '.join(logits)}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"TICKET must be a classifier, with an output for each class. Received: {logits.shape[1:]}")
    if not np.isfinite(logits).all():
        raise ValueError("The outputs for IMAGES must be finite. Received: NaN or infinity")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"LABELS must be from 0 to the number of outputs less one. Received: {labels.min()} to {labels.max()}, and "
            f"outputs of shape {logits.shape}"
        )
    right = int(np.sum(np.argmax(logits, axis=-1) == labels))
    print(f"{options.ticket}: {right / len(labels):.2%}, {right:,} of {len(labels):,} right ({options.runtime})")


def _predicted(model, images):
    """Return the outputs of a model with one input and one output."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"TICKET must be a model with one input and one output. Received: {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs"
        )
    shape = model.inputs[0].shape[1:]
    sizes = zip(images.shape[1:], shape, strict=False)
    if images.ndim != len(shape) + 1 or any(wanted not in (None, size) for size, wanted in sizes):
        raise ValueError(f"IMAGES must be of shape {('number', *shape)}. Received: shape {images.shape}")
    (logits,) = keras.tree.flatten(model.predict(images, batch_size=100, verbose=0))
    return logits


def _file(options):
    """Return the file to run, and the preset whose normalization it needs, if any."""
    preset = zoo.get_preset(options.preset) if options.preset else None
    named = next((preset for preset in zoo.list_presets() if preset.name == options.ticket), None)
    if named is not None and preset not in (None, named):
        raise ValueError(f"--preset must be left out for the preset {named.name}. Received: --preset {preset.name}")
    if named is not None and options.runtime != "keras":
        return named.published(options.runtime), named
    converted = pathlib.Path(options.ticket).suffix.lower() == ".tflite"
    if converted != (options.runtime != "keras"):
        others = "keras" if options.runtime != "keras" else "tflite or --runtime lce"
        raise ValueError(
            f"--runtime {options.runtime} cannot run this file: pass --runtime {others}. Received: {options.ticket}"
        )
    if converted:
        return options.ticket, preset
    path, named = sources.find(options.ticket)
    return path, preset or named
