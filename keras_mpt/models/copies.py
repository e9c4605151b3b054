"""Copies of layers and their state."""

import tempfile

import keras
from keras import ops

from keras_mpt._keras import layers_inside


def copied(layer, **changes):
    """Return a layer of the same config but for changes, its weights its own and yet to be copied."""
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


def copy_state_inside(source, target):
    """Give the layers inside a layer, such as an activation with weights, the state of those inside another."""
    for inner, twin in zip(layers_inside(source, False), layers_inside(target, False), strict=True):
        copy_state(inner, twin)


def autocast(layer, x):
    """Return what a layer is called on as its own `call` gets it: Keras casts floats to the layer's compute dtype."""
    is_float = keras.backend.is_float_dtype(x.dtype)
    return ops.cast(x, layer.compute_dtype) if is_float and layer.autocast and x.dtype != layer.compute_dtype else x


def first_input(args, kwargs):
    """Return what a layer is called on, whether by position or by name."""
    return args[0] if args else kwargs.get("inputs", next(iter(kwargs.values())))
