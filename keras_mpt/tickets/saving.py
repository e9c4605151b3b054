"""Save models as ticket files, and load them."""

import contextlib
import dataclasses
import datetime
from typing import Any

import keras
import numpy as np

from keras_mpt._types import CustomObjects, Path
from keras_mpt.arguments import check_bool, check_choice
from keras_mpt.files import check_ending, check_folder
from keras_mpt.layers import hold
from keras_mpt.layers.traces import forget_compiled
from keras_mpt.masks.rule import first_scores
from keras_mpt.models.paths import check_functional, check_is_model, walk
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import Identity, ScaledSign
from keras_mpt.tickets import config, container, header, kernels, layer_arguments, report
from keras_mpt.tickets.arguments import checked_objects, checked_provenance
from keras_mpt.tickets.filling import fill_subnet, groups_that_differ, let_train, with_scale
from keras_mpt.tickets.limits import FREE_WEIGHTS, WEIGHTS_PER_BYTE
from keras_mpt.tickets.matching import check_missing, check_shapes, matched, owners, subnets, take_names, variables_of
from keras_mpt.tickets.published import ENDING
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
    """Save a model as a ticket: seeds, masks and a few floats.

    A weight of an MPT layer takes about one bit if half of the weights are kept, less otherwise. For each MPT layer,
    the file holds its mask, coded close to its entropy, and alpha. The kernel comes from the seed. If weights were
    recycled, redrawn, imported or pretrained, the file holds the differences: one bit for each kept weight with
    `kernel_quantizer="scaled_sign"` (less if few signs differ), or 32 bits for each kept weight that differs with None.
    Batch normalization, biases and other layers are stored as they are; the optimizer and losses are not stored.

    The file is read back and compared before it replaces `path`. If anything fails, `path` does not change. The format
    is documented in docs/ticket-format.md.

    Args:
        model: A built functional or Sequential model with at least one MPT layer, of layers that `load_ticket` allows.
        path: Path of the file; `.mpt` is the usual suffix.
        scores: Whether to store the scores and whole frozen kernels as well (up to 64 bits per weight), which lets
            training resume where it stopped.
        dtype: Type to store other float32 variables in: `"float32"`, or `"float16"`, which rounds them.
        base: A Keras model with pretrained kernels. If more than half of the entries of a frozen kernel are those of
            one of its kernels, and more than the seed gives, the ticket refers to that kernel (by SHA-256) and stores
            the differences. Loading the ticket then needs `base`, which `print(ticket)` says. Another model than that
            of the pretrained kernels changes nothing, which `print` of the result says.
        provenance: JSON-able dict to store with the model: data, recipe, accuracy, ...
        custom_objects: See `load_ticket`.

    Returns:
        The `Ticket`, like `Ticket.read(path)`, and with its `note`.

    Raises:
        ValueError: An argument is not as described, a score is NaN, a kernel is not finite, or a value is beyond the
            range of `dtype`.
        TypeError: `base` is not a Keras model, `path` is not a path, or `custom_objects` is not a list of
            classes and functions.
        OSError: The folder of `path` does not exist or cannot be written to, or `path` is a folder.
        RuntimeError: The file that was read back differs from the model, or the model was trained meanwhile.

    Examples:
        >>> print(keras_mpt.save_ticket(model, "conv4.mpt", provenance={"data": "CIFAR-10", "accuracy": 0.79}))
    """
    custom_objects = checked_objects(custom_objects)
    check_choice("dtype", dtype, ("float32", "float16"))
    check_bool("scores", scores)
    check_folder(path)
    check_ending(path, ENDING)
    provenance, model_config = checked_provenance(provenance), config.describe(model, custom_objects)
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
    return dataclasses.replace(Ticket.read(path), note=report.note_on_base(base, layers))


