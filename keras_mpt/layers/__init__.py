"""Keras layers whose kernels are chosen parts of frozen random ones."""

from keras_mpt.layers.attention import MPTGroupQueryAttention, MPTMultiHeadAttention
from keras_mpt.layers.base import MPTLayer
from keras_mpt.layers.composed_convolutions import (
    MPTConv1DTranspose,
    MPTConv2DTranspose,
    MPTConv3DTranspose,
    MPTSeparableConv1D,
    MPTSeparableConv2D,
)
from keras_mpt.layers.composite import MPTComposite
from keras_mpt.layers.convolutional import (
    MPTConv,
    MPTConv1D,
    MPTConv2D,
    MPTConv3D,
    MPTDepthwiseConv1D,
    MPTDepthwiseConv2D,
)
from keras_mpt.layers.dense import MPTDense
from keras_mpt.layers.einsum import MPTEinsumDense
from keras_mpt.layers.embedding import MPTEmbedding
from keras_mpt.layers.groups import share
from keras_mpt.layers.held import hold
from keras_mpt.layers.recurrent import MPTGRU, MPTLSTM, MPTGRUCell, MPTLSTMCell, MPTSimpleRNN, MPTSimpleRNNCell
from keras_mpt.layers.subnet import Subnet

_CLASSES = (MPTDense, MPTConv1D, MPTConv2D, MPTConv3D, MPTDepthwiseConv1D, MPTDepthwiseConv2D, MPTConv1DTranspose)
_CLASSES += (MPTConv2DTranspose, MPTConv3DTranspose, MPTSeparableConv1D, MPTSeparableConv2D, MPTEinsumDense)
_CLASSES += (MPTEmbedding, MPTMultiHeadAttention, MPTGroupQueryAttention, MPTSimpleRNN, MPTLSTM, MPTGRU)
_CLASSES += (MPTSimpleRNNCell, MPTLSTMCell, MPTGRUCell)
TWINS = {cls._plain_class(): cls for cls in _CLASSES}
"""The MPT layer of each layer that has one, a dict from class to class. `to_mpt` converts classes that you add."""

__all__ = [
    "MPTComposite",
    "MPTConv",
    "MPTConv1D",
    "MPTConv1DTranspose",
    "MPTConv2D",
    "MPTConv2DTranspose",
    "MPTConv3D",
    "MPTConv3DTranspose",
    "MPTDense",
    "MPTDepthwiseConv1D",
    "MPTDepthwiseConv2D",
    "MPTEinsumDense",
    "MPTEmbedding",
    "MPTGRU",
    "MPTGRUCell",
    "MPTGroupQueryAttention",
    "MPTLSTM",
    "MPTLSTMCell",
    "MPTLayer",
    "MPTMultiHeadAttention",
    "MPTSeparableConv1D",
    "MPTSeparableConv2D",
    "MPTSimpleRNN",
    "MPTSimpleRNNCell",
    "Subnet",
    "TWINS",
    "hold",
    "share",
]
