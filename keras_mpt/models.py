"""Working with whole models: make them of MPT layers, find these, strip a model to plain Keras, a dense twin."""

import keras

from keras_mpt import initializers
from keras_mpt.cloning import autocast, clone, copied, copy_state, first_input
from keras_mpt.from_keras import to_mpt
from keras_mpt.functional import check_opened, to_functional
from keras_mpt.jackpots import magnitude_sparsity, to_jackpot
from keras_mpt.layers import MPTLayer
from keras_mpt.quantizers import ActivationQuantizer
from keras_mpt.summaries import Summary, summary
from keras_mpt.traversal import check_functional, walk

__all__ = [
    "Summary",
    "dense_twin",
    "magnitude_sparsity",
    "mpt_layers",
    "mpt_layers_by_path",
    "strip",
    "summary",
    "to_functional",
    "to_jackpot",
    "to_mpt",
]


def mpt_layers(model):
    """Return the MPT layers of a model, nested ones included, each once, in the order of the model.

    Args:
        model: A Keras model, built or not.

    Returns:
        List of layers; empty if there are none.
    """
    return [layer for _, layer in walk(model) if isinstance(layer, MPTLayer)]


def mpt_layers_by_path(model):
    """Return the MPT layers of a model by their paths, in the order of the model: `"conv1"`, or `"block/conv1"` in a
    nested model. These are the paths of tickets.

    Args:
        model: A Keras model, built or not.

    Returns:
        Dict from paths to layers; empty if there are none.

    Raises:
        ValueError: Two layers have the same path.
    """
    found = {}
    for path, layer in walk(model):
        if isinstance(layer, MPTLayer):
            if path in found:
                raise ValueError(f"`model` must have layers with names of their own. Received: two {path!r}")
            found[path] = layer
    return found


def strip(model):
    """Return a plain Keras model with the kernels baked in and the same outputs.

    MPT layers become Keras' own with the effective kernel (zeros where weights were dropped) as an ordinary weight;
    input quantizers and padding with other values than zero become ordinary Keras operations. What `strip` returns
    saves and loads where keras_mpt is not installed. Batch normalization and all other layers keep their weights.
    Straight-through gradients are gone: the stripped model is for inference.

    Args:
        model: A built functional or Sequential model; nested ones and shared layers are fine.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: `model` is subclassed or not built, an MPT layer hides in a custom layer or has a `call` of its own,
            or another layer has an object of keras_mpt as an argument.

    Example:

    >>> keras_mpt.models.strip(model).save("plain.keras")
    """
    return _without_mpt(model, baked=True)


def dense_twin(model, kernel_initializer="he_normal"):
    """Return the plain Keras network of the same shape with fresh trainable kernels, to compare a ticket with.

    Args:
        model: A functional or Sequential model without activation quantizers.
        kernel_initializer: Of the kernels: one of Keras, or of `keras_mpt.initializers`.

    Returns:
        A functional `keras.Model` whose former MPT layers are trained in the ordinary way.

    Raises:
        ValueError: `model` is subclassed, or quantizes its activations, which a plain layer cannot train, or
            `kernel_initializer` is none.
    """
    for _, layer in walk(model):
        inputs = layer.input_quantizer if isinstance(layer, MPTLayer) else None
        activation = getattr(layer, "activation", None)
        if inputs is not None or isinstance(activation, ActivationQuantizer):
            raise ValueError(
                "`model` must have float activations to have a trainable dense twin. "
                f"Received: layer {layer.name!r} with input_quantizer={inputs!r}, {activation=}"
            )
    return _without_mpt(model, baked=False, kernel_initializer=kernel_initializer)


def _without_mpt(model, baked, kernel_initializer="zeros", pairs=None):
    """Return the plain model; `pairs` are `(layer, twin)` of the models around it, with which it may share layers."""
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    check_functional(model, "made plain")
    pairs = {} if pairs is None else pairs

    def plain(layer):
        if id(layer) not in pairs:
            pairs[id(layer)] = pair = layer, plain_twin(layer)
            pairs[id(pair[1])] = pair
        return pairs[id(layer)][1]

    def plain_twin(layer):
        if isinstance(layer, keras.Model):
            return _without_mpt(layer, baked, kernel_initializer, pairs)
        if isinstance(layer, keras.layers.Layer):
            check_opened(layer, "made plain")
        if not isinstance(layer, MPTLayer):
            return copied(layer)
        return layer.plain(initializers.get(kernel_initializer, "kernel_initializer"))

    def call(twin, *args, **kwargs):
        layer, _ = pairs[id(twin)]
        if isinstance(layer, keras.layers.Activation) and isinstance(layer.activation, ActivationQuantizer):
            return layer.activation.forward(autocast(layer, first_input(args, kwargs)))
        if isinstance(layer, MPTLayer):
            x = first_input(args, kwargs)
            args, kwargs = (layer.prepare_plain(x if layer.input_quantizer is None else autocast(layer, x)),), {}
        outputs = twin(*args, **kwargs)
        if baked and isinstance(layer, MPTLayer):
            layer.fill_plain(twin)
        elif _keeps_state(layer, baked):
            copy_state(layer, twin)
        return outputs

    twin = clone(model, plain, call)
    for layer in twin._flatten_layers(include_self=False):
        if baked and _names_keras_mpt(keras.saving.serialize_keras_object(layer)):
            raise ValueError(
                "`model` must not use objects of keras_mpt as arguments of other layers, or as activations, to be made "
                f"plain. Received: layer {layer.name!r} with config {layer.get_config()}"
            )
    return twin


def _keeps_state(layer, baked):
    """Return whether a twin gets the layer's state: without kernels baked in, only what was adapted to data."""
    if isinstance(layer, keras.Model) or not isinstance(layer, keras.layers.Layer):
        return False
    return not isinstance(layer, MPTLayer) and (baked or hasattr(layer, "adapt"))


def _names_keras_mpt(config):
    """Return whether objects of keras_mpt are needed to make a layer of its config."""
    if isinstance(config, dict):
        in_module = str(config.get("module") or "").startswith("keras_mpt")
        return in_module or any(map(_names_keras_mpt, config.values()))
    if isinstance(config, (list, tuple)):
        return any(map(_names_keras_mpt, config))
    return isinstance(config, str) and config.startswith("keras_mpt>")
