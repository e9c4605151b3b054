"""Architectures of the papers, as multi-prize tickets."""

from keras_mpt.zoo.conv import conv2_mpt, conv4_mpt, conv6_mpt, conv8_mpt

__all__ = ["conv2_mpt", "conv4_mpt", "conv6_mpt", "conv8_mpt"]
