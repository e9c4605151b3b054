"""MPT layers as plain Keras layers, with baked-in kernels or with fresh ones to train."""

import functools
from typing import Any

import keras

from keras_mpt import initializers, quantizers
from keras_mpt._keras import has_keras_mask, layers_inside
from keras_mpt.layers import MPTLayer
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.models.copies import (
    autocast,
    copied,
    copy_state,
    copy_state_inside,
    first_input,
    holds_mpt,
    inside_wrapper,
    pairs_inside,
    wrapped,
)
from keras_mpt.models.functional import all_steps, check_opened
from keras_mpt.models.paths import check_functional, walk
from keras_mpt.models.rewrite import rewrite


def strip(model: keras.Model) -> keras.Model:
    """Return a plain Keras model with the same outputs, which saves and loads without keras_mpt.

    MPT layers become Keras' own layers with the effective kernel (zero where a weight was removed) as an ordinary
    weight. Input quantizers and padding with values other than zero become Keras operations. All other layers, batch
    normalization included, keep their weights. The stripped model is for inference: it has no straight-through
    gradients.

    Args:
        model: A built functional or Sequential model. It may have nested models and shared layers.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: `model` is subclassed or not built, an MPT layer overrides `call` or is inside a custom layer,
            another layer has an object of keras_mpt as an argument, or a quantizer such as `MagnitudeAwareSign`, which
            has a scale for each tensor, gets time steps one by one. Or layers in wrappers of Keras pad with values or
            quantize in different ways, or a recurrent layer quantizes inputs that have a Keras mask.

    Examples:
        >>> keras_mpt.models.strip(model).save("plain.keras")
    """
    check_functional(model, "made plain")

    def call(layer, twin, args, kwargs):
        outputs = twin(*args, **kwargs)
        bake(layer, twin)
        return outputs

    plain = _without_mpt(model, call)
    for layer in layers_inside(plain):
        if _names_keras_mpt(keras.saving.serialize_keras_object(layer)):
            raise ValueError(
                "`model` must not use objects of keras_mpt as arguments of other layers, or as activations, to be made "
                f"plain. Received: layer {layer.name!r} with config {layer.get_config()}"
            )
    return plain


def bake(layer, twin):
    """Copy the effective kernels and all other state of a layer to its plain twin."""
    if isinstance(layer, PlainTwin):
        layer.fill_plain(twin)
        copy_state_inside(layer, twin)
    elif holds_mpt(layer):
        for pair in pairs_inside(layer, twin):
            bake(*pair)
    else:
        copy_state(layer, twin)


def plain_twin(layer, make, **changes):
    """Return the unbuilt plain layer that replaces a layer.

    Args:
        layer: An MPT layer, a wrapper of Keras around MPT layers, or any other layer.
        make: Called with each MPT layer; returns the plain one.
        **changes: Changes to the configs of all other layers.
    """
    if isinstance(layer, PlainTwin):
        return make(layer)
    if holds_mpt(layer):
        return wrapped(layer, lambda inner: plain_twin(inner, make, **changes), **changes)
    return copied(layer, **changes)


def input_quantizer(layer):
    """Return the input quantizer of an MPT layer, or of a wrapper of Keras around MPT layers; None without.

    Raises:
        ValueError: The layers in a wrapper do more to their inputs than a single quantizer could.
    """
    if isinstance(layer, PlainTwin):
        return layer.input_quantizer
    found = [input_quantizer(inner) for inner in inside_wrapper(layer)]
    differ = any(quantizers.serialize(quantizer) != quantizers.serialize(found[0]) for quantizer in found)
    between = isinstance(layer, keras.layers.StackedRNNCells) and any(quantizer is not None for quantizer in found)
    if differ or between or any(getattr(inner, "pad_values", 0) for inner in inside_wrapper(layer)):
        raise ValueError(
            "`model` must not have layers in wrappers of Keras that pad their inputs with values, or quantize them in "
            f"different ways or after one another, to become plain. Received: {type(layer).__name__} {layer.name!r}"
        )
    return found[0] if found else None


