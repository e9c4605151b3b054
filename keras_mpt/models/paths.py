"""The layers of a model and their paths."""

import keras

from keras_mpt._keras import functional_graph, layers_inside
from keras_mpt.layers import MPTLayer


def walk(layer, into=None):
    """Yield `(path, layer)` for all layers inside a model, each once and before its inner layers.

    The path is the layer's name, `"model/layer"` in a nested model.

    Args:
        layer: A model, or a layer with inner layers.
        into: Called as `into(layer)`; returns whether to walk the inner layers of a layer. Default: always.

    Raises:
        TypeError: `layer` is not a Keras model or layer.
    """
    check_is_model(layer)
    yield from _walk(layer, "", into, set())


def mpt_layers(model: keras.layers.Layer) -> list[MPTLayer]:
    """Return the MPT layers of a model and of its nested models, each once, in order.

    Args:
        model: A Keras model, built or not.

    Returns:
        List of layers; empty if there are none.

    Raises:
        TypeError: `model` is not a Keras model or layer.
    """
    return [layer for _, layer in walk(model) if isinstance(layer, MPTLayer)]


def mpt_layers_by_path(model: keras.layers.Layer) -> dict[str, MPTLayer]:
    """Return the MPT layers of a model by path, in order.

    Tickets use the same paths: `"conv1"`, or `"block/conv1"` in a nested model.

    Args:
        model: A Keras model, built or not.

    Returns:
        Dict from paths to layers; empty if there are none.

    Raises:
        ValueError: Two layers have the same path.
        TypeError: `model` is not a Keras model or layer.
    """
    found = {}
    for path, layer in walk(model):
        if isinstance(layer, MPTLayer):
            if path in found:
                raise ValueError(f"`model` must have layers with names of their own. Received: two {path!r}")
            found[path] = layer
    return found


def check_is_model(model, argument="model"):
    """Raise TypeError unless an argument is a Keras model or layer."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"`{argument}` must be a Keras model; `keras_mpt.load_ticket` makes one of a file. Received: {model!r}"
        )


def check_not_quantized(model, what):
    """Raise ValueError if Keras has quantized a layer, whose int8 arithmetic only Keras knows."""
    for path, layer in walk(model):
        if getattr(layer, "quantization_mode", None) and not isinstance(layer, keras.Model):
            raise ValueError(
                f"`model` must not have layers that Keras has quantized to be {what}: take the model from before "
                f"`quantize`. Received: layer {path!r} of class {type(layer).__name__} with mode "
                f"{layer.quantization_mode!r}"
            )


def check_functional(model, what):
    """Raise ValueError unless a model is built and functional or Sequential. `what`: the purpose, such as "saved"."""
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"`model` must be a built functional or Sequential model to be {what}: call it on data or `build` it "
            f"first. Received: Sequential {model.name!r}"
        )
    if not isinstance(model, keras.Model) or functional_graph(model) is None or not model.built:
        received = f"{type(model).__name__} {getattr(model, 'name', model)!r}"
        raise ValueError(
            f"`model` must be a built functional or Sequential model to be {what}; of a subclassed model the order of "
            f"the layers is not known, see `keras_mpt.models.to_functional`. Received: {received}"
        )


def own_variables(layer):
    """Return the variables of a layer without those of its inner layers."""
    inner = {id(v) for child in layers_inside(layer) for v in child.variables}
    return [v for v in layer.variables if id(v) not in inner]


def joined(path, name):
    """Return the path of a layer with this name inside the layer at `path`, "" for the model itself."""
    return f"{path}/{name}" if path else name


def _walk(layer, path, into, seen):
    for child in layers_inside(layer, recursive=False):
        if id(child) not in seen:
            seen.add(id(child))
            name = joined(path, child.name)
            yield name, child
            if into is None or into(child):
                yield from _walk(child, name, into, seen)
