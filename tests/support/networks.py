"""Small networks that several tests train, strip and save, and a problem for them."""

import keras
import numpy as np

from keras_mpt.layers import MPTConv2D, MPTDense

X = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype(np.float32)
Y = (X[:, :3].mean(axis=(1, 2, 3)) > X[:, 3:].mean(axis=(1, 2, 3))).astype(np.int32)


def nested_and_shared():
    """A functional model with a nested Sequential one and a layer that is called twice."""
    nested = keras.Sequential([MPTConv2D(4, 3, strides=2, seed=2), keras.layers.BatchNormalization()], name="nested")
    shared = MPTDense(16, activation="relu", seed=3)
    inputs = keras.Input(X.shape[1:])
    x = MPTConv2D(4, 3, activation="relu", padding="same", seed=1)(inputs)
    x = keras.layers.Flatten()(nested(x))
    x = shared(shared(x))
    return keras.Model(inputs, MPTDense(2, seed=4)(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = MPTConv2D(4, 3, activation="relu", use_bias=True, seed=1)
        self.flatten = keras.layers.Flatten()
        self.dense = MPTDense(2, seed=2)

    def call(self, inputs):
        return self.dense(self.flatten(self.conv(inputs)))


def binary():
    """MPT-1/1."""
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            MPTConv2D(8, 3, seed=1),
            keras.layers.BatchNormalization(center=False, scale=False),
            MPTConv2D(8, 3, padding="same", pad_values=1.0, input_quantizer="approx_sign", seed=2),
            keras.layers.BatchNormalization(center=False, scale=False),
            keras.layers.Flatten(),
            MPTDense(2, input_quantizer="approx_sign", seed=3),
        ]
    )
