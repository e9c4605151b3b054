"""Convert to files for phones (LiteRT, larq-compute-engine) and FPGAs (QONNX), and from and to PyTorch."""

from keras_mpt.convert.annotations import metadata
from keras_mpt.convert.engines import latency, run
from keras_mpt.convert.lce import to_lce
from keras_mpt.convert.pytorch import CheckpointError, from_pytorch, to_pytorch_state_dict
from keras_mpt.convert.qonnx import QonnxReport, rounded, to_qonnx
from keras_mpt.convert.report import ConversionError, Report
from keras_mpt.convert.tflite import to_tflite
from keras_mpt.convert.tflm import to_tflm

__all__ = [
    "CheckpointError",
    "ConversionError",
    "QonnxReport",
    "Report",
    "from_pytorch",
    "latency",
    "metadata",
    "rounded",
    "run",
    "to_lce",
    "to_pytorch_state_dict",
    "to_qonnx",
    "to_tflite",
    "to_tflm",
]
