"""Quantizers for the inputs of a layer (`input_quantizer`) and for its frozen kernel (`kernel_quantizer`)."""

import types
import warnings

import keras

from keras_mpt.arguments import did_you_mean
from keras_mpt.quantizers import larq_objects
from keras_mpt.quantizers.activations import (
    ActivationQuantizer,
    ApproxSign,
    DoReFa,
    MagnitudeAwareSign,
    SteHeaviside,
    SteSign,
    SteTern,
    SwishSign,
)
from keras_mpt.quantizers.base import Quantizer
from keras_mpt.quantizers.kernels import Identity, KernelQuantizer, ScaledSign

__all__ = [
    "ActivationQuantizer",
    "ApproxSign",
    "DoReFa",
    "Identity",
    "KernelQuantizer",
    "MagnitudeAwareSign",
    "Quantizer",
    "ScaledSign",
    "SteHeaviside",
    "SteSign",
    "SteTern",
    "SwishSign",
    "get_activation",
    "get_kernel",
    "plain",
    "serialize",
]

_ACTIVATIONS = {
    "approx_sign": ApproxSign,
    "dorefa_quantizer": DoReFa,
    "magnitude_aware_sign": MagnitudeAwareSign,
    "ste_heaviside": SteHeaviside,
    "ste_sign": SteSign,
    "ste_tern": SteTern,
    "swish_sign": SwishSign,
}
_SIGNS = (ApproxSign, SteSign, SwishSign)
_KERNELS = {"identity": Identity, "scaled_sign": ScaledSign}


def get_activation(identifier):
    """Return the activation quantizer for an `input_quantizer` argument.

    Args:
        identifier: None (no quantizer), a name (`"approx_sign"`, or that of the class), a config dict from
            `serialize`, Keras or larq, a quantizer, a larq quantizer (TensorFlow backend), or another callable that is
            registered with `keras.saving.register_keras_serializable`.

    Returns:
        A callable of one tensor, or None.

    Raises:
        ValueError: The identifier is none of these, quantizes kernels, or is of larq on another backend.
        ImportError: It is of larq, which cannot be imported.

    Examples:
        >>> get_activation("ste_sign")
        SteSign(clip_value=1.0)
    """
    if identifier is None:
        return None
    if larq_objects.is_larq(identifier):
        return larq_objects.check(identifier)
    if larq_objects.is_larq_config(identifier):
        return larq_objects.deserialize(identifier)
    return _get("input_quantizer", identifier, ActivationQuantizer, _ACTIVATIONS)


def get_kernel(identifier):
    """Return the kernel quantizer for a `kernel_quantizer` argument.

    Args:
        identifier: None (the kept weights' own values, `Identity()`), a name (`"scaled_sign"`, `"identity"`, or that
            of the class), a config dict from `serialize` or Keras, a quantizer, or another callable of
            `(kernel, mask, kept)` that is registered with `keras.saving.register_keras_serializable`.

    Returns:
        A callable of `(kernel, mask, kept)`.

    Raises:
        ValueError: The identifier is none of these, or quantizes activations.

    Examples:
        >>> get_kernel("scaled_sign")
        ScaledSign(scale=None)
    """
    if identifier is None:
        return Identity()
    return _get("kernel_quantizer", identifier, KernelQuantizer, _KERNELS)


def is_activation_quantizer(obj):
    """Return whether an object is an activation quantizer, ours or larq's."""
    return isinstance(obj, ActivationQuantizer) or larq_objects.is_larq(obj)


def is_sign(quantizer):
    """Return whether an activation quantizer, ours or larq's, gives -1 where the input is < 0, else +1."""
    return type(larq_objects.ours(quantizer)) in _SIGNS


def is_per_channel(quantizer):
    """Return whether an activation quantizer, ours or larq's, has a scale for each channel, the last axis."""
    return isinstance(larq_objects.ours(quantizer), MagnitudeAwareSign)


def is_elementwise(quantizer):
    """Return whether no value of an activation quantizer, ours or larq's, depends on the others of its tensor."""
    quantizer = larq_objects.ours(quantizer)
    return not (isinstance(quantizer, MagnitudeAwareSign) or getattr(quantizer, "ternary_weight_networks", False))


