"""What callbacks need that change or read a layer before the first step."""


def check_built(callback, layers):
    """Raise ValueError if a layer is not built: on TensorFlow, `fit` builds a model at its first step only."""
    missing = [layer.name for layer in layers if not layer.built]
    if missing:
        raise ValueError(
            f"{type(callback).__name__} needs a built model: call it on data or `model.build(input_shape)` before "
            f"`fit`. Received: layers {missing} that are not built"
        )
