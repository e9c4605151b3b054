"""Table of a ticket: the layers and their sizes in the file."""

import json
import math

from keras_mpt.arguments import printable
from keras_mpt.models.tables import BYTES, WIDTH, Table, short, shortened
from keras_mpt.ops import entropy_bits
from keras_mpt.tickets.header import kernels_of, of_base

_LONGEST = 20 * WIDTH  # characters of a text, such as the command of a recipe


def table(ticket):
    """Return a `Table` of a ticket's layers: weights, and bytes of masks, of values that no seed gives, and others."""
    header = ["Layer (type)", "Weights", "Kept", "Mask\nbytes", "Value\nbytes", "Other\nbytes", "Bits/\nweight"]
    sizes = {}
    for name, data in ticket.blobs.items():
        path, _, part = name.rpartition("/")
        sizes.setdefault(path, {})[part] = len(data)
    rows = [_row(path, entry, sizes) for path, entry in ticket.layers.items()]
    rows.append(("Total", *(sum(row[i] for row in rows) for i in range(1, 6))))
    total = rows[-1]
    stored, float32 = sum(total[3:]), 4 * total[1]
    times = f"{float32 / ticket.size:.3g} times as much"
    cells = [[label, *(short(n) if n else "-" for n in counts), _bits(counts)] for label, *counts in rows]
    facts = [
        ("Weights", f"{total[1]:,}, of which {total[2]:,} ({total[2] / max(total[1], 1):.1%}) are kept"),
        ("File", f"{ticket.size:,} bytes (as float32: {short(float32, BYTES)}, {times})"),
        ("Bytes", f"masks {total[3]:,} (entropy {_entropy(ticket):,}), header {ticket.size - stored:,}"),
        *_base(ticket),
        *([("Note", ticket.note)] if ticket.note else []),
        ("Saved", str(ticket.created)),
        ("With", ", ".join(f"{name} {version}" for name, version in ticket.software.items())),
    ]
    for key, value in ticket.provenance.items():
        facts.append((f"{key}: ", value if isinstance(value, str) else json.dumps(value)))
    facts = [_fact(label, value) for label, value in facts]
    cells = [[printable(label), *more] for label, *more in cells]
    return Table(printable(f'Ticket "{ticket.path.name}"'), header, cells, facts)


def _base(ticket):
    referring, number = of_base(ticket.layers.values())
    return [("Base", f"needed to load, for {referring} of {number} kernels")] if referring else []


def note_on_base(base, layers):
    """Return what `save_ticket` tells of a base that the entries of the layers do not refer to, else ""."""
    if base is None or of_base(layers)[0]:
        return ""
    return "the given `base` was of no use: it has no kernel of this network, or the seeds give as many weights"


def _fact(label, value):
    """Return a label and a text, which the table wraps; a stranger's file may have texts of any length."""
    return shortened(printable(label, WIDTH), WIDTH // 2), printable(value, _LONGEST)


def _row(path, entry, sizes):
    """Return label, weights, kept weights, and bytes of the masks, of kernel values and of the rest."""
    kernels = list(kernels_of(entry))
    other = sum(math.prod(variable["shape"]) for variable in entry["variables"])
    weights = other + sum(math.prod(kernel["shape"]) for _, kernel, _ in kernels)
    kept = other + sum(kernel["kept"] for _, kernel, _ in kernels)
    parts = [sizes.get(path, {}), *(sizes.get(f"{path}/{name}", {}) for name, *_ in kernels if name)]
    masks, *values = (sum(part.get(what, 0) for part in parts) for what in ("mask", "changes", "values"))
    rest = sum(part.get(what, 0) for part in parts for what in ("scores", "variables"))
    return f"{path} ({entry['class']})", weights, kept, masks, sum(values), rest


def _bits(counts):
    weights, _, *sizes = counts
    return f"{8 * sum(sizes) / max(weights, 1):.2f}"


def _entropy(ticket):
    """Return the entropy of the masks in bytes, with independent entries."""
    kernels = [kernel for entry in ticket.layers.values() for _, kernel, _ in kernels_of(entry)]
    return math.ceil(sum(entropy_bits(math.prod(kernel["shape"]), kernel["kept"]) for kernel in kernels) / 8)
