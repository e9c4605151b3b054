"""Summary of a model: weights, kept weights, file size, multiply-accumulates at 1 bit and at 32 bits."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, tree

from keras_mpt._keras import functional_graph, layers_inside
from keras_mpt.arguments import check_bool, received
from keras_mpt.layers import TWINS
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.models.copies import first_input, inside_wrapper
from keras_mpt.models.paths import check_is_model
from keras_mpt.models.rewrite import run
from keras_mpt.models.stored import are_signs, differences
from keras_mpt.models.tables import BYTES, Table, Tabular, short, shortened
from keras_mpt.ops import entropy_bits, to_numpy

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D)
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, *_DEPTHWISE, *_TRANSPOSED)
_ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)
_RECURRENT = (layers.SimpleRNN, layers.LSTM, layers.GRU)
_CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)
_COUNTED = (layers.Dense, layers.EinsumDense, layers.Embedding, *_CONVOLUTIONS, *_ATTENTION, *_RECURRENT, *_CELLS)
_WHOLE = _ATTENTION + _RECURRENT  # one row with all that is inside
_LARGE = 50_000  # bytes, to which a header adds little


def summary(model: keras.layers.Layer, print_fn: Callable | None = None, include_macs: bool = True) -> "Summary":
    """Print a summary of a model, layer by layer, and return its numbers.

    "Weights" are the weights that the forward pass uses, including the statistics of batch normalization. "Trainable"
    counts variables: the scores, one for each frozen weight, and all other trainable variables. The layers of a nested
    model follow it. A shared layer has one row, in which its weights count once and its multiply-accumulates (MACs) at
    every call.

    The file size is an estimate. The mask of n weights of which a fraction d is kept takes `n * H(d)` bits with
    `H(d) = -d log2(d) - (1 - d) log2(1 - d)`, or the bits of its rule (`MaskRule.mask_bits`). A kept value takes no
    bits if a seeded initializer drew it, otherwise 1 bit if the quantizer has one scale (`ScaledSign`), else 32. If a
    fraction c of k kept values, or signs, is no longer what was drawn, because of recycling for example, this takes
    `k * H(c)` bits, and for values another 32 bits each. Scales and all other weights take 32 bits. The header, which
    has the model's config, is not counted.

    MACs are those of dense kernels, including removed weights, for one sample; the last line has the number with kept
    weights. For attention, only the projections count, not the products of activations; recurrent layers count at each
    time step; embeddings have none. MACs are 1-bit if input and kernel quantizer both have precision 1, otherwise
    32-bit. "?" means unknown: calls inside subclassed models and custom layers, axes without a size, and other layers
    with matrices.

    Args:
        model: A built model: functional, Sequential or subclassed.
        print_fn: Called once with the whole table as a string; default `print`.
        include_macs: Whether to show the MACs.

    Returns:
        A `Summary`.

    Raises:
        ValueError: The model, or an MPT layer in it, is not built, or `include_macs` is not True or False.
        TypeError: `model` is not a Keras model or layer, or `print_fn` is not a function.

    Examples:
        >>> model = keras_mpt.zoo.conv4_mpt(sparsity=0.8)
        >>> keras_mpt.models.summary(model, print_fn=logging.info).totals["kept"]
        485008
    """
    check_is_model(model)
    include_macs = check_bool("include_macs", include_macs)
    if print_fn is not None and not callable(print_fn):
        raise TypeError(f"`print_fn` must be a function of a string, or None. {received('print_fn', print_fn)}")
    found = _calls(model)
    for layer, *_ in found:
        if not layer.built and (layer is model or isinstance(layer, PlainTwin)):
            raise ValueError(f"`model` must be built: call it on data or `build` it first. Received: {layer!r}")
    counted = set()
    rows = [_row(layer, depth, calls, counted) for layer, depth, calls in found]
    rows = rows if rows[0]["weights"] else rows[1:]  # the model itself, only if it has weights of its own
    result = Summary(model.name, rows, _totals(rows), include_macs)
    (print_fn or print)(str(result))
    return result


@dataclasses.dataclass(repr=False)
class Summary(Tabular):
    """The numbers of a model as plain data. `str()` gives the table; a notebook shows it as HTML.

    Attributes:
        name: Name of the model.
        rows: A dict for each layer (try `pandas.DataFrame(rows)`): `name`, `type`, `depth` (1 for the model's own
            layers), `calls`, `input_bits` (None without a kernel), `output_shapes` (without repetitions), `weights`,
            `kept`, `trainable`, `file_bits`, `bits_per_weight`, `macs_1bit`, `macs_32bit`, `macs_kept`. None means
            unknown.
        totals: A dict with the sums of `weights`, `kept`, `trainable`, `file_bits` and the MACs, with
            `bits_per_weight`, `file_bytes`, `float32_bytes` and their ratio `compression` (None for an empty file).
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
        header = " and a header of a few KB" if total["file_bytes"] < _LARGE else ""
        yield "File", f"about {file}{header} (as float32: {float32}{factor})"
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
        """Compute the output shapes of an operation by its `compute_output_spec`, and record the call."""
        if not isinstance(operation, layers.Layer):
            return operation.compute_output_spec(*args, **kwargs)
        depth = path.count("/") + 1 if path else 0
        inputs = _inputs(operation, args, kwargs)
        if functional_graph(operation) is None:
            outputs = operation.compute_output_spec(*args, **kwargs)
            note(operation, depth, [_shapes(inputs, outputs)])
        else:
            calls = found.setdefault(id(operation), (operation, depth, []))[2]
            outputs = run(operation, inputs, step, path)
            calls.append(_shapes(inputs, outputs))
        return outputs

    def note(layer, depth, calls):
        found.setdefault(id(layer), (layer, depth, []))[2].extend(calls)
        for child in _children(layer):
            note(child, depth + 1, _calls_inside(layer, child, calls))

    note(model, 0, [None]) if functional_graph(model) is None else step("", model, (model.inputs,), {})
    return list(found.values())


