"""MPT layers in the place of some layers of a model, also of those in wrappers of Keras."""

import functools

import keras

from keras_mpt.models.copies import copied, copy_state, copy_state_inside, held, pairs_inside, wrapped
from keras_mpt.models.rewrite import of_same_class, rewrite


def with_twins(model, makers, kernels):
    """Return a model like another with MPT layers in the place of some of its layers, and these by the others' ids.

    Args:
        model: A model that `check_model` accepts. It stays as it is.
        makers: Dict of functions that make the MPT layers, unbuilt, by the ids of the layers whose place they take.
        kernels: Whether they take the kernels of these, as they take all other weights.
    """
    twins = {}

    def holds_twins(layer):
        return any(id(inner) in makers or holds_twins(inner) for inner in held(layer))

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
    for pair in pairs_inside(layer, twin):
        _take_trainable(*pair)
