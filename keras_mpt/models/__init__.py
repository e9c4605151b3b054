"""Tools for whole models: convert them to MPT layers, find these, strip them to plain Keras, summarize them."""

from keras_mpt.models.batch_norm import recalibrate_batch_norm
from keras_mpt.models.from_keras import to_mpt
from keras_mpt.models.functional import to_functional
from keras_mpt.models.jackpots import to_jackpot
from keras_mpt.models.paths import mpt_layers, mpt_layers_by_path
from keras_mpt.models.plain import dense_twin, strip
from keras_mpt.models.sparsities import magnitude_sparsity, uniform_sparsity
from keras_mpt.models.summaries import Summary, summary

__all__ = [
    "Summary",
    "dense_twin",
    "magnitude_sparsity",
    "mpt_layers",
    "mpt_layers_by_path",
    "recalibrate_batch_norm",
    "strip",
    "summary",
    "to_functional",
    "to_jackpot",
    "to_mpt",
    "uniform_sparsity",
]
