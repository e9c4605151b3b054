"""Models to ticket files and back."""

import contextlib
import datetime
import json
from collections.abc import Iterable

import keras
import numpy as np

from keras_mpt.files import check_folder
from keras_mpt.layers import MPTLayer
from keras_mpt.masks import share
from keras_mpt.masks.rule import first_scores
from keras_mpt.models.paths import check_functional
from keras_mpt.ops import to_numpy
from keras_mpt.tickets import config, container, kernels, settings
from keras_mpt.tickets.filling import check_rules, fill_kernel, forget_compiled, groups_that_differ
from keras_mpt.tickets.matching import check_missing, check_shapes, owners, take_names, variables_of
from keras_mpt.tickets.ticket import FREE_WEIGHTS, WEIGHTS_PER_BYTE, Ticket, naming, pack


def save_ticket(model, path, *, scores=False, dtype="float32", base=None, provenance=None, custom_classes=()):
    """Write a model as a ticket: seeds, masks and a few floats.

    That is about one bit for each weight of an MPT layer where half are kept, less where fewer or more are. Of each MPT
    layer, the file holds the mask, coded close to its entropy, and alpha. Its kernel comes from the seed; where weights
    were recycled, redrawn, imported or pretrained, what differs is stored: one bit for each kept weight with
    `kernel_quantizer="scaled_sign"` (less if few signs differ), 32 bits for each kept weight that differs with None.
    Everything else (batch normalization, biases, other layers) is stored as it is. What was compiled is not.

    The file is read back and compared before it takes the place of `path`; if anything fails, `path` is untouched.
    The format is documented in docs/ticket-format.md.

    Args:
        model: A built functional or Sequential model with at least one MPT layer, of layers that `load_ticket` allows.
        path: Where to; `.mpt` is the usual ending.
        scores: Whether to store the scores and the whole frozen kernels too (up to 64 bits for each weight), so that
            the search can go on where it stopped.
        dtype: What to store other float32 variables as, `"float32"` or `"float16"`, which rounds them.
        base: A Keras model with pretrained kernels. Of an MPT layer whose frozen kernel has more than half of its
            entries in common with one of them, the ticket refers to that (by SHA-256) and stores what differs; loading
            the ticket needs `base` then.
        provenance: JSON-able dict of what to remember: data, recipe, accuracy, ...
        custom_classes: See `load_ticket`.

    Returns:
        The `Ticket`, as `Ticket.read(path)` returns it.

    Raises:
        ValueError: An argument is not as described, a score is NaN, or a value is beyond the range of `dtype`.
        TypeError: `base` is no model, or `custom_classes` no list of classes.
        FileNotFoundError, IsADirectoryError: There is no folder for `path`, or `path` is one.
        RuntimeError: What was written was not read back as it was.

    Example:

    >>> print(keras_mpt.save_ticket(model, "conv4.mpt", provenance={"data": "CIFAR-10", "accuracy": 0.79}))
    """
    custom_classes = _classes(custom_classes)
    if dtype not in ("float32", "float16"):
        raise ValueError(f'`dtype` must be "float32" or "float16". Received: dtype={dtype!r}')
    check_folder(path)
    provenance = _json_dict(provenance)
    model_config = config.describe(model, custom_classes)
    table, layers, blobs, originals = kernels.content_table(base), [], {}, {}
    for name, layer in owners(model):
        entry = {"path": name, "class": type(layer).__name__, "kernel": None, "scores": None}
        if isinstance(layer, MPTLayer):
            entry["kernel"], more, originals[name] = kernels.encode(layer, name, scores, table)
            blobs |= more
            if scores:
                entry["scores"] = f"{name}/scores"
                blobs[entry["scores"]] = to_numpy(layer.scores).astype("<f4").tobytes()
        entry["variables"], data = _packed(layer, dtype)
        if data:
            blobs[f"{name}/variables"] = data
        layers.append(entry)
    if not originals:
        raise ValueError(f"`model` must have layers of keras_mpt to be a ticket. Received: {model.name!r} without one")

    names = [entry["path"] for entry in layers]
    if len(set(names)) < len(names):
        raise ValueError(f"`model` must have layers with names of their own. Received: {sorted(names)}")

    header = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "software": {"keras_mpt": _version(), "keras": keras.__version__, "backend": keras.backend.backend()},
        "provenance": provenance,
        "model": model_config,
        "layers": layers,
    }
    missing = sum(kernel.mask.size for kernel in originals.values()) - FREE_WEIGHTS
    if missing > WEIGHTS_PER_BYTE * sum(map(len, blobs.values())):  # hardly ever: no limit for honest files
        blobs["padding"] = bytes(missing // WEIGHTS_PER_BYTE + 1)

    def verify(file):
        written = Ticket.read(file)
        with _on_one_device():
            loaded = _build(written, table, False, custom_classes)
        for (name, ours), (_, theirs) in zip(owners(model), owners(loaded), strict=True):
            same = _packed(ours, dtype)[1] == _packed(theirs, dtype)[1]
            if name in originals:
                before, after = originals[name], written._kernel(name, table)
                same &= np.array_equal(before.mask, after.mask) and np.array_equal(before.effective, after.effective)
            if not same:
                raise RuntimeError(f"layer {name!r} was not read back as it was written: please report this")

    container.write(path, header, blobs, verify)
    return Ticket.read(path)


def load_ticket(path, *, trainable=False, base=None, custom_classes=()):
    """Return the model of a ticket file, with the outputs that it was saved with.

    Kernels have the same bits on every backend, for alpha is taken from the file; on the backend and machine it was
    saved with, so have the outputs. (A compiled `predict` of the model that was saved may differ in the last bit on
    JAX, where XLA may sum alpha in another order.)

    By default masks and alphas stay as they are: MPT layers are frozen, other layers train as usual. With
    `trainable=True` the search goes on: alpha is computed from the kept weights again, which may change its last bits.
    Scores are those of the file, if it was saved with `scores=True`. If it was not, the ranking among kept weights is
    not known: all start with a score of 1, removed ones with 0.99, so the mask is the saved one until training changes
    it. Where the file has only the signs of weights, magnitudes are the seed's times a constant that gives alpha;
    without a seed, removed weights are zero, which never comes back.

    A ticket is data: only layers of keras_mpt and ordinary layers of Keras are made from it, nothing in it is run, and
    no memory is taken for more weights than the file has room for.

    Args:
        path: Of a file that `save_ticket` wrote, or a `Ticket`.
        trainable: Whether the search for a mask can go on.
        base: The Keras model whose kernels the ticket refers to, if it does.
        custom_classes: Classes of yours that the file may use, registered with
            `keras.saving.register_keras_serializable`.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        TicketError: The file is no ticket, of another version, damaged, needs a `base`, or holds what is not allowed.
            The message names file and layer. It is a ValueError.
        OSError: The file cannot be opened.
        TypeError: `base` is no model, or `custom_classes` no list of classes.

    Example:

    >>> model = keras_mpt.load_ticket("conv4.mpt")
    >>> probabilities = keras.ops.softmax(model.predict(images))
    """
    custom_classes = _classes(custom_classes)
    return _build(_ticket(path), kernels.content_table(base), trainable, custom_classes)


def _ticket(source):
    return source if isinstance(source, Ticket) else Ticket.read(source)


def _classes(given):
    """Return `custom_classes` as a list."""
    classes = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(cls, type) for cls in classes):
        raise TypeError(f"`custom_classes` must be a list of classes. Received: {given!r}")
    return classes


