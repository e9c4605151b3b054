"""Match the layers of a model with the entries of a ticket by path."""

import re

import keras

from keras_mpt.layers import MPTLayer
from keras_mpt.models.paths import own_variables, walk
from keras_mpt.models.stored import has_scale
from keras_mpt.tickets.header import kernels_of


class ShapesError(ValueError):
    """A layer of a model has other shapes than in a file, or is not in the file."""

    def __init__(self, layer, message):
        super().__init__(message)
        self.layer = layer


def subnets(layer):
    """Return the kernels of an MPT layer, in its order; none for another layer."""
    return layer.subnets if isinstance(layer, MPTLayer) else ()


def owners(model):
    """Return `(path, layer)` for the layers of a model that have their own variables, also in nested models."""
    return [
        (path, layer)
        for path, layer in walk(model)
        if isinstance(layer, MPTLayer) or not isinstance(layer, keras.Model) and variables_of(layer)
    ]


def variables_of(layer):
    """Return the variables of a layer without those of MPT kernels and of inner layers."""
    kernel = {id(v) for subnet in subnets(layer) for v in subnet.variables}
    if isinstance(layer, MPTLayer):  # with JAX, it may have a variable for traces
        kernel |= {id(v) for v in (layer.kernel_epoch, *layer._traces.variables)}
    return [v for v in own_variables(layer) if id(v) not in kernel]


def matched(model, ticket):
    """Return `(path, layer)` like `owners`, with the paths that the layers have in the file.

    A config names the layers of a model, but not the inner layers of a layer, such as the dropout of attention, which
    Keras numbers anew in each process. So inner layers are matched by order, and their names may differ in numbers.
    """
    layers, ours, theirs = dict(walk(model)), {}, {}
    for path, _ in owners(model):
        ours.setdefault(_outer(path, layers), []).append(path)
    for path in ticket.layers:
        theirs.setdefault(next((outer for outer in _beginnings(path) if outer in ours), path), []).append(path)
    names = {}
    for outer, paths in ours.items():
        found = theirs.get(outer, [])
        if [_unnumbered(path, outer) for path in paths] == [_unnumbered(path, outer) for path in found]:
            names |= dict(zip(paths, found, strict=True))
    return [(names.get(path, path), layer) for path, layer in owners(model)]


def _outer(path, layers):
    """Return the part of a path that the config has: up to the first layer that is not a model."""
    return next((outer for outer in _beginnings(path) if not isinstance(layers[outer], keras.Model)), path)


def _beginnings(path):
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _unnumbered(path, outer):
    return [re.sub(r"_\d+$", "", name) for name in path[len(outer) :].split("/")]


def take_names(model, ticket):
    """Rename inner layers as in the file; saving the model then gives the same file again."""
    layers, names = dict(walk(model)), {}
    for (mine, _), (theirs, _) in zip(owners(model), matched(model, ticket), strict=True):
        mine, theirs = mine.split("/"), theirs.split("/")
        for depth in range(len(mine)):
            if mine[depth] != theirs[depth]:
                names["/".join(mine[: depth + 1])] = theirs[depth]
    for path, name in names.items():
        layers[path].name = name


def check_shapes(model, ticket):
    """Raise ShapesError unless the ticket has each layer with variables, with the same shapes and kind of kernel."""
    for name, layer in matched(model, ticket):
        if name not in ticket.layers:
            raise ShapesError(name, f"the file has no layer {name!r}")
        ours, theirs = _shapes(layer), _entry_shapes(ticket.layers[name])
        if ours != theirs:
            raise ShapesError(name, f"the file has {theirs} for layer {name!r}, the model has {ours}")


def check_missing(model, ticket, part=False):
    """Raise ValueError if the model lacks a layer of the ticket; with `part`, it may lack the last ones."""
    ours, theirs = {name for name, _ in matched(model, ticket)}, list(ticket.layers)
    while part and theirs and theirs[-1] not in ours:
        del theirs[-1]
    missing = sorted(set(theirs) - ours)
    if missing:
        raise ValueError(f"the model has no layers {missing}")


def _shapes(layer):
    variables = [tuple(v.shape) for v in variables_of(layer)]
    kernels = [(tuple(s.frozen_kernel.shape), has_scale(s)) for s in subnets(layer)]
    return _described(kernels, variables)


def _entry_shapes(entry):
    kernels = [(tuple(kernel["shape"]), kernel["scale"] is not None) for _, kernel, _ in kernels_of(entry)]
    return _described(kernels, [tuple(v["shape"]) for v in entry["variables"]])


def _described(kernels, variables):
    """Return shapes as an error message shows them."""
    if len(kernels) != 1:
        return {"kernel": kernels or None, "variables": variables}
    return {"kernel": kernels[0][0], "scaled": kernels[0][1], "variables": variables}
