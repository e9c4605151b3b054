"""MPT layers as plain Keras layers: with their kernels baked in, or fresh ones to train."""

import functools
from typing import Any

import keras

from keras_mpt import initializers, quantizers
from keras_mpt._keras import layers_inside
from keras_mpt.layers import MPTLayer
from keras_mpt.models.copies import autocast, copied, copy_state, copy_state_inside, first_input
from keras_mpt.models.functional import all_steps, check_opened
from keras_mpt.models.paths import check_functional, walk
from keras_mpt.models.rewrite import rewrite
from keras_mpt.ops import to_numpy


def strip(model: keras.Model) -> keras.Model:
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
    check_functional(model, "made plain")

    def call(layer, twin, args, kwargs):
        outputs = twin(*args, **kwargs)
        bake(layer, twin, to_numpy(layer.kernel)) if isinstance(layer, MPTLayer) else copy_state(layer, twin)
        return outputs

    plain = _without_mpt(model, call)
    for layer in layers_inside(plain):
        if _names_keras_mpt(keras.saving.serialize_keras_object(layer)):
            raise ValueError(
                "`model` must not use objects of keras_mpt as arguments of other layers, or as activations, to be made "
                f"plain. Received: layer {layer.name!r} with config {layer.get_config()}"
            )
    return plain


def bake(layer, twin, kernel):
    """Give the plain layer in the place of an MPT layer a kernel, the bias, and the state of the layers inside."""
    twin.kernel.assign(kernel)
    if layer.bias is not None:
        twin.bias.assign(to_numpy(layer.bias))
    copy_state_inside(layer, twin)


def dense_twin(model: keras.Model, kernel_initializer: Any = "he_normal") -> keras.Model:
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
        if inputs is not None or quantizers.is_activation_quantizer(activation):
            raise ValueError(
                "`model` must have float activations to have a trainable dense twin. "
                f"Received: layer {layer.name!r} with input_quantizer={inputs!r}, {activation=}"
            )
    check_functional(model, "made plain")

    def call(layer, twin, args, kwargs):
        outputs = twin(*args, **kwargs)
        if hasattr(layer, "adapt") or not layer.trainable:  # not learned, but taken from data
            copy_state(layer, twin)
        return outputs

    return _without_mpt(model, call, kernel_initializer)


def _without_mpt(model, call, kernel_initializer="zeros"):
    """Return the plain model, whose layers are called by `call(layer, twin, args, kwargs)`."""

    @functools.cache
    def plain(layer):
        check_opened(layer, "made plain")
        if isinstance(layer, MPTLayer):
            return layer.plain(initializers.get(kernel_initializer, "kernel_initializer"))
        return copied(layer)

    def step(path, operation, args, kwargs):
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        if (outputs := all_steps(path, operation, args, kwargs, step)) is not None:
            return outputs
        if quantizes(operation):
            return quantizers.plain(operation.activation)(autocast(operation, first_input(args, kwargs)))
        if isinstance(operation, MPTLayer):
            x = first_input(args, kwargs)
            x = x if operation.input_quantizer is None else autocast(operation, x)
            args, kwargs = (operation.prepare_plain(x),), {}
        return call(operation, plain(operation), args, kwargs)

    return rewrite(model, step)


def quantizes(layer):
    """Return whether a layer is an `Activation` that holds a quantizer of activations."""
    return isinstance(layer, keras.layers.Activation) and quantizers.is_activation_quantizer(layer.activation)


def _names_keras_mpt(config):
    """Return whether objects of keras_mpt are needed to make a layer of its config."""
    if isinstance(config, dict):
        in_module = str(config.get("module") or "").startswith("keras_mpt")
        return in_module or any(map(_names_keras_mpt, config.values()))
    if isinstance(config, (list, tuple)):
        return any(map(_names_keras_mpt, config))
    return isinstance(config, str) and config.startswith("keras_mpt>")
