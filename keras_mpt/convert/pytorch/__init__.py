"""PyTorch checkpoints of Biprop, Edge-Popup and Lottery Jackpots to Keras models, and back."""

from keras_mpt.convert.pytorch.exporting import to_pytorch_state_dict
from keras_mpt.convert.pytorch.importing import from_pytorch
from keras_mpt.convert.pytorch.reading import CheckpointError

__all__ = ["CheckpointError", "from_pytorch", "to_pytorch_state_dict"]