def restore(model, ticket, *, trainable=False, base=None, part=False):
    """Load a ticket into the layers of a model that has just been made, by the layers' paths.

    Args:
        model: A built model. Each of its layers with variables must be in the ticket, with the settings that decide
            its outputs.
        ticket: A `Ticket`, or the path of a file.
        trainable: See `load_ticket`.
        base: See `load_ticket`.
        part: Whether the model may end before the ticket does: it may lack the last layers, such as the classifier,
            but none before one that it has.

    Raises:
        TicketError: A layer is missing in ticket or model, or differs in its shapes or in what decides its outputs,
            such as `input_quantizer` or `strides` (the model is untouched then), or a rule that is none of ours makes
            another mask of the scores.
        OSError: The file cannot be opened.
        TypeError: `base` is no model.
    """
    ticket = _ticket(ticket)
    table = kernels.content_table(base)
    with naming(ticket.path, f"model {model.name!r} cannot be filled"):
        check_shapes(model, ticket)
        check_missing(model, ticket, part)
        settings.check(owners(model), ticket.config)
        _fill(model, ticket, table, trainable)


def check_size(ticket, make):
    """Raise TicketError if the model that `make()` makes is larger than the ticket's, before memory is taken for it."""
    with naming(ticket.path, "the model cannot be made"), config.without_memory(FREE_WEIGHTS + ticket._entries()):
        make()


