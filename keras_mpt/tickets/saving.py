"""Models to ticket files and back."""

import contextlib
import datetime
import inspect
import json
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_mpt._types import CustomObjects, Path
from keras_mpt.arguments import check_bool, check_choice, received
from keras_mpt.files import check_folder
from keras_mpt.layers import hold
from keras_mpt.masks.rule import first_scores
from keras_mpt.models.paths import check_functional, check_is_model
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import Identity, ScaledSign
from keras_mpt.tickets import config, container, header, kernels, settings
from keras_mpt.tickets.filling import fill_subnet, forget_compiled, groups_that_differ
from keras_mpt.tickets.limits import FREE_WEIGHTS, WEIGHTS_PER_BYTE
from keras_mpt.tickets.matching import check_missing, check_shapes, matched, owners, take_names, variables_of
from keras_mpt.tickets.subnets import subnets
from keras_mpt.tickets.ticket import Ticket, naming, pack


def save_ticket(
    model: keras.Model,
    path: Path,
    *,
    scores: bool = False,
    dtype: str = "float32",
    base: keras.Model | None = None,
    provenance: dict[str, Any] | None = None,
    custom_objects: CustomObjects = (),
) -> Ticket:
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
        custom_objects: See `load_ticket`.

    Returns:
        The `Ticket`, as `Ticket.read(path)` returns it.

    Raises:
        ValueError: An argument is not as described, a score is NaN, or a value is beyond the range of `dtype`.
        TypeError: `base` is no model, or `custom_objects` no list of classes and functions.
        FileNotFoundError, IsADirectoryError: There is no folder for `path`, or `path` is one.
        RuntimeError: What was written was not read back as it was.

    Examples:
        >>> print(keras_mpt.save_ticket(model, "conv4.mpt", provenance={"data": "CIFAR-10", "accuracy": 0.79}))
    """
    custom_objects = _objects(custom_objects)
    check_choice("dtype", dtype, ("float32", "float16"))
    check_bool("scores", scores)
    check_folder(path)
    provenance = _json_dict(provenance)
    model_config = config.describe(model, custom_objects)
    table, layers, blobs, originals = kernels.content_table(base), [], {}, {}
    with _scores_at_rest(model, scores) as stored:
        for name, layer in owners(model):
            entry = {"path": name, "class": type(layer).__name__, "kernel": None, "scores": None}
            for number, subnet in enumerate(subnets(layer)):
                prefix = f"{name}/{subnet.name}" if number else name
                described, more, originals[name, number] = kernels.encode(subnet, prefix, scores, table)
                described = {"kernel": described, "scores": f"{prefix}/scores" if scores else None}
                if scores:
                    more[f"{prefix}/scores"] = stored[name, number].astype("<f4").tobytes()
                if number:
                    entry.setdefault("subnets", []).append({"name": subnet.name, **described})
                else:
                    entry |= described
                blobs |= more
            entry["variables"], data = _packed(layer, dtype)
            if data:
                blobs[f"{name}/variables"] = data
            layers.append(entry)
    if not originals:
        raise ValueError(f"`model` must have layers of keras_mpt to be a ticket. Received: {model.name!r} without one")

    names = [entry["path"] for entry in layers]
    if len(set(names)) < len(names):
        raise ValueError(f"`model` must have layers with names of their own. Received: {sorted(names)}")

    content = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "software": {"keras_mpt": _version(), "keras": keras.__version__, "backend": keras.backend.backend()},
        "settings": _settings(),
        "provenance": provenance,
        "model": model_config,
        "layers": layers,
    }
    missing = sum(kernel.mask.size for kernel in originals.values()) - FREE_WEIGHTS
    if missing > WEIGHTS_PER_BYTE * sum(map(len, blobs.values())):  # hardly ever: no limit for honest files
        blobs["padding"] = bytes(missing // WEIGHTS_PER_BYTE + 1)

    def verify(file):
        written = Ticket.read_as(file, path)
        with _on_one_device():
            loaded = _build(written, table, False, custom_objects)
        for name, layer in owners(loaded):
            same = _packed(layer, dtype)[1] == blobs.get(f"{name}/variables", b"")
            for number, _ in enumerate(subnets(layer)):
                before, after = originals[name, number], written._kernel(name, table, number)
                same &= np.array_equal(before.mask, after.mask) and np.array_equal(before.effective, after.effective)
            if not same:
                raise RuntimeError(f"layer {name!r} was not read back as it was written: please report this")

    container.write(path, content, blobs, verify, header.version_of(layers))
    return Ticket.read(path)


@contextlib.contextmanager
def _scores_at_rest(model, wanted):
    """Yield the scores of all kernels, by path and number, which have not changed when the block ends.

    Masks are made of the scores: if another thread trains the model, those that are saved must be of one moment.

    Raises:
        RuntimeError: They have changed.
    """

    def snapshot():
        found = [(name, number, s) for name, layer in owners(model) for number, s in enumerate(subnets(layer))]
        return {(name, number): to_numpy(subnet.scores) for name, number, subnet in found}

    before = snapshot() if wanted else {}
    yield before
    after = snapshot() if wanted else {}
    if any(not np.array_equal(before[key], after[key]) for key in before):
        raise RuntimeError(
            "`model` must not be trained while it is saved with `scores=True`: its scores have changed. Save between "
            "two steps, in a callback for example"
        )


def load_ticket(
    path: Path | Ticket,
    *,
    trainable: bool = False,
    base: keras.Model | None = None,
    custom_objects: CustomObjects = (),
) -> keras.Model:
    """Return the model of a ticket file, with the outputs that it was saved with.

    Kernels have the same bits on every backend, for alpha is taken from the file; on the backend and machine it was
    saved with, so have the outputs. (A compiled `predict` of the model that was saved may differ in the last bit on
    JAX, where XLA may sum alpha in another order.)

    By default masks and alphas stay as they are: MPT layers are frozen and cost what plain ones cost (see
    `keras_mpt.layers.hold`), other layers train as usual. With
    `trainable=True` the search goes on: alpha is computed from the kept weights again, which may change its last bits.
    Scores are those of the file, if it was saved with `scores=True`. If it was not, the ranking among kept weights is
    not known: all start with a score of 1, removed ones with 0.99, so the mask is the saved one until training changes
    it. Where the file has only the signs of weights, magnitudes are the seed's times a constant that gives alpha;
    without a seed, removed weights are zero, which never comes back.

    A ticket is data: only layers of keras_mpt and ordinary layers of Keras are made from it, nothing in it is run, and
    no memory is taken for more weights than the file has room for.

    Args:
        path: Of a file that `save_ticket` wrote or a folder that has a `ticket.mpt`, the name of a preset of
            `keras_mpt.zoo`, an address (`hf://owner/name`, `https://host/x.mpt`), or a `Ticket`.
        trainable: Whether the search for a mask can go on.
        base: The Keras model whose kernels the ticket refers to, if it does.
        custom_objects: Classes of yours that the file may use, and functions of yours that are activations, registered
            with `keras.saving.register_keras_serializable`: a list, or a dict as Keras takes it.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        TicketError: The file is no ticket, of another version, damaged, needs a `base`, or holds what is not allowed.
            The message names file and layer. It is a ValueError.
        OSError: The file cannot be opened.
        TypeError: `base` is no model, or `custom_objects` no list of classes and functions.

    Examples:
        >>> model = keras_mpt.load_ticket("conv4.mpt")
        >>> probabilities = keras.ops.softmax(model.predict(images))
    """
    check_bool("trainable", trainable)
    custom_objects = _objects(custom_objects)
    return _build(_ticket(path), kernels.content_table(base), trainable, custom_objects, held=True)


def _ticket(source: Path | Ticket) -> Ticket:
    return source if isinstance(source, Ticket) else Ticket.read(source)


def _objects(given):
    """Return `custom_objects` as a list.

    Raises:
        TypeError: It is no list of classes and functions, nor a dict of them.
        ValueError: One of them is not registered with Keras.
    """
    given = list(given.values()) if isinstance(given, dict) else given
    objects = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(found, type) or inspect.isroutine(found) for found in objects):
        raise TypeError(
            f"`custom_objects` must be a list of classes and functions. {received('custom_objects', given)}"
        )
    for found in objects:
        if keras.saving.get_registered_object(keras.saving.get_registered_name(found)) is not found:
            raise ValueError(
                "`custom_objects` must be registered with Keras, for a file has their names only: put "
                f'`@keras.saving.register_keras_serializable(package="my_package")` above the definition of '
                f"{found.__name__}. {received('custom_objects', given)}"
            )
    return objects


def restore(
    model: keras.Model,
    ticket: Path | Ticket,
    *,
    trainable: bool = False,
    base: keras.Model | None = None,
    part: bool = False,
) -> None:
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
    check_is_model(model)
    check_bool("trainable", trainable)
    check_bool("part", part)
    ticket = _ticket(ticket)
    table = kernels.content_table(base)
    with naming(ticket.path, f"model {model.name!r} cannot be filled"):
        check_shapes(model, ticket)
        check_missing(model, ticket, part)
        settings.check(matched(model, ticket), ticket.config)
        for name, layer in matched(model, ticket):  # all of it can be read before anything changes
            ticket._variables(name)
            for number, _ in enumerate(subnets(layer)):
                ticket._kernel(name, table, number), ticket._scores(name, number)
        _check_groups(model, ticket, table)
        _fill(model, ticket, table, trainable)


def check_size(ticket, make):
    """Raise TicketError if the model that `make()` makes is larger than the ticket's, before memory is taken for it."""
    with naming(ticket.path, "the model cannot be made"), config.without_memory(ticket._most()):
        make()


