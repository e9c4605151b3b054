"""Masks of models, tickets, files and dicts of arrays."""

import collections.abc
import os

import keras
import numpy as np

from keras_mpt import layers
from keras_mpt.arguments import check_instance
from keras_mpt.layers.subnet import named_subnets
from keras_mpt.models import mpt_layers_by_path
from keras_mpt.models.paths import check_is_model
from keras_mpt.ops import to_numpy
from keras_mpt.tickets import Ticket
from keras_mpt.tickets.header import kernels_of


def masks(source, base=None):
    """Return masks as a dict from paths of layers to bool arrays, True where a weight is kept.

    Several kernels of a layer add their names: `"lstm/recurrent_kernel"`.

    Args:
        source: A built model, a `keras_mpt.tickets.Ticket`, the path of a ticket file, or such a dict.
        base: The Keras model to whose kernels a ticket refers, if any.

    Raises:
        TypeError: An argument is of another type.
        ValueError: `source` has no mask, or is a model that is not built.
        TicketError: The file is not a ticket, or is damaged.
        OSError: The file cannot be opened.
    """
    return masks_of("source", source, base)


def masks_of(argument, source, base=None):
    """Return the masks of a source, which errors call by the name of an argument; see `masks`."""
    check_instance("base", base, (keras.Model, type(None)), "a Keras model or None")
    if isinstance(source, (str, os.PathLike)):
        source = Ticket.read(source, argument)
    if isinstance(source, keras.Model):
        found = {path: to_numpy(subnet.mask) != 0 for path, subnet in subnets_by_path(argument, source).items()}
    elif isinstance(source, Ticket):
        found = _masks_of_ticket(source, base)
    elif isinstance(source, collections.abc.Mapping):
        found = {path: np.asarray(mask) != 0 for path, mask in source.items()}
    else:
        raise TypeError(f"`{argument}` must be a model, a ticket, its path, or a dict of masks. Received: {source!r}")
    if not found:
        raise ValueError(f"`{argument}` must have MPT layers. Received: {source!r} without one")
    return found


def subnets_by_path(argument, model):
    """Return each `Subnet` of a model by path; see `masks`.

    Raises:
        TypeError: `model` is not a model.
        ValueError: There is no MPT layer, or one is not built.
    """
    check_is_model(model, argument)
    found = {}
    for path, layer in mpt_layers_by_path(model).items():
        if not layer.built:
            raise ValueError(f"`{argument}` must be a built model. Received: layer {path!r} without scores")
        found |= named_subnets(path, layer)
    if not found:
        raise ValueError(f"`{argument}` must have MPT layers. Received: {model!r} without one")
    return found


def _masks_of_ticket(ticket, base):
    found = {}
    for path, entry in ticket.layers.items():
        names = [name for name, *_ in kernels_of(entry)]
        for name in names:
            mask = ticket.kernel(path, base, name).mask
            if name is None and len(names) > 1:  # the file has no name for the first one
                name = next(iter(getattr(layers, entry["class"], layers.MPTLayer)._kernels))
            found[path if len(names) == 1 else f"{path}/{name}"] = mask
    return found


def paired(first, second):
    """Return a dict from paths in the first one to pairs of arrays.

    They are matched by name if the names are equal. Otherwise they are matched by order, because Keras numbers the
    layers of two models in one process differently.

    Raises:
        ValueError: The shapes differ.
    """
    if first.keys() == second.keys():
        second = {path: second[path] for path in first}
    shapes = [[array.shape for array in arrays.values()] for arrays in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"Both must be of one architecture. Received: kernels of shapes {shapes[0]} and {shapes[1]}")
    return {path: (array, other) for (path, array), other in zip(first.items(), second.values(), strict=True)}
