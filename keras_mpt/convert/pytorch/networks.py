"""The published networks: names of their modules, and the corresponding networks of the zoo."""

import dataclasses
from functools import partial

import keras

from keras_mpt import zoo
from keras_mpt.convert.pytorch.reading import CheckpointError
from keras_mpt.layers import MPTDense, share
from keras_mpt.models import mpt_layers


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of the zoo.

    Attributes:
        modules: Function of `(binary, large)`: whether activations are binary, and whether it has ImageNet's stem.
            Returns a dict from the names of the layers with weights to their names in PyTorch.
        filters: Filters of the first convolution at width 1.
        archs: Names in the published code, as MPT-1/32 or Edge-Popup.
        binary_archs: Names in the published code, as MPT-1/1.
    """

    modules: object
    filters: int
    archs: tuple = ()
    binary_archs: tuple = ()


def _numbered(prefix, steps):
    """Name the steps of a `Sequential` by their positions; None is a step without weights."""
    return {step: f"{prefix}.{place}" for place, step in enumerate(steps) if step is not None}


def _conv(blocks, binary, large):
    steps, head = [], []
    for index in range(1, 2 * blocks + 3):
        dense = index > 2 * blocks
        pool = [None] if index % 2 == 0 and not dense else []
        name = f"dense{index}" if dense else f"conv{index}"
        step = [name, *pool, f"norm{index}", None] if binary else [name, None, *pool]
        (head if dense else steps).extend(step)
    return _numbered("convs", steps) | _numbered("linear", [*head, "logits"])


def _vgg_small(binary, large):
    steps = []
    for index in range(1, 7):
        steps += [f"conv{index}", *([None] if index % 2 == 0 else []), f"norm{index}", None]
    return _numbered("convs", steps) | {"logits": "linear.0"}


def _vgg19(binary, large):
    steps, index = [], 0
    for count in (2, 2, 4, 4, 4):
        for _ in range(count):
            index += 1
            steps += [f"conv{index}", f"norm{index}", None]
        steps.append(None)
    return _numbered("features", steps) | {"logits": "classifier"}


def _resnet(blocks, convolutions, projections, binary, large):
    """Return the names of a ResNet with this many convolutions per block; `projections`: stages whose first shortcut
    has weights."""
    names = {"conv1": "conv1", "norm1": "bn1", "logits": "fc"}
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            ours, theirs = f"stage{stage}_block{block}", f"layer{stage}.{block - 1}"
            for index in range(1, convolutions + 1):
                names |= {f"{ours}_conv{index}": f"{theirs}.conv{index}", f"{ours}_norm{index}": f"{theirs}.bn{index}"}
            if block == 1 and stage in projections:
                shortcut = f"{theirs}.downsample" if large else f"{theirs}.shortcut"
                names |= {f"{ours}_shortcut": f"{shortcut}.0", f"{ours}_shortcut_norm": f"{shortcut}.1"}
    return names


_34, _LATER, _ALL = (3, 4, 6, 3), (2, 3, 4), (1, 2, 3, 4)


ARCHITECTURES = {
    "conv2_mpt": Architecture(partial(_conv, 1), 64, ("Conv2",), ("Conv2_BinAct",)),
    "conv4_mpt": Architecture(partial(_conv, 2), 64, ("Conv4", "Conv4Wide"), ("Conv4_BinAct", "Conv4Wide_BinAct")),
    "conv6_mpt": Architecture(partial(_conv, 3), 64, ("Conv6", "Conv6Wide"), ("Conv6_BinAct", "Conv6Wide_BinAct")),
    "conv8_mpt": Architecture(partial(_conv, 4), 64, ("Conv8", "Conv8Wide"), ("Conv8_BinAct", "Conv8Wide_BinAct")),
    "vgg_small_mpt": Architecture(_vgg_small, 128, ("Wide_VGG_Small_132",), ("Wide_VGG_Small", "VGG_Small_bn_BinAct")),
    "vgg19_mpt": Architecture(_vgg19, 64),
    "resnet18_mpt": Architecture(
        partial(_resnet, (2, 2, 2, 2), 2, _LATER),
        64,
        ("cResNet18", "ResNet18"),
        ("cResNet18_BinAct", "ResNet18_BinAct"),
    ),
    "resnet20_mpt": Architecture(partial(_resnet, (3, 3, 3), 2, ()), 16),
    "resnet32_mpt": Architecture(partial(_resnet, (5, 5, 5), 2, ()), 16),
    "resnet34_mpt": Architecture(
        partial(_resnet, _34, 2, _LATER), 64, ("cResNet34", "ResNet34"), ("cResNet34_BinAct", "ResNet34_BinAct")
    ),
    "resnet50_mpt": Architecture(partial(_resnet, _34, 3, _ALL), 64, ("cResNet50", "ResNet50"), ("ResNet50_BinAct",)),
    "wide_resnet34_mpt": Architecture(
        partial(_resnet, _34, 2, _LATER), 64, ("WideResNet34_2",), ("WideResNet34_2_BinAct",)
    ),
    "wide_resnet50_mpt": Architecture(
        partial(_resnet, _34, 3, _ALL), 64, ("WideResNet50_2",), ("WideResNet50_2_BinAct",)
    ),
}


def modules_of(model):
    """Return the names in PyTorch of the layers of a network of the zoo, which is recognized by its name.

    Raises:
        ValueError: The network is not of the zoo.
    """
    if model.name not in ARCHITECTURES:
        raise ValueError(
            "`mapping` must have the name of each layer in PyTorch, since the model is not of the zoo, such as "
            f"{{'conv1': 'features.0'}}. Received: model {model.name!r}"
        )
    binary = any(layer.input_quantizer is not None for layer in mpt_layers(model))
    names = {layer.name: layer for layer in model.layers}
    large = "conv1" in names and names["conv1"].kernel_size == (7, 7)
    return ARCHITECTURES[model.name].modules(binary, large)


def build(name, checkpoint, layout, arguments):
    """Return the network of the zoo for a checkpoint, with the checkpoint's sizes.

    Args:
        name: Name of the function in `keras_mpt.zoo`, or None for the one that the checkpoint names.
        checkpoint: A `Checkpoint`.
        layout: A `Layout`.
        arguments: Arguments of the network, which take precedence over the checkpoint.

    Raises:
        ValueError: The checkpoint is of another network, or does not say of which.
    """
    name, binary = _which(name, checkpoint, arguments.get("input_quantizer"))
    architecture, arrays = ARCHITECTURES[name], checkpoint.arrays
    modules = architecture.modules(binary, False)  # ImageNet's differ in shortcuts only
    stem = _kernel(checkpoint, name, modules["conv1"])
    logits = _kernel(checkpoint, name, modules["logits"])
    side = 224 if stem.shape[2] == 7 else 32
    scales = [key for key in arrays if f"{key.removesuffix('running_mean')}weight" in arrays and "running_mean" in key]
    found = {
        "input_shape": (side, side, stem.shape[1]),
        "classes": logits.shape[0],
        "width": stem.shape[0] / architecture.filters,
        "batch_norm_affine": bool(scales),
        "float_stem": f"{modules['conv1']}.{layout.scores}" not in arrays,
        "input_quantizer": "approx_sign" if binary else None,
        "kernel_quantizer": "scaled_sign" if layout.scaled else None,
        "seed": 0,  # of weights that the checkpoint's replace
    }
    model = getattr(zoo, name)(**{**found, **arguments})
    scored = f"{modules['logits']}.{layout.scores}" in arrays
    bias = f"{modules['logits']}.bias" in arrays
    return model if scored and not bias else _with_logits(model, scored, bias)


def _which(name, checkpoint, input_quantizer):
    """Return the network's name and whether its activations are binary."""
    arch, found = checkpoint.arch, {}
    for known, architecture in ARCHITECTURES.items():
        found |= dict.fromkeys(architecture.archs, (known, False))
        found |= dict.fromkeys(architecture.binary_archs, (known, True))
    if name is not None and name not in ARCHITECTURES:
        raise ValueError(f"`model` must be a model or one of {sorted(ARCHITECTURES)}. Received: model={name!r}")
    if arch is None:
        if name is None:
            raise ValueError(
                f"`model` must be given: {checkpoint.name} does not say of which network it is. It is a model, or one "
                f"of {sorted(ARCHITECTURES)}."
            )
        return name, input_quantizer is not None
    if arch not in found:
        raise CheckpointError(
            f"{checkpoint.name} is of the network {arch!r}, which is not in the zoo (that has {sorted(found)}). Pass "
            "a model of it and `mapping`; or its state dict alone, if it is one of these under another name."
        )
    known, binary = found[arch]
    if name not in (None, known):
        raise CheckpointError(f"{checkpoint.name} is of the network {arch!r}, which is {known!r}, not {name!r}.")
    if input_quantizer is not None and not binary:
        raise CheckpointError(f"{checkpoint.name} is of the network {arch!r}, whose activations are not binary.")
    return known, binary


def _kernel(checkpoint, name, module):
    array = checkpoint.arrays.get(f"{module}.weight")
    if array is None or array.ndim != 4:
        received = "no such key" if array is None else f"shape {array.shape}"
        raise CheckpointError(
            f"{checkpoint.name} must have a kernel of 4 dimensions at '{module}.weight' to be of {name}. Received: "
            f"{received}; keys such as {sorted(checkpoint.arrays)[:4]}"
        )
    return array


def _with_logits(model, scored, bias):
    """Return the network with another classifier: a ticket or an ordinary layer, with or without a bias."""
    old = model.get_layer("logits")
    x = old.input
    if scored:
        logits = MPTDense.from_config({**old.get_config(), "use_bias": bias})
    else:
        logits = keras.layers.Dense(old.units, use_bias=bias, name=old.name)
    model = keras.Model(model.input, logits(x), name=model.name)
    share(model)  # without the other classifier
    return model
