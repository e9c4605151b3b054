"""A tiny vision transformer as a ticket, beside the same network with trained weights.

    python examples/vit.py

Cuts scikit-learn's digits into 16 patches of 2x2 pixels. `to_mpt` makes MPT layers of all that has a matrix but the
positions: patches, attention, multilayer perceptrons, classifier. Both networks find about 97% of the test images, more
or less from run to run; the ticket's file has 23.6 KB, the dense network as float32 276 KB.
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_mpt

EPOCHS = 40
WIDTH, HEADS, BLOCKS = 64, 4, 2


@keras.saving.register_keras_serializable(package="vit")
class Positions(layers.Layer):
    """Adds a trained vector to each patch."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02))

    def call(self, x):
        return x + self.table


def network():
    """Return a vision transformer of plain Keras layers."""
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(WIDTH, 2, strides=2, name="patches")(image)
    x = Positions(name="positions")(layers.Reshape((16, WIDTH))(x))
    for block in range(BLOCKS):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention{block}")(y, y)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(2 * WIDTH, activation="gelu", name=f"expand{block}")(y)
        x = x + layers.Dense(WIDTH, name=f"reduce{block}")(y)
    x = ops.mean(layers.LayerNormalization()(x), axis=1)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="vit")


def train(model, learning_rate, data):
    """Train a model; return its test accuracy."""
    images, test_images, labels, test_labels = data
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, EPOCHS * -(-len(images) // 64), warmup_target=learning_rate, warmup_steps=100
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(images, labels, 64, EPOCHS, verbose=2)
    return model.evaluate(test_images, test_labels, verbose=0)[1]


def main():
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    data = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)

    dense = network()
    ticket = keras_mpt.models.to_mpt(dense, sparsity=0.5, skip=["positions"], seed=0)
    accuracy = {"dense": train(dense, 0.003, data), "ticket": train(ticket, 0.03, data)}

    with tempfile.TemporaryDirectory() as folder:
        file = keras_mpt.save_ticket(ticket, pathlib.Path(folder) / "vit.mpt", custom_objects=[Positions])
        loaded = keras_mpt.load_ticket(file.path, custom_objects=[Positions])
    expected = ticket.predict(data[1], verbose=0)
    np.testing.assert_allclose(loaded.predict(data[1], verbose=0), expected, rtol=1e-4, atol=1e-4)
    print(f"\n{'':8}test accuracy")
    for name, value in accuracy.items():
        print(f"{name:8}{value:.1%}")
    floats = 4 * dense.count_params()
    print(f"The ticket's file: {file.size:,} bytes; the dense network as float32: {floats:,} bytes.")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
