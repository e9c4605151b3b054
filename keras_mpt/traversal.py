"""The layers inside a model, and their paths."""

import keras


def walk(layer, into=keras.layers.Layer):
    """Yield `(path, layer)` of all layers inside a model, each once, in the order of the model, a layer before those
    inside it. The path is the layer's name, in a nested model `"model/layer"`.

    Args:
        layer: A model, or a layer that holds others.
        into: Class of the layers whose insides are walked.

    Raises:
        TypeError: `layer` is not a Keras model or layer.
    """
    check_is_model(layer)
    yield from _walk(layer, "", into, set())


def check_is_model(model):
    """Raise TypeError for what is no Keras model or layer, such as a file."""
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"`model` must be a Keras model; `keras_mpt.load_ticket` makes one of a file. Received: {model!r}"
        )


def functional_graph(layer):
    """Return the graph of a functional or built Sequential model, None for others."""
    graph = getattr(layer, "_functional", layer)
    return graph if isinstance(graph, keras.Function) else None


def check_functional(model, what):
    """Raise ValueError unless a model is built and functional or Sequential; `what` is to be done, such as "saved"."""
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
    """Return the variables of a layer that are not those of a layer inside."""
    inner = {id(v) for child in layer._flatten_layers(include_self=False) for v in child.variables}
    return [v for v in layer.variables if id(v) not in inner]


def _walk(layer, path, into, seen):
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if id(child) not in seen:
            seen.add(id(child))
            name = f"{path}/{child.name}" if path else child.name
            yield name, child
            if isinstance(child, into):
                yield from _walk(child, name, into, seen)
