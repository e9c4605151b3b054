"""Keras layers whose kernel is a chosen part of a frozen random one."""

from keras_mpt.layers.base import MPTLayer
from keras_mpt.layers.convolutional import (
    MPTConv,
    MPTConv1D,
    MPTConv2D,
    MPTConv2DTranspose,
    MPTConv3D,
    MPTDepthwiseConv2D,
)
from keras_mpt.layers.dense import MPTDense
from keras_mpt.layers.groups import share
from keras_mpt.layers.subnet import Subnet

_CLASSES = (MPTDense, MPTConv1D, MPTConv2D, MPTConv3D, MPTDepthwiseConv2D, MPTConv2DTranspose)
TWINS = {cls._plain_class(): cls for cls in _CLASSES}
"""The MPT layer of each of Keras' layers that has one: a dict from class to class."""

__all__ = [
    "MPTConv",
    "MPTConv1D",
    "MPTConv2D",
    "MPTConv2DTranspose",
    "MPTConv3D",
    "MPTDense",
    "MPTDepthwiseConv2D",
    "MPTLayer",
    "Subnet",
    "TWINS",
    "share",
]
