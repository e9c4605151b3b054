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

__all__ = [
    "MPTConv",
    "MPTConv1D",
    "MPTConv2D",
    "MPTConv2DTranspose",
    "MPTConv3D",
    "MPTDense",
    "MPTDepthwiseConv2D",
    "MPTLayer",
]
