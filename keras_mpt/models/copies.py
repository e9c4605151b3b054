"""Copies of layers and their state."""

import tempfile

import keras
from keras import layers, ops

from keras_mpt import _keras
from keras_mpt._keras import layers_inside
from keras_mpt.layers import MPTComposite
from keras_mpt.layers.twins import PlainTwin

_INSIDE = {
    layers.TimeDistributed: ("layer",),
    layers.Bidirectional: ("forward_layer", "backward_layer"),
    layers.RNN: ("cell",),
}


def copied(layer, **changes):
    """Return a layer with the same config, except for changes, and without the weights."""
    if isinstance(layer, layers.Lambda):  # its function is there already, in the model
        return layers.Lambda.from_config({**layer.get_config(), **changes}, safe_mode=False)
    cls = type(layer)
    try:
        return cls.from_config({**layer.get_config(), **changes})
    except (AttributeError, NotImplementedError, TypeError) as error:
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"Layer {layer.name!r} of class {cls.__name__} must be made again from its config to be copied: give the "
            "class a `get_config` that returns the arguments of `__init__`, which takes `name` and `dtype` as every "
            "layer does. Or let the layers inside take its place, where it has no weights of its own: "
            f"`keras_mpt.models.to_functional(model, only=[{cls.__name__}])`. Received: {reason}"
        ) from error


def inside_wrapper(layer):
    """Return the layers inside a wrapper of Keras, such as `Bidirectional`; an empty tuple for other layers."""
    if type(layer) is layers.StackedRNNCells:
        return tuple(layer.cells)
    return tuple(getattr(layer, name) for name in _INSIDE.get(type(layer), ()))


def holds_mpt(layer):
    """Return whether a layer is a wrapper of Keras, such as `Bidirectional`, of MPT layers."""
    return any(isinstance(inner, PlainTwin) or holds_mpt(inner) for inner in inside_wrapper(layer))


def wrapped(layer, twin_of, **changes):
    """Return an unbuilt wrapper with the same config, except for changes, around the twins of the layers inside.

    Args:
        layer: A wrapper, see `inside_wrapper`.
        twin_of: Called with each layer inside; returns the twin.
        **changes: Changes to the config.
    """
    if type(layer) is layers.StackedRNNCells:
        config = {**layer.get_config(), **changes}
        del config["cells"]
        return layers.StackedRNNCells([twin_of(cell) for cell in layer.cells], **config)
    twin = copied(layer, **changes)
    for name in _INSIDE[type(layer)]:
        _keras.replace_layer(twin, name, twin_of(getattr(layer, name)))
    return twin


def pairs_inside(layer, twin):
    """Return pairs of the direct inner layers of a layer and of its MPT or plain twin.

    For attention, only those with weights.
    """
    composite = next((each for each in (layer, twin) if isinstance(each, MPTComposite)), None)
    if composite is not None:
        return [(getattr(layer, name), getattr(twin, name)) for name in composite._inside()]
    if inside_wrapper(layer):
        return list(zip(inside_wrapper(layer), inside_wrapper(twin), strict=True))
    return list(zip(layers_inside(layer, False), layers_inside(twin, False), strict=True))


def copy_state(source, target):
    """Copy weights, and the vocabulary if there is one, to a layer with the same config, except for the dtype."""
    _build_inside(source, target)
    weights = zip(source.get_weights(), target.weights, strict=True)
    target.set_weights([w if w.dtype.name == variable.dtype else w.astype(variable.dtype) for w, variable in weights])
    if isinstance(target, layers.Normalization):
        target.finalize_state()
    if hasattr(source, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def copy_state_inside(source, target):
    """Copy the state of the inner layers, such as an activation with weights, to those of another layer."""
    if not isinstance(source, MPTComposite) and not isinstance(target, MPTComposite):
        _build_inside(source, target)
    for inner, twin in pairs_inside(source, target):
        if isinstance(inner, PlainTwin) != isinstance(twin, PlainTwin):
            copy_state_inside(inner, twin)
        elif inner.built:
            copy_state(inner, twin)


def _build_inside(source, target):
    """Build the inner layers that are built in the other layer: Keras omits this where it knows the shapes anyway."""
    for inner, twin in zip(layers_inside(source), layers_inside(target), strict=False):
        if inner.built and not twin.built:
            twin.build_from_config(inner.get_build_config())


def autocast(layer, x):
    """Return the input of a layer as its `call` gets it: Keras casts floats to the layer's compute dtype."""
    is_float = keras.backend.is_float_dtype(x.dtype)
    return ops.cast(x, layer.compute_dtype) if is_float and layer.autocast and x.dtype != layer.compute_dtype else x


def first_input(args, kwargs):
    """Return the first input of a call, whether given by position or by name."""
    return args[0] if args else kwargs.get("inputs", next(iter(kwargs.values())))
