"""Compare masks, and the weights that they keep; plots need matplotlib (extra `analysis`)."""

from keras_mpt.analysis.comparison import Comparison, Overlap, overlap, overlap_matrix
from keras_mpt.analysis.criteria import criteria_masks
from keras_mpt.analysis.patterns import Patterns, n_of_m
from keras_mpt.analysis.plots import plot_churn, plot_density, plot_overlap
from keras_mpt.analysis.sources import masks
from keras_mpt.analysis.weights import Norms, score_correlation, weight_norms

__all__ = [
    "Comparison",
    "Norms",
    "Overlap",
    "Patterns",
    "criteria_masks",
    "masks",
    "n_of_m",
    "overlap",
    "overlap_matrix",
    "plot_churn",
    "plot_density",
    "plot_overlap",
    "score_correlation",
    "weight_norms",
]
