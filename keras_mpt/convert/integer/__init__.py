"""The integer form of layers from signs to signs, and its files for TensorFlow Lite."""

from keras_mpt.convert.integer.layer import Flip, IntegerLayer, MaxPool, Reshape, thresholds

__all__ = ["Flip", "IntegerLayer", "MaxPool", "Reshape", "thresholds"]
