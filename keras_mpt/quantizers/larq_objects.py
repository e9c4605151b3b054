"""Adapter for larq's own quantizer objects, as `input_quantizer` on the TensorFlow backend.

A larq quantizer is a Keras 2 layer. It works inside a Keras 3 layer if `tf.keras` is Keras 2, that is, if
TF_USE_LEGACY_KERAS=1 was set before TensorFlow was imported. That variable also changes `tf.keras` in the user's own
code, so only the user should set it. larq is imported only to rebuild a saved object.
"""

import keras

from keras_mpt.quantizers import activations

_ARGUMENT = "input_quantizer"


def is_larq(obj):
    """Return whether `obj` is an object of larq, without importing larq."""
    return type(obj).__module__.split(".")[0] == "larq"


def is_larq_config(config):
    """Return whether `config` is a dict of a larq object, from `serialize` here or from larq's own."""
    return isinstance(config, dict) and str(config.get("module")).split(".")[0] == "larq"


def check(obj):
    """Return `obj` if it is a larq quantizer that can run here; raise ValueError otherwise."""
    _check_backend(obj)
    if not isinstance(obj, _import_larq(obj).quantizers.Quantizer):
        raise ValueError(f"`{_ARGUMENT}` must be a quantizer, where it is an object of larq's. Received: {obj!r}")
    return obj


def serialize(obj):
    """Return a dict from which `deserialize` creates the same larq object."""
    return {"module": "larq.quantizers", "class_name": type(obj).__name__, "config": obj.get_config()}


def deserialize(config):
    """Return the larq object that `serialize` here, or `larq.quantizers.serialize`, has described."""
    _check_backend(config)
    quantizers = _import_larq(config).quantizers
    cls = getattr(quantizers, str(config.get("class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, quantizers.Quantizer)):
        raise ValueError(f"`{_ARGUMENT}` must name a class of larq.quantizers, as it is of larq. Received: {config!r}")
    return cls.from_config(config.get("config") or {})


def to_ours(obj):
    """Return the quantizer of this library that equals the larq object `obj` in value and gradient.

    Raises:
        ValueError: This library has no such class or setting.
    """
    cls = getattr(activations, type(obj).__name__, None)
    if not (isinstance(cls, type) and issubclass(cls, activations.ActivationQuantizer)):
        raise ValueError(f"`{_ARGUMENT}` must be a larq quantizer that this library has too. Received: {obj!r}")
    return cls.from_config(without_layer_settings(obj.get_config()))


def ours(quantizer):
    """Return this library's quantizer for a larq object, other objects as they are; see `to_ours`."""
    return to_ours(quantizer) if is_larq(quantizer) else quantizer


def without_layer_settings(config):
    """Return a larq quantizer's config without the arguments of Keras layers."""
    return {key: value for key, value in config.items() if key not in ("name", "trainable", "dtype")}


def _check_backend(received):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"`{_ARGUMENT}` must be one of this library's own on the {keras.backend.backend()} backend, as larq's "
            f"objects run on TensorFlow only (try the same name, such as 'ste_sign'). Received: {received!r}"
        )


def _import_larq(received):
    try:
        import larq
    except Exception as error:  # where tf.keras is Keras 3, larq fails with an AttributeError or an ImportError
        raise ImportError(
            f"`{_ARGUMENT}` is an object of larq's, and larq cannot be imported here: {type(error).__name__}: {error}. "
            "Install larq and tf-keras, and set the environment variable TF_USE_LEGACY_KERAS=1 before TensorFlow is "
            f"imported, since larq needs tf.keras to be Keras 2. Received: {received!r}"
        ) from error
    return larq
