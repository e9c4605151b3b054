"""Make version1.mpt, a ticket of format version 1 that every later version must read, and what it holds.

    KERAS_BACKEND=tensorflow PYTHONPATH=. python tests/data/make_version1.py

It was made once and stays as it is: tests/test_ticket_version1.py compares what is loaded from it, on every backend,
with the arrays beside it, which were computed by the model itself and not by the ticket's reader.
"""

import pathlib

import keras
import numpy as np

from keras_mpt import initializers, layers, save_ticket
from keras_mpt.models import mpt_layers

HERE = pathlib.Path(__file__).resolve().parent


def model():
    """All sources of weights but that of another network, nested and shared layers, other layers beside."""
    inputs = keras.Input((8, 8, 2), name="images")
    x = layers.MPTConv2D(4, 3, padding="same", sparsity=0.5, seed=1, activation="relu", name="seeded")(inputs)
    nested = [
        layers.MPTDepthwiseConv2D(3, depth_multiplier=2, sparsity=0.2, seed=2, use_bias=True, name="recycled"),
        keras.layers.BatchNormalization(name="norm"),
    ]
    x = keras.Sequential(nested, name="block")(x)
    x = layers.MPTConv2D(
        *(6, 2),
        strides=2,
        sparsity=0.9,
        input_quantizer="approx_sign",
        kernel_initializer=initializers.KaimingNormal(scale_fan=True),
        seed=3,
        name="binary",
    )(x)
    x = keras.layers.Flatten(name="flatten")(x)
    normal = initializers.KaimingUniform(a=0.0)
    x = layers.MPTDense(6, kernel_quantizer=None, kernel_initializer=normal, seed=2**64 - 1, name="edge_popup")(x)
    shared = layers.MPTDense(6, activation="tanh", kernel_initializer="glorot_normal", seed=5, name="foreign")
    x = keras.layers.Dropout(0.5, seed=1, name="dropout")(shared(shared(x)))
    zeros = layers.MPTDense(5, sparsity=0.0, seed=6, name="with_zeros")(x)
    return keras.Model(inputs, [zeros, keras.layers.Dense(3, name="plain")(x)], name="version1")


def changed(model):
    """Give a model weights that no initializer gives."""
    rng = np.random.default_rng(1)
    for layer in mpt_layers(model):
        layer.scores.assign(rng.normal(size=layer.scores.shape))
        weights = keras.ops.convert_to_numpy(layer.frozen_kernel)
        if layer.name == "recycled":
            layer.frozen_kernel.assign(weights * np.where(rng.random(weights.shape) < 0.1, -1, 1))
            layer.bias.assign(rng.normal(size=layer.bias.shape))
        if layer.name == "edge_popup":
            layer.frozen_kernel.assign(np.where(rng.random(weights.shape) < 0.1, weights + 0.5, weights))
        if layer.name == "with_zeros":
            layer.frozen_kernel.assign(weights * (rng.random(weights.shape) < 0.9))
    norm = model.get_layer("block").get_layer("norm")
    norm.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in norm.get_weights()])
    return model


def main():
    keras.utils.set_random_seed(1)
    made = changed(model())
    inputs = np.random.default_rng(2).normal(size=(4, 8, 8, 2)).astype(np.float32)
    arrays = {f"output{i}": y for i, y in enumerate(made(inputs))}
    for layer in mpt_layers(made):
        arrays |= {f"kernel/{layer.name}": layer.kernel, f"mask/{layer.name}": layer.subnet_mask}
    arrays |= {f"scores/{layer.name}": layer.scores for layer in mpt_layers(made)}
    arrays = {name: keras.ops.convert_to_numpy(array) for name, array in arrays.items()}
    np.savez_compressed(HERE / "version1.npz", inputs=inputs, **arrays)
    provenance = {"made by": "tests/data/make_version1.py"}
    print(save_ticket(made, HERE / "version1.mpt", provenance=provenance))
    print(save_ticket(made, HERE / "version1_scores.mpt", provenance=provenance, scores=True, dtype="float32"))


if __name__ == "__main__":
    main()
