"""What decides a layer's outputs besides its weights: the settings of a model, compared with those in a ticket."""

import keras

from keras_mpt.tickets import config

# Names, precision, what only training uses, and what the ticket's entry of the layer says itself.
_NOT_COMPARED = {"name", "dtype", "trainable", "seed", "mask", "sparsity"}
_NOT_COMPARED |= {"momentum", "synchronized", "dropout", "recurrent_dropout"}
_NOT_COMPARED_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def check(layers, model_config):
    """Raise ValueError if a layer would compute something else of the same weights than it did when it was saved.

    Settings that one of the two does not know are not compared, nor are layers that the config does not show, for they
    are inside a layer of somebody's own.

    Args:
        layers: Pairs of path and layer.
        model_config: Of the model that was saved, `Ticket.config`. Nothing is made of it.
    """
    saved = dict(_layers(model_config, None))
    for path, layer in layers:
        if path not in saved or not layer.weights:  # a random generator's state is none: it is there for training
            continue
        ours, theirs = config.plain(keras.saving.serialize_keras_object(layer)), saved[path]
        if ours["class_name"] != theirs["class_name"]:
            raise ValueError(
                f"layer {path!r} is of class {theirs['class_name']} in the file, {ours['class_name']} in the model"
            )
        ours, theirs = _compared(ours["config"]), _compared(theirs["config"])
        for name in ours:
            if name in theirs and ours[name] != theirs[name]:
                raise ValueError(
                    f"layer {path!r} has {name}={theirs[name]!r} in the file, {name}={ours[name]!r} in the model"
                )


def _layers(described, path):
    """Yield path and description of the layers in a config, as `traversal.walk` names them; the model has none."""
    if isinstance(described, list):
        for part in described:
            yield from _layers(part, path)
    elif isinstance(described, dict):
        settings = described.get("config")
        if "class_name" in described and isinstance(settings, dict) and isinstance(settings.get("name"), str):
            if path is None:
                path = ""
            else:
                path = f"{path}/{settings['name']}" if path else settings["name"]
                yield path, described
        for part in described.values():
            yield from _layers(part, path)


def _compared(settings):
    compared = {
        name: value
        for name, value in settings.items()
        if name not in _NOT_COMPARED and not name.endswith(_NOT_COMPARED_ENDINGS)
    }
    quantizer = compared.get("kernel_quantizer")
    if isinstance(quantizer, dict) and quantizer.get("class_name") == "ScaledSign":
        del compared["kernel_quantizer"]  # alpha comes from the ticket's entry, and so does whether there is one
    return compared
