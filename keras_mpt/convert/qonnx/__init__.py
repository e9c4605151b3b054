"""Convert models to QONNX, which FINN and hls4ml compile for FPGAs."""

from keras_mpt.convert.qonnx.export import Qonnx, QonnxReport, rounded, to_qonnx

__all__ = ["Qonnx", "QonnxReport", "rounded", "to_qonnx"]