def _build(ticket, base, trainable, custom_classes):
    def check(model):
        check_functional(model, "filled")
        take_names(model, ticket, custom_classes)
        check_shapes(model, ticket)
        check_missing(model, ticket)

    with naming(ticket.path, "the model cannot be made"):
        model = config.build(ticket.config, check, FREE_WEIGHTS + ticket._entries(), custom_classes)
        take_names(model, ticket, custom_classes)
        share([layer for _, layer in owners(model) if isinstance(layer, MPTLayer)])
        _fill(model, ticket, base, trainable)
    return model


def _fill(model, ticket, base, trainable):
    """Assign everything in the ticket to the model's variables, after decoding all of it."""
    layers = owners(model)
    variables = {name: ticket._variables(name) for name, _ in layers}
    mpt = {name: layer for name, layer in layers if isinstance(layer, MPTLayer)}
    decoded = {name: (ticket._kernel(name, base), ticket._scores(name)) for name in mpt}
    for name, (kernel, scores) in decoded.items():
        if scores is not None and np.isnan(scores).any():
            raise ValueError(f"a score of layer {name!r} is NaN")
        if scores is None:
            decoded[name] = kernel, first_scores(kernel.mask)
    masks = {name: kernel.mask for name, (kernel, _) in decoded.items()}
    others = groups_that_differ(mpt, masks, {name: scores for name, (_, scores) in decoded.items()})
    if others:
        raise ValueError(f"the scores of layer {others[0][0]!r} do not make its mask")
    for name, layer in layers:
        for variable, array in zip(variables_of(layer), variables[name], strict=True):
            variable.assign(array)
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    for name, layer in mpt.items():
        kernel, scores = decoded.pop(name)
        fill_kernel(layer, kernel.frozen, kernel.mask, scores, ticket.layers[name]["kernel"]["scale"], trainable)
    forget_compiled(model)
    check_rules(mpt, masks)


@contextlib.contextmanager
def _on_one_device():
    """Make variables as without `keras.distribution`: those of several processes need all of them, this may be one."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def _packed(layer, dtype):
    described, data = [], []
    for variable in variables_of(layer):
        stored = dtype if variable.dtype == "float32" else variable.dtype
        try:
            data.append(pack(to_numpy(variable), stored))
        except ValueError as error:
            raise ValueError(f"Variable {variable.path!r} cannot be saved: {error}") from error
        described.append(
            {"name": variable.name, "shape": list(variable.shape), "dtype": variable.dtype, "stored": stored}
        )
    return described, b"".join(data)


def _json_dict(provenance):
    try:
        return json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`provenance` must be a dict of JSON data. Received: {provenance!r}") from error


def _version():
    import keras_mpt

    return keras_mpt.__version__
