"""Replace layers of a model by MPT layers, also inside wrappers of Keras."""

import functools

import keras

from keras_mpt._keras import own_weights
from keras_mpt.layers import MPTLayer
from keras_mpt.models.copies import copied, copy_state, copy_state_inside, inside_wrapper, pairs_inside, wrapped
from keras_mpt.models.rewrite import of_same_class, rewrite


def with_twins(model, makers, kernels):
    """Return a copy of a model with some layers replaced by MPT layers, and these MPT layers.

    Args:
        model: A model that `check_model` accepts. It stays as it is.
        makers: Functions that return the MPT layers, unbuilt, keyed by the ids of the layers that they replace.
        kernels: Whether the MPT layers take over the kernels. They take over all other weights in any case.

    Returns:
        The model, and a dict of the MPT layers with the keys of `makers`.
    """
    twins = {}

    def holds_twins(layer):
        return any(id(inner) in makers or holds_twins(inner) for inner in inside_wrapper(layer))

    @functools.cache
    def twin_of(layer):
        if id(layer) not in makers:
            return wrapped(layer, twin_of) if holds_twins(layer) else copied(layer)
        twins[id(layer)] = makers[id(layer)]()
        return twins[id(layer)]

    def take_state(layer, twin):
        if id(layer) in makers:
            twin.take_weights(layer, kernels=kernels)
            copy_state_inside(layer, twin)
        elif holds_twins(layer):
            for pair in pairs_inside(layer, twin):
                take_state(*pair)
        else:
            copy_state(layer, twin)

    def step(path, operation, args, kwargs):
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        twin = twin_of(operation)
        outputs = twin(*args, **kwargs)
        take_state(operation, twin)
        return outputs

    result = rewrite(model, step, make=of_same_class)
    _take_trainable(model, result)
    return result, twins


def _take_trainable(layer, twin):
    twin.trainable = layer.trainable  # an outer one passes it on to those inside, whose turn comes later
    trained = {variable.name: variable.trainable for variable in own_weights(layer)}
    for variable in own_weights(twin):
        variable.trainable &= trained.get(variable.name, True)
    if isinstance(twin, MPTLayer) and not isinstance(layer, MPTLayer):
        for subnet in twin.subnets:
            subnet.scores.trainable &= trained[subnet.name]
    for pair in pairs_inside(layer, twin):
        _take_trainable(*pair)
