"""Architectures of the papers as multi-prize tickets, and published tickets."""

from keras_mpt.zoo.conv import conv2_mpt, conv4_mpt, conv6_mpt, conv8_mpt
from keras_mpt.zoo.presets import Preset, get_preset, list_presets
from keras_mpt.zoo.resnet import resnet18_mpt, resnet34_mpt, resnet50_mpt, wide_resnet34_mpt, wide_resnet50_mpt
from keras_mpt.zoo.resnet_cifar import resnet20_mpt, resnet32_mpt
from keras_mpt.zoo.vgg import vgg19_mpt, vgg_small_mpt

__all__ = [
    "Preset",
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
    "wide_resnet34_mpt",
    "wide_resnet50_mpt",
]