def serialize(quantizer):
    """Return the config from which `get_activation` or `get_kernel` creates the same quantizer.

    Args:
        quantizer: A result of one of these.

    Returns:
        A JSON-able dict; None for None.
    """
    if larq_objects.is_larq(quantizer):
        return larq_objects.serialize(quantizer)
    return keras.saving.serialize_keras_object(quantizer)


def plain(quantizer):
    """Return the function of an activation quantizer without its gradient estimator, for deployment.

    Args:
        quantizer: A result of `get_activation`.

    Returns:
        For our quantizers, and larq's of the same names, a function in plain `keras.ops`, which takes symbolic tensors
        as well; None for None; other callables as they are.

    Raises:
        ValueError: This library does not have this larq quantizer, or a setting of it.
    """
    quantizer = larq_objects.ours(quantizer)
    return quantizer.forward if isinstance(quantizer, ActivationQuantizer) else quantizer


def _get(argument, identifier, base, table):
    hint = _misplaced(argument, identifier)
    found = None if hint else _find(argument, identifier, base, table)
    hint = hint or _misplaced(argument, found)
    if callable(found) and not hint:
        return found
    if isinstance(identifier, str) and not hint:
        hint = did_you_mean(identifier.lower(), table).lstrip()
    names = ", ".join(repr(name) for name in table)
    raise ValueError(
        f"`{argument}` must be None, one of {names}, a config dict, or a quantizer object. Received: {identifier!r}. "
        f"{hint}".rstrip()
    )


def _find(argument, identifier, base, table):
    """Return the object for an identifier, None for an unknown one; raise ValueError for known mistakes."""
    if isinstance(identifier, base):
        return identifier
    if isinstance(identifier, str):
        cls = _own_class(identifier, table)
        return cls and cls()
    if isinstance(identifier, dict):
        cls = _own_class(identifier, table)
        try:
            if cls:
                return cls.from_config(larq_objects.without_layer_settings(identifier.get("config") or {}))
            return keras.saving.deserialize_keras_object(identifier)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{argument}` must be a valid config dict. Received: {identifier!r}: {error}") from error
    if callable(identifier) and not _keras_can_restore(identifier):
        raise ValueError(
            f"`{argument}` must be a callable that Keras can save, that is one registered with "
            f"keras.saving.register_keras_serializable. Received: {identifier!r}"
        )
    return identifier


def _own_class(identifier, table):
    """Return the class in `table` for a name or config dict, or None."""
    name = identifier
    if isinstance(identifier, dict):
        name = str(identifier.get("class_name"))
        # Others have an "Identity" too. Keras tells classes apart by the registered name; larq's old format and dicts
        # written by hand have neither that nor a module.
        registered_name = identifier.get("registered_name")
        if registered_name != f"keras_mpt>{name}" and (registered_name or identifier.get("module")):
            return None
    return {**table, **{cls.__name__: cls for cls in table.values()}}.get(name)


def _misplaced(argument, identifier):
    """Return a hint if `identifier` is a class or belongs to the other argument, else an empty string."""
    if isinstance(identifier, type):
        return f"That is a class: pass an instance, {identifier.__name__}()."
    described = isinstance(identifier, (str, dict))
    if argument == "kernel_quantizer":
        larqs = larq_objects.is_larq(identifier) or larq_objects.is_larq_config(identifier)
        if larqs or isinstance(identifier, ActivationQuantizer) or described and _own_class(identifier, _ACTIVATIONS):
            return "That quantizes activations: pass it as input_quantizer."
    elif isinstance(identifier, KernelQuantizer) or described and _own_class(identifier, _KERNELS):
        return "That quantizes kernels: pass it as kernel_quantizer."
    return ""


def _keras_can_restore(obj):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns about lambdas, which are refused here anyway
        try:
            restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(obj))
        except Exception:  # whatever an object's own get_config or from_config raises: it cannot be restored
            return False
    # A function must come back as itself: an unregistered one called "tanh" would come back as Keras' own.
    return restored is obj if isinstance(obj, types.FunctionType) else type(restored) is type(obj)
