"""The networks of the papers as multi-prize tickets, and published tickets.

All networks take the same keyword arguments: those of `Settings`, and

Args:
    dtype: Dtype policy of the layers, such as `"mixed_bfloat16"`; None: float32. Required if Keras' global policy is
        not float32. Keras' global image data format has no effect: the networks are channels last.
    weights: None, or a ticket: the name of a preset, `"cifar10"` for the default one, a path, or an address such as
        `hf://owner/name`. Its arguments become the defaults (a file has them in its `provenance`, where
        examples/recipes/train.py writes them), and its MPT layers are frozen. To train it further, use
        `keras_mpt.load_ticket(name, trainable=True)`.

Returns:
    A functional `keras.Model` from images to logits `(batch, classes)`.

Raises:
    TypeError: An argument's name is unknown.
    ValueError: An argument is out of range or differs from the ticket's, or no ticket has the name `weights`.
    OSError: The file `weights` cannot be opened or downloaded.
    ImportError: `weights` is on the hub, and huggingface_hub is not installed (the extra `hub`).
    TicketError: The file is damaged, not a ticket, or a ticket of another network. It is a ValueError.

Examples:
    >>> model = keras_mpt.zoo.resnet18_mpt(sparsity=0.9, seed=0)
    >>> model = keras_mpt.zoo.conv4_mpt(weights="conv4_mpt32_s50")
"""

from keras_mpt.zoo.conv import conv2_mpt, conv4_mpt, conv6_mpt, conv8_mpt
from keras_mpt.zoo.presets import Preset, get_preset, list_presets
from keras_mpt.zoo.resnet import (
    resnet18_mpt,
    resnet20_mpt,
    resnet32_mpt,
    resnet34_mpt,
    resnet50_mpt,
    wide_resnet34_mpt,
    wide_resnet50_mpt,
)
from keras_mpt.zoo.settings import Settings
from keras_mpt.zoo.vgg import vgg19_mpt, vgg_small_mpt
from keras_mpt.zoo.whitened_conv6 import whitened_conv6_mpt, whitening_kernel

__all__ = [
    "Preset",
    "Settings",
    "conv2_mpt",
    "conv4_mpt",
    "conv6_mpt",
    "conv8_mpt",
    "get_preset",
    "list_presets",
    "resnet18_mpt",
    "resnet20_mpt",
    "resnet32_mpt",
    "resnet34_mpt",
    "resnet50_mpt",
    "vgg19_mpt",
    "vgg_small_mpt",
    "whitened_conv6_mpt",
    "whitening_kernel",
    "wide_resnet34_mpt",
    "wide_resnet50_mpt",
]
