"""The layers of a model and the entries of a ticket, paired by the layers' paths."""

import keras

from keras_mpt.layers import MPTLayer
from keras_mpt.models.paths import own_variables, walk
from keras_mpt.quantizers import ScaledSign


def owners(model):
    """Return `(path, layer)` of a model's layers with variables of their own, nested ones included, each once."""
    return [
        (path, layer)
        for path, layer in walk(model)
        if isinstance(layer, MPTLayer) or not isinstance(layer, keras.Model) and variables_of(layer)
    ]


def variables_of(layer):
    """Return the variables of a layer that are neither those of an MPT kernel nor of a layer inside."""
    kernel = ("scores", "frozen_kernel", "kernel_epoch", *layer.mask.variables) if isinstance(layer, MPTLayer) else ()
    kernel = {id(getattr(layer, name)) for name in kernel}
    return [v for v in own_variables(layer) if id(v) not in kernel]


def take_names(model, ticket, custom_classes):
    """Give the layers inside those of custom classes the names that they have in the file, by their order: a config
    does not hold these, and Keras numbers layers without a name anew in each process."""
    ours, theirs = [path.split("/") for path, _ in owners(model)], [path.split("/") for path in ticket.layers]
    if list(map(len, ours)) != list(map(len, theirs)):
        return
    layers = dict(walk(model))
    for mine, names in zip(ours, theirs, strict=True):
        inside = False
        for depth, name in enumerate(names):
            layer = layers["/".join(mine[: depth + 1])]
            if inside:
                layer.name = name
            inside = inside or isinstance(layer, tuple(custom_classes))


def check_shapes(model, ticket):
    """Raise ValueError unless each layer with variables is in the ticket with the same shapes and kind of kernel."""
    for name, layer in owners(model):
        if name not in ticket.layers:
            raise ValueError(f"the file has no layer {name!r}")
        ours, theirs = _shapes(layer), _entry_shapes(ticket.layers[name])
        if ours != theirs:
            raise ValueError(f"the file has {theirs} for layer {name!r}, the model has {ours}")


def check_missing(model, ticket, part=False):
    """Raise ValueError if the ticket has layers that the model lacks; with `part`, if one is not behind all others."""
    ours, theirs = {name for name, _ in owners(model)}, list(ticket.layers)
    while part and theirs and theirs[-1] not in ours:
        del theirs[-1]
    missing = sorted(set(theirs) - ours)
    if missing:
        raise ValueError(f"the model has no layers {missing}")


def _shapes(layer):
    variables = [tuple(v.shape) for v in variables_of(layer)]
    if not isinstance(layer, MPTLayer):
        return {"kernel": None, "variables": variables}
    scaled = type(layer.kernel_quantizer) is ScaledSign
    return {"kernel": tuple(layer.frozen_kernel.shape), "scaled": scaled, "variables": variables}


def _entry_shapes(entry):
    kernel, variables = entry["kernel"], [tuple(v["shape"]) for v in entry["variables"]]
    if kernel is None:
        return {"kernel": None, "variables": variables}
    return {"kernel": tuple(kernel["shape"]), "scaled": kernel["scale"] is not None, "variables": variables}
