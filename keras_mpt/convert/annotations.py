"""What a TensorFlow Lite file says of itself: labels, normalization, the ticket that it was made of.

It is JSON, an entry of the file's metadata with a name of its own, which runtimes pass over. The format that TensorFlow
Lite's own tools wrote ("TFLITE_METADATA") has no kept writer any more.
"""

import hashlib
import json
import os

from keras_mpt._types import Path
from keras_mpt.arguments import check_path, received
from keras_mpt.convert.flatbuffer import File

_NAME = "keras_mpt"


def metadata(path: Path) -> dict:
    """Return what a converted file says of itself.

    Args:
        path: Of a file of `to_tflite`, `to_tflm` or `to_lce`.

    Returns:
        A dict, empty if it says nothing, with

        - `"ticket"`: `{"name": ..., "sha256": ...}` of the file that it was made of.
        - `"labels"`: list of the names of the classes, in the order of the outputs.
        - `"preprocess"`: `{"mean": [...], "std": [...]}`: the file takes pixels and computes
          `(pixels / 255 - mean) / std` first.

    Raises:
        ValueError: It is no TensorFlow Lite file.
        OSError: It cannot be opened.

    Examples:
        >>> convert.metadata("conv4.tflite")["labels"][0]
        'airplane'
    """
    entry = File(check_path("path", path).read_bytes()).metadata(_NAME)
    return {} if entry is None else json.loads(entry)


def annotated(content, facts):
    """Return the bytes of a file with a dict as metadata; as they are if there is nothing to say."""
    if not facts:
        return content
    file = File(content)
    file.annotate(_NAME, json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode())
    return file.content()


def facts_of(ticket, labels, normalization):
    """Return what a file says of itself, see `metadata`.

    Args:
        ticket: The `Ticket` that it is made of, None if it is another model.
        labels: List of names, or None.
        normalization: A `Normalization`, or None.
    """
    facts = {}
    if ticket is not None and os.path.isfile(ticket.path):
        sha256 = hashlib.sha256(ticket.path.read_bytes()).hexdigest()
        facts["ticket"] = {"name": ticket.path.name, "sha256": sha256}
    if labels is not None:
        facts["labels"] = labels
    if normalization is not None:
        facts["preprocess"] = {"mean": list(normalization.mean), "std": list(normalization.std)}
    return facts


def check_labels(labels, model):
    """Return the argument `labels` of a conversion as a list.

    Raises:
        ValueError: It is not a list of as many strings as the model has outputs.
    """
    if labels is None:
        return None
    size = model.outputs[0].shape[-1] if len(model.outputs) == 1 else None
    strings = isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels)
    if not strings or len(labels) != size:
        wanted = f"{size} strings, one for each class" if size else "None for a model of several outputs"
        raise ValueError(f"`labels` must be {wanted}. {received('labels', labels)}")
    return list(labels)