def call_shapes(layer, args, kwargs, outputs):
    """Return the shapes `[inputs, outputs]` of a call on symbolic tensors, for `positions`."""
    return _shapes(_inputs(layer, args, kwargs), outputs)


def with_inside(layer, calls):
    """Yield a layer and its calls, and those of its inner layers if it is a wrapper of Keras."""
    yield layer, calls
    for inner in inside_wrapper(layer):
        yield from with_inside(inner, _calls_inside(layer, inner, calls))


def _inputs(layer, args, kwargs):
    """Return the inputs of a layer; for attention, query, value and key."""
    if not isinstance(layer, _ATTENTION):
        return first_input(args, kwargs)
    given = {**dict(zip(("query", "value", "key"), args, strict=False)), **kwargs}
    return [given["query"], given["value"], given["value"] if given.get("key") is None else given["key"]]


def _shapes(*tensors):
    return [[tuple(tensor.shape) for tensor in tree.flatten(x)] for x in tensors]


def _calls_inside(wrapper, layer, calls):
    """Return the calls of a layer in one of Keras' wrappers during the wrapper's calls; unknown for other layers."""
    if None in calls or layer not in inside_wrapper(wrapper) or functional_graph(layer) is not None:
        return [None]
    if isinstance(wrapper, layers.TimeDistributed):
        steps = [(inputs[0][1], _step(inputs), _step(outputs)) for inputs, outputs in calls]
        return [call for n, *call in steps for call in ([call] * n if n else [None])]
    if isinstance(wrapper, layers.Bidirectional):
        return [[inputs, _shapes(layer.compute_output_spec(keras.KerasTensor(inputs[0])))[0]] for inputs, _ in calls]
    return [[inputs, []] for inputs, _ in calls]


def _step(shapes):
    return [(shape[0], *shape[2:]) for shape in shapes]


def _children(layer):
    inside = [] if isinstance(layer, _WHOLE) else layers_inside(layer, recursive=False)
    return [child for child in inside if not isinstance(child, layers.InputLayer)]


def kernels(layer):
    """Return the kernels of a layer, a list of `Subnet` or of variables."""
    if isinstance(layer, PlainTwin):
        return list(layer.subnets)
    twin = next((TWINS[cls] for cls in type(layer).__mro__ if cls in TWINS), None)
    if twin is not None:
        return [kernel for kernel, _ in twin.kernels_of(layer)] if layer.built else []
    return [v for v in _own(layer) if len(v.shape) > 1]


def positions(layer, calls):
    """Return how often one sample uses each weight, a list with a number for each of the layer's `kernels`.

    Args:
        layer: A built layer.
        calls: List with the shapes `[inputs, outputs]` of each call; None for an unknown call.

    Returns:
        The list; None if it is unknown.
    """
    if not isinstance(layer, _COUNTED) or None in calls:
        return None
    found = [[_product(sizes) for sizes in _axes(layer, inputs, outputs)] for inputs, outputs in calls]
    return None if any(None in uses for uses in found) else [sum(uses) for uses in zip(*found, strict=True)]


