"""Mask rules: which weights stay, decided from the scores inside the compiled step.

A rule is called as `rule(layer, training)` and returns the layer's mask and how many ones it has. It may be shared by
layers; what it must remember from step to step lives in variables of the layers, which its `add_weights` creates and
calling it reads. `set_sparsity` changes the number of kept weights, which is a variable: nothing is compiled again.
"""

from keras_mpt.masks.global_top_k import GlobalTopK, share
from keras_mpt.masks.restricted import Restricted
from keras_mpt.masks.rule import MaskRule
from keras_mpt.masks.top_k import TopK

__all__ = ["GlobalTopK", "MaskRule", "Restricted", "TopK", "share"]
