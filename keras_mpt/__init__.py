"""Neural networks found by choosing weights instead of training them: multi-prize tickets for Keras."""

from keras_mpt import callbacks, initializers, layers, masks, models, ops, quantizers, zoo
from keras_mpt.models import summary

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "callbacks",
    "initializers",
    "layers",
    "masks",
    "models",
    "ops",
    "quantizers",
    "summary",
    "zoo",
]