def prepared_call(layer, args, kwargs, quantize=quantizers.plain):
    """Return the arguments for the plain twin of a layer, with the inputs quantized and padded.

    Args:
        layer: An MPT layer, a wrapper of Keras around MPT layers, or any other layer.
        args, kwargs: Arguments of the call of `layer`.
        quantize: Called with a quantizer; returns a function that applies it in plain Keras operations.
    """
    if not isinstance(layer, PlainTwin) and not holds_mpt(layer):
        return args, kwargs
    quantizer = input_quantizer(layer)
    x = first_input(args, kwargs)
    if isinstance(layer, MPTLayer):
        x = x if quantizer is None else autocast(layer, x)
        return (layer._prepare(x, None if quantizer is None else quantize(quantizer)),), {}
    if quantizer is None:
        return args, kwargs
    if has_keras_mask(x):
        raise ValueError(
            "`model` must not quantize what has a Keras mask, such as `Masking` makes, to become plain. Received: "
            f"{type(layer).__name__} {layer.name!r} with input_quantizer={quantizer!r}"
        )
    if not quantizers.is_elementwise(quantizer):
        raise ValueError(
            "`model` must not quantize each time step with numbers that follow from all its values, to become plain. "
            f"Received: {type(layer).__name__} {layer.name!r} with input_quantizer={quantizer!r}"
        )
    x = quantize(quantizer)(autocast(layer, x))
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): x}


def dense_twin(model: keras.Model, kernel_initializer: Any = "he_normal") -> keras.Model:
    """Return a plain Keras network of the same shape with fresh trainable kernels, as a baseline for a ticket.

    Args:
        model: A built functional or Sequential model without activation quantizers.
        kernel_initializer: Initializer of the kernels, of Keras or of `keras_mpt.initializers`.

    Returns:
        A functional `keras.Model` without MPT layers, not compiled.

    Raises:
        ValueError: `model` is subclassed or not built, an MPT layer overrides `call` or is inside a custom layer, there
            is an activation quantizer, which a plain layer cannot train, or `kernel_initializer` is not an initializer.

    Examples:
        >>> dense = keras_mpt.models.dense_twin(model)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> dense.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    """
    check_functional(model, "made plain")
    for _, layer in walk(model):
        inputs = layer.input_quantizer if isinstance(layer, PlainTwin) else None
        activation = getattr(layer, "activation", None)
        if inputs is not None or quantizers.is_activation_quantizer(activation):
            raise ValueError(
                "`model` must have float activations to have a trainable dense twin. "
                f"Received: layer {layer.name!r} with input_quantizer={inputs!r}, {activation=}"
            )

    def call(layer, twin, args, kwargs):
        outputs = twin(*args, **kwargs)
        fresh = isinstance(layer, PlainTwin) or holds_mpt(layer)
        if not fresh and (hasattr(layer, "adapt") or not layer.trainable):  # not learned, but taken from data
            copy_state(layer, twin)
        return outputs

    return _without_mpt(model, call, kernel_initializer)


def _without_mpt(model, call, kernel_initializer="zeros"):
    """Return the plain model; `call(layer, twin, args, kwargs)` calls its layers."""
    initializer = initializers.get(kernel_initializer, "kernel_initializer")

    @functools.cache
    def plain(layer):
        check_opened(layer, "made plain")
        return plain_twin(layer, lambda inner: inner.plain(initializer))

    def step(path, operation, args, kwargs):
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        if (outputs := all_steps(path, operation, args, kwargs, step)) is not None:
            return outputs
        if quantizes(operation):
            return quantizers.plain(operation.activation)(autocast(operation, first_input(args, kwargs)))
        return call(operation, plain(operation), *prepared_call(operation, args, kwargs))

    return rewrite(model, step)


def quantizes(layer):
    """Return whether a layer is an `Activation` with an activation quantizer."""
    return isinstance(layer, keras.layers.Activation) and quantizers.is_activation_quantizer(layer.activation)


def _names_keras_mpt(config):
    """Return whether a layer's config names an object of keras_mpt."""
    if isinstance(config, dict):
        in_module = str(config.get("module") or "").startswith("keras_mpt")
        return in_module or any(map(_names_keras_mpt, config.values()))
    if isinstance(config, (list, tuple)):
        return any(map(_names_keras_mpt, config))
    return isinstance(config, str) and config.startswith("keras_mpt>")
