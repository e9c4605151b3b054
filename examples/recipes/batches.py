"""Batches that depend on the epoch, and who tells them which epoch it is."""

import keras


class EpochBatches(keras.utils.PyDataset):
    """Batches of an epoch; `begin` chooses which."""

    def begin(self, epoch):
        """Be the batches of this epoch from now on."""
        raise NotImplementedError

    def for_fit(self):
        """Return what `fit` is called with."""
        return self


class BeginEpochs(keras.callbacks.Callback):
    """Tell batches which epoch begins.

    `on_epoch_end` of a PyDataset cannot: on PyTorch, Keras 3.15 also calls it after the one batch that it takes before
    the first epoch to build a model, unless the model was trained before.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.begin(epoch)
