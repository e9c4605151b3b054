"""Metadata of TensorFlow Lite files: labels, normalization, the ticket that was converted.

It is JSON in an entry of the file's metadata, which runtimes ignore. The tools that wrote TensorFlow Lite's own format,
"TFLITE_METADATA", are no longer maintained.
"""

import json
import os

from keras_mpt._types import Path
from keras_mpt.arguments import check_path, received
from keras_mpt.convert.flatbuffer import File
from keras_mpt.files import sha256_of

_NAME = "keras_mpt"


def metadata(path: Path) -> dict:
    """Return the metadata of a converted file.

    Args:
        path: Path of a file from `to_tflite`, `to_tflm` or `to_lce`.

    Returns:
        A dict, empty for a file without metadata, with

        - `"ticket"`: `{"name": ..., "sha256": ...}` of the converted ticket file.
        - `"labels"`: List of the names of the classes, in the order of the outputs.
        - `"preprocess"`: `{"mean": [...], "std": [...]}`. The file takes pixels and first computes
          `(pixels / 255 - mean) / std`.

    Raises:
        ValueError: The file is not a TensorFlow Lite file, or damaged.
        TypeError: `path` is not a path.
        OSError: The file cannot be opened.
        ImportError: TensorFlow is not installed.

    Examples:
        >>> keras_mpt.convert.metadata("conv4.tflite")["labels"][0]
        'airplane'
    """
    content = check_path("path", path).read_bytes()
    try:
        entry = File(content).metadata(_NAME)
    except ValueError as error:
        raise ValueError(f"`path` must be a TensorFlow Lite file. Received: {path}. {error}") from error
    return {} if entry is None else json.loads(entry)


def annotated(content, facts):
    """Return the bytes of a file with a dict as metadata; an empty dict changes nothing."""
    if not facts:
        return content
    file = File(content)
    file.annotate(_NAME, json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode())
    return file.content()


def facts_of(ticket, labels, normalization):
    """Return the metadata of a file as a dict, see `metadata`.

    Args:
        ticket: The converted `Ticket`; None for another model.
        labels: List of names, or None.
        normalization: A `Normalization`, or None.
    """
    facts = {}
    if ticket is not None and os.path.isfile(ticket.path):
        facts["ticket"] = {"name": ticket.path.name, "sha256": sha256_of(ticket.path)}
    if labels is not None:
        facts["labels"] = labels
    if normalization is not None:
        facts["preprocess"] = {"mean": list(normalization.mean), "std": list(normalization.std)}
    return facts


def check_labels(labels, model):
    """Return the argument `labels` of a conversion as a list.

    Raises:
        ValueError: `labels` is not a list with a string for each output of the model.
    """
    if labels is None:
        return None
    alone = len(model.outputs) == 1 and len(model.outputs[0].shape) > 1  # not the number of a class
    size = model.outputs[0].shape[-1] if alone else None
    strings = isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels)
    if not strings or len(labels) != size:
        wanted = f"{size} strings, one for each class" if size else "None for a model without one output of all classes"
        raise ValueError(f"`labels` must be {wanted}. {received('labels', labels)}")
    return list(labels)
