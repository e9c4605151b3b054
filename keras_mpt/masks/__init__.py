"""Mask rules: functions that compute masks from scores inside the compiled step.

A rule is a function with settings: `rule(scores, state, training)` returns a kernel's mask, the number of its ones, and
the changes of its state. The layer owns scores and state as variables. `layer.set_sparsity` assigns the number of
kept weights, one of these variables: nothing is compiled again.
"""

from keras_mpt.masks.global_top_k import GlobalTopK
from keras_mpt.masks.n_of_m import NofM
from keras_mpt.masks.partially_frozen import PartiallyFrozen
from keras_mpt.masks.restricted import Restricted
from keras_mpt.masks.rule import MaskRule
from keras_mpt.masks.top_k import TopK

__all__ = ["GlobalTopK", "MaskRule", "NofM", "PartiallyFrozen", "Restricted", "TopK"]
