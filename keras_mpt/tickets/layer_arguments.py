"""Compare the arguments of layers that affect outputs with those in a ticket."""

import keras

from keras_mpt.layers import MPTLayer
from keras_mpt.tickets import config

# Names, precision, arguments for training only, and those that the ticket's entry of the layer has.
_NOT_COMPARED = {"name", "dtype", "trainable", "seed", "mask", "sparsity"}
_NOT_COMPARED |= {"momentum", "synchronized", "dropout", "recurrent_dropout"}
_NOT_COMPARED_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def check(layers, model_config):
    """Raise ValueError if a layer would compute other outputs from the same weights than the saved layer.

    Arguments that only one of the two has are not compared, nor are layers that the config lacks: they are inside
    custom layers.

    Args:
        layers: Pairs of path and layer.
        model_config: Config of the saved model, `Ticket.config`. Nothing is created from it.
    """
    saved = dict(_layers(model_config, None))
    for path, layer in layers:
        if path not in saved or not layer.weights:  # the state of a random generator is for training
            continue
        scaled = getattr(getattr(layer, "kernel_quantizer", None), "scale_count", 0)
        ours, theirs = config.plain(keras.saving.serialize_keras_object(layer)), saved[path]
        if ours["class_name"] != theirs["class_name"]:
            raise ValueError(
                f"layer {path!r} is of class {theirs['class_name']} in the file, {ours['class_name']} in the model"
            )
        ours, theirs = _compared(ours["config"], scaled), _compared(theirs["config"], scaled)
        for name in ours:
            if name in theirs and ours[name] != theirs[name]:
                raise ValueError(
                    f"layer {path!r} has {name}={theirs[name]!r} in the file, {name}={ours[name]!r} in the model"
                )


def check_drawn(layers, model_config, arguments):
    """Raise ValueError if frozen weights were drawn by other arguments than those of the layers.

    Args:
        layers: Pairs of path and layer.
        model_config: See `check`.
        arguments: Names of arguments, such as `"seed"` and `"kernel_initializer"`.
    """
    saved = dict(_layers(model_config, None))
    for path, layer in layers:
        if path not in saved or not isinstance(layer, MPTLayer):
            continue
        ours, theirs = config.plain(layer.get_config()), saved[path]["config"]
        for name in arguments:
            here, there = _named(ours.get(name)), _named(theirs.get(name))
            if here != there:
                raise ValueError(
                    f"`{name}` must be left out or that of the ticket, {there!r} for layer {path!r}. "
                    f"Received: {here!r} for it"
                )


def _named(value):
    """Return the class and config of a serialized object without the place of its class; other values as they are."""
    return {key: value.get(key) for key in ("class_name", "config")} if isinstance(value, dict) else value


def _layers(described, path):
    """Yield the path and config of each layer in a model's config, with the paths of `models.paths.walk`."""
    if isinstance(described, list):
        for part in described:
            yield from _layers(part, path)
    elif isinstance(described, dict):
        arguments = described.get("config")
        if "class_name" in described and isinstance(arguments, dict) and isinstance(arguments.get("name"), str):
            if path is None:
                path = ""
            else:
                path = f"{path}/{arguments['name']}" if path else arguments["name"]
                yield path, described
        for part in described.values():
            yield from _layers(part, path)


def _compared(arguments, scaled):
    compared = {
        name: value
        for name, value in arguments.items()
        if name not in _NOT_COMPARED and not name.endswith(_NOT_COMPARED_ENDINGS)
    }
    if scaled and isinstance(quantizer := compared.pop("kernel_quantizer", None), dict):
        compared["kernel_quantizer"] = quantizer.get("class_name")  # the ticket's entry has the scale
    return compared
