"""Mask rules: which weights stay, decided from the scores inside the compiled step.

A rule is a function with settings: `rule(scores, state, training)` returns a kernel's mask, how many ones it has, and
the changes of its state. The layer owns scores and state, as variables; `layer.set_sparsity` changes the number of kept
weights, which is one of them: nothing is compiled again.
"""

from keras_mpt.masks.global_top_k import GlobalTopK
from keras_mpt.masks.n_of_m import NofM
from keras_mpt.masks.partially_frozen import PartiallyFrozen
from keras_mpt.masks.restricted import Restricted
from keras_mpt.masks.rule import MaskRule
from keras_mpt.masks.top_k import TopK

__all__ = ["GlobalTopK", "MaskRule", "NofM", "PartiallyFrozen", "Restricted", "TopK"]
