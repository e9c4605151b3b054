"""Subclassed models and composite layers as functional models of the same layers."""

import inspect
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_mpt._keras import functional_graph, has_keras_mask, layers_inside
from keras_mpt.arguments import received
from keras_mpt.layers import MPTLayer
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.models.copies import autocast, first_input, holds_mpt
from keras_mpt.models.paths import check_is_model, joined, own_variables
from keras_mpt.models.rewrite import check_model, functional, of_same_class, rewrite
from keras_mpt.quantizers import is_elementwise


def to_functional(model: keras.Model, inputs: Any = None, *, only: Iterable[type] | None = None) -> keras.Model:
    """Return a functional model of the same layers, for tickets, `strip`, conversion and `to_mpt`.

    These need the graph of the layers. A subclassed model becomes a functional model with the layers that its `call`
    calls, and so does each layer of a custom class that contains MPT layers. To find them, `call` is called on symbolic
    tensors: it must consist of layers, operators and `keras.ops`. The layers are shared: training one model trains the
    other. Code that `call` runs only in training is lost, unless it is in a layer that gets `training` as an argument.

    Args:
        model: A subclassed model, or a built functional or Sequential one.
        inputs: Inputs of a subclassed model: a `keras.Input`, or a structure of them.
        only: Classes of layers to open, instead of those that contain MPT layers.

    Returns:
        A functional `keras.Model`, not compiled; `model` itself if there is nothing to open.

    Raises:
        ValueError: `inputs` is missing, or given for a model that has inputs; `model` is not built; or a layer to open
            has its own variables or losses, gets a Keras mask, or is called in different ways.
        TypeError: `model` is not a Keras model, or `only` is not a list of classes.

    Examples:
        >>> functional = keras_mpt.models.to_functional(MyNetwork(), keras.Input((32, 32, 3)))
        >>> keras_mpt.convert.to_tflite(functional, "network.tflite")
    """
    check_is_model(model)
    opening = _Opening(only)
    if not _subclassed(model):
        if inputs is not None:
            raise ValueError(f"`inputs` must be left out for a model that has its own. Received: inputs={inputs!r}")
        check_model(model, "made functional")
        return opening.opened(model)
    if inputs is None:
        raise ValueError(
            "`inputs` must say what a subclassed model is called on, such as `keras.Input((32, 32, 3))`. "
            f"Received: {type(model).__name__} {model.name!r} without"
        )
    if not all(keras.backend.is_keras_tensor(x) for x in keras.tree.flatten(inputs)):
        raise ValueError(f"`inputs` must be symbolic, such as `keras.Input((32, 32, 3))`. {received('inputs', inputs)}")
    if not model.built:
        model(inputs)
    return opening.opened(keras.Model(inputs, _called(model, inputs), name=model.name))


def check_opened(layer, what):
    """Raise ValueError if MPT layers are inside a layer other than a functional or Sequential model."""
    known = functional_graph(layer) is not None or isinstance(layer, PlainTwin) or holds_mpt(layer)
    if not known and _contains_mpt(layer):
        hint = ": see `keras_mpt.models.to_functional`" if _subclassed(layer) else ""
        raise ValueError(
            f"`model` must hold its MPT layers in functional or Sequential models to be {what}{hint}. "
            f"Received: an MPT layer within {type(layer).__name__} {layer.name!r}"
        )


def all_steps(path, operation, args, kwargs, step):
    """Return the outputs of a `TimeDistributed` MPT layer, called once by `step` on all time steps together.

    None for other layers, for an unknown number of steps, for inputs with a Keras mask, and for a quantizer that has
    other values for each step.
    """
    if not isinstance(operation, keras.layers.TimeDistributed) or not isinstance(operation.layer, PlainTwin):
        return None
    x = first_input(args, kwargs)
    functions = operation.layer.input_quantizer, getattr(operation.layer, "activation", None)
    alike = all(map(is_elementwise, functions))
    if None in x.shape[1:] or has_keras_mask(x) or not alike:
        return None
    together = ops.reshape(x, (-1, *x.shape[2:]))
    outputs = step(joined(path, operation.layer.name), operation.layer, (together,), {})
    return ops.reshape(outputs, (-1, x.shape[1], *outputs.shape[1:]))


