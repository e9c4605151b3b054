"""Neural networks found by choosing weights instead of training them: multi-prize tickets for Keras."""

from keras_mpt import callbacks, initializers, layers, masks, models, ops, quantizers, zoo

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
    "zoo",
]
