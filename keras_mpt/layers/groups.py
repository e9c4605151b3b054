"""Groups of kernels with one threshold: those of a model whose shared rules are equal."""

import math
import weakref

import keras

from keras_mpt import _keras
from keras_mpt.arguments import check_sparsity
from keras_mpt.layers.arguments import layers_of
from keras_mpt.ops import kept_count
from keras_mpt.ops.backend import current_trace, eager_in_torch


def share(model):
    """Let exactly the kernels of this model that have equal shared rules (`masks.GlobalTopK`) share a threshold.

    Call it for a model that was cut out of another one, or in which a layer was replaced: Keras' graph still connects
    it with the layers that it no longer has. Other models need no call. Compile the model afterwards.

    Args:
        model: A built model.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: A layer is not built.

    Examples:
        >>> part = keras.Model(model.inputs, model.get_layer("conv4").output)
        >>> keras_mpt.layers.share(part)
    """
    for layer in layers_of(model):
        layer._model, layer._only_model = weakref.ref(model), True


@eager_in_torch
def remember_model(layer):
    """Remember the outermost layer being called: the model that an MPT layer belongs to.

    Calling a part of that model, or the layer alone, changes nothing.
    """
    model, known = _keras.outermost_layer(), model_of(layer)
    if model is None or model is layer or model is known:
        return
    if known is None or any(known is part for part in _keras.layers_inside(model)):
        layer._model = weakref.ref(model)


def model_of(layer):
    """Return the model that an MPT layer belongs to, None if it is gone."""
    return layer._model and layer._model()


def group_of(subnet):
    """Return the subnets that share the rule of a subnet, a tuple in the order in which ties are kept.

    They belong to the model in which the layer was called, or to layers connected with it in Keras' graph (see also
    `share`). A common `Input` does not connect layers.
    """
    model = model_of(subnet.layer)
    if subnet.layer._only_model and model is not None:
        return _ordered(
            each for layer in _keras.layers_inside(model) for each in _subnets_with(subnet.layer.mask, layer)
        )
    todo, seen, found = [subnet.layer], set(), []
    while todo:
        operation = todo.pop()
        if id(operation) in seen or isinstance(operation, keras.layers.InputLayer):
            continue
        seen.add(id(operation))
        todo += _keras.calls_around(operation)
        if not isinstance(operation, keras.layers.Layer):
            continue
        todo += _keras.layers_inside(operation, recursive=False)
        subnets = _subnets_with(subnet.layer.mask, operation)
        found += subnets
        if subnets and (model := model_of(operation)) is not None:
            todo.append(model)
    return _ordered(found)


def _subnets_with(rule, layer):
    return layer.subnets if layer.built and hasattr(layer, "_subnets") and layer.mask == rule else ()


def _ordered(subnets):
    return tuple(sorted(subnets, key=lambda each: (each.layer.name, each.number)))


def share_quota(group, sparsity):
    """Divide the number of kept weights of a group among its subnets.

    Args:
        group: Subnets that share a rule.
        sparsity: Fraction removed of all their weights together, in `[0, 1)`.
    """
    before = 0
    for subnet in group:
        size = before + math.prod(subnet.shape)
        subnet.state["quota"].assign(kept_count(size, sparsity) - (kept_count(before, sparsity) if before else 0))
        before = size


def set_sparsities(wanted):
    """Change how many weights kernels keep, or with a shared rule all its kernels together.

    Args:
        wanted: List of pairs of a subnet and its sparsity, the fraction of the weights removed, in `[0, 1)`.

    Raises:
        ValueError: A sparsity is out of range, or impossible for a rule. No kernel changes then.
    """
    for _, sparsity in wanted:
        check_sparsity("sparsity", sparsity)
    changes = [None if subnet.layer.mask.shared else subnet.resized(sparsity) for subnet, sparsity in wanted]
    for (subnet, sparsity), change in zip(wanted, changes, strict=True):
        if subnet.layer.mask.shared:
            share_quota(subnet.group, sparsity)
        else:
            subnet.store(change)


def once(key, variables, find):
    """Return the result of `find()`, cached during a call of a model until a variable changes.

    The cache belongs to Keras' object for the call: a `StatelessScope`, in which a changed variable is another tensor,
    or the context of the outermost layer's call, in which scores do not change.

    Args:
        key: Hashable key of the result.
        variables: List of the variables that it depends on.
        find: Function without arguments.
    """
    call = _keras.call_under_way()
    if call is None:
        return find()
    found_in_call = vars(call).setdefault("found_by_keras_mpt", {})
    made_of = current_trace(), [variable.value for variable in variables]
    if key in found_in_call:
        found, (trace, values) = found_in_call[key]
        if trace == made_of[0] and all(a is b for a, b in zip(values, made_of[1], strict=True)):
            return found
    found = find()
    found_in_call[key] = found, made_of
    return found