class _Opening:
    """The layers to open, and the opened ones."""

    def __init__(self, only):
        if only is not None and not (isinstance(only, (list, tuple)) and all(isinstance(cls, type) for cls in only)):
            raise TypeError(f"`only` must be a list of classes of layers. Received: only={only!r}")
        self.only = None if only is None else tuple(only)
        self.models = {}  # by the ids of what they were made of

    def opens(self, layer):
        """Return whether to open a layer."""
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, PlainTwin) or not _subclassed(layer):
            return False
        return _contains_mpt(layer) if self.only is None else isinstance(layer, self.only)

    def opened(self, model):
        """Return a functional or Sequential model with all layers opened, also in nested models."""
        return rewrite(model, self.step, make=_made, changes=self.has_any) if self.has_any(model) else model

    def has_any(self, model):
        """Return whether a model has a layer to open."""
        return any(map(self.opens, layers_inside(model)))

    def step(self, path, operation, args, kwargs):
        if not self.opens(operation):
            return operation(*args, **kwargs)
        _check_unmasked(operation, args, kwargs)
        given = keras.tree.flatten((args, kwargs))
        tensors = [x for x in given if isinstance(x, keras.KerasTensor)]
        signature = str([(x.shape, x.dtype) if isinstance(x, keras.KerasTensor) else x for x in given])
        if id(operation) not in self.models:
            self.models[id(operation)] = operation, self.model(operation, args, kwargs), signature
        _, model, first = self.models[id(operation)]
        if signature != first:
            raise ValueError(
                "Layers must be called on the same shapes and arguments each time to be opened. "
                f"Received: {type(operation).__name__} {operation.name!r} called on {first} and {signature}"
            )
        return model(tensors[0] if len(tensors) == 1 else tensors)

    def model(self, layer, args, kwargs):
        """Return a layer, as it is called, as a functional model of the tensors among its arguments."""
        inputs = []

        def placeholder(x):
            if isinstance(x, keras.KerasTensor):
                inputs.append(x := keras.Input(batch_shape=x.shape, dtype=x.dtype))
            return x

        args, kwargs = keras.tree.map_structure(placeholder, (args, kwargs))
        outputs = _called(layer, *args, **kwargs)
        return self.opened(keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs, name=layer.name))


def _made(model, inputs, outputs):
    sequential = isinstance(model, keras.Sequential)  # is one no more, where a nested model takes a layer's place
    return (functional if sequential else of_same_class)(model, inputs, outputs)


def _subclassed(layer):
    """Return whether a layer's `call` says how those inside are connected, and is not Keras' own."""
    own = type(layer).__module__.split(".")[0] not in ("keras", "keras_mpt")
    return own and not isinstance(layer, (keras.Function, keras.Sequential))


def _contains_mpt(layer):
    return any(isinstance(inner, MPTLayer) for inner in layers_inside(layer))


def _called(layer, *args, **kwargs):
    """Return the outputs of a layer's `call` on symbolic tensors, which the layers inside record."""
    own = [v.path for v in own_variables(layer)]
    if own:
        raise ValueError(
            "Layers must not have variables of their own to be opened; put them in a layer inside that has no other. "
            f"Received: {type(layer).__name__} {layer.name!r} with {own}"
        )
    if layer.activity_regularizer is not None:
        raise ValueError(
            "Layers must have no activity regularizer of their own to be opened; give it to a layer inside. "
            f"Received: {type(layer).__name__} {layer.name!r} with {layer.activity_regularizer!r}"
        )
    parameters = inspect.signature(layer.call).parameters
    if "training" in parameters and len(args) <= list(parameters).index("training"):
        kwargs.setdefault("training", None)  # for the layers inside: as the model is called

    def cast(x):
        return autocast(layer, x) if isinstance(x, keras.KerasTensor) else x

    args, kwargs = keras.tree.map_structure(cast, (args, kwargs))
    return layer.call(*args, **kwargs)


def _check_unmasked(layer, *arguments):
    if any(map(has_keras_mask, keras.tree.flatten(arguments))):
        raise ValueError(
            "Layers must not get a Keras mask, such as `Masking` makes, to be opened. "
            f"Received: {type(layer).__name__} {layer.name!r}"
        )
