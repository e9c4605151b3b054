"""Conversion to files that run on phones: larq-compute-engine and TensorFlow Lite."""

from keras_mpt.convert.latency import latency
from keras_mpt.convert.lce import to_lce
from keras_mpt.convert.report import ConversionError, Report
from keras_mpt.convert.tflite import to_tflite

__all__ = ["ConversionError", "Report", "latency", "to_lce", "to_tflite"]
