"""What a model holds and computes: weights kept, bits in the file, multiply-accumulates at 1 bit and at 32 bits."""

import dataclasses
import math

import keras
from keras import layers, tree

from keras_mpt._keras import functional_graph, layers_inside
from keras_mpt.initializers import SeededInitializer
from keras_mpt.layers import MPTLayer
from keras_mpt.models.copies import first_input
from keras_mpt.models.paths import check_is_model
from keras_mpt.models.rewrite import run
from keras_mpt.models.tables import BYTES, Table, Tabular, short, shortened

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D)
_COUNTED = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, *_DEPTHWISE, *_TRANSPOSED)


def summary(model, print_fn=None, include_macs=True):
    """Print what a model holds and computes, layer by layer, and return the numbers.

    Weights are what the forward pass uses, batch normalization's statistics included; trainable are variables: the
    scores, one for each frozen weight, and whatever else is trained. A nested model's layers follow it. A shared layer
    has one row: its weights count once, its multiply-accumulates (MACs) at every call.

    The file's size is an estimate. The mask of n weights, of which the fraction d is kept, takes `n * H(d)` bits,
    `H(d) = -d log2(d) - (1 - d) log2(1 - d)`, or what its rule says (`MaskRule.mask_bits`). Kept values take none if a
    seeded initializer drew them (recycling is not accounted for), else 1 bit (`ScaledSign`) or 32 (`Identity`) each.
    Scales and all else take 32.
    MACs are those of dense kernels, removed weights included, for one sample; the last line tells the kept weights'
    share. They are 1-bit where input and kernel quantizer both have precision 1, else 32-bit. "?" is unknown: what
    subclassed models and custom layers call inside, axes without a size, other layers with matrices.

    Args:
        model: A built model: functional, Sequential or subclassed.
        print_fn: Called once, with the whole table as a string; default `print`.
        include_macs: Whether to show the MACs.

    Returns:
        A `Summary`.

    Raises:
        ValueError: The model, or an MPT layer in it, is not built.
        TypeError: `model` is not a Keras model or layer.

    Example:

    >>> model = keras_mpt.zoo.conv4_mpt(sparsity=0.8)
    >>> keras_mpt.models.summary(model, print_fn=logging.info).totals["kept"]
    485008
    """
    check_is_model(model)
    found = _calls(model)
    for layer, *_ in found:
        if not layer.built and (layer is model or isinstance(layer, MPTLayer)):
            raise ValueError(f"`model` must be built: call it on data or `build` it first. Received: {layer!r}")
    counted = set()
    rows = [_row(*layer_and_calls, counted) for layer_and_calls in found]
    rows = rows if rows[0]["weights"] else rows[1:]  # the model itself, only if it has weights of its own
    result = Summary(model.name, rows, _totals(rows), include_macs)
    (print_fn or print)(str(result))
    return result


@dataclasses.dataclass(repr=False)
class Summary(Tabular):
    """The numbers of a model as plain data; `str()` gives the table, a notebook shows it as HTML.

    Attributes:
        name: The model's name.
        rows: A dict for each layer (try `pandas.DataFrame(rows)`): `name`, `type`, `depth` (1 for the model's own),
            `calls`, `input_bits` (None without a kernel), `output_shapes` (the different ones), `weights`, `kept`,
            `trainable`, `file_bits`, `bits_per_weight`, `macs_1bit`, `macs_32bit`, `macs_kept`. None is unknown.
        totals: A dict of the sums of `weights`, `kept`, `trainable`, `file_bits` and the MACs, with `bits_per_weight`,
            `file_bytes`, `float32_bytes` and their ratio `compression` (None for an empty file).
        include_macs: Whether the table shows the MACs.
    """

    name: str
    rows: list
    totals: dict
    include_macs: bool = True

    def __repr__(self):
        return f"<Summary of {self.name!r}: {len(self.rows)} layers, {self.totals['weights']:,} weights>"

    def _table(self):
        columns = {"weights": "Weights", "kept": "Kept", "bits_per_weight": "Bits/\nweight"}
        macs = {"macs_1bit": "1-bit\nMACs", "macs_32bit": "32-bit\nMACs"}
        columns |= {key: macs[key] for key in macs if self.include_macs and self.totals[key] != 0}
        about = [["Layer (type)", "In\nbits", "Output"]]
        for row in self.rows:
            calls = f" x{row['calls']}" if (row["calls"] or 0) > 1 else ""
            label = f"{'  ' * (row['depth'] - 1)}{row['name']}{calls} ({row['type']})"
            shapes = ", ".join("x".join(str(n or "?") for n in shape[1:]) for shape in row["output_shapes"])
            about.append([label, str(row["input_bits"] or "-"), shortened(shapes or "-", 16)])
        numbers = [["-" if row[key] == 0 else short(row[key]) for key in columns] for row in [*self.rows, self.totals]]
        header, *rows = map(list.__add__, [*about, ["Total", "", ""]], [list(columns.values()), *numbers])
        return Table(f'Model "{self.name}"', header, rows, list(self._facts()))

    def _facts(self):
        total = self.totals
        share = total["kept"] / max(total["weights"], 1)
        factor = f", {total['compression']:.3g} times as much" if total["compression"] else ""
        file, float32 = (short(total[key], BYTES) for key in ("file_bytes", "float32_bytes"))
        binary, other, kept = (short(total[key]) for key in ("macs_1bit", "macs_32bit", "macs_kept"))
        yield "Weights", f"{total['weights']:,}, of which {total['kept']:,} ({share:.1%}) are kept"
        yield "Trainable", f"{total['trainable']:,}"
        yield "File", f"about {file} (as float32: {float32}{factor})"
        floats = [row for row in self.rows if row["weights"] and row["bits_per_weight"] >= 32]
        if 0 < len(floats) < sum(row["weights"] > 0 for row in self.rows):
            weights, bits = (sum(row[key] for row in floats) for key in ("weights", "file_bits"))
            kinds = dict.fromkeys(row["type"] for row in sorted(floats, key=lambda row: -row["weights"]))
            shares = f"{weights / total['weights']:.2%} of the weights, {bits / total['file_bits']:.2%} of the file"
            yield "Floats", f"{shares} ({', '.join(kinds)})"
        if self.include_macs:
            yield "MACs", f"1-bit: {binary}, 32-bit: {other}; of these with kept weights: {kept}"


