"""Checks of a callback's model."""

from keras_mpt.models import mpt_layers


def check_trained(callback, model, layers):
    """Raise ValueError if `layers`, the layers that training changes, is empty."""
    if not layers:
        raise ValueError(
            f"{type(callback).__name__} needs a model with MPT layers that are trained. Received: {model.name!r} with "
            f"{len(mpt_layers(model))} MPT layers, of which none is trainable"
        )


def trained_kernels(model):
    """Return the kernels of a model's built MPT layers, as `Subnet`, whose scores are trained."""
    trained = {id(variable) for variable in model.trainable_variables}
    built = [layer for layer in mpt_layers(model) if layer.built]
    return [subnet for layer in built for subnet in layer.subnets if id(subnet.scores) in trained]


def trained_layers(model):
    """Return the MPT layers of a model with scores that are trained, or will be once the layer is built."""
    trained = {id(subnet.layer) for subnet in trained_kernels(model)}
    return [layer for layer in mpt_layers(model) if (id(layer) in trained if layer.built else layer.trainable)]


def check_built(callback, layers):
    """Raise ValueError if a layer is not built: on TensorFlow, `fit` builds a model at its first step only."""
    missing = [layer.name for layer in layers if not layer.built]
    if missing:
        raise ValueError(
            f"{type(callback).__name__} needs a built model: call it on data or `model.build(input_shape)` before "
            f"`fit`. Received: layers {missing} that are not built"
        )
