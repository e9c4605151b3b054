"""Copies of functional and Sequential models whose layers the caller makes."""

import inspect
import tempfile

import keras
from keras import ops


def check_model(model, what):
    """Raise ValueError unless `clone` can copy a model; `what` is to be done with it, such as "converted"."""
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


def clone(model, copy, call=None):
    """Return a model like a built functional or Sequential one, of the layers that `copy` makes; it is not compiled.

    The class is the model's, or `keras.Model` where that cannot be made of inputs and outputs. Not
    `keras.models.clone_model`: that compiles the copy as the model was, and keeps of inputs only shape, dtype and name.

    Args:
        model: The model, one that `check_model` accepts.
        copy: Called as `copy(layer)` for each of the model's own layers and operations (nested models are layers too),
            once for each call of the layer. Returns what takes its place.
        call: Called as `call(twin, *args, **kwargs)` instead of `twin(*args, **kwargs)`, if the model is functional.
    """
    sources = [tensor._keras_history.operation for tensor in model.inputs]
    inputs = [type(source).from_config(source.get_config()).output for source in sources]
    if isinstance(model, keras.Sequential):
        twin = type(model)([inputs[0], *map(copy, model.layers)], name=model.name)
    else:
        outputs = model._run_through_graph(inputs, operation_fn=copy, call_fn=call)
        cls = type(model) if _made_of_tensors(type(model)) else keras.Model
        twin = cls(keras.tree.pack_sequence_as(model.input, inputs), outputs, name=model.name)
    twin.dtype_policy = model.dtype_policy
    return twin


def _made_of_tensors(cls):
    """Return whether a class of models is made of inputs, outputs and a name, as `keras.Model` is."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= {p.kind for p in parameters}:
        return True
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return named[1:] == ["inputs", "outputs", "name"]


def copied(layer, **changes):
    """Return a layer or operation of the same config but for changes, its weights its own and yet to be copied."""
    config = {**layer.get_config(), **changes}
    if isinstance(layer, keras.layers.Lambda):
        return keras.layers.Lambda.from_config(config, safe_mode=False)  # the function is there already, in the model
    return type(layer).from_config(config)


def copy_state(source, target):
    """Give a layer the weights, and the vocabulary if it has one, of another with the same config but for the dtype."""
    weights = zip(source.get_weights(), target.weights, strict=True)
    target.set_weights([w if w.dtype.name == variable.dtype else w.astype(variable.dtype) for w, variable in weights])
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()
    if hasattr(source, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def autocast(layer, x):
    """Return what a layer is called on as its own `call` gets it: Keras casts floats to the layer's compute dtype."""
    is_float = keras.backend.is_float_dtype(x.dtype)
    return ops.cast(x, layer.compute_dtype) if is_float and layer.autocast and x.dtype != layer.compute_dtype else x


def first_input(args, kwargs):
    """Return what a layer is called on, whether by position or by name."""
    return args[0] if args else kwargs.get("inputs", next(iter(kwargs.values())))