def _calls(model):
    """Return `(layer, depth, [input and output shapes of each call, None if unknown])`, beginning with the model."""
    found = {}

    def step(path, operation, args, kwargs):
        """Send shapes through an operation, as Keras' own `compute_output_spec` does, and note them."""
        if not isinstance(operation, layers.Layer):
            return operation.compute_output_spec(*args, **kwargs)
        depth = path.count("/") + 1 if path else 0
        calls = found.setdefault(id(operation), (operation, depth, []))[2]
        inputs = first_input(args, kwargs)
        if functional_graph(operation) is None:
            outputs = operation.compute_output_spec(*args, **kwargs)
            note_unknown(_children(operation), depth + 1)
        else:
            outputs = run(operation, inputs, step, path)
        calls.append([[tuple(tensor.shape) for tensor in tree.flatten(x)] for x in (inputs, outputs)])
        return outputs

    def note_unknown(inner_layers, depth):
        for layer in inner_layers:
            found.setdefault(id(layer), (layer, depth, []))[2].append(None)
            note_unknown(_children(layer), depth + 1)

    note_unknown([model], depth=0) if functional_graph(model) is None else step("", model, (model.inputs,), {})
    return list(found.values())


def _children(layer):
    return [child for child in layers_inside(layer, recursive=False) if not isinstance(child, layers.InputLayer)]


def has_macs(layer):
    """Return whether the multiply-accumulates of a layer are known."""
    return isinstance(layer, _COUNTED)


def positions(layer, calls):
    """Return how often one sample uses each weight of a layer's kernel, None if unknown."""
    if not has_macs(layer) or None in calls:
        return None
    shapes = [inputs[0] if isinstance(layer, _TRANSPOSED) else outputs[0] for inputs, outputs in calls]
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    axes = [shape[2:] if channels_first else shape[1:-1] for shape in shapes]
    return None if any(None in sizes for sizes in axes) else sum(map(math.prod, axes))


def _row(layer, depth, calls, counted):
    """Return a layer's data; `counted` holds the ids of the variables that earlier rows count, and gets its own."""
    inner = {id(v) for child in _children(layer) for v in child.weights}
    own = [v for v in layer.weights if id(v) not in inner]
    new = {id(v) for v in own} - counted
    counted |= new

    if isinstance(layer, MPTLayer):
        kernel, kept = _size([layer.frozen_kernel]), int(keras.ops.convert_to_numpy(layer.kept))
        other = 0 if layer.bias is None else _size([layer.bias])  # the remaining variables are scores and state
        weights, file_bits = kernel + other, _kernel_bits(layer, kernel, kept) + 32.0 * other
    else:
        kernel = kept = _size(v for v in own if len(v.shape) > 1)
        weights = _size(v for v in own if id(v) in new)  # a variable may belong to two layers
        file_bits = 32.0 * weights

    bits = [getattr(getattr(layer, f"{which}_quantizer", None), "precision", 32) for which in ("input", "kernel")]
    uses = positions(layer, calls) if kernel else 0
    macs, macs_kept = (None if uses is None else uses * size for size in (kernel, kept))
    return {
        "name": layer.name,
        "type": type(layer).__name__,
        "depth": depth,
        "calls": None if None in calls else len(calls),
        "input_bits": bits[0] if kernel else None,
        "output_shapes": list(dict.fromkeys(shape for call in calls if call for shape in call[1])),
        "weights": weights,
        "kept": weights - (kernel - kept),
        "trainable": _size(v for v in layer.trainable_weights if id(v) in new),
        "file_bits": file_bits,
        "bits_per_weight": file_bits / max(weights, 1),
        "macs_1bit": macs if bits == [1, 1] else 0,
        "macs_32bit": 0 if bits == [1, 1] else macs,
        "macs_kept": macs_kept,
    }


def _kernel_bits(layer, size, kept):
    """Return the bits of a kernel in the file: its mask, its values where no seed gives them, its scale."""
    bits = layer.mask.mask_bits(size, kept)
    if not isinstance(getattr(layer, f"{layer.subnets[0].argument}_initializer"), SeededInitializer):
        bits += kept * getattr(layer.kernel_quantizer, "precision", 32)
    return bits + 32 * getattr(layer.kernel_quantizer, "scale_count", 0)


def _totals(rows):
    keys = ("weights", "kept", "trainable", "file_bits", "macs_1bit", "macs_32bit", "macs_kept")
    columns = ([row[key] for row in rows] for key in keys)
    totals = {key: None if None in column else sum(column) for key, column in zip(keys, columns, strict=True)}
    totals["bits_per_weight"] = totals["file_bits"] / max(totals["weights"], 1)
    totals["file_bytes"], totals["float32_bytes"] = math.ceil(totals["file_bits"] / 8), 4 * totals["weights"]
    totals["compression"] = totals["float32_bytes"] / totals["file_bytes"] if totals["file_bytes"] else None
    return totals


def _size(variables):
    return sum(math.prod(v.shape) for v in variables)