@contextlib.contextmanager
def _scores_at_rest(model, wanted):
    """Yield the scores of all kernels, by path and number, and check that they do not change meanwhile.

    Another thread may train the model, but masks and scores must be saved from one moment.

    Raises:
        RuntimeError: The scores changed.
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
    """Load the model of a ticket file.

    Its kernels have the same bits on every backend, because alpha comes from the file. On the backend and machine of
    the saved model, its outputs have the same bits as well. (A compiled `predict` of the saved model may differ in the
    last bit on JAX, where XLA may sum alpha in another order.)

    By default, the MPT layers are frozen and as fast as plain layers (see `keras_mpt.layers.hold`), and other layers
    train as usual. With `trainable=True`, masks can be trained further, also those of kernels that were frozen: alpha
    is computed from the kept weights again, which may change its last bits. Scores come from the file if it was saved
    with `scores=True`. Otherwise, the ranking of the kept weights is unknown: their scores start at 1 and those of
    removed weights at 0.99, which gives the saved mask until training changes it. If the file has only the signs of
    weights, their magnitudes are the seed's, times a constant that gives alpha. Without a seed, removed weights are
    zero, and keeping one again has no effect.

    A ticket is data. Loading creates only layers of keras_mpt and ordinary layers of Keras, runs nothing from the file,
    and allocates no memory for more weights than a file of its size may hold.

    Args:
        path: Path of a ticket file or of a folder with a `ticket.mpt`, name of a preset of `keras_mpt.zoo`, address
            such as `hf://owner/name` or `https://host/x.mpt`, or a `Ticket`.
        trainable: Whether masks can be trained further.
        base: The Keras model whose kernels the ticket refers to, if any.
        custom_objects: Your own classes, and functions used as activations, that the file may use: a list, or a dict as
            in Keras. They must be registered with `keras.saving.register_keras_serializable`.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        TicketError: The file is not a ticket, of another version or damaged, needs a `base`, or has content that is not
            allowed. The message names the file and the layer. It is a ValueError.
        ValueError: An argument is not as described, or the file at an address has another checksum than it should.
        OSError: The file cannot be opened or downloaded.
        TypeError: `path` is not a path, `base` is not a model, or `custom_objects` is not a list of classes and
            functions.
        ImportError: The address is of the hub, and huggingface_hub is not installed (the extra `hub`).

    Examples:
        >>> model = keras_mpt.load_ticket("conv4.mpt")
        >>> probabilities = keras.ops.softmax(model.predict(images))
    """
    trainable = check_bool("trainable", trainable)
    custom_objects = checked_objects(custom_objects)
    return _build(_ticket(path, "path"), kernels.content_table(base), trainable, custom_objects, held=True)


def _ticket(source: Path | Ticket, argument: str) -> Ticket:
    return source if isinstance(source, Ticket) else Ticket.read(source, argument)


def restore(
    model: keras.Model,
    ticket: Path | Ticket,
    *,
    trainable: bool = False,
    base: keras.Model | None = None,
    part: bool = False,
) -> None:
    """Load a ticket into a new model, matching layers by path.

    Args:
        model: A built model. The ticket must have each of its layers with variables, with the same shapes and with the
            same arguments that affect outputs.
        ticket: A `Ticket`, or the path of a file.
        trainable: See `load_ticket`.
        base: See `load_ticket`.
        part: Whether the model may lack the last layers of the ticket, such as the classifier.

    Raises:
        TicketError: A layer is missing in the ticket or the model, or differs in its shapes or in an argument that
            affects outputs, such as `input_quantizer` or `strides` (the model does not change then). Or a custom mask
            rule gets another mask from the scores, or the file is not a ticket or damaged.
        ValueError, OSError, ImportError: See `load_ticket`.
        TypeError: `model` or `base` is not a model, or `ticket` is not a ticket or path.
    """
    check_is_model(model)
    trainable = check_bool("trainable", trainable)
    check_bool("part", part)
    ticket = _ticket(ticket, "ticket")
    table = kernels.content_table(base)
    with naming(ticket.path, f"model {model.name!r} cannot be filled"):
        check_shapes(model, ticket)
        check_missing(model, ticket, part)
        layer_arguments.check(matched(model, ticket), ticket.config)
        for name, layer in matched(model, ticket):  # all of it can be read before anything changes
            ticket._variables(name)
            for number, _ in enumerate(subnets(layer)):
                ticket._kernel(name, table, number), ticket._scores(name, number)
        _check_groups(model, ticket, table)
        _fill(model, ticket, table, trainable)


def check_size(ticket, make):
    """Raise TicketError if the model that `make()` returns is larger than the ticket's, before allocating memory."""
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
    """Raise ValueError if the masks do not follow from the stored scores."""
    found = {(name, i): s for name, layer in matched(model, ticket) for i, s in enumerate(subnets(layer))}
    scores = {key: ticket._scores(*key) for key in found}
    if any(array is not None for array in scores.values()):  # else they are made of the masks
        masks = {(name, number): ticket._kernel(name, base, number).mask for name, number in found}
        scores = {key: first_scores(masks[key]) if scores[key] is None else scores[key] for key in found}
        others = groups_that_differ(found, masks, scores)
        if others:
            raise ValueError(f"the scores of layer {others[0][0][0]!r} do not make its mask")


def _fill(model, ticket, base, trainable, held=False):
    """Assign the ticket to the model's variables, layer by layer to save memory.

    With `held`, layers that are not trained hold their kernels: see `keras_mpt.layers.hold`.
    """
    by_config = {id(layer) for _, layer in walk(model, lambda layer: isinstance(layer, keras.Model))}
    for name, layer in matched(model, ticket):
        for variable, array in zip(variables_of(layer), ticket._variables(name), strict=True):
            variable.assign(array)
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
        found = {}
        for number, subnet in enumerate(subnets(layer)):
            kernel, scores = ticket._kernel(name, base, number), ticket._scores(name, number)
            scores = first_scores(kernel.mask) if scores is None else scores
            frozen = kernel.frozen
            # Configs of recurrent, attention and custom layers have no scales of inner layers or of single kernels: in
            # Keras' files and copies, the scale must follow from the weights.
            if trainable or id(layer) not in by_config or len(layer.subnets) > 1:
                frozen = with_scale(subnet, frozen, kernel.mask, kernel.scale)
            fill_subnet(subnet, frozen, kernel.mask, scores, kernel.scale, trainable)  # checks the mask
            del scores
            if held and type(subnet.kernel_quantizer) in (Identity, ScaledSign):
                found[subnet.name] = kernel.effective
            del kernel
        if found and layer.can_hold:
            layer.hold_kernels(found)
        del found
    if trainable:
        let_train(model)
    if held:
        hold(model)
    forget_compiled(model)


@contextlib.contextmanager
def _on_one_device():
    """Create variables without `keras.distribution`, whose variables need all processes; only one may be saving."""
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


def _settings():
    found = config.global_settings()
    header.check_settings(found)
    return found


def _version():
    import keras_mpt

    return keras_mpt.__version__
