"""Wrote release_*.keras and release.npz beside it, the models that tests/test_release_files.py loads.

They were written by the code of version 0.1 before mask rules became functions; they are not to be written again.
"""

import pathlib

import keras
import numpy as np

from keras_mpt import layers, masks, models

HERE = pathlib.Path(__file__).parent
X = np.random.default_rng(2).normal(size=(8, 6, 6, 2)).astype(np.float32)
Y = np.arange(8) % 3


def model(conv, dense, logits, **settings):
    """A convolution and two dense layers with the given arguments each, trained for three steps."""
    inputs = keras.Input((6, 6, 2))
    x = layers.MPTConv2D(4, 3, activation="relu", seed=1, name="conv", **conv, **settings)(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = layers.MPTDense(6, activation="tanh", use_bias=True, seed=2, name="hidden", **dense, **settings)(
        keras.layers.Flatten(name="flatten")(x)
    )
    made = keras.Model(inputs, layers.MPTDense(3, seed=3, name="logits", **logits, **settings)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss, jit_compile=False)
    for _ in range(3):
        made.train_on_batch(X, Y)
    return made


def release_models():
    """One model for each mask rule, by the rule's name."""
    shared, restricted = ({"mask": rule} for rule in (masks.GlobalTopK(0.7), masks.Restricted(0.6)))
    binary = {"mask": masks.TopK(0.8, selector="sort"), "input_quantizer": "approx_sign"}
    return {
        "top_k": model({"sparsity": 0.5, "padding": "same", "pad_values": 1.0}, binary, {"kernel_quantizer": None}),
        "global": model(shared, shared, shared),
        "restricted": model(restricted, restricted, {"sparsity": 0.25}),
    }


def main():
    keras.utils.set_random_seed(1)
    arrays = {"inputs": X}
    for name, made in release_models().items():
        made.save(HERE / f"release_{name}.keras")
        arrays[f"{name}/outputs"] = made(X)
        for layer in models.mpt_layers(made):
            for what in ("subnet_mask", "kernel", "frozen_kernel", "scores"):
                arrays[f"{name}/{layer.name}/{what}"] = getattr(layer, what)
    arrays = {name: keras.ops.convert_to_numpy(array) for name, array in arrays.items()}
    np.savez_compressed(HERE / "release.npz", **arrays)


if __name__ == "__main__":
    main()