def _axes(layer, inputs, outputs):
    """Return the sizes of the axes along which one call reuses each kernel of a layer, a list of tuples."""
    if isinstance(layer, _ATTENTION):
        query, value, key = (shape[1:-1] for shape in inputs)
        gate = [query] * (getattr(layer, "_gate_dense", None) is not None)
        return [query, key, *gate, value, query]
    if isinstance(layer, (*_RECURRENT, *_CELLS)):
        return [inputs[0][1:2]] * 2
    if isinstance(layer, layers.Embedding):
        return [(0,)]
    if isinstance(layer, layers.EinsumDense):
        taken, axes = layer.equation.replace(" ", "").split("->")[0].split(",")
        sizes = zip(axes, kernels(layer)[0].shape, strict=True)
        own = math.prod(size for axis, size in sizes if axis in taken)
        return [(None,)] if None in inputs[0][1:] else [(math.prod(inputs[0][1:]) // own,)]
    shape = inputs[0] if isinstance(layer, _TRANSPOSED) else outputs[0]
    axes = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    return [axes] * len(kernels(layer))


def _product(sizes):
    return None if None in sizes else math.prod(sizes)


def _own(layer):
    """Return the weights of a layer that are not in the row of an inner layer."""
    inner = {id(v) for child in _children(layer) for v in child.weights}
    return [v for v in layer.weights if id(v) not in inner]


def _row(layer, depth, calls, counted):
    """Return the data of a layer. `counted`: ids of the variables in earlier rows, to which this row's are added."""
    own, subnets = _own(layer), layer.subnets if isinstance(layer, PlainTwin) else ()
    new = {id(v) for v in own} - counted
    counted |= new

    sizes = kept = [math.prod(kernel.shape) for kernel in kernels(layer)]
    file_bits = 0.0
    if subnets:
        state = {id(v) for subnet in subnets for v in (*subnet.variables, subnet.layer.kernel_epoch)}
        kept = [int(keras.ops.convert_to_numpy(subnet.kept)) for subnet in subnets]
        other = _size(v for v in own if id(v) in new and id(v) not in state)
        weights = sum(sizes) + other
        file_bits = sum(map(_kernel_bits, subnets, sizes, kept)) + 32.0 * other
    else:
        weights = _size(v for v in own if id(v) in new)  # a variable may belong to two layers
        file_bits = 32.0 * weights

    bits = [getattr(getattr(layer, f"{which}_quantizer", None), "precision", 32) for which in ("input", "kernel")]
    uses = positions(layer, calls) if sizes else []
    macs, macs_kept, binary = None, None, None if bits == [1, 1] else 0
    floats = 0 if bits == [1, 1] and len(sizes) == 1 else None
    if uses is not None:
        macs, macs_kept = (sum(map(math.prod, zip(uses, counts, strict=True))) for counts in (sizes, kept))
        binary = uses[0] * sizes[0] if bits == [1, 1] and sizes else 0  # what is behind takes no signs
        floats = macs - binary
    return {
        "name": layer.name,
        "type": type(layer).__name__,
        "depth": depth,
        "calls": None if None in calls else len(calls),
        "input_bits": bits[0] if sizes else None,
        "output_shapes": list(dict.fromkeys(shape for call in calls if call for shape in call[1])),
        "weights": weights,
        "kept": weights - (sum(sizes) - sum(kept)),
        "trainable": _size(v for v in layer.trainable_weights if id(v) in new),
        "file_bits": file_bits,
        "bits_per_weight": file_bits / max(weights, 1),
        "macs_1bit": binary,
        "macs_32bit": floats,
        "macs_kept": macs_kept,
    }


def _kernel_bits(subnet, size, kept):
    """Return the bits of a kernel in the file: its mask, its scale, and its values unless a seed gives them."""
    bits = subnet.layer.mask.mask_bits(size, kept) + 32 * getattr(subnet.kernel_quantizer, "scale_count", 0)
    if not kept:
        return bits
    chosen = to_numpy(subnet.mask) != 0
    weights = to_numpy(subnet.frozen_kernel)[chosen]
    signs = are_signs(subnet, weights)
    initializer, settings = subnet.draw()
    if settings is None:
        return bits + kept * (1 if signs else 32)
    changed = np.count_nonzero(differences(weights, initializer.draw(subnet.shape, **settings)[chosen], signs))
    return bits + entropy_bits(kept, changed) + (0 if signs else 32 * changed)


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
