"""Publish tickets on the Hugging Face hub. `load_ticket("hf://owner/name")` loads them."""

import json
import math
import os
import pathlib
import shutil
import tempfile

from keras_mpt import requirements
from keras_mpt.arguments import check_bool, check_instance, received
from keras_mpt.files import sha256_of
from keras_mpt.remote import TICKET
from keras_mpt.tickets import Ticket, save_ticket
from keras_mpt.tickets.header import kernels_of, of_base

__all__ = ["card", "metadata_block", "push_to_hub"]

_CARD = """{metadata}
# {name}

{kind}, found with keras_mpt. It is a Keras model.

```python
import keras_mpt  # pip install "keras-mpt[hub]"

model = keras_mpt.load_ticket("hf://{repo_id}"{base}
```

| | |
|---|---|
| weights | {weights:,}, of which {kept:,} ({share:.1%}) are kept |
| file | `{ticket}`, {bytes:,} bytes ({bits:.2f} bits for each weight) |
| SHA-256 | `{sha256}` |
{facts}"""


def push_to_hub(model, repo_id, *, metadata=None, provenance=None, private=False, token=None):
    """Publish a ticket on the Hugging Face hub: `ticket.mpt`, its card `README.md`, and `preset.json`.

    The repository is created if it does not exist. `preset.json` has the ticket's provenance and its checksum, which
    `load_ticket` verifies.

    Args:
        model: A model that `save_ticket` takes, a `Ticket`, or the path of one.
        repo_id: `"owner/name"`.
        metadata: Further entries of the card's metadata block, in the terms of the hub's model cards:
            `{"license": "mit", "datasets": ["cifar10"]}`.
        provenance: See `save_ticket`; only for models, since a file has its own.
        private: Whether a new repository is private.
        token: Token of the hub; None: the one that `hf auth login` stored.

    Returns:
        The address of the ticket, for `load_ticket`.

    Raises:
        ImportError: huggingface_hub is not installed (the extra `hub`).
        TypeError: `metadata` is no dict of JSON data.
        ValueError: `repo_id` is not of this form, `private` is not True or False, the model cannot be saved, or
            `provenance` is given for a saved ticket.
        TicketError: The file is not a ticket, or damaged. It is a ValueError.
        OSError: The ticket cannot be read, or the hub cannot be reached.

    Examples:
        >>> keras_mpt.hub.push_to_hub(model, "me/digits", metadata={"license": "mit"})
        'hf://me/digits'
    """
    _check_repository(repo_id)
    metadata_block({} if metadata is None else metadata)
    private = check_bool("private", private)
    saved = isinstance(model, (str, os.PathLike, Ticket))
    if saved and provenance is not None:
        raise ValueError(f"`provenance` must be None for a saved ticket, which has its own. Received: {provenance!r}")
    with requirements.extra("hub", "push_to_hub"):
        import huggingface_hub
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / TICKET
        if saved:
            ticket = model if isinstance(model, Ticket) else Ticket.read(model, "model")
            shutil.copyfile(ticket.path, path)
            ticket = Ticket.read(path)
        else:
            ticket = save_ticket(model, path, provenance=provenance or {})
        # last, whatever the provenance calls its own
        preset = {**ticket.provenance, "name": repo_id.partition("/")[2], "sha256": sha256_of(path)}
        path.with_name("preset.json").write_text(json.dumps(preset, indent=1) + "\n", encoding="utf-8")
        path.with_name("README.md").write_text(card(ticket, repo_id, metadata), encoding="utf-8")
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Ticket of {ticket.size:,} bytes")
    return f"hf://{repo_id}"


def card(ticket, repo_id, metadata=None):
    """Return the model card of a ticket as Markdown, with the metadata block that the hub reads.

    Args:
        ticket: A `Ticket`.
        repo_id: `"owner/name"`.
        metadata: See `push_to_hub`.

    Raises:
        TypeError: `ticket` is no `Ticket`, or `metadata` no dict of JSON data.
        ValueError: `repo_id` is not of this form.
        OSError: The file of the ticket is gone.
    """
    check_instance("ticket", ticket, Ticket, "a ticket, which `keras_mpt.tickets.Ticket.read(path)` returns")
    _check_repository(repo_id)
    check_instance("metadata", metadata, (dict, type(None)), "a dict or None")
    kernels = [kernel for entry in ticket.layers.values() for _, kernel, _ in kernels_of(entry)]
    weights, kept = sum(math.prod(kernel["shape"]) for kernel in kernels), sum(kernel["kept"] for kernel in kernels)
    values = {"library_name": "keras_mpt", "tags": ["keras", "pruning", "lottery-ticket"], **(metadata or {})}
    facts = "".join(f"| {_cell(key)} | {_cell(value)} |\n" for key, value in ticket.provenance.items())
    return _CARD.format(
        metadata=metadata_block(values),
        kind=_kind(kernels),
        name=repo_id.partition("/")[2],
        repo_id=repo_id,
        base=", base=base)  # the network that it was found in" if of_base(ticket.layers.values())[0] else ")",
        weights=weights,
        kept=kept,
        share=kept / max(weights, 1),
        ticket=TICKET,
        bytes=ticket.size,
        bits=8 * ticket.size / max(weights, 1),
        sha256=sha256_of(ticket.path),
        facts=facts,
    )


def _kind(kernels):
    """Return the kind of a ticket with these entries of kernels, in words."""
    drawn = all(kernel["source"]["from"] == "seed" and kernel["changes"] is None for kernel in kernels)
    network = "a random network" if drawn else "a network whose weights are not all a seed's"
    if all(kernel["scale"] is not None for kernel in kernels):
        return f"A multi-prize ticket: a subnetwork of {network}"
    return f"A ticket of float weights: a subnetwork of {network}"


def metadata_block(metadata):
    """Return the block that a model card begins with: YAML between two lines of hyphens.

    Args:
        metadata: Dict from names to JSON data, which is YAML.

    Raises:
        TypeError: It is no dict, or has something that is no JSON data.
    """
    check_instance("metadata", metadata, dict, "a dict")
    # not as ASCII: to YAML, the two escapes of an emoji are two wrong characters
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in metadata.items()]
    return "".join(["---\n", *lines, "---\n"])


def _check_repository(repo_id):
    if not isinstance(repo_id, str) or repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f'`repo_id` must be of the form "owner/name". {received("repo_id", repo_id)}')


def _cell(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", "\\|")