def _build(ticket, base, trainable, custom_objects, held=False):
    def check(model):
        check_functional(model, "filled")
        check_shapes(model, ticket)
        check_missing(model, ticket)

    with naming(ticket.path, "the model cannot be made"):
        model = config.build(ticket.config, check, ticket._most(), custom_objects, ticket.settings)
        take_names(model, ticket)
        _check_groups(model, ticket, base)
        _fill(model, ticket, base, trainable, held)
    return model


def _check_groups(model, ticket, base):
    """Raise ValueError if stored scores do not make the masks."""
    found = {(name, i): s for name, layer in matched(model, ticket) for i, s in enumerate(subnets(layer))}
    scores = {key: ticket._scores(*key) for key in found}
    if any(array is not None for array in scores.values()):  # else they are made of the masks
        masks = {(name, number): ticket._kernel(name, base, number).mask for name, number in found}
        scores = {key: first_scores(masks[key]) if scores[key] is None else scores[key] for key in found}
        others = groups_that_differ(found, masks, scores)
        if others:
            raise ValueError(f"the scores of layer {others[0][0][0]!r} do not make its mask")


def _fill(model, ticket, base, trainable, held=False):
    """Assign everything in the ticket to the model's variables, one layer after the other to take little memory.

    Of a model that is not trained, layers hold their kernels with `held`: see `keras_mpt.layers.hold`.
    """
    for name, layer in matched(model, ticket):
        for variable, array in zip(variables_of(layer), ticket._variables(name), strict=True):
            variable.assign(array)
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
        found = {}
        for number, subnet in enumerate(subnets(layer)):
            kernel, scores = ticket._kernel(name, base, number), ticket._scores(name, number)
            scores = first_scores(kernel.mask) if scores is None else scores
            fill_subnet(subnet, kernel.frozen, kernel.mask, scores, kernel.scale, trainable)  # checks the mask
            del scores
            if held and type(subnet.kernel_quantizer) in (Identity, ScaledSign):
                found[subnet.name] = kernel.effective
            del kernel
        if found and layer.can_hold:
            layer.hold_kernels(found)
        del found
    if held:
        hold(model)
    forget_compiled(model)


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
        return container.parse(json.dumps(dict(provenance or {}), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`provenance` must be a dict of JSON data, {error}. {received('provenance', provenance)}"
        ) from error


def _settings():
    found = config.global_settings()
    header.check_settings(found)
    return found


def _version():
    import keras_mpt

    return keras_mpt.__version__
