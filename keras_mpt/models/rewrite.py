"""The only walk over Keras' graph: replaces the calls of a model one by one."""

import collections
import contextlib
import functools
import inspect
import warnings

import keras

from keras_mpt import _keras
from keras_mpt._keras import functional_graph
from keras_mpt.models.copies import first_input
from keras_mpt.models.paths import joined


def run(model, inputs, step, path=""):
    """Run a functional or built Sequential model on values of any kind, and return the outputs.

    Args:
        model: The model. Its graph does not change.
        inputs: Values for the model's inputs: tensors, symbolic tensors, shapes, names, ...
        step: Called as `step(path, operation, args, kwargs)` for each call in the graph, arguments before results.
            A nested model is a single call. Returns the outputs of the call.
        path: Path of a nested model, a prefix of the paths that `step` gets.
    """

    def call(operation, *args, **kwargs):
        return step(joined(path, operation.name), operation, args, kwargs)

    return _keras.run_graph(functional_graph(model), inputs, call)


def rewrite(model, step, *, inputs=None, dissolve=False, make=None, changes=None):
    """Return a copy of a functional or built Sequential model in which `step` makes the calls.

    New names cannot collide with those of the model: layers keep their names, operations are renamed.

    Args:
        model: The model. It and its layers do not change, except for layers that `step` calls itself.
        step: Called as `step(path, operation, args, kwargs)` for each call of a layer or operation in the model and
            in nested models. Returns the symbolic outputs that replace those of the call. An operation that is not a
            layer is a copy already and may be called directly.
        inputs: List of symbolic inputs of the new model; None: new ones like those of `model`.
        dissolve: Whether layers of nested models become layers of the model. Otherwise, a nested model is rewritten
            once, and called as often as before.
        make: Called as `make(model, inputs, outputs)` to create the model and each nested model; default: a
            `keras.Model`.
        changes: Called as `changes(nested)`; returns whether to rewrite a nested model. Default: always.
    """
    make = make or functional
    copied = functools.cache(_keras.copied_operation)

    def call(path, operation, args, kwargs):
        if functional_graph(operation) is None:
            operation = operation if isinstance(operation, keras.layers.Layer) else copied(operation)
            return step(path, operation, args, kwargs)
        if dissolve:
            return run(operation, first_input(args, kwargs), call, path)
        return nested(operation, path)(*args, **kwargs)

    twins = {}

    def nested(inner, path):
        if id(inner) not in twins:
            twins[id(inner)] = rewritten(inner, path) if changes is None or changes(inner) else inner
        return twins[id(inner)]

    def rewritten(model, path, inputs=None):
        inputs = new_inputs(model) if inputs is None else inputs
        for operation in () if dissolve else functional_graph(model).operations:
            if functional_graph(operation) is not None:
                nested(operation, joined(path, operation.name))
        sequential = isinstance(model, keras.Sequential)  # the paths of its variables begin with its name
        with keras.name_scope(model.name) if sequential else contextlib.nullcontext():
            outputs = run(model, inputs, call, path)
        set_names_apart(outputs)
        return make(model, inputs, outputs)

    return rewritten(model, "", inputs)


def new_inputs(model):
    """Return new symbolic tensors like the inputs of a model."""
    sources = [_keras.call_of(tensor)[0] for tensor in model.inputs]
    return [type(source).from_config(source.get_config()).output for source in sources]


def functional(model, inputs, outputs):
    """Return a `keras.Model` with the name of `model` and the same structure of inputs."""
    return _model(keras.Model, model, inputs, outputs)


def _model(cls, model, inputs, outputs):
    with warnings.catch_warnings():  # Keras has warned when `model` was made
        warnings.filterwarnings("ignore", "When providing `inputs` as a dict", UserWarning)
        return cls(packed(model, inputs), outputs, name=model.name)


def packed(model, tensors):
    """Pack a list of tensors into the structure of a model's inputs."""
    return keras.tree.pack_sequence_as(functional_graph(model).input, tensors)


def of_same_class(model, inputs, outputs):
    """Return a model of the class of `model`, which `check_model` accepts."""
    if isinstance(model, keras.Sequential):
        layers = keras.Model(inputs, outputs).layers
        for layer in layers[1:]:  # a Sequential model calls them itself
            _keras.forget_last_call(layer)
        twin = type(model)(layers, name=model.name)
    else:
        twin = _model(type(model), model, inputs, outputs)
    twin.dtype_policy = model.dtype_policy
    return twin


def check_model(model, what):
    """Raise ValueError unless a model is built, and of a class that `of_same_class` can create.

    Args:
        model: The model.
        what: Purpose, for the error message, such as "converted".
    """
    received = f"Received: {type(model).__name__} {model.name!r}"
    sequential = isinstance(model, keras.Sequential)
    if not sequential and not (isinstance(model, keras.Model) and isinstance(model, keras.Function)):
        raise ValueError(
            f"`model` must be a functional or Sequential model to be {what}; of a subclassed model the order of the "
            "layers is not known. Where its `call` works on symbolic tensors, pass "
            "`keras_mpt.models.to_functional(model, keras.Input(shape))`; else rebuild it with the functional API, or "
            f"of layers of keras_mpt. {received}"
        )
    if getattr(model, "inputs", None) is None:
        raise ValueError(
            f"`model` must be built to be {what}: call it on data or `model.build(input_shape)` first. {received}"
        )
    made = type(model).__init__ is keras.Sequential.__init__ if sequential else _made_of_tensors(type(model))
    if not made:
        raise ValueError(
            f"`model` must have a class that is made of inputs and outputs, or of layers, to be {what}. Pass "
            f"`keras.Model(model.inputs, model.outputs)`, which has the same layers. {received}"
        )


def _made_of_tensors(cls):
    """Return whether a class of models takes inputs, outputs and a name, like `keras.Model`."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= {p.kind for p in parameters}:
        return True
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return named[1:] == ["inputs", "outputs", "name"]


def set_names_apart(outputs):
    """Rename the operations behind symbolic tensors where names collide; layers keep theirs."""
    operations, waiting = {}, collections.deque(keras.tree.flatten(outputs))
    seen = set()
    while waiting:
        tensor = waiting.popleft()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            operation, inputs = _keras.call_of(tensor)
            operations[id(operation)] = operation
            waiting.extend(inputs)
    taken = set()
    for operation in sorted(operations.values(), key=_rank):
        name, number = operation.name, 1
        while operation.name in taken:
            operation.name, number = f"{name}_{number}", number + 1
        taken.add(operation.name)


def _rank(operation):
    """Return the rank of an operation in keeping its name: inputs first, then layers, then the rest."""
    kinds = (keras.layers.InputLayer, keras.layers.Layer)
    return next((i for i, kind in enumerate(kinds) if isinstance(operation, kind)), len(kinds))
